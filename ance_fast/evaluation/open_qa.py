"""Retrieval for question answering: how high in a run stands the first passage that holds an answer.

No passage is judged; one that holds an answer's words is a hit (`answer_match`). Top-k, the share of questions with a
hit among the first k, is the measure of DPR (Karpukhin et al., EMNLP 2020) and of ANCE's table 3.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from ance_fast.data.dataset import Corpus
from ance_fast.data.dpr import passage_lines
from ance_fast.data.input_files import plain_name
from ance_fast.data.open_qa import read_questions
from ance_fast.data.records import Document
from ance_fast.data.sources import open_passages
from ance_fast.data.text_lines import read_json_lines, read_lines, warn_counted
from ance_fast.data.token_store import TokenStore
from ance_fast.errors import ConfigError, DataError
from ance_fast.evaluation.answer_match import MATCHES, AnswerWords, has_answer
from ance_fast.evaluation.metrics import Evaluation
from ance_fast.evaluation.runs import RunSource, load_run, ranking

logger = logging.getLogger(__name__)

DEFAULT_MEASURES = ("top-1", "top-5", "top-20", "top-100", "MRR@20", "P@20")

_MEASURE = re.compile(r"(top-|MRR@|P@|SEED-MRR@|SEED-P@)([1-9]\d*)")
# Passages that are cut into words at once.
_BLOCK = 1 << 15


def evaluate_answers(
    run: RunSource,
    answers: Mapping[str, Sequence[str]] | str | os.PathLike[str],
    passages: Mapping[str, str] | TokenStore | Iterable[Document] | str | os.PathLike[str],
    measures: Sequence[str] = DEFAULT_MEASURES,
    *,
    match: str = "string",
    threads: int | None = None,
) -> Evaluation:
    """Measure a run by the answers that its passages hold.

    run: question id -> {passage id: score}, or the path of a run. Equal scores are ranked as in `evaluate`.
    answers: question id -> answers, or a file (`read_answer_lists`). The means are over all of these questions; one
        that the run lacks counts 0.
    passages: passage id -> text; documents, of which those of the run are taken as they stream by; a token store with
        texts; or the name of a data set or file of passages ("dpr:DIR", "psgs_w100.tsv"). Titles are not looked at.
    measures: "top-k", "MRR@k" (of the first hit), "P@k" (hits among the first k, over k), for any k. What SEED-Encoder
        prints under the last two names is "SEED-MRR@k", not cut at k, and "SEED-P@k", which counts one hit past k; both
        look at the first 100 passages.
    match: "string", "regex" or "kilt" (`has_answer`); the first is computed in C++ by `threads`, one a core by default.

    Warnings count questions without answers or with one that has no word (DPR finds it in every passage), questions of
    the run that are not among `answers`, and passages of the run that there are no texts of, which hold nothing.

    Raises `ConfigError`: another measure or match. `DataError`: a malformed file, NaN, no question of the run has
    answers, none of its passages is among `passages`.
    """
    if match not in MATCHES:
        raise ConfigError(f"match={match!r}: choose one of {', '.join(MATCHES)}")
    values = {name: _measure(name) for name in measures}
    if not values:
        raise ConfigError(f"no measure asked for; for example {', '.join(DEFAULT_MEASURES)}")
    depth = max(100 if name.startswith("SEED-") else int(name.rpartition("-")[2].rpartition("@")[2]) for name in values)
    given = answers if isinstance(answers, Mapping) else read_answers(answers)
    ranked = load_run(run)
    order = {query: ranking(query, ranked[query])[:depth] for query in given if query in ranked}
    _warn_of_questions(given, ranked, order)
    hits = _hits(order, given, passages, match, threads)
    per_query = {
        name: {query: value(hits[query]) if query in hits else 0.0 for query in given} for name, value in values.items()
    }
    mean = {name: math.fsum(one.values()) / len(given) for name, one in per_query.items()}
    return Evaluation(mean, per_query, tuple(query for query in given if query not in order))


def read_answers(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Question id -> answers, of every question of a file (`read_answer_lists`). Raises `DataError`, also for none."""
    found = {question: answers for _, question, answers in read_answer_lists(path)}
    if not found:
        raise DataError(f"{path}:1: no questions")
    return found


