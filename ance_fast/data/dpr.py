"""DPR folders: Wikipedia in passages of a hundred words, and questions with the passages that answer them.

    psgs_w100.tsv                 id <tab> text <tab> title, below that header; fields may be quoted
    nq-train.json, ...            an array of {"question", "answers", "positive_ctxs", "negative_ctxs",
                                  "hard_negative_ctxs"}, each context {"title", "text", "passage_id" or "psg_id", ...}
    nq-test.qa.csv, ...           question <tab> Python list of answers (`open_qa`)

Each plain, `.gz` or `.zst`, under DPR's names (`biencoder-nq-train.json`, `nq-test.qa.csv`) or microsoft/ANCE's
(`nq-train.json`, `nq-test.csv`). What is encoded of a passage is `title [SEP] text`, which BERT's tokenizer turns into
the pair of segments that DPR encodes; the separator is part of the title here, so that a text stays what answers are
looked for in. Questions lose a question mark at their end. A question without an id is called by its number in the
file; `DPR_data.py` counts only those that have a positive and a hard negative. Source: github.com/facebookresearch/DPR.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ance_fast.data.dataset import Corpus, Dataset
from ance_fast.data.input_files import find_file, has_file
from ance_fast.data.json_array import read_json_objects
from ance_fast.data.open_qa import Question, csv_fields, question_of, read_questions, refuse_again, without_mark
from ance_fast.data.qrels import Judgement, Qrels
from ance_fast.data.records import Document
from ance_fast.data.text_lines import read_lines, warn_counted
from ance_fast.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SETS = ("nq", "trivia")
PASSAGES = ("psgs_w100.tsv", "wiki.tsv")
# TriviaQA's files call it by the second name.
_PASSAGE_IDS = ("passage_id", "psg_id")


class DprExample(NamedTuple):
    """One question of a training file with the ids of its passages, each in the file's order.

    negatives: `hard_negative_ctxs`, or `negative_ctxs` where there are none.
    """

    question: Question
    positives: list[str]
    negatives: list[str]


def read_dpr(
    path: str | Path,
    split: str | None = "train",
    *,
    questions: str | None = None,
    separator: str = "[SEP]",
    positives: str = "first",
    strip_question_mark: bool = True,
) -> Dataset:
    """Read a DPR folder. The corpus streams; questions and judgements of `split` are held.

    split: train, dev or test; None: the corpus alone. The split's JSON gives judgements and negatives; where there is
    only `.qa.csv`, the questions come without. questions: "nq" or "trivia"; None takes every set that is there, and if
    there are several, ids are "nq-0", "trivia-0". separator: between title and text; `[SEP][SEP]` for SEED-Encoder,
    empty for none. positives: "first" judges the first positive context of a question alone, as DPR and microsoft/ANCE
    train; "all" every one. Questions without a positive context are left out of a JSON split, counted in a warning.

    Raises `DataError`: a missing file (the message lists what was looked for), malformed lines, an id that comes twice,
    a split in which no question has a positive context; `ConfigError`.
    """
    if positives not in ("first", "all"):
        raise ConfigError(f'positives must be "first" or "all", not {positives!r}')
    if questions not in (None, *SETS):
        raise ConfigError(f"questions must be {' or '.join(SETS)}, not {questions!r}")
    folder = Path(path)
    corpus = Corpus(find_file(folder, *PASSAGES), lambda file: passage_lines(file, separator), folder.name)
    if split is None:
        return Dataset(folder.name, corpus, {}, Qrels())
    plain = without_mark if strip_question_mark else str
    files = _split_files(folder, split, questions)
    found = _Found({}, Qrels(), {}, {})
    for name, file in files.items():
        found = _added(found, file, f"{name}-" if len(files) > 1 else "", plain, None if positives == "all" else 1)
    if not found.queries:
        raise DataError(f"{', '.join(map(str, files.values()))}: no question, or none with a positive passage")
    return Dataset(
        folder.name, corpus, found.queries, found.qrels, split, found.negatives or None, answers=found.answers
    )


def passage_lines(path: Path, separator: str = "[SEP]") -> Iterator[tuple[int, Document]]:
    """(Line number, passage) of `psgs_w100.tsv`; `separator` ends the titles. Raises `DataError` with file and line."""
    for line, text in read_lines(path):
        if not text.strip():
            continue
        where = f"{path}:{line}"
        fields = csv_fields(text, where)
        if fields[0] == "id":
            continue
        if len(fields) != 3:
            raise DataError(f"{where}: expected `id <tab> text <tab> title`, got {len(fields)} columns")
        if not fields[0]:
            raise DataError(f"{where}: empty id")
        yield line, Document(fields[0], fields[1], joined_title(fields[2], separator))


def joined_title(title: str, separator: str) -> str:
    """A title with the separator at its end, so that a blank and the text may follow."""
    return f"{title} {separator}".strip() if separator else title


def read_dpr_examples(path: str | Path) -> Iterator[DprExample]:
    """Stream the questions of `nq-train.json` or its like, also those without contexts.

    Raises `DataError` with file and line: no question, a context without `passage_id` or `psg_id`.
    """
    for number, (line, value) in enumerate(read_json_objects(path)):
        where = f"{path}:{line}"
        hard = _contexts(value, "hard_negative_ctxs", where)
        yield DprExample(
            question_of(value, where, line, number),
            _contexts(value, "positive_ctxs", where),
            hard or _contexts(value, "negative_ctxs", where),
        )


class _Found(NamedTuple):
    queries: dict[str, str]
    qrels: Qrels
    negatives: dict[str, list[str]]
    answers: dict[str, list[str]]


def _added(found: _Found, file: Path, prefix: str, plain: Callable[[str], str], limit: int | None) -> _Found:
    """`found` and what the file holds, ids after `prefix`."""
    if not file.name.partition(".")[2].startswith("json"):
        for question in read_questions(file):
            found.queries[prefix + question.id] = plain(question.text)
            found.answers[prefix + question.id] = question.answers
        return found

    def judgements(path: Path) -> Iterator[Judgement]:
        for example in read_dpr_examples(path):
            for passage in dict.fromkeys(example.positives[:limit]):
                yield Judgement(example.question.line, prefix + example.question.id, passage, 1)

    # Of several files, messages can name the lines of none.
    qrels = found.qrels if prefix else Qrels(path=file, reread=judgements)
    without, first_without = 0, 0
    first: dict[str, int] = {}
    for example in read_dpr_examples(file):
        refuse_again(first, example.question, file)
        if not example.positives:
            without += 1
            first_without = first_without or example.question.line
            continue
        identifier = prefix + example.question.id
        found.queries[identifier] = plain(example.question.text)
        found.answers[identifier] = example.question.answers
        qrels[identifier] = dict.fromkeys(example.positives[:limit], 1)
        negatives = [one for one in dict.fromkeys(example.negatives) if one not in example.positives]
        if negatives:
            found.negatives[identifier] = negatives
    warn_counted(logger, without, "questions have no positive passage and are left out", f"{file}:{first_without}")
    return found._replace(qrels=qrels)


def _split_files(folder: Path, split: str, questions: str | None) -> dict[str, Path]:
    wanted = SETS if questions is None else (questions,)
    names = {
        name: (
            f"biencoder-{name}-{split}.json",
            f"{name}-{split}.json",
            f"{name}-{split}.jsonl",
            f"{name}-{split}.qa.csv",
            f"{name}-{split}.csv",
        )
        for name in wanted
    }
    found = {name: find_file(folder, *files) for name, files in names.items() if has_file(folder, *files)}
    if not found:
        looked_for = ", ".join(file for files in names.values() for file in files)
        raise DataError(f"{folder}: no split {split!r}: none of {looked_for} (plain, .gz or .zst) found there")
    return found


def _contexts(value: dict[str, Any], key: str, where: str) -> list[str]:
    contexts = value.get(key) or []
    if not isinstance(contexts, list):
        raise DataError(f"{where}: `{key}` must be a list, not {type(contexts).__name__}")
    found = []
    for number, context in enumerate(contexts):
        names = [name for name in _PASSAGE_IDS if name in context] if isinstance(context, dict) else []
        given = context[names[0]] if names else None
        if isinstance(given, bool) or not isinstance(given, int | str) or given == "":
            raise DataError(f"{where}: {key}[{number}] has no `passage_id` or `psg_id` that is an id")
        found.append(str(given))
    return found
