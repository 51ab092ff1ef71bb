"""Data sets by name: `beir:DIR`, `parquet:FILE?text=body`, `-` for a pipe, or a path whose format is recognised.

A new format is one reader and one entry in `FORMS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from ance_fast.artifacts import MANIFEST
from ance_fast.data.ance_cache import PASSAGES as RECORDS
from ance_fast.data.ance_cache import read_ance_cache
from ance_fast.data.beir import read_beir
from ance_fast.data.candidates import read_top1000
from ance_fast.data.dataset import Corpus, Dataset
from ance_fast.data.dpr import PASSAGES, read_dpr
from ance_fast.data.hf_datasets import read_datasets
from ance_fast.data.input_files import STDIN, find_file, has_file, is_pipe, list_files, plain_name
from ance_fast.data.irds import read_irds
from ance_fast.data.kilt import PAGES, read_kilt
from ance_fast.data.msmarco import read_msmarco
from ance_fast.data.msmarco_docs import CORPUS as DOCUMENTS
from ance_fast.data.msmarco_docs import read_msmarco_docs
from ance_fast.data.parquet import read_parquet
from ance_fast.data.record_file import META
from ance_fast.data.text_corpora import read_corpus_jsonl, read_pipe, read_text, read_tsv
from ance_fast.data.text_triples import distinct_passages
from ance_fast.data.token_build import KIND as STORE
from ance_fast.data.token_store import TokenStore
from ance_fast.data.training_jsonl import is_training_jsonl, read_jsonl
from ance_fast.errors import DataError

Options = dict[str, str]


class Form(NamedTuple):
    """How a kind of data set is read."""

    usage: str
    read: Callable[[str, str | None, Options], Dataset]  # (path, split or None for the corpus alone, options)
    split: str | None = None  # the split read when none is given; None: it has no splits
    options: tuple[str, ...] = ()  # what may stand after "?"
    find: Callable[[str], object] = lambda _: None  # raises `DataError` where its files are not there; reads none


_FIELDS = ("id", "text", "title")


def _read_jsonl(path: str, split: str | None, options: Options) -> Dataset:
    if not options and not is_pipe(Path(path)) and Path(path).is_file() and is_training_jsonl(path):
        return read_jsonl(path, split)
    return read_corpus_jsonl(path, **options)


def _read_datasets(path: str, split: str | None, options: Options) -> Dataset:
    name, colon, part = path.rpartition(":")
    return read_datasets(name if colon else path, part if colon else None, **options)


def _read_msmarco_docs(path: str, split: str | None, options: Options) -> Dataset:
    separator = options.get("separator", "</s>")
    return read_msmarco_docs(path, split, separator=separator, max_characters=_number(options, "max_characters", 10000))


def _number(options: Options, name: str, default: int) -> int:
    text = options.get(name, str(default))
    if not text.isdecimal():
        raise DataError(f"?{name}={text}: expected a number")
    return int(text)


def _files(*endings: str) -> Callable[[str], object]:
    return lambda path: is_pipe(Path(path)) or list_files(path, *endings)


FORMS: dict[str, Form] = {
    "beir": Form(
        "beir:DIR (corpus.jsonl, queries.jsonl, qrels/)",
        lambda path, split, _: read_beir(path, split),
        "test",
        find=lambda path: find_file(path, "corpus.jsonl"),
    ),
    "msmarco": Form(
        "msmarco:DIR (collection.tsv, queries.*.tsv)",
        lambda path, split, _: read_msmarco(path, split),
        "dev",
        find=lambda path: find_file(path, "collection.tsv"),
    ),
    "msmarco-doc": Form(
        "msmarco-doc:DIR (msmarco-docs.tsv, msmarco-doctrain-*.tsv)",
        _read_msmarco_docs,
        "dev",
        ("separator", "max_characters"),
        lambda path: find_file(path, DOCUMENTS),
    ),
    "dpr": Form(
        "dpr:DIR (psgs_w100.tsv, nq-*.json)",
        lambda path, split, options: read_dpr(path, split, **options),  # type: ignore[arg-type]
        "train",
        ("questions", "separator", "positives"),
        lambda path: find_file(path, *PASSAGES),
    ),
    "kilt": Form(
        "kilt:DIR (kilt_knowledgesource.json, *-kilt.jsonl)",
        lambda path, split, options: read_kilt(path, split, **options),
        "dev",
        ("task",),
        lambda path: find_file(path, *PAGES),
    ),
    "ance-cache": Form(
        "ance-cache:DIR (passages, passages_meta, train-query)",
        lambda path, split, options: read_ance_cache(path, split, **options),
        "train",
        ("prefix", "negatives"),
        lambda path: find_file(path, RECORDS),
    ),
    "top1000": Form(
        "top1000:FILE",
        # It is one set of queries: commands that ask for a split by default get them.
        lambda path, split, options: read_top1000(path, **options),
        "top1000",
        ("qrels",),
        lambda path: list_files(path),
    ),
    "irds": Form("irds:NAME", lambda path, split, _: read_irds(path, split), ""),
    "jsonl": Form("jsonl:FILE", _read_jsonl, "train", _FIELDS, _files(".jsonl", ".ndjson")),
    "tsv": Form("tsv:FILE", lambda path, split, _: read_tsv(path), find=_files(".tsv")),
    "triples": Form(
        "triples:FILE (query <tab> positive <tab> negative)",
        lambda path, split, _: Dataset(
            Path(path).name, Corpus(path, distinct_passages), {}, split=split, triples=Path(path)
        ),
        "train",
        find=lambda path: find_file(Path(path).parent, Path(path).name),
    ),
    "text": Form("text:FILE", lambda path, split, _: read_text(path), find=_files(".txt")),
    "parquet": Form(
        "parquet:FILE|DIR",
        lambda path, split, options: read_parquet(path, **options),
        options=_FIELDS,
        find=_files(".parquet"),
    ),
    "datasets": Form("datasets:NAME[/CONFIG][:SPLIT]", _read_datasets, options=(*_FIELDS, "config")),
    "pipe": Form("- (a pipe)", lambda path, split, options: read_pipe(path, **options), options=_FIELDS),
}
"""Name before the colon -> how what stands after it is read."""

_USAGE = ", ".join(form.usage for form in FORMS.values())
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".tsv": "tsv", ".txt": "text", ".parquet": "parquet"}
_OPTIONS = re.compile(r"\?(\w+=[^?]*)$")


def load_dataset(spec: str | Path, split: str | None = None) -> Dataset:
    """Read the data set `spec`; `split` defaults to the format's own ("test" for beir, "dev" for msmarco, "train").

    Forms without queries and judgements (a pipe, `tsv:`, `parquet:`, ...) give a data set of the corpus alone.
    Raises `DataError`: a form that is not known or recognised (the message lists them), a split asked of a form that
    has none, and what the reader raises.
    """
    name, path, options = _resolve(spec)
    dataset = FORMS[name].read(path, FORMS[name].split if split is None else split, options)
    if split is not None and dataset.split is None:
        raise DataError(f"{spec}: holds passages alone, no queries and judgements of a split {split!r}")
    return dataset


def load_corpus(spec: str | Path) -> Corpus:
    """The corpus of the data set `spec`, without reading judgements: for encoding. Raises `DataError`."""
    name, path, options = _resolve(spec)
    return FORMS[name].read(path, None, options).corpus


def open_passages(spec: str | Path) -> TokenStore | Corpus:
    """What `spec` names: a token store, opened, or the corpus of a data set. Raises `ArtifactError`, `DataError`."""
    return TokenStore.open(spec, verify=False) if _is_store(spec) else load_corpus(spec)


def form_of(spec: str | Path) -> str:
    """The form (a name in `FORMS`) that `spec` is read as. Raises `DataError` where it is not known or recognised."""
    return _resolve(spec)[0]


def refuse_missing(spec: str | Path) -> None:
    """Raise the `DataError` of a form that is not known, or whose file or folder is not there, without reading it.

    What other libraries find (`irds:`, `datasets:`) is left to them.
    """
    if not _is_store(spec):
        name, path, _ = _resolve(spec)
        FORMS[name].find(path)


def _is_store(spec: str | Path) -> bool:
    try:
        manifest = json.loads((Path(spec) / MANIFEST).read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return True  # whoever opens it says what is damaged
    # Other tools leave a manifest.json beside their data too.
    return isinstance(manifest, dict) and manifest.get("kind") == STORE


def _resolve(spec: str | Path) -> tuple[str, str, Options]:
    text, options = _split_options(str(spec))
    name, colon, path = text.partition(":")
    if not (colon and name in FORMS):
        name, path = _recognise(text), text
    elif not path:
        raise DataError(f"{text!r}: nothing after the colon; the forms are {_USAGE}")
    if path == "-":
        path = str(STDIN)
    unknown = [option for option in options if option not in FORMS[name].options]
    if unknown:
        allowed = ", ".join(FORMS[name].options) or "none"
        raise DataError(f"{spec}: {name} has no option {unknown[0]!r}; options: {allowed}")
    return name, path, options


def _split_options(text: str) -> tuple[str, Options]:
    """Cut `?id=a&text=b` off. A pattern's own `?` is left alone: no name and `=` follow it."""
    match = _OPTIONS.search(text)
    if match is None or Path(text).exists():
        return text, {}
    pairs = (part.partition("=") for part in match[1].split("&"))
    return text[: match.start()], {name: unquote(value) for name, _, value in pairs}


