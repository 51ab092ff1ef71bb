"""Token-table rows to packed batches."""

from __future__ import annotations

import gc
import itertools
import threading
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast import _C
from ance_fast.data import packing
from ance_fast.data.packing import PackedBatch, Packer, ragged
from ance_fast.errors import ConfigError

TOKENS = st.lists(st.lists(st.integers(0, 65535), max_size=12), max_size=25)


def split(batch: PackedBatch) -> list[list[int]]:
    bounds = batch.cu_seqlens.tolist()
    return [batch.input_ids[a:b].tolist() for a, b in itertools.pairwise(bounds)]


def shards_of(rows, cuts, value_dtype, offset_dtype):
    """The rows as three shards; the first with values before its first row, as a sliced Arrow array has."""
    first, second = sorted(min(cut, len(rows)) for cut in cuts)
    shards = []
    for part in (rows[:first], rows[first:second], rows[second:]):
        values, offsets = ragged(part)
        lead = len(shards) == 0
        values = np.concatenate([np.full(3 * lead, 7), values]).astype(value_dtype)
        shards.append((values, (offsets + 3 * lead).astype(offset_dtype)))
    return shards


@settings(deadline=None, max_examples=30)
@given(
    rows=TOKENS,
    cuts=st.tuples(st.integers(0, 25), st.integers(0, 25)),
    value_dtype=st.sampled_from([np.uint16, np.int32]),
    offset_dtype=st.sampled_from([np.int32, np.int64]),
    budget=st.integers(1, 40),
    window=st.sampled_from([0, 1, 4, 65536]),
    most=st.integers(1, 6),
    group=st.sampled_from([1, 7, 30, 16384]),
    data=st.data(),
)
def test_every_requested_row_comes_once_and_the_limits_hold(
    rows, cuts, value_dtype, offset_dtype, budget, window, most, group, data
):
    with mock.patch.object(packing, "GROUP_TOKENS", group):
        check_batches(rows, cuts, value_dtype, offset_dtype, budget, window, most, data)


def check_batches(rows, cuts, value_dtype, offset_dtype, budget, window, most, data):
    packer = Packer(shards_of(rows, cuts, value_dtype, offset_dtype), position_offset=2)
    assert len(packer) == len(rows)
    request = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=40)) if rows else []
    batches = list(packer.batches(request, token_budget=budget, window=window, max_sequences=most))
    assert sorted(np.concatenate([b.rows for b in batches]).tolist() if batches else []) == list(range(len(request)))
    for batch in batches:
        assert split(batch) == [rows[request[i]] for i in batch.rows]
        assert batch.position_ids.tolist() == [2 + t for length in batch.lengths for t in range(length)]
        assert 1 <= len(batch) <= most
        assert batch.num_tokens <= budget or len(batch) == 1
        assert batch.max_seqlen == max(batch.lengths)
        assert batch.lengths.tolist() == batch.cu_seqlens.diff().tolist()
        assert (batch.input_ids.dtype, batch.position_ids.dtype) == (torch.int64, torch.int64)
        assert batch.cu_seqlens.dtype == torch.int32
    order = [int(i) for batch in batches for i in batch.rows]
    step = window or max(len(request), 1)
    wanted = []
    for begin in range(0, len(request), step):
        part = list(range(begin, min(begin + step, len(request))))
        wanted += sorted(part, key=lambda i: -len(rows[request[i]])) if window else part
    assert order == wanted
    # Greedy: the first row of a batch did not fit the one before.
    for before, after in itertools.pairwise(batches):
        assert len(before) == most or before.num_tokens + int(after.lengths[0]) > budget


@settings(deadline=None, max_examples=30)
@given(rows=TOKENS, limit=st.integers(1, 8), keep_last=st.booleans())
def test_a_long_row_is_cut_and_keeps_its_closing_token(rows, limit, keep_last):
    packer = Packer([ragged(rows)], max_length=limit, keep_last=keep_last)
    wanted = [row if len(row) <= limit else (row[: limit - 1] + row[-1:] if keep_last else row[:limit]) for row in rows]
    assert split(packer.pack(np.arange(len(rows)))) == wanted
    assert packer.lengths().tolist() == [len(row) for row in wanted]


def test_pack_keeps_the_order_and_repeats_of_the_request():
    packer = Packer([ragged([[1, 2], [], [3]]), ragged([[4, 5, 6]])])
    batch = packer.pack([3, 0, 1, 3])
    assert split(batch) == [[4, 5, 6], [1, 2], [], [4, 5, 6]]
    assert batch.rows.tolist() == [0, 1, 2, 3]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]


