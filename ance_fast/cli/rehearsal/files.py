"""The published data sets in small: the same file names, columns and compression, generated texts."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from ance_fast.cli.rehearsal.texts import Place, places

TRAIN, DEV, TEST = range(24), range(24, 32), range(32, 40)
"""Places whose questions make up each split."""
_COUNT = 40


def msmarco_passages(folder: Path) -> list[str]:
    """MS MARCO passage ranking; returns every text."""
    found = places(_COUNT)
    texts = [text for place in found for text in place.passages]
    _lines(folder / "collection.tsv", enumerate(texts))
    questions = _questions(found)
    for part, queries, qrels in (
        (TRAIN, "queries.train.tsv", "qrels.train.tsv"),
        (DEV, "queries.dev.small.tsv", "qrels.dev.small.tsv"),
        (TEST, "msmarco-test2019-queries.tsv", "2019qrels-pass.txt"),
    ):
        rows = questions[2 * part.start : 2 * part.stop]
        _lines(folder / queries, rows)
        if part is TEST:
            # Graded, as NIST judges: the passage that answers, and one that is about the place.
            judged = [(query, "Q0", passage, grade) for query, _ in rows for passage, grade in _graded(query)]
            _lines(folder / qrels, judged, " ")
        else:
            _lines(folder / qrels, [(query, 0, 3 * (query // 2) + query % 2, 1) for query, _ in rows])
    triples = []
    for query, text in questions[2 * TRAIN.start : 2 * TRAIN.stop]:
        positive = 3 * (query // 2) + query % 2
        triples += [(text, texts[positive], texts[(positive + 7 * step) % len(texts)]) for step in (1, 2)]
    _lines(folder / "triples.train.small.tsv", triples)
    for part, name in ((DEV, "top1000.dev"), (TEST, "msmarco-passagetest2019-top1000.tsv")):
        rows = questions[2 * part.start : 2 * part.stop]
        candidates = [(query, passage) for query, _ in rows for passage in _candidates(query, len(texts))]
        _lines(folder / name, [(query, passage, questions[query][1], texts[passage]) for query, passage in candidates])
    return [*texts, *(text for _, text in questions)]


def msmarco_documents(folder: Path) -> list[str]:
    """MS MARCO document ranking; returns every text."""
    found = places(_COUNT)
    documents = []
    for number, place in enumerate(found):
        # Of different lengths, so that some fill one chunk and some need all.
        body = " ".join(place.passages * (1 + number % 4))
        documents.append((f"D{number}", f"https://example.org/{place.name}", f"{place.name} {place.kind}", body))
    _lines(folder / "msmarco-docs.tsv.gz", documents)
    questions = _questions(found)
    for part, queries, qrels in (
        (TRAIN, "msmarco-doctrain-queries.tsv.gz", "msmarco-doctrain-qrels.tsv.gz"),
        (DEV, "msmarco-docdev-queries.tsv.gz", "msmarco-docdev-qrels.tsv.gz"),
        (TEST, "msmarco-test2019-queries.tsv.gz", "2019qrels-docs.txt"),
    ):
        rows = questions[2 * part.start : 2 * part.stop]
        _lines(folder / queries, rows)
        grade = 3 if part is TEST else 1
        _lines(folder / qrels, [(query, 0, f"D{query // 2}", grade) for query, _ in rows], " ")
    for part, name in ((DEV, "msmarco-docdev-top100.gz"), (TEST, "msmarco-doctest2019-top100.gz")):
        rows = questions[2 * part.start : 2 * part.stop]
        ranked = [
            (query, "Q0", f"D{(query // 2 + 3 * rank) % _COUNT}", rank + 1, -rank, "IndriQueryLikelihood")
            for query, _ in rows
            for rank in range(5)
        ]
        _lines(folder / name, ranked, " ")
    return [*(text for document in documents for text in document[1:]), *(text for _, text in questions)]


def dpr_questions(folder: Path) -> list[str]:
    """DPR's Wikipedia passages, and Natural Questions and TriviaQA as DPR gives them; returns every text."""
    found = places(_COUNT)
    passages = [(place.name, text) for place in found for text in place.passages]
    with _opened(folder / "psgs_w100.tsv.gz") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("id", "text", "title"))
        writer.writerows((number + 1, text, title) for number, (title, text) in enumerate(passages))
    for name, question in (("nq", 0), ("trivia", 1)):
        for part, split in ((TRAIN, "train"), (DEV, "dev"), (TEST, "test")):
            asked = [(f"{place.questions[question]}?", [place.answer]) for place in found[part.start : part.stop]]
            _lines(folder / f"{name}-{split}.qa.csv", asked)
            if split == "test":
                continue
            records = [_record(passages, part.start + row, *pair) for row, pair in enumerate(asked)]
            with _opened(folder / f"biencoder-{name}-{split}.json.gz") as file:
                json.dump(records, file, indent=1)
    return [*(text for passage in passages for text in passage), *(text for place in found for text in place.questions)]


FILES: dict[str, Callable[[Path], list[str]]] = {
    "msmarco-passages": msmarco_passages,
    "msmarco-documents": msmarco_documents,
    "dpr-questions": dpr_questions,
}
"""Name in a recipe -> what writes the files to a folder and returns their texts."""


def _record(passages: Sequence[tuple[str, str]], place: int, question: str, answers: list[str]) -> dict[str, object]:
    def context(number: int) -> dict[str, object]:
        title, text = passages[number % len(passages)]
        return {"title": title, "text": text, "score": 1.0, "title_score": 0, "passage_id": str(number + 1)}

    return {
        "dataset": "generated",
        "question": question,
        "answers": answers,
        "positive_ctxs": [context(3 * place)],
        "negative_ctxs": [context(3 * place + 31)],
        "hard_negative_ctxs": [context(3 * place + 4), context(3 * place + 8)],
    }


def _questions(found: list[Place]) -> list[tuple[int, str]]:
    """Two a place: number 2p asks what passage 3p answers, number 2p + 1 what passage 3p + 1 does."""
    return [
        (2 * number + each, text) for number, place in enumerate(found) for each, text in enumerate(place.questions)
    ]


def _graded(query: int) -> Iterator[tuple[int, int]]:
    first = 3 * (query // 2)
    yield from ((first + query % 2, 3), (first + 2, 1), ((first + 9) % (3 * _COUNT), 0))


def _candidates(query: int, count: int) -> list[int]:
    first = 3 * (query // 2)
    return [(first + step) % count for step in (11, 0, 5, 1, 2)]


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "wt", encoding="utf-8", newline="")
    return open(path, "w", encoding="utf-8", newline="")


def _lines(path: Path, rows: Iterable[Sequence[object]], separator: str = "\t") -> None:
    with _opened(path) as file:
        for row in rows:
            file.write(separator.join(map(str, row)) + "\n")
