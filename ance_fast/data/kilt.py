"""KILT folders: Wikipedia by paragraphs, and tasks whose answers name the paragraphs they come from.

    kilt_knowledgesource.json    {"wikipedia_id", "wikipedia_title", "text": [paragraphs], ...}, a page a line
    nq-dev-kilt.jsonl, ...       {"id", "input", "output": [{"answer", "provenance": [{"wikipedia_id",
                                 "start_paragraph_id", "end_paragraph_id", ...}]}]}

Each plain, `.gz` or `.zst`. A paragraph that is not blank is a passage, with the page's title; its id is
`wikipedia_id#paragraph`, so that what stands before `#` is the page, by which KILT counts. Every paragraph of a
provenance is relevant; one that names a page alone judges nothing. Source: github.com/facebookresearch/KILT (Petroni et
al., NAACL 2021).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ance_fast.data.dataset import Corpus, Dataset
from ance_fast.data.document_fields import id_field, text_field
from ance_fast.data.input_files import COMPRESSED, find_file
from ance_fast.data.open_qa import read_questions
from ance_fast.data.qrels import Judgement, Qrels, qrels_from_judgements
from ance_fast.data.records import Document
from ance_fast.data.text_lines import read_json_lines, warn_counted
from ance_fast.errors import DataError

logger = logging.getLogger(__name__)

PAGES = ("kilt_knowledgesource.json", "kilt_knowledgesource.jsonl")


def read_kilt(path: str | Path, split: str | None = "dev", *, task: str | None = None) -> Dataset:
    """Read a KILT folder. The corpus streams; questions and judgements of `split` are held.

    split: train, dev or test (which has questions alone); None: the corpus alone. task: the beginning of the file's
    name ("nq", "triviaqa-train_id", ...), needed where there are several. Raises `DataError`: missing files (the
    message lists the tasks there are), malformed lines. Provenances without paragraphs are counted in one warning.
    """
    folder = Path(path)
    corpus = Corpus(find_file(folder, *PAGES), page_lines, folder.name)
    if split is None:
        return Dataset(folder.name, corpus, {}, Qrels())
    file = _task_file(folder, split, task)
    questions = list(read_questions(file))
    pages: list[int] = []
    qrels = qrels_from_judgements(file, partial(provenance_lines, pages=pages))
    what = "provenances name a page and no paragraph, and judge nothing"
    warn_counted(logger, len(pages), what, f"{file}:{pages[0] if pages else 0}")
    return Dataset(
        folder.name,
        corpus,
        {question.id: question.text for question in questions},
        qrels,
        split,
        answers={question.id: question.answers for question in questions},
    )


def page_lines(path: Path) -> Iterator[tuple[int, Document]]:
    """(Line number, passage) of the paragraphs of a knowledge source. Raises `DataError` with file and line."""
    for line, page in read_json_lines(path):
        where = f"{path}:{line}"
        identifier, title = id_field(page, "wikipedia_id", where), text_field(page, "wikipedia_title", where)
        paragraphs = page.get("text")
        if not isinstance(paragraphs, list) or not all(isinstance(one, str) for one in paragraphs):
            raise DataError(f"{where}: `text` must be a list of paragraphs")
        for number, paragraph in enumerate(paragraphs):
            if paragraph.strip():
                yield line, Document(f"{identifier}#{number}", paragraph.strip(), title)


def provenance_lines(path: Path, pages: list[int] | None = None) -> Iterator[Judgement]:
    """The paragraphs each question's answers come from, grade 1, each once. Raises `DataError` with file and line.

    pages: gets the line of each provenance that names no paragraph.
    """
    for question, (line, value) in zip(read_questions(path), read_json_lines(path), strict=True):
        where = f"{path}:{line}"
        passages: dict[str, None] = {}
        for output in _list(value, "output", where):
            for place in _list(output, "provenance", where) if isinstance(output, dict) else []:
                paragraphs = _paragraphs(place, where)
                passages.update(dict.fromkeys(paragraphs))
                if pages is not None and not paragraphs:
                    pages.append(line)
        yield from (Judgement(line, question.id, passage, 1) for passage in passages)


def _paragraphs(place: Any, where: str) -> list[str]:
    if not isinstance(place, dict):
        raise DataError(f"{where}: a provenance must be an object, not {type(place).__name__}")
    page = id_field(place, "wikipedia_id", where)
    first, last = place.get("start_paragraph_id"), place.get("end_paragraph_id")
    if first is None and last is None:
        return []
    last = first if last is None else last
    if not (type(first) is type(last) is int and 0 <= first <= last < first + 10_000):
        raise DataError(f"{where}: paragraphs {first!r} to {last!r} of page {page} are no range of numbers")
    return [f"{page}#{number}" for number in range(first, last + 1)]


def _list(value: dict[str, Any], name: str, where: str) -> list[Any]:
    found = value.get(name) or []
    if not isinstance(found, list):
        raise DataError(f"{where}: `{name}` must be a list, not {type(found).__name__}")
    return found


def _task_file(folder: Path, split: str, task: str | None) -> Path:
    if task is not None:
        return find_file(folder, f"{task}-{split}-kilt.jsonl")
    end = f"-{split}-kilt.jsonl"
    tasks = sorted({file.name.partition(end)[0] for s in ("", *COMPRESSED) for file in folder.glob(f"*{end}{s}")})
    if len(tasks) == 1:
        return find_file(folder, f"{tasks[0]}{end}")
    there = f"several tasks with that split ({', '.join(tasks)})" if tasks else "no task with that split"
    raise DataError(f"{folder}: split {split!r}: {there}; name one with ?task=NAME")
