"""Where the candidates of a generation come from, and how a refresh puts them together.

Each source gives a `NegativeTable` for the queries of a `View`; `NegativeSampler.unite` merges them. The generation
before ("momentum") and the tables that the sampler holds are sources as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ance_fast.data.token_store import TokenStore
from ance_fast.errors import ConfigError, DataError
from ance_fast.training.config import AnceConfig
from ance_fast.training.counter_hash import counter_hash
from ance_fast.training.dataset_answers import chosen_answers
from ance_fast.training.documents import documents_by_file, documents_by_id
from ance_fast.training.examples import Examples
from ance_fast.training.given_candidates import ScoredPairs, bm25_table, pairs_of, read_pairs
from ance_fast.training.negatives import (
    NegativeSampler,
    NegativeTable,
    choose_positives,
    given_table,
    mined_table,
    random_table,
)
from ance_fast.training.refresh import Snapshot
from ance_fast.training.sampler_config import REFRESHED, TEACHER, SamplerConfig
from ance_fast.training.view import View, snapshot_view

# Positions of a token list enter its hash apart from its length.
_LENGTH = -1


def generation_candidates(
    snapshot: Snapshot,
    settings: AnceConfig,
    examples: Examples,
    sampler: NegativeSampler,
    previous: NegativeTable | None,
    *,
    generation: int,
    step: int,
) -> NegativeTable:
    """The candidates of a generation for the queries that it is for: all, or its part of `query_chunks`."""
    queries = None
    if settings.query_chunks > 1:
        part = settings.queries_of(generation, len(examples))
        queries = np.arange(part.start, part.stop)
    stamp = {"topk": settings.topk, "generation": generation, "step": step}
    return replace(
        refreshed_candidates(snapshot, examples, sampler, previous, queries=queries, **stamp), queries=queries
    )


def refreshed_candidates(
    snapshot: Snapshot,
    examples: Examples,
    sampler: NegativeSampler,
    previous: NegativeTable | None,
    *,
    topk: int,
    generation: int,
    step: int,
    queries: np.ndarray | None = None,
) -> NegativeTable:
    """The candidates of a generation by `snapshot`, for these queries (int64), by default for all; see
    `view_candidates`."""
    view = snapshot_view(snapshot, examples, topk=topk, queries=queries)
    return view_candidates(view, examples, sampler, previous, topk=topk, generation=generation, step=step)


def view_candidates(
    view: View,
    examples: Examples,
    sampler: NegativeSampler,
    previous: NegativeTable | None,
    *,
    topk: int,
    generation: int,
    step: int,
) -> NegativeTable:
    """Candidates of the view's queries: each source of `sampler.config` to depth `topk`, united, filtered, weighted.

    `previous`, a table of all queries, is the generation before, for "momentum"; in the first there is none. What a
    query gets depends on no other query of the view.
    """
    config, queries = sampler.config, view.queries
    stamp = {"generation": generation, "step": step}
    tables = []
    for source in config.sources:
        if source == "index":
            tables.append(own_search(view, examples, count_positives=config.count_positives, **stamp))
        elif source == "look-ahead":
            tables.append(look_ahead(view, examples, sampler.seed, **stamp))
        elif source == "random":
            tables.append(random_candidates(examples, topk, sampler.seed, queries=queries, **stamp))
        elif source != "momentum":
            tables.append(sampler.tables[source].of(queries).top(topk))
        elif previous is not None:
            tables.append(replace(previous.of(queries).top(topk), source="momentum"))
    if not tables:
        return replace(random_table(examples), generation=generation, step=step).of(queries)
    united = sampler.unite(tables, queries=queries, **stamp)
    view.freshen(united.candidates)
    teacher = sampler.teacher.of(queries[:, None], united.candidates) if sampler.teacher is not None else None
    teacher_bounds = teacher if config.needs_teacher else None
    if not config.needs_scores:
        return sampler.select(united, teacher_scores=teacher_bounds, answers=sampler.answers, queries=queries)
    positives = examples.positives_of(queries)
    if config.scores == "teacher":
        assert sampler.teacher is not None
        scores, positive_scores = teacher, sampler.teacher.of(np.repeat(queries, np.diff(positives[0])), positives[1])
    else:
        view.freshen(positives[1])
        own = view.exact and united.sources == ("index",)
        products = united.scores if own else view.inner_products(united.candidates)
        scores, positive_scores = view.on_scale(config.scores, united.candidates, products, positives)
    return sampler.select(
        united,
        scores=scores,
        positive_scores=positive_scores if config.needs_positive_scores else None,
        teacher_scores=teacher_bounds,
        answers=sampler.answers,
        queries=queries,
    )


def list_width(config: SamplerConfig, tables: Mapping[str, NegativeTable], *, topk: int, corpus: int) -> int:
    """The most candidates that `view_candidates` leaves a query."""
    width = 0
    for source in config.sources:
        found = min(topk, tables[source].candidates.shape[1] if source in tables else topk)
        if config.rank_max is not None:
            found = min(found, config.rank_max)
        found = max(0, found - config.rank_min)
        width += min(found, config.per_source or found)
    return max(1, min(width, corpus, config.keep or width))


def run_sampler(
    examples: Examples, settings: AnceConfig, scores: Mapping[str, Mapping[str, float]] | None = None
) -> NegativeSampler:
    """The sampler of a training run, with the tables of its sources, the teacher's scores, answers and documents.

    scores: of a teacher (query id -> document id -> score) that the data set brings; a run file "teacher" is preferred.

    Raises `ConfigError` for a setting that needs what there is not, `DataError` for a file that is damaged or about
    something else.
    """
    config, files, topk = SamplerConfig.parse(settings.sampler), settings.candidates, settings.topk
    contents = _contents(examples) if config.contents else None
    documents = None
    if settings.documents is not None:
        documents = documents_by_file(settings.documents, examples.corpus)
    elif settings.document_separator is not None:
        documents = documents_by_id(settings.document_separator, examples.corpus)
    pairs = {name: read_pairs(path, examples) for name, path in files.items()}
    listed = {*config.sources, settings.start}
    most = int(np.diff(examples.positive_offsets).max(initial=0))
    tables = {}
    for name in listed & pairs.keys():
        best = pairs[name].best(examples, topk + most, name)
        tables[name] = mined_table(examples, best.candidates, best.scores, name, 0, 0).top(topk)
    for source in config.sources:
        if source not in (*REFRESHED, *tables):
            tables[source] = bm25_table(examples, topk) if source == "bm25" else _of_data_set(examples)
    teacher = None
    if config.reads_teacher:
        teacher = pairs.get(TEACHER) or (pairs_of(examples, scores) if scores else None)
        _check_teacher(teacher, examples, config, files.get(TEACHER, "the data set"))
    return NegativeSampler(
        examples,
        seed=settings.seed,
        count=settings.negatives_per_query,
        config=config,
        documents=documents,
        contents=contents,
        tables=tables,
        teacher=teacher,
        answers=chosen_answers(settings.answers, examples),
    )


def own_search(
    view: View, examples: Examples, *, generation: int, step: int, count_positives: bool = False
) -> NegativeTable:
    """The passages nearest to each query, its positives left out; with `count_positives` among those found."""
    none = np.zeros(len(view.queries) + 1, dtype=np.int64), np.zeros(0, dtype=np.int64)
    rows, scores = view.search(view.vectors, none if count_positives else examples.positives_of(view.queries))
    return NegativeTable(rows.astype(np.int32), scores.astype(np.float32), "index", generation, step)


def look_ahead(view: View, examples: Examples, seed: int, *, generation: int, step: int) -> NegativeTable:
    """The passages nearest to one of the query's positives, drawn anew each generation (Sun et al., EMNLP 2022)."""
    chosen = choose_positives(examples, view.queries, seed=seed, step=generation)
    view.freshen(chosen)
    rows, scores = view.search(view.closest(chosen), examples.positives_of(view.queries))
    return NegativeTable(rows.astype(np.int32), scores.astype(np.float32), "look-ahead", generation, step)