def read_answer_lists(path: str | os.PathLike[str]) -> Iterator[tuple[int, str, list[str]]]:
    """(Line, question id, answers) of a file of JSON Lines {"query": id, "answers": [...]}, or of any that
    `ance_fast.data.read_questions` reads: DPR's `nq-test.qa.csv` and `nq-train.json`, KILT's, ....

    A question without an id has its number in the file, from "0". Raises `DataError` with file and line: another form,
    a question that comes twice.
    """
    path = Path(path)
    if not _by_query_id(path):
        for question in read_questions(path):
            yield question.line, question.id, question.answers
        return
    first: dict[str, int] = {}
    for line, value in read_json_lines(path):
        query, answers = value.get("query"), value.get("answers")
        if not isinstance(query, str) or not isinstance(answers, list) or any(type(one) is not str for one in answers):
            raise DataError(f'{path}:{line}: expected {{"query": id, "answers": [strings]}}')
        if first.setdefault(query, line) != line:
            raise DataError(f"{path}:{line}: query {query!r} again, first at {path}:{first[query]}")
        yield line, query, answers


def _by_query_id(path: Path) -> bool:
    """Whether a file's "query" is an id: where its first object has no other thing that could be one, or the text."""
    if not plain_name(path).endswith(".jsonl"):
        return False
    first = next((value for _, value in read_json_lines(path)), None)
    return first is None or ("query" in first and not {"id", "query_id", "question", "input"} & first.keys())


def _measure(name: str) -> Callable[[np.ndarray], float]:
    """The value of a measure for a question, from the ranks (from 1) of its hits, ascending."""
    found = _MEASURE.fullmatch(name)
    if found is None:
        raise ConfigError(f"unknown measure {name!r}; there are top-k, MRR@k and P@k, such as top-20")
    kind, cut = found[1], int(found[2])
    if kind == "top-":
        return lambda ranks: float(len(ranks) > 0 and ranks[0] <= cut)
    if kind == "MRR@":
        return lambda ranks: 1.0 / int(ranks[0]) if len(ranks) and ranks[0] <= cut else 0.0
    if kind == "P@":
        return lambda ranks: int((ranks <= cut).sum()) / cut
    # SEED-Encoder's `validate`, over 100 passages.
    if kind == "SEED-MRR@":
        return lambda ranks: 1.0 / int(ranks[0]) if len(ranks) and ranks[0] <= 100 else 0.0
    return lambda ranks: (int((ranks <= cut).sum()) + int(((ranks > cut) & (ranks <= 100)).any())) / cut


def _warn_of_questions(
    answers: Mapping[str, Sequence[str]], run: Mapping[str, object], order: Mapping[str, object]
) -> None:
    if not order:
        raise DataError(
            f"the run ({len(run)} questions, first {next(iter(run), None)!r}) and the answers ({len(answers)}, first "
            f"{next(iter(answers), None)!r}) have no question in common: wrong file or id format?"
        )
    missing = [query for query in answers if query not in order]
    warn_counted(logger, len(missing), "questions are not in the run and count 0", repr((*missing, "")[0]))
    unknown = [query for query in run if query not in answers]
    what = "questions of the run have no answers given and are left out"
    warn_counted(logger, len(unknown), what, repr((*unknown, "")[0]))
    empty = [query for query, some in answers.items() if not some]
    warn_counted(logger, len(empty), "questions have an empty list of answers and count 0", repr((*empty, "")[0]))


