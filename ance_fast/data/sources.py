"""Data sets by name: `beir:DIR`, `msmarco:DIR`, `jsonl:FILE`, or a path whose format is recognised.

A new format is one reader and one line in `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ance_fast.data.beir import read_beir
from ance_fast.data.dataset import Corpus, Dataset
from ance_fast.data.msmarco import read_msmarco
from ance_fast.data.text_lines import has_file
from ance_fast.data.training_jsonl import read_jsonl
from ance_fast.errors import DataError

READERS: dict[str, tuple[Callable[[str, str | None], Dataset], str]] = {
    "beir": (read_beir, "test"),
    "msmarco": (read_msmarco, "dev"),
    "jsonl": (read_jsonl, "train"),
}
"""Name -> (reader of (path, split), the split read when none is given)."""

_FORMS = "beir:DIR (corpus.jsonl, queries.jsonl, qrels/), msmarco:DIR (collection.tsv, queries.*.tsv), jsonl:FILE"


def load_dataset(spec: str | Path, split: str | None = None) -> Dataset:
    """Read the data set `spec`; `split` defaults to the format's own ("test" for beir, "dev" for msmarco, "train").

    Raises `DataError`: a form that is not known or recognised (the message lists them), and what the reader raises.
    """
    name, path = _resolve(spec)
    reader, default = READERS[name]
    return reader(path, split or default)


def load_corpus(spec: str | Path) -> Corpus:
    """The corpus of the data set `spec`, without reading judgements: for encoding. Raises `DataError`."""
    name, path = _resolve(spec)
    return READERS[name][0](path, None).corpus


def _resolve(spec: str | Path) -> tuple[str, str]:
    text = str(spec)
    name, colon, path = text.partition(":")
    if colon and name in READERS:
        if not path:
            raise DataError(f"{text!r}: nothing after the colon; the forms are {_FORMS}")
        return name, path
    found = Path(text)
    if found.is_dir():
        if has_file(found, "corpus.jsonl"):
            return "beir", text
        if has_file(found, "collection.tsv"):
            return "msmarco", text
        raise DataError(f"{text}: neither corpus.jsonl nor collection.tsv (.gz) in this folder; the forms are {_FORMS}")
    if text.endswith((".jsonl", ".jsonl.gz")):
        return "jsonl", text
    problem = "not a known data set file" if found.exists() else "no such file, folder or format"
    raise DataError(f"{text}: {problem}; the forms are {_FORMS}")
