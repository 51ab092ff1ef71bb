"""A part of a data set, small enough to be trained on many times."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ance_fast.artifacts import staged_artifact
from ance_fast.cli.demo.data import write_data
from ance_fast.data import load_dataset
from benchmarks.scale import SHARED

BESIDE = Path(os.environ.get("ANCE_FAST_DATA", SHARED))

KIND = "refresh_data"
SPLITS = ("train", "dev")
# Neighbours in the corpus are each other's hard negatives: answers on one topic, packages of one family.
BLOCK = 50
DEFAULT = ("medquad", "debian")


def default_data() -> list[str]:
    """The sets the suite is meant for, where they lie beside the repository; else the demo's."""
    return [name for name in DEFAULT if (BESIDE / name).is_dir()] or ["demo"]


def source_of(data: str, folder: Path) -> str | None:
    """The BEIR folder meant by a name or a path, None if there is none; the demo's is written into `folder`."""
    if data == "demo":
        if not folder.exists():
            write_data(folder)
        return str(folder)
    return next((str(path) for path in (BESIDE / data, Path(data)) if path.is_dir()), None)


def write_part(source: str, folder: Path, passages: int) -> None:
    """A BEIR folder of at most `passages` passages of `source`, with the train and dev queries that they answer."""
    sets = {split: load_dataset(source, split=split) for split in SPLITS}
    documents = list(sets["train"].corpus)
    row_of = {document.id: row for row, document in enumerate(documents)}
    relevant = [[row_of[d] for d, grade in judged.items() if grade > 0] for judged in sets["dev"].qrels.values()]
    rows = chosen_rows(len(documents), relevant, passages)
    kept = {documents[row].id for row in rows}
    with staged_artifact(folder, KIND, {"passages": len(rows)}) as staging:
        with open(staging / "corpus.jsonl", "w", encoding="utf-8") as corpus:
            for row in rows:
                document = documents[row]
                entry = {"_id": document.id, "title": document.title, "text": document.text}
                corpus.write(json.dumps(entry) + "\n")
        (staging / "qrels").mkdir()
        with open(staging / "queries.jsonl", "w", encoding="utf-8") as queries:
            for split, dataset in sets.items():
                lines = ["query-id\tcorpus-id\tscore\n"]
                for query, judged in dataset.qrels.items():
                    found = [f"{query}\t{d}\t{grade}\n" for d, grade in judged.items() if d in kept and grade > 0]
                    if found:
                        queries.write(json.dumps({"_id": query, "text": dataset.queries[query]}) + "\n")
                    lines += found
                (staging / "qrels" / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")


def chosen_rows(total: int, relevant: Sequence[Sequence[int]], count: int) -> list[int]:
    """`count` of the rows 0 .. total - 1, ascending: up to half of them relevant to dev queries, then blocks of others.

    relevant: the rows of each dev query. A query counts while there is room for all of its rows.
    """
    if count >= total:
        return list(range(total))
    dev: set[int] = set()
    for rows in relevant:
        if len(dev.union(rows)) <= count // 2:
            dev.update(rows)
    others = np.setdiff1d(np.arange(total), np.unique(np.array([row for rows in relevant for row in rows], dtype=int)))
    missing = min(count - len(dev), len(others))
    # Blocks evenly spread over the corpus; where they would overlap, all of it is one block.
    blocks = max(1, -(-missing // BLOCK))
    sizes = [missing * (i + 1) // blocks - missing * i // blocks for i in range(blocks)]
    starts = [(len(others) * i) // blocks for i in range(blocks)]
    taken = {int(row) for start, size in zip(starts, sizes, strict=True) for row in others[start : start + size]}
    return sorted(dev | taken)
