"""Readers of retrieval data sets, and the token store they are tokenised into once.

A new format is one file with a reader that returns a `Dataset`, and one entry in `sources.FORMS`.
"""

from __future__ import annotations

from ance_fast.data.ance_cache import read_ance_cache
from ance_fast.data.beir import read_beir
from ance_fast.data.candidates import read_candidates
from ance_fast.data.chunks import ChunkRules
from ance_fast.data.dataset import Corpus, Dataset
from ance_fast.data.dpr import read_dpr
from ance_fast.data.hf_datasets import read_datasets
from ance_fast.data.irds import read_irds
from ance_fast.data.kilt import read_kilt
from ance_fast.data.msmarco import read_msmarco, read_text_triples, read_triples
from ance_fast.data.msmarco_docs import read_msmarco_docs
from ance_fast.data.open_qa import read_questions
from ance_fast.data.parquet import read_parquet
from ance_fast.data.qrels import Qrels, drop_unknown
from ance_fast.data.records import Document, IdTriple, Query, TextTriple
from ance_fast.data.sources import load_corpus, load_dataset, open_passages
from ance_fast.data.text_corpora import read_corpus_jsonl, read_text, read_tsv
from ance_fast.data.text_rules import released_tokenizer
from ance_fast.data.token_store import TokenStore
from ance_fast.data.tokenize import tokenizer_fingerprint
from ance_fast.data.training_jsonl import read_jsonl
from ance_fast.data.trec import Run, read_qrels, read_run, write_run

__all__ = [
    "ChunkRules",
    "Corpus",
    "Dataset",
    "Document",
    "IdTriple",
    "Qrels",
    "Query",
    "Run",
    "TextTriple",
    "TokenStore",
    "drop_unknown",
    "load_corpus",
    "load_dataset",
    "open_passages",
    "read_ance_cache",
    "read_beir",
    "read_candidates",
    "read_corpus_jsonl",
    "read_datasets",
    "read_dpr",
    "read_irds",
    "read_jsonl",
    "read_kilt",
    "read_msmarco",
    "read_msmarco_docs",
    "read_parquet",
    "read_qrels",
    "read_questions",
    "read_run",
    "read_text",
    "read_text_triples",
    "read_triples",
    "read_tsv",
    "released_tokenizer",
    "tokenizer_fingerprint",
    "write_run",
]
