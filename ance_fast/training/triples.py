"""microsoft/ANCE's order: a generation is a list of triples (query, positive, negative), gone through from its start.

Its queries are shuffled and those of a query stand one after another, so a batch has few queries. When the list is at
its end it begins again, unshuffled; what is left of it at the next refresh is never used. Nothing is drawn while it is
gone through, so a batch is a function of (settings, generation, number of the batch since the generation began): a
resumed run needs no state of its own, and no loader can prefetch what a refresh replaces.

The original shuffles without a seed. Here the queries are sorted by a hash of (seed, generation, query).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ance_fast.errors import ConfigError, DataError
from ance_fast.training.config import AnceConfig
from ance_fast.training.counter_hash import counter_hash
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeSampler, NegativeTable, choose_positives, draw_negatives
from ance_fast.training.ranks import ALONE, Ranks

# Tells the hashes of this order from those that draw negatives (steps and slots are not negative).
_ORDER = -3


class TripleOrder:
    """The batches of each generation, of `size` triples, as one of `ranks` gets them.

    queries_of: which queries the generation of a number is for.
    per_query: negatives drawn for each query, each of which makes a triple with the query's positive of the generation.
        A query that has fewer candidates gives fewer triples, and one without any gives none.

    Examples that bring triples of their own (`Examples.triples`) keep these, in their order, whatever the generation.
    """

    def __init__(
        self,
        examples: Examples,
        sampler: NegativeSampler,
        *,
        size: int,
        per_query: int,
        queries_of: Callable[[int], Sequence[int]],
        ranks: Ranks = ALONE,
    ) -> None:
        self._examples, self._sampler, self._ranks = examples, sampler, ranks
        self._size, self._per_query, self._queries_of = size, per_query, queries_of
        self._made: tuple[tuple[int, int], np.ndarray] | None = None

    def batch(self, table: NegativeTable, number: int) -> np.ndarray:
        """Batch `number` since the generation of `table` began: int [at most size, 3] query index, positive row,
        negative row.

        The last batch before the list begins again has what is left. Raises `DataError` where there is no triple.
        """
        return batch_of(self._triples(table), self._size, number)

    def _triples(self, table: NegativeTable) -> np.ndarray:
        given, ranks = self._examples.triples, self._ranks
        if given is not None:
            whole = given[: len(given) // ranks.size * ranks.size]
            return _refuse_none(whole[ranks.rank :: ranks.size], "the data set has fewer triples than processes")
        key = table.generation, table.step
        if self._made is None or self._made[0] != key:
            queries = self._queries_of(table.generation)
            lines = query_order(queries, seed=self._sampler.seed, generation=table.generation)
            lines = lines[: len(lines) // ranks.size * ranks.size][ranks.rank :: ranks.size]
            made = draw_triples(table, self._examples, self._sampler, lines, self._per_query)
            _refuse_none(made, f"generation {table.generation}: no query has a negative, or there are too few queries")
            self._made = key, made
        return self._made[1]


def triple_order(config: AnceConfig, examples: Examples, sampler: NegativeSampler, ranks: Ranks) -> TripleOrder | None:
    """The order of a run; None where `config.order` is that of queries.

    Raises `ConfigError` for more parts of the queries than there are queries: some generation would be of none.
    """
    if config.order != "triples":
        return None
    if examples.triples is None and config.query_chunks > len(examples):
        raise ConfigError(f"query_chunks={config.query_chunks}: there are only {len(examples)} training queries")
    return TripleOrder(
        examples,
        sampler,
        size=config.batch_size,
        per_query=config.triples_per_query,
        queries_of=lambda generation: config.queries_of(generation, len(examples)),
        ranks=ranks,
    )


def epoch_length(config: AnceConfig, examples: Examples) -> int:
    """What an epoch is: queries, or with triples those of a generation, of its smallest part of the queries."""
    if config.order != "triples":
        return len(examples)
    if examples.triples is not None:
        return len(examples.triples)
    return max(1, len(examples) // config.query_chunks) * config.triples_per_query


def query_order(queries: Sequence[int], *, seed: int, generation: int) -> np.ndarray:
    """The queries of a generation as they are trained on: int64, sorted by a hash of (seed, generation, query)."""
    numbers = np.asarray(queries, dtype=np.int64)
    return numbers[np.argsort(counter_hash(seed, generation, numbers, _ORDER), kind="stable")]


def draw_triples(
    table: NegativeTable, examples: Examples, sampler: NegativeSampler, queries: np.ndarray, per_query: int
) -> np.ndarray:
    """Triples of these queries (int64), those of one after another in the order drawn: int32 [T, 3].

    At most `per_query` of each, and no more than it has candidates: nothing is filled up from the corpus.
    """
    step = table.step
    negatives = draw_negatives(
        table.whole(len(examples)),
        examples,
        queries,
        per_query,
        seed=sampler.seed,
        step=step,
        documents=sampler.documents,
        contents=sampler.contents,
        fill=False,
    )
    positives = choose_positives(examples, queries, seed=sampler.seed, step=step)
    owner, slot = np.nonzero(negatives >= 0)
    return np.stack([queries[owner], positives[owner], negatives[owner, slot]], axis=1).astype(np.int32)


def batch_of(triples: np.ndarray, size: int, number: int) -> np.ndarray:
    """Batch `number` of `size` rows of a list that is gone through again and again; a pass ends with what is left."""
    place = number % -(-len(triples) // size) * size
    return triples[place : place + size]


def _refuse_none(triples: np.ndarray, why: str) -> np.ndarray:
    if not len(triples):
        raise DataError(f"order='triples': there is no triple to train on: {why}")
    return triples
