"""Texts to mined rows: encode both sides with the model as it is now, search, filter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ance_fast.errors import ConfigError
from ance_fast.index import Index
from ance_fast.mining.embedding import embed
from ance_fast.mining.limits import Limits
from ance_fast.mining.pairs import Pairs
from ance_fast.mining.search import Mined, Rescore, mine_rows


@dataclass(frozen=True)
class Encoding:
    """How texts are encoded for mining; the fields are described at `mine_hard_negatives`."""

    metric: str = "cosine"
    query_prompt: str | None = None
    query_prompt_name: str | None = None
    corpus_prompt: str | None = None
    corpus_prompt_name: str | None = None
    batch_size: int = 32
    use_multi_process: Sequence[str] | bool = False
    cache_folder: Path | None = None
    show_progress: bool = False


def mine_pairs(
    pairs: Pairs,
    model: Any,
    limits: Limits,
    count: int,
    encoding: Encoding,
    *,
    sampling: str = "top",
    seed: int | Sequence[int] = 42,
    include_positives: bool = False,
    rescore: Rescore | None = None,
) -> Mined:
    """Mine `count` negatives for each query of `pairs` from its corpus. Raises `ConfigError` as `mine_rows` does."""
    _refuse_other_similarity(model)
    with _pool(model, encoding.use_multi_process) as pool:
        common: dict[str, Any] = {
            "metric": encoding.metric,
            "batch_size": encoding.batch_size,
            "pool": pool,
            "show_progress": encoding.show_progress,
            "cache": encoding.cache_folder,
        }
        prompt, name = encoding.corpus_prompt, encoding.corpus_prompt_name
        passages = embed(model, pairs.corpus, "document", prompt=prompt, prompt_name=name, **common)
        prompt, name = encoding.query_prompt, encoding.query_prompt_name
        queries = embed(model, pairs.queries, "query", prompt=prompt, prompt_name=name, **common)
    return mine_rows(
        Index.over(passages),
        queries,
        (pairs.offsets, pairs.rows),
        limits,
        count,
        sampling=sampling,
        seed=seed,
        include_positives=include_positives,
        room=pairs.most,
        rescore=rescore,
        score_positives=True,
    )


def _refuse_other_similarity(model: Any) -> None:
    similarity = getattr(model, "similarity_fn_name", None)
    if similarity is not None and str(similarity) in ("euclidean", "manhattan"):
        raise ConfigError(
            f"the model compares by {similarity} distance, and mining is by cosine or inner product; for a model that "
            "normalises, set model.similarity_fn_name = 'cosine'"
        )


@contextmanager
def _pool(model: Any, wanted: Sequence[str] | bool) -> Iterator[Any]:
    if not wanted:
        yield None
        return
    if not hasattr(model, "start_multi_process_pool"):
        raise ConfigError(f"use_multi_process: {type(model).__name__} has no start_multi_process_pool; leave it out")
    pool = model.start_multi_process_pool(target_devices=None if isinstance(wanted, bool) else list(wanted))
    try:
        yield pool
    finally:
        model.stop_multi_process_pool(pool)