def random_candidates(
    examples: Examples, count: int, seed: int, *, generation: int, step: int, queries: np.ndarray | None = None
) -> NegativeTable:
    """`count` passages of the corpus for each query (int64, by default all), uniformly, perhaps with repetitions;
    without scores (NaN)."""
    every = np.arange(len(examples)) if queries is None else queries
    hashes = counter_hash(seed, generation, every[:, None], -2, np.arange(count))
    rows = (hashes % np.uint64(len(examples.corpus))).astype(np.int32)
    return NegativeTable(rows, np.full(rows.shape, np.nan, dtype=np.float32), "random", generation, step)


def _of_data_set(examples: Examples) -> NegativeTable:
    if examples.given is None:
        raise ConfigError("sampler: sources=dataset: the data set brings no negatives")
    return given_table(examples)


def _check_teacher(teacher: ScoredPairs | None, examples: Examples, config: SamplerConfig, where: str) -> None:
    if teacher is None:
        raise ConfigError(
            "sampler: there are no teacher scores; the data set brings none, and candidates has no run file 'teacher'"
        )
    if config.scores != "teacher" or not config.needs_positive_scores:
        return
    pairs = examples.pairs
    missing = pairs[~np.isfinite(teacher.of(pairs[:, 0], pairs[:, 1]))]
    if len(missing):
        query, document = examples.queries.ids[int(missing[0, 0])], examples.corpus.ids[int(missing[0, 1])]
        raise DataError(
            f"{where}: no score of query {query!r} with its positive {document!r} ({len(missing)} of {len(pairs)} "
            "positives have none); the sampler compares candidates with them"
        )


def _contents(examples: Examples) -> np.ndarray:
    rows, documents = content_ids(examples.passages), examples.documents
    if documents is None:
        return rows
    starts = documents.starts
    hashes = counter_hash(np.arange(len(rows)) - starts[documents.numbers], rows)
    with np.errstate(over="ignore"):
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(hashes, dtype=np.uint64)])
        return (sums[starts[1:]] - sums[starts[:-1]]).view(np.int64)


def content_ids(store: TokenStore) -> np.ndarray:
    """A number for the token list of each row, int64 [rows]: equal for equal lists, else different but for 2^-64."""
    pieces = []
    for values, offsets in store.shards:
        offsets = offsets.astype(np.int64)
        lengths = np.diff(offsets)
        places = np.arange(offsets[-1] - offsets[0]) - np.repeat(offsets[:-1] - offsets[0], lengths)
        hashes = counter_hash(places, values[offsets[0] : offsets[-1]])
        with np.errstate(over="ignore"):
            # Differences of running sums modulo 2^64 are exact; an empty list has none.
            sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(hashes, dtype=np.uint64)])
            ends = offsets - offsets[0]
            pieces.append(counter_hash(_LENGTH, lengths, (sums[ends[1:]] - sums[ends[:-1]]).view(np.int64)))
    return np.concatenate(pieces).view(np.int64) if pieces else np.zeros(0, dtype=np.int64)