def _recognise(text: str) -> str:
    """The form of a plain path."""
    path = Path(text)
    if text == "-" or is_pipe(path):
        return "pipe"
    if path.is_dir():
        return _recognise_folder(path)
    form = _ENDINGS.get(Path(plain_name(text)).suffix)
    if form is not None:
        return form
    problem = "not a known data set file" if path.exists() else "no such file, folder or format"
    raise DataError(f"{text}: {problem}; the forms are {_USAGE}")


def _recognise_folder(path: Path) -> str:
    if has_file(path, "corpus.jsonl"):
        return "beir"
    if has_file(path, "collection.tsv"):
        return "msmarco"
    if has_file(path, DOCUMENTS):
        return "msmarco-doc"
    if has_file(path, *PASSAGES):
        return "dpr"
    if has_file(path, *PAGES):
        return "kilt"
    if has_file(path, RECORDS) and has_file(path, RECORDS + META):
        return "ance-cache"
    if has_file(path, "dataset_info.json", "dataset_dict.json"):
        return "datasets"
    for ending in (".parquet", ".jsonl"):
        try:
            list_files(path, ending)
        except DataError:
            continue
        return _ENDINGS[ending]
    raise DataError(
        f"{path}: neither corpus.jsonl nor collection.tsv (.gz, .zst) nor other data in this folder; "
        f"the forms are {_USAGE}"
    )