def test_an_empty_request_gives_no_batches_and_an_empty_pack():
    packer = Packer([ragged([[1]])])
    assert list(packer.batches([])) == []
    batch = packer.pack([])
    assert (len(batch), batch.num_tokens, batch.max_seqlen, batch.cu_seqlens.tolist()) == (0, 0, 0, [0])
    assert list(Packer([]).batches()) == []


def test_a_table_object_serves_as_well_as_its_shards():
    class Table:
        shards = (ragged([[1, 2], [3]]),)
        lengths = np.array([2, 1])

        def __len__(self) -> int:
            return 2

    assert split(Packer(Table()).pack([1, 0])) == [[3], [1, 2]]


def test_the_arrays_outlive_their_caller():
    def build() -> Packer:
        return Packer([(np.arange(50_000, dtype=np.int32), np.arange(0, 50_001, 5))])

    packer = build()
    gc.collect()
    noise = [np.full(50_000, -1, np.int32) for _ in range(8)]
    assert split(packer.pack([9_999])) == [[49_995, 49_996, 49_997, 49_998, 49_999]]
    assert len(noise) == 8


def test_moving_a_batch_keeps_its_host_side():
    batch = Packer([ragged([[1, 2], [3]])]).pack([0, 1])
    moved = batch.to("meta")
    assert moved.input_ids.device.type == "meta"
    assert moved.lengths.tolist() == [2, 1]
    assert len(moved) == 2


def test_a_batch_made_by_hand_knows_its_lengths():
    ids = torch.arange(3)
    batch = PackedBatch(ids, ids, torch.tensor([0, 1, 3], dtype=torch.int32), 2, np.arange(2))
    assert batch.lengths.tolist() == [1, 2]


def test_threads_pack_at_once_from_one_packer():
    rows = [list(range(i, i + 20)) for i in range(500)]
    packer = Packer([ragged(rows)])
    wrong: list[int] = []

    def work(seed: int) -> None:
        picked = np.random.default_rng(seed).integers(0, 500, 200)
        if split(packer.pack(picked)) != [rows[i] for i in picked]:
            wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_outside_the_table_is_an_index_error(row):
    packer = Packer([ragged([[1], [2], [3]])])
    with pytest.raises(IndexError, match=f"row {row} is outside 0 .. 3 - 1"):
        packer.pack([row])
    with pytest.raises(IndexError, match=f"row {row} is outside"):
        packer.batches([0, row])


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (np.zeros(3, np.int32), np.array([0, 4]), "at most its 3 values"),
        (np.zeros(3, np.int32), np.array([0, 2, 1]), "offsets must rise"),
        (np.zeros(3, np.int32), np.array([-1, 2]), "offsets must rise"),
        (np.zeros(3, np.int64), np.array([0, 3]), "values .* must be uint16, got int64"),
        (np.zeros(3, np.int32), np.array([0.0, 3.0]), "offsets .* must be int32, got float64"),
        (np.zeros((3, 1), np.int32), np.array([0, 3]), "values must have shape"),
        (np.zeros(6, np.int32)[::2], np.array([0, 3]), "C-contiguous"),
        (np.zeros(3, np.int32), np.array([], np.int64), "at least one entry"),
    ],
)
def test_a_damaged_shard_is_refused(values, offsets, message):
    with pytest.raises(ConfigError, match=message):
        Packer([(values, offsets)])


@pytest.mark.parametrize("setting", [{"token_budget": 0}, {"window": -1}, {"max_sequences": 0}])
def test_a_limit_out_of_range_is_refused(setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is"):
        Packer([ragged([[1]])]).batches(**setting)


def test_wrong_settings_and_requests_are_refused():
    for setting in ({"max_length": 0}, {"position_offset": -1}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            Packer([], **setting)
    with pytest.raises(ConfigError, match="1-D list of integers"):
        Packer([ragged([[1]])]).pack(np.array([0.0]))
    with pytest.raises(ConfigError, match="1-D list of integers"):
        Packer([ragged([[1]])]).pack(np.array([[0]]))


@pytest.mark.parametrize("starts", [[0, 5, 2], [0, 2, 1, 2], [1, 2], [0, 1], []])
def test_batches_outside_the_rows_are_refused_before_anything_is_read(starts):
    packer = _C.TokenPacker([ragged([[1, 2], [3]])])
    room = np.zeros(3, np.int64)
    with pytest.raises(ValueError, match="starts"):
        packer.pack(
            np.arange(2),
            np.array(starts, np.int64),
            ids=room,
            positions=room.copy(),
            cu_seqlens=np.zeros(2 + max(len(starts) - 1, 0), np.int32),
        )
