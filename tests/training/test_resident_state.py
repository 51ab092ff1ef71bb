"""Base snapshots and journals of the resident matrix."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.errors import ArtifactError
from ance_fast.training.negative_table import NegativeTable
from ance_fast.training.resident_state import ResidentState, load_state, save_state

ROWS, QUERIES, DIM, DEPTH = 40, 9, 4, 3


def empty(rows: int = ROWS, weighted: bool = False) -> ResidentState:
    return ResidentState(
        torch.zeros(rows, DIM),
        np.full(rows, -1, dtype=np.int32),
        np.full((QUERIES, DEPTH), -1, dtype=np.int32),
        np.full((QUERIES, DEPTH), -np.inf, dtype=np.float32),
        np.full(QUERIES, -1, dtype=np.int32),
        np.zeros((QUERIES, DEPTH), dtype=np.float32) if weighted else None,
        np.zeros((QUERIES, DEPTH), dtype=np.uint8) if weighted else None,
        torch.zeros(DIM, dtype=torch.float64) if weighted else None,
    )


def change(state: ResidentState, step: int, rows: list[int], queries: list[int]) -> None:
    noise = np.random.default_rng(step)
    with state.changed(np.array(rows, dtype=np.int64)):
        state.matrix[rows] = torch.from_numpy(noise.normal(size=(len(rows), DIM)).astype(np.float32))
    state.versions[rows] = step
    shape = len(queries), int(noise.integers(1, DEPTH + 1))
    found, scores = noise.integers(0, ROWS, shape).astype(np.int32), noise.normal(size=(2, *shape)).astype(np.float32)
    origins = noise.integers(0, 8, shape).astype(np.uint8)
    lists = NegativeTable(found, scores[0], "x", 1, step, log_weights=scores[1], origins=origins)
    state.keep(np.array(queries, dtype=np.int64), lists, mined=step)


def assert_equal(left: ResidentState, right: ResidentState) -> None:
    assert torch.equal(left.matrix, right.matrix)
    np.testing.assert_array_equal(left.versions, right.versions)
    assert left.lists().keys() == right.lists().keys()
    for name, array in left.lists().items():
        np.testing.assert_array_equal(array, right.lists()[name])
    assert (left.total is None) == (right.total is None)
    assert left.total is None or right.total is None or torch.equal(left.total, right.total)


rows_of = st.lists(st.integers(0, ROWS - 1), unique=True, max_size=12)
queries_of = st.lists(st.integers(0, QUERIES - 1), unique=True, max_size=4)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.tuples(rows_of, queries_of), min_size=1, max_size=3), min_size=1, max_size=6),
    st.booleans(),
    st.data(),
)
def test_what_is_loaded_is_what_was_saved_whichever_checkpoint_and_after_a_resume(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoints: list[list[tuple[list[int], list[int]]]],
    weighted: bool,
    data: st.DataObject,
) -> None:
    folder, state, step, previous = tmp_path_factory.mktemp("resident"), empty(weighted=weighted), 0, None
    change(state, 0, list(range(ROWS)), [])
    for number, steps in enumerate(checkpoints):
        for rows, queries in steps:
            step += 1
            change(state, step, rows, queries)
        save_state(state, folder / str(number), previous)
        if previous is not None:
            shutil.rmtree(previous)  # the newest holds all it needs
        previous = folder / str(number)
        loaded = load_state(empty(weighted=weighted), previous)
        assert_equal(loaded, state)
        assert loaded.bytes_written == state.bytes_written
        if data.draw(st.booleans()):
            state = loaded


def test_the_sum_of_all_rows_follows_their_changes() -> None:
    state = empty(weighted=True)
    assert state.total is not None
    change(state, 1, list(range(ROWS)), [])
    with state.changed(slice(3, 9)):
        state.matrix[3:9] *= 2
    change(state, 2, [5, 1, 38], [])
    np.testing.assert_allclose(state.total.numpy(), state.matrix.double().sum(0).numpy(), rtol=1e-12, atol=1e-12)


def test_a_list_replaces_all_of_the_one_before() -> None:
    state = empty(weighted=True)
    ones = np.ones((2, DEPTH), dtype=np.float32)
    whole = NegativeTable(
        np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int32), ones, "x", 1, 1, log_weights=-ones, origins=np.uint8(ones)
    )
    state.keep(np.array([4, 2]), whole, mined=1)
    state.keep(np.array([2]), whole.top(1).of(np.array([0])), mined=2)
    assert state.candidates[[4, 2]].tolist() == [[1, 2, 3], [1, -1, -1]]
    assert state.scores[2].tolist() == [1.0, -np.inf, -np.inf]
    assert state.log_weights is not None
    assert state.log_weights[2].tolist() == [-1.0, 0.0, 0.0]
    assert state.origins is not None
    assert state.origins[2].tolist() == [1, 0, 0]
    assert state.mined[[4, 2, 0]].tolist() == [1, 2, -1]


def test_a_checkpoint_writes_what_changed_and_links_the_rest(tmp_path: Path) -> None:
    state = empty()
    change(state, 1, list(range(ROWS)), [])
    save_state(state, tmp_path / "a", None)
    base = state.bytes_written
    change(state, 2, [3, 4], [1])
    save_state(state, tmp_path / "b", tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["base-00000001", "rows-00000002"]
    assert np.load(tmp_path / "b" / "rows-00000002" / "rows.npy").tolist() == [3, 4]
    assert state.bytes_written < base
    same = "base-00000001/matrix.npy"
    assert os.stat(tmp_path / "a" / same).st_ino == os.stat(tmp_path / "b" / same).st_ino


def test_journals_as_large_as_a_base_are_replaced_by_one(tmp_path: Path) -> None:
    state, previous = empty(), None
    change(state, 1, list(range(ROWS)), [])
    kinds = []
    for step in range(2, 14):
        change(state, step, [(step * 10 + i) % ROWS for i in range(10)], [])
        save_state(state, tmp_path / str(step), previous)
        previous = tmp_path / str(step)
        kinds.append(len(list(previous.iterdir())))
    assert kinds[0] == 1
    assert kinds.count(1) > 1, "a new base was made"
    assert max(kinds) <= 5


def test_a_checkpoint_without_the_state_or_of_another_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="lacks the state of refresh='rolling'"):
        load_state(empty(), tmp_path / "nothing")
    state = empty()
    change(state, 1, list(range(ROWS)), [])
    save_state(state, tmp_path / "a", None)
    with pytest.raises(ArtifactError, match=r"vectors \[40, 4\] for 41 rows"):
        load_state(empty(rows=41), tmp_path / "a")


def test_where_there_are_no_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = empty()
    change(state, 1, list(range(ROWS)), [])
    save_state(state, tmp_path / "a", None)
    change(state, 2, [7], [])

    def no_links(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    save_state(state, tmp_path / "b", tmp_path / "a")
    assert_equal(load_state(empty(), tmp_path / "b"), state)
