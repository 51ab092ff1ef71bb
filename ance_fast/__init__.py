"""Dense retrieval training with ANCE, corpus encoding and search: the public names, each imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ance_fast.data import (
        Dataset,
        TokenStore,
        load_corpus,
        load_dataset,
        read_beir,
        read_datasets,
        read_dpr,
        read_irds,
        read_jsonl,
        read_kilt,
        read_msmarco,
        read_msmarco_docs,
        read_parquet,
        read_tsv,
    )
    from ance_fast.encoding import EmbeddingShards, encode_corpus
    from ance_fast.evaluation import evaluate, paired_significance
    from ance_fast.index import Bm25, Index, SearchResult
    from ance_fast.inspection import info
    from ance_fast.mining import mine_hard_negatives
    from ance_fast.models import Encoder

__version__ = "0.1.0"

_HOMES = {
    "Bm25": "ance_fast.index",
    "Dataset": "ance_fast.data",
    "EmbeddingShards": "ance_fast.encoding",
    "Encoder": "ance_fast.models",
    "Index": "ance_fast.index",
    "SearchResult": "ance_fast.index",
    "TokenStore": "ance_fast.data",
    "encode_corpus": "ance_fast.encoding",
    "evaluate": "ance_fast.evaluation",
    "info": "ance_fast.inspection",
    "load_corpus": "ance_fast.data",
    "load_dataset": "ance_fast.data",
    "mine_hard_negatives": "ance_fast.mining",
    "paired_significance": "ance_fast.evaluation",
    "read_beir": "ance_fast.data",
    "read_datasets": "ance_fast.data",
    "read_dpr": "ance_fast.data",
    "read_irds": "ance_fast.data",
    "read_jsonl": "ance_fast.data",
    "read_kilt": "ance_fast.data",
    "read_msmarco": "ance_fast.data",
    "read_msmarco_docs": "ance_fast.data",
    "read_parquet": "ance_fast.data",
    "read_tsv": "ance_fast.data",
}

__all__ = [
    "Bm25",
    "Dataset",
    "EmbeddingShards",
    "Encoder",
    "Index",
    "SearchResult",
    "TokenStore",
    "encode_corpus",
    "evaluate",
    "info",
    "load_corpus",
    "load_dataset",
    "mine_hard_negatives",
    "paired_significance",
    "read_beir",
    "read_datasets",
    "read_dpr",
    "read_irds",
    "read_jsonl",
    "read_kilt",
    "read_msmarco",
    "read_msmarco_docs",
    "read_parquet",
    "read_tsv",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ance_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
