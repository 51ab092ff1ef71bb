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
from ance_fast.training.resident_state import ResidentState, load_state, save_state

ROWS, QUERIES, DIM, DEPTH = 40, 9, 4, 3


def empty(rows: int = ROWS) -> ResidentState:
    return ResidentState(
        torch.zeros(rows, DIM),
        np.full(rows, -1, dtype=np.int32),
        np.full((QUERIES, DEPTH), -1, dtype=np.int32),
        np.full((QUERIES, DEPTH), -np.inf, dtype=np.float32),
        np.full(QUERIES, -1, dtype=np.int32),
    )


def change(state: ResidentState, step: int, rows: list[int], queries: list[int]) -> None:
    noise = np.random.default_rng(step)
    state.matrix[rows] = torch.from_numpy(noise.normal(size=(len(rows), DIM)).astype(np.float32))
    state.versions[rows] = step
    state.candidates[queries] = noise.integers(0, ROWS, (len(queries), DEPTH))
    state.scores[queries] = noise.normal(size=(len(queries), DEPTH))
    state.mined[queries] = step


def assert_equal(left: ResidentState, right: ResidentState) -> None:
    assert torch.equal(left.matrix, right.matrix)
    for name in ("versions", "candidates", "scores", "mined"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


rows_of = st.lists(st.integers(0, ROWS - 1), unique=True, max_size=12)
queries_of = st.lists(st.integers(0, QUERIES - 1), unique=True, max_size=4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.tuples(rows_of, queries_of), min_size=1, max_size=3), min_size=1, max_size=6), st.data())
def test_what_is_loaded_is_what_was_saved_whichever_checkpoint_and_after_a_resume(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoints: list[list[tuple[list[int], list[int]]]],
    data: st.DataObject,
) -> None:
    folder, state, step, previous = tmp_path_factory.mktemp("resident"), empty(), 0, None
    change(state, 0, list(range(ROWS)), [])
    for number, steps in enumerate(checkpoints):
        for rows, queries in steps:
            step += 1
            change(state, step, rows, queries)
        save_state(state, folder / str(number), previous)
        if previous is not None:
            shutil.rmtree(previous)  # the newest holds all it needs
        previous = folder / str(number)
        loaded = load_state(empty(), previous)
        assert_equal(loaded, state)
        assert loaded.bytes_written == state.bytes_written
        if data.draw(st.booleans()):
            state = loaded


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
