"""Questions with their answers, in the files that DPR, microsoft/ANCE and KILT use.

    nq-test.qa.csv, trivia-test.csv   question <tab> ['answer', "another"]    a Python list; fields may be quoted
    nq-train.json, ...                [{"question": ..., "answers": [...], "positive_ctxs": [...], ...}, ...]
    nq-dev-kilt.jsonl                 {"id": ..., "input": question, "output": [{"answer": ..., "provenance": [...]}]}
    any.jsonl                         {"query" or "question": ..., "answers": [...], "id": ...}

A question without an id has its number in the file, from "0", as in DPR's and microsoft/ANCE's own files.
Source: github.com/facebookresearch/DPR (Karpukhin et al., EMNLP 2020); github.com/facebookresearch/KILT.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ance_fast.data.input_files import plain_name
from ance_fast.data.json_array import read_json_objects
from ance_fast.data.text_lines import read_lines
from ance_fast.errors import DataError


class Question(NamedTuple):
    """One question; `answers` may be empty. `line` is where it begins in its file."""

    line: int
    id: str
    text: str
    answers: list[str]


def read_questions(path: str | Path) -> Iterator[Question]:
    """Stream the questions of a file in one of the forms above; its name (`.csv`, `.tsv`) tells the first.

    Texts are as they stand there (`without_mark` takes DPR's question mark off). Raises `DataError` with file and line:
    malformed lines, answers that are no list of strings, an id that comes twice.
    """
    if plain_name(path).endswith((".csv", ".tsv")):
        yield from _qa_lines(path)
        return
    first: dict[str, int] = {}
    for number, (line, value) in enumerate(read_json_objects(path)):
        question = question_of(value, f"{path}:{line}", line, number)
        refuse_again(first, question, path)
        yield question


def refuse_again(first: dict[str, int], question: Question, path: str | Path) -> None:
    """Add the question to `first` (id -> line); raise `DataError` if its id is there."""
    if question.id in first:
        where = f"{path}:{question.line}"
        raise DataError(f"{where}: question {question.id!r} again, first at {path}:{first[question.id]}")
    first[question.id] = question.line


def question_of(value: dict[str, Any], where: str, line: int, number: int) -> Question:
    """The question of one JSON object, DPR's or KILT's; `number` is its id if it has none. Raises `DataError`."""
    text = next((value[name] for name in ("question", "query", "input") if isinstance(value.get(name), str)), None)
    if text is None:
        raise DataError(f"{where}: no string `question` (or `query`, or KILT's `input`)")
    identifier = value.get("id", value.get("query_id", str(number)))
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier:
        raise DataError(f"{where}: `id` must be a string that is not empty, not {identifier!r}")
    answers = value.get("answers")
    if answers is None and isinstance(value.get("output"), list):
        given = [one.get("answer") for one in value["output"] if isinstance(one, dict)]
        answers = list(dict.fromkeys(one for one in given if one is not None))
    return Question(line, identifier, text, _strings([] if answers is None else answers, where))


def without_mark(question: str) -> str:
    """`question` less a question mark at its end: what DPR and microsoft/ANCE encode."""
    return question.removesuffix("?")


def csv_fields(line: str, where: str) -> list[str]:
    """The fields of one tab-separated line, quoted as `csv` does where they are. Raises `DataError`."""
    if '"' not in line:
        return line.split("\t")
    try:
        return next(csv.reader([line], delimiter="\t"))
    except csv.Error as error:
        raise DataError(f"{where}: {error}") from error


def _qa_lines(path: str | Path) -> Iterator[Question]:
    number = 0
    for line, text in read_lines(path):
        if not text.strip():
            continue
        where = f"{path}:{line}"
        fields = csv_fields(text, where)
        if len(fields) != 2:
            raise DataError(f"{where}: expected `question <tab> ['answer', ...]`, got {len(fields)} columns")
        yield Question(line, str(number), fields[0], parse_answers(fields[1], where))
        number += 1


def parse_answers(text: str, where: str) -> list[str]:
    """A Python list of strings, read without running it. Raises `DataError`, starting with `where`."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # TypeError: [] as a key
        raise DataError(f"{where}: the answers {text[:60]!r} are no Python list of strings") from None
    return _strings(found, where)


def _strings(found: Any, where: str) -> list[str]:
    wrong = [one for one in found if not isinstance(one, str)] if isinstance(found, list) else [found]
    if wrong:
        raise DataError(f"{where}: the answers must be a list of strings, not of {type(wrong[0]).__name__}")
    strings: list[str] = found
    return strings
