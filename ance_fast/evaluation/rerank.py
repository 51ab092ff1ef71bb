"""Ranking what somebody else retrieved: each query's candidates are scored, and nothing besides.

The "rerank" columns of ANCE's table 1 are of BM25's candidates (MS MARCO's `top1000.dev`, TREC's top-100 runs), which
tells how well an encoder orders passages apart from what it would find by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from ance_fast.data.records import Document
from ance_fast.data.text_lines import warn_counted
from ance_fast.data.token_store import TokenStore
from ance_fast.data.trec import Run
from ance_fast.encoding.budget import measured_budget
from ance_fast.encoding.pipeline import encode_matrix
from ance_fast.errors import DataError
from ance_fast.models.encoder import Encoder

logger = logging.getLogger(__name__)


def rerank(
    encoder: Encoder,
    queries: Mapping[str, str],
    candidates: Mapping[str, Iterable[str]],
    documents: Iterable[Document],
    *,
    batch_tokens: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Run:
    """The candidates of each query with the encoder's scores: inner products, or cosines where the checkpoint says so.

    queries: id -> text. candidates: query id -> document ids, such as a run. documents: read once; those that are
    candidates are kept, encoded once, and held as float32 [documents, dim] on the encoder's device. Where the encoder
    cuts documents into chunks, the best chunk's score is the document's (MaxP).

    batch_tokens: token budget of a forward pass, measured by default. on_batch: told (documents, tokens) of each.

    Warnings count queries without a text and candidates that are not among the documents; both are left out. Raises
    `DataError` if no query or no document is left.
    """
    asked = {query: list(dict.fromkeys(named)) for query, named in candidates.items() if query in queries}
    unknown = [query for query in candidates if query not in queries]
    if not asked:
        example = next(iter(candidates), None)
        raise DataError(
            f"none of the candidates' {len(unknown)} queries, such as {example!r}, is among the {len(queries)} queries "
            "given: wrong split or id format?"
        )
    warn_counted(
        logger, len(unknown), "queries of the candidates have no text and are left out", repr((*unknown, "")[0])
    )
    texts = _texts(documents, {name for named in asked.values() for name in named})
    store = TokenStore.from_texts(
        list(texts.values()),
        encoder.tokenizer,
        ids=list(texts),
        max_length=encoder.max_document_length,
        prompt=encoder.document_prompt,
        chunks=encoder.chunks,
    )
    number_of = {name: number for number, name in enumerate(texts)}
    budget = measured_budget(encoder, store) if batch_tokens is None else batch_tokens
    matrix = encode_matrix(encoder, store, batch_tokens=budget, on_batch=on_batch)
    vectors = torch.from_numpy(encoder.encode_query([queries[query] for query in asked])).to(matrix)
    if encoder.layout.similarity == "cosine":
        matrix, vectors = (torch.nn.functional.normalize(part, dim=1) for part in (matrix, vectors))
    run: Run = {}
    for vector, (query, named) in zip(vectors, asked.items(), strict=True):
        known = [name for name in named if name in number_of]
        scores = _scores(matrix, store, np.array([number_of[name] for name in known], dtype=np.int64), vector)
        run[query] = dict(zip(known, scores.tolist(), strict=True))
    return run


def _texts(documents: Iterable[Document], wanted: set[str]) -> dict[str, str]:
    texts = {document.id: document.full_text for document in documents if document.id in wanted}
    lost = wanted - texts.keys()
    if wanted and not texts:
        raise DataError(
            f"none of the {len(wanted)} candidates, such as {min(wanted)!r}, is in the corpus: "
            "wrong corpus or id format?"
        )
    warn_counted(logger, len(lost), "candidates are not in the corpus and left out", repr(min(lost, default="")))
    return texts


def _scores(matrix: torch.Tensor, store: TokenStore, documents: np.ndarray, query: torch.Tensor) -> np.ndarray:
    """Scores float32 [documents] of document numbers (int64)."""
    if store.chunked is None:
        offsets, rows = None, documents
    else:
        # As the index has them: with those of nothing but padding.
        offsets, rows = store.chunked.rows_of(documents, filled=False)
    scores: np.ndarray = (matrix[torch.from_numpy(rows).to(matrix.device)] @ query).cpu().numpy()
    return scores if offsets is None or not len(rows) else np.maximum.reduceat(scores, offsets[:-1])
