"""`mine_hard_negatives`: the call of sentence-transformers, on exact search that never returns a positive."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.mining.formats import FORMATS, Columns
from ance_fast.mining.limits import Limits
from ance_fast.mining.pair_mining import Encoding, mine_pairs
from ance_fast.mining.pairs import Pairs, read_pairs
from ance_fast.mining.search import Mined

logger = logging.getLogger(__name__)


def mine_hard_negatives(
    dataset: Any,
    model: Any,
    anchor_column_name: str | None = None,
    positive_column_name: str | None = None,
    corpus: Sequence[str] | None = None,
    cross_encoder: Any = None,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    num_negatives: int = 3,
    sampling_strategy: str = "top",
    query_prompt_name: str | None = None,
    query_prompt: str | None = None,
    corpus_prompt_name: str | None = None,
    corpus_prompt: str | None = None,
    include_positives: bool = False,
    output_format: str = "triplet",
    output_scores: bool = False,
    batch_size: int = 32,
    faiss_batch_size: int = 16384,
    use_faiss: bool = False,
    use_multi_process: Sequence[str] | bool = False,
    verbose: bool = True,
    cache_folder: str | Path | None = None,
    as_triplets: bool | None = None,
    margin: float | None = None,
    *,
    metric: str = "cosine",
    seed: int | Sequence[int] = 42,
) -> Any:
    """Add hard negatives to (anchor, positive) pairs: a `datasets.Dataset`, as sentence-transformers returns it.

    Args:
        dataset: a `datasets.Dataset`, or a mapping of columns. Equal anchors are one query with several positives.
        model: an `Encoder`, a `SentenceTransformer`, or an object with `encode_query` and `encode_document` (or
            `encode`) that gives [n, dim].
        anchor_column_name, positive_column_name: by default the first and second column.
        corpus: texts to mine from, besides the positives.
        cross_encoder: an object whose `predict` scores (query, passage) pairs. With any limit on scores, its scores
            replace the model's before the limits.
        range_min, range_max, max_score, min_score, absolute_margin, relative_margin: `Limits`. By default `range_max`
            is range_min + num_negatives + the most positives a query has; ten times the negatives where a limit may
            take some.
        num_negatives: negatives a query, at most.
        sampling_strategy: "top", or "random" among all that pass (seeded by `seed`).
        query_prompt, query_prompt_name, corpus_prompt, corpus_prompt_name: put before texts; else the model's own.
        include_positives: rank positives among the negatives too (for reranking data); implies "n-tuple".
        output_format: "triplet" (anchor, positive, `negative`), "n-tuple" (`negative_1`, ...; queries with too few
            are left out), "labeled-pair" (anchor, passage, `label`) or "labeled-list" (anchor, passages, `labels`).
        output_scores: add `scores` (in labelled formats: in place of labels): of the positive, then of negatives.
        batch_size: of models that take one; an `Encoder` packs by tokens.
        faiss_batch_size, use_faiss: accepted, and without effect: the search is this package's exact one.
        use_multi_process: for models that have `start_multi_process_pool`.
        verbose: show progress, and log what was found and what each filter took.
        cache_folder: keep embeddings for another call with the same model and texts. The model's weights are part of
            the key, so what other weights have encoded is never used.
        as_triplets, margin: old names of `output_format` and `absolute_margin`.
        metric: "cosine", or "ip" for models trained on inner products, whose order normalising would change.
        seed: of "random"; the same call gives the same negatives.

    Raises:
        ConfigError: settings that contradict each other, columns that are not there, embeddings that are not finite.
        MissingDependencyError: without `datasets`.

    Relations: the same rows as `sentence_transformers.util.mine_hard_negatives` (but for ties, and for "random", which
    draws from the same candidates), with these differences: `cache_folder` there ignores the weights and returns the
    negatives of an earlier model; an unknown column there silently becomes the first or second; draws there are not
    seeded. Memory is that of the embeddings: no matrix of queries by passages exists.
    """
    dataset_type = _dataset_type()
    if as_triplets is not None:
        output_format = "triplet" if as_triplets else "n-tuple"
        logger.warning("as_triplets is an old name: output_format=%r", output_format)
    if margin is not None:
        absolute_margin = margin
        logger.warning("margin is an old name: absolute_margin=%s", margin)
    if include_positives and output_format != "n-tuple":
        output_format = "n-tuple"
        logger.warning("include_positives gives rankings: output_format='n-tuple'")
    if output_format not in FORMATS:
        raise ConfigError(f"output_format={output_format!r}: choose {', '.join(FORMATS)}")
    if num_negatives < 1:
        raise ConfigError(f"num_negatives={num_negatives}: must be at least 1")
    anchor, positive = _column_names(dataset, anchor_column_name, positive_column_name)
    pairs = read_pairs(dataset[anchor], dataset[positive], corpus)
    by_score = any(limit is not None for limit in (max_score, min_score, absolute_margin, relative_margin))
    if range_max is None:
        # A lower bound on the model's own scores takes from the end of the list, which a longer list would not mend.
        from_the_top = any(limit is not None for limit in (max_score, absolute_margin, relative_margin))
        may_lose = from_the_top or (min_score is not None and cross_encoder is not None)
        range_max = range_min + num_negatives * (10 if may_lose else 1) + pairs.most
    limits = Limits(range_max, range_min, max_score, min_score, absolute_margin, relative_margin)
    limits.refuse_too_few(num_negatives)
    limits.refuse_unknown_sampling(sampling_strategy)
    encoding = Encoding(
        metric=metric,
        query_prompt=query_prompt,
        query_prompt_name=query_prompt_name,
        corpus_prompt=corpus_prompt,
        corpus_prompt_name=corpus_prompt_name,
        batch_size=batch_size,
        use_multi_process=use_multi_process,
        cache_folder=None if cache_folder is None else Path(cache_folder),
        show_progress=verbose,
    )
    mined = mine_pairs(
        pairs,
        model,
        limits,
        num_negatives,
        encoding,
        sampling=sampling_strategy,
        seed=seed,
        include_positives=include_positives,
        rescore=_rescorer(cross_encoder, pairs, batch_size) if by_score else None,
    )
    if verbose:
        _report(pairs, mined, num_negatives)
    columns: Columns = FORMATS[output_format](pairs, mined, anchor, positive, output_scores)
    return dataset_type.from_dict(columns)


def _dataset_type() -> Any:
    try:
        from datasets import Dataset
    except ImportError as error:
        raise MissingDependencyError(
            "mine_hard_negatives returns a datasets.Dataset: pip install 'ance_fast[datasets]'"
        ) from error
    return Dataset


def _column_names(dataset: Any, anchor: str | None, positive: str | None) -> tuple[str, str]:
    names = list(dataset) if isinstance(dataset, Mapping) else list(dataset.column_names)
    for given in (anchor, positive):
        if given is not None and given not in names:
            raise ConfigError(f"the dataset has no column {given!r}; its columns are {', '.join(names)}")
    if len(names) < 2 and (anchor is None or positive is None):
        raise ConfigError(f"the dataset has the columns {names}; it needs anchors and positives")
    return anchor or names[0], positive or names[1]


def _rescorer(
    cross_encoder: Any, pairs: Pairs, batch_size: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    if cross_encoder is None:
        return None

    def rescore(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        texts = [(pairs.queries[q], pairs.corpus[r]) for q, r in zip(queries.tolist(), rows.tolist(), strict=True)]
        scores = np.asarray(cross_encoder.predict(texts, batch_size=batch_size), dtype=np.float32)
        if scores.shape != (len(texts),):
            raise ConfigError(
                f"the cross-encoder gave {list(scores.shape)} for {len(texts)} pairs; expected a score each"
            )
        return scores

    return rescore


def _report(pairs: Pairs, mined: Mined, count: int) -> None:
    found = (mined.rows >= 0).sum(axis=1)
    taken = "".join(f", {name} took {number:,}" for name, number in mined.removed.items() if number)
    logger.info(
        "%d negatives for %d queries over %d passages; %d queries have fewer than %d%s",
        found.sum(), len(pairs.queries), len(pairs.corpus), (found < count).sum(), count, taken,
    )  # fmt: skip
    if found.any():
        negatives = mined.scores[mined.rows >= 0]
        logger.info("mean score: positives %.4f, negatives %.4f", mined.positive_scores.mean(), negatives.mean())