def _hits(
    order: Mapping[str, Sequence[str]],
    answers: Mapping[str, Sequence[str]],
    passages: Mapping[str, str] | TokenStore | Iterable[Document] | str | os.PathLike[str],
    match: str,
    threads: int | None,
) -> dict[str, np.ndarray]:
    """Question id -> ranks, from 1, of the passages that hold an answer, ascending."""
    questions = list(order)
    number_of: dict[str, int] = {}
    pairs = [
        (query, rank, number_of.setdefault(passage, len(number_of)))
        for query, name in enumerate(questions)
        for rank, passage in enumerate(order[name], 1)
    ]
    query, rank, number = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
    # The pairs of a passage lie together, so that a block of passages finds its own.
    by_passage = np.argsort(number, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=len(number_of)))])
    words = AnswerWords([answers[name] for name in questions], threads=threads) if match == "string" else None
    if match == "regex":
        wordless = []
    elif words is not None:
        wordless = [questions[query] for query in words.wordless().tolist()]
    else:
        wordless = [name for name in questions if has_answer(answers[name], "", match)]
    without_word = "questions have an answer without a word, which is in every text"
    warn_counted(logger, len(wordless), without_word, repr((*wordless, "")[0]))
    held = np.zeros(len(pairs), dtype=np.bool_)
    seen = np.zeros(len(number_of), dtype=np.bool_)
    for block in _blocks(_texts(passages, number_of)):
        numbers = np.array([one for one, _ in block], dtype=np.int64)
        seen[numbers] = True
        sizes = starts[numbers + 1] - starts[numbers]
        rows = np.repeat(np.arange(len(block)), sizes)
        places = by_passage[np.arange(len(rows)) + np.repeat(starts[numbers] - (np.cumsum(sizes) - sizes), sizes)]
        if words is not None:
            held[places] = words.match(query[places], words.cut(text for _, text in block), rows)
        else:
            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                held[place] = has_answer(answers[questions[query[place]]], block[row][1], match)
    without = len(seen) - int(seen.sum())
    if without:
        example = next(passage for passage, one in number_of.items() if not seen[one])
        if without == len(seen):
            raise DataError(f"none of the run's {without} passages, such as {example!r}, is among the passages given")
        warn_counted(logger, without, "passages of the run have no text given and hold nothing", repr(example))
    # Pairs stand in the order of questions and ranks.
    ends = np.cumsum(np.bincount(query[held], minlength=len(questions)))
    return dict(zip(questions, np.split(rank[held], ends[:-1]), strict=True))


def _texts(
    passages: Mapping[str, str] | TokenStore | Iterable[Document] | str | os.PathLike[str], wanted: Mapping[str, int]
) -> Iterator[tuple[int, str]]:
    """(Number, text) of the wanted passages that there are, each once."""
    if isinstance(passages, str | os.PathLike):
        passages = open_texts(str(passages))
    if isinstance(passages, TokenStore):
        corpus = passages.corpus
        rows = corpus.positions(list(wanted))
        known = np.argsort(rows, kind="stable")[int((rows < 0).sum()) :]
        for start in range(0, len(known), _BLOCK):
            numbers = known[start : start + _BLOCK]
            yield from zip(numbers.tolist(), corpus.texts(rows[numbers]), strict=True)
    elif isinstance(passages, Mapping):
        yield from ((number, passages[name]) for name, number in wanted.items() if name in passages)
    else:
        yield from ((wanted[document.id], document.text) for document in passages if document.id in wanted)


def open_texts(spec: str) -> TokenStore | Corpus:
    """What `open_passages` opens, or a file of passages as DPR's `psgs_w100.tsv`, which its header or name tells."""
    path = Path(spec)
    if path.is_file() and plain_name(path).endswith(".tsv"):
        _, header = next(read_lines(path), (0, ""))
        # Parts of the file are often kept under its name, cut out below the header.
        if header.split("\t") == ["id", "text", "title"] or path.name.startswith("psgs_w100"):
            return Corpus(path, passage_lines)
    return open_passages(spec)


def _blocks(texts: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    while block := list(islice(texts, _BLOCK)):
        yield block
