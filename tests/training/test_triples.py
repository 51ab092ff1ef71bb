"""The order of triples: which queries, in which order, what a batch is, and that nothing but its number decides it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import examples_of

from ance_fast.errors import ConfigError, DataError
from ance_fast.training import AnceConfig, NegativeSampler, NegativeTable
from ance_fast.training.candidate_sources import own_search
from ance_fast.training.counter_hash import counter_hash
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import draw_negatives, random_table
from ance_fast.training.ranks import Ranks
from ance_fast.training.schedule import chunk_of
from ance_fast.training.triples import TripleOrder, batch_of, epoch_length, query_order, triple_order
from ance_fast.training.view import View

QUERIES, CORPUS, SEED = 11, 40, 3


@pytest.fixture
def examples() -> Examples:
    """Query i's positives are passages i and, for odd i, i + 20."""
    return examples_of([[i] if i % 2 == 0 else [i, i + 20] for i in range(QUERIES)], CORPUS)


def table_of(queries: range, generation: int, step: int) -> NegativeTable:
    """Eight candidates for each of these queries, in a table that has rows for them alone."""
    rows = np.array([[(query * 3 + column) % 5 + 11 + column for column in range(8)] for query in queries])
    rows = np.sort(rows, axis=1) + np.arange(8)
    scores = np.zeros(rows.shape, dtype=np.float32)
    asked = None if len(queries) == QUERIES else np.array(queries)
    return NegativeTable(rows.astype(np.int32), scores, "index", generation, step, queries=asked)


def order(examples: Examples, chunks: int, *, size: int = 4, ranks: Ranks | None = None) -> TripleOrder:
    config = AnceConfig(
        output_dir="x", order="triples", query_chunks=chunks, triples_per_query=3, start="index", batch_size=size
    )
    sampler = NegativeSampler(examples, seed=SEED, count=1)
    made = triple_order(config, examples, sampler, ranks or Ranks())
    assert made is not None
    return made


def restated(examples: Examples, generation: int, step: int, chunks: int) -> list[tuple[int, int, int]]:
    """The triples of a generation, one query at a time."""
    part = chunk_of(generation, chunks, QUERIES)
    table = table_of(part, generation, step)
    triples = []
    for query in sorted(part, key=lambda query: int(counter_hash(SEED, generation, query, -3))):
        candidates = table.candidates[query - part.start].tolist()
        hashes = [int(counter_hash(SEED, generation, query, step, column)) for column in range(8)]
        positives = examples.positives_of(np.array([query]))[1].tolist()
        positive = positives[int(counter_hash(SEED, -1, query, step, 0)) % len(positives)]
        columns = [column for column in np.argsort(hashes) if candidates[column] not in positives]
        triples += [(query, positive, candidates[column]) for column in columns[:3]]
    return triples


