"""Whose answers a run leaves passages out by: those of a file, or those that the data set brings."""

from __future__ import annotations

from ance_fast.errors import DataError
from ance_fast.evaluation.answer_match import words_of
from ance_fast.training.answers import AnswerMatch, answer_match_of
from ance_fast.training.examples import Examples

DATASET = "dataset"


def chosen_answers(setting: str | None, examples: Examples) -> AnswerMatch | None:
    """`setting` is a file (`answer_match_of`), "dataset" for what `dpr:` and `kilt:` data bring, or None for none.

    Raises `DataError` where a data set brings none, and as `answer_match_of`.
    """
    if setting is None:
        return None
    if setting != DATASET:
        return answer_match_of(setting, examples)
    # One without a word would be in every passage.
    given = {row: [one for one in some if words_of(one)] for row, some in (examples.answers or {}).items()}
    given = {row: some for row, some in given.items() if some}
    if not given:
        raise DataError('answers="dataset": the data set brings no answers; name a file of them')
    return AnswerMatch(examples.corpus, given)
