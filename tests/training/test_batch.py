"""What a batch encodes, and who finds it where."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.data import TokenStore
from ance_fast.data.packing import Shard, ragged
from ance_fast.training.batch import BatchMaker
from ance_fast.training.examples import Examples
from ance_fast.training.negatives import NegativeSampler, random_table

CORPUS = 12


class _Texts:
    """Stands for a token store: text i is so many times the token `first + i`."""

    chunked = None

    def __init__(self, lengths: list[int], first: int) -> None:
        self.shards: list[Shard] = [ragged([[first + i] * length for i, length in enumerate(lengths)])]
        self.count = len(lengths)

    def __len__(self) -> int:
        return self.count


def examples_of(passage_lengths: list[int], query_lengths: list[int]) -> Examples:
    """Query i's only positive is passage i; tokens name their text: passages from 100, queries from 500."""
    passages: TokenStore = _Texts(passage_lengths, 100)  # type: ignore[assignment]
    queries: TokenStore = _Texts(query_lengths, 500)  # type: ignore[assignment]
    count = len(query_lengths)
    return Examples(passages, queries, [""] * count, np.arange(count + 1), np.arange(count))


@settings(deadline=None, max_examples=60)
@given(
    passage_lengths=st.lists(st.integers(1, 9), min_size=CORPUS, max_size=CORPUS),
    query_lengths=st.lists(st.integers(1, 5), min_size=1, max_size=CORPUS),
    negatives=st.integers(1, 4),
    budget=st.one_of(st.none(), st.integers(1, 40)),
    data=st.data(),
)
def test_each_distinct_text_lies_once_in_chunks_within_the_budget_and_is_found_there(
    passage_lengths: list[int], query_lengths: list[int], negatives: int, budget: int | None, data: st.DataObject
) -> None:
    examples = examples_of(passage_lengths, query_lengths)
    make = BatchMaker(examples, NegativeSampler(examples, seed=0, count=negatives), encode_tokens=budget)
    queries = np.array(data.draw(st.lists(st.integers(0, len(query_lengths) - 1), min_size=1, max_size=8)))
    batch = make(queries, random_table(examples), 3)
    texts = [
        chunk.input_ids[start:end].tolist()
        for chunk in batch.chunks
        for start, end in itertools.pairwise(chunk.cu_seqlens.tolist())
    ]
    needed = {500 + query for query in queries} | {100 + row for row in batch.passage_rows}
    assert sorted(text[0] for text in texts) == sorted(needed)
    assert [len(text) for text in texts] == sorted((len(text) for text in texts), reverse=True)
    found = [texts[place][0] for place in batch.places]
    assert found == [500 + query for query in queries] + [100 + row for row in batch.passage_rows]
    positives = np.concatenate([batch.positive, batch.negatives[batch.negatives >= 0]])
    assert set(positives.tolist()) == set(range(len(batch.passage_rows)))
    if budget is None:
        assert len(batch.chunks) == 1
    else:
        assert all(chunk.num_tokens <= budget or len(chunk) == 1 for chunk in batch.chunks)
        joined = [a.num_tokens + int(b.lengths[0]) for a, b in itertools.pairwise(batch.chunks)]
        assert all(tokens > budget for tokens in joined), "a chunk ends only where the next text does not fit"


def test_ten_distinct_texts_are_encoded_for_twenty_four_named_ones() -> None:
    """Eight triples of one query: upstream's micro-batch, which encodes every text of every triple."""
    examples = examples_of([4] * 9, [3])
    batch = BatchMaker(examples, NegativeSampler(examples, seed=0, count=8))(np.array([0]), random_table(examples), 0)
    assert sum(len(chunk) for chunk in batch.chunks) == 1 + 1 + 8
    assert batch.negatives.shape == (1, 8)
    with pytest.raises(IndexError):
        BatchMaker(examples, NegativeSampler(examples, seed=0, count=8))(np.array([1]), random_table(examples), 0)