@settings(deadline=None, max_examples=25)
@given(generation=st.integers(0, 7), step=st.integers(0, 50), chunks=st.integers(1, 4), size=st.integers(1, 9))
def test_a_generation_is_gone_through_in_order_again_and_again(
    generation: int, step: int, chunks: int, size: int
) -> None:
    examples = examples_of([[i] if i % 2 == 0 else [i, i + 20] for i in range(QUERIES)], CORPUS)
    wanted = restated(examples, generation, step, chunks)
    table = table_of(chunk_of(generation, chunks, QUERIES), generation, step)
    batches = order(examples, chunks, size=size)
    for _ in range(2):
        passed: list[tuple[int, int, int]] = []
        number = 0
        while len(passed) < 2 * len(wanted):
            passed += [tuple(row) for row in batches.batch(table, number).tolist()]
            number += 1
        assert passed == [*wanted, *wanted]
    assert number == 2 * -(-len(wanted) // size)


def test_a_batch_depends_on_its_number_alone(examples: Examples) -> None:
    table = table_of(range(QUERIES), 2, 10)
    asked = order(examples, 1)
    forwards = [asked.batch(table, number).tolist() for number in range(12)]
    backwards = [order(examples, 1).batch(table, number).tolist() for number in reversed(range(12))]
    assert forwards == backwards[::-1]


def test_another_generation_and_another_step_give_other_triples(examples: Examples) -> None:
    asked = order(examples, 1, size=99)
    lists = [asked.batch(table_of(range(QUERIES), *key), 0).tolist() for key in [(1, 10), (2, 10), (1, 11), (1, 10)]]
    assert lists[0] == lists[3]
    assert lists[0] != lists[1]
    assert [row[0] for row in lists[0]] == [row[0] for row in lists[2]]
    assert lists[0] != lists[2]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_take_the_queries_in_turn_and_what_does_not_divide_is_left_out(examples: Examples, size: int) -> None:
    table = table_of(range(QUERIES), 1, 10)
    alone = order(examples, 1, size=999).batch(table, 0).tolist()
    parts = [order(examples, 1, size=999, ranks=Ranks(r, size)).batch(table, 0).tolist() for r in range(size)]
    lines = list(dict.fromkeys(row[0] for row in alone))
    lines = lines[: len(lines) // size * size]
    for rank, part in enumerate(parts):
        assert part == [row for query in lines[rank::size] for row in alone if row[0] == query]


def test_a_query_with_fewer_negatives_gives_fewer_triples() -> None:
    examples = examples_of([[0], [1, 2], [3], [4]], 30)
    rows = np.array([[1, -1, -1, -1], [0, 3, -1, -1], [-1, -1, -1, -1], [5, 6, 7, 8]], dtype=np.int32)
    scores = np.zeros(rows.shape, dtype=np.float32)
    table = NegativeTable(rows, scores, "index", 0, 0)
    triples = order(examples, 1, size=9).batch(table, 0).tolist()
    pairs = sorted((query, negative) for query, _, negative in triples)
    assert pairs[:3] == [(0, 1), (1, 0), (1, 3)], "candidates alone, none for query 2"
    assert [query for query, _ in pairs[3:]] == [3] * 3
    # A candidate without weight is none; a table of no columns stands for the whole corpus.
    weights = np.where(rows == 3, -np.inf, 0).astype(np.float32)
    weighted = replace(table, log_weights=weights, generation=1)
    kept = order(examples, 1, size=9).batch(weighted, 0).tolist()
    assert sorted((query, negative) for query, _, negative in kept if query < 3) == [(0, 1), (1, 0)]
    assert len(order(examples, 1, size=99).batch(random_table(examples), 0)) == 4 * 3


def test_more_parts_than_queries_are_refused(examples: Examples) -> None:
    with pytest.raises(ConfigError, match="query_chunks=12: there are only 11 training queries"):
        order(examples, 12)


def test_where_no_triple_can_be_made_the_error_says_so() -> None:
    examples = examples_of([[0, 1]], 2)
    table = NegativeTable(np.array([[-1]], dtype=np.int32), np.zeros((1, 1), dtype=np.float32), "index", 0, 0)
    with pytest.raises(DataError, match="order='triples': there is no triple .* generation 0: no query has a negative"):
        order(examples, 1).batch(table, 0)


def test_triples_that_the_data_brings_keep_their_order(examples: Examples) -> None:
    rows = np.arange(21, dtype=np.int32).reshape(7, 3)
    given_ones = replace(examples, triples=rows)
    table = table_of(range(QUERIES), 0, 0)
    asked = order(given_ones, 1)
    assert [asked.batch(table, number).tolist() for number in range(3)] == [
        rows[:4].tolist(), rows[4:].tolist(), rows[:4].tolist(),
    ]  # fmt: skip
    second = order(given_ones, 1, ranks=Ranks(1, 2))
    assert second.batch(table, 0).tolist() == rows[[1, 3, 5]].tolist()
    assert epoch_length(AnceConfig(output_dir="x", order="triples"), given_ones) == 7


def test_an_epoch_is_the_queries_or_the_triples_of_a_generation(examples: Examples) -> None:
    assert epoch_length(AnceConfig(output_dir="x"), examples) == QUERIES
    config = AnceConfig(output_dir="x", order="triples", query_chunks=3, triples_per_query=4)
    assert epoch_length(config, examples) == 3 * 4


def test_chunks_share_the_queries_and_the_last_has_the_rest() -> None:
    assert [list(chunk_of(number, 3, 8)) for number in range(4)] == [[0, 1], [2, 3], [4, 5, 6, 7], [0, 1]]
    assert sorted(query for number in range(5) for query in chunk_of(number, 5, 23)) == list(range(23))


def test_queries_are_shuffled_anew_in_every_generation() -> None:
    orders = [query_order(range(50), seed=1, generation=generation).tolist() for generation in range(3)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({tuple(one) for one in orders}) == 3


def test_positives_may_count_among_the_passages_found(examples: Examples) -> None:
    asked: list[tuple[np.ndarray, np.ndarray]] = []

    def search(vectors: object, excluded: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        asked.append(excluded)
        return np.zeros((2, 3), dtype=np.int64), np.zeros((2, 3), dtype=np.float32)

    view = View(np.array([0, 1]), None, None, search, lambda: None)  # type: ignore[arg-type, return-value]
    own_search(view, examples, generation=0, step=0, count_positives=True)
    own_search(view, examples, generation=0, step=0)
    assert [[part.tolist() for part in parts] for parts in asked] == [[[0, 0, 0], []], [[0, 1, 3], [0, 1, 21]]]


def test_a_table_of_some_queries_spreads_to_all_of_them(examples: Examples) -> None:
    part = chunk_of(1, 3, QUERIES)
    table = table_of(part, 1, 10)
    whole = table.whole(QUERIES)
    assert whole.queries is None
    asked = np.array(part)
    drawn = draw_negatives(whole, examples, asked, 3, seed=SEED, step=10)
    full = table_of(range(QUERIES), 1, 10)
    assert drawn.tolist() == draw_negatives(full, examples, asked, 3, seed=SEED, step=10).tolist()
    assert batch_of(np.arange(6).reshape(2, 3), 5, 3).tolist() == [[0, 1, 2], [3, 4, 5]]
