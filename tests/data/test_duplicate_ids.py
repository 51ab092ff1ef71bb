from __future__ import annotations

import tracemalloc

import pyarrow as pa
import pytest

from ance_fast.data import duplicate_ids
from ance_fast.data.duplicate_ids import IdHashes, UniqueIds
from ance_fast.errors import DataError


def test_repeated_hashes_and_their_rows_are_found() -> None:
    hashes = IdHashes()
    for identifier in ["a", "b", "c", "b", "a", "d"]:
        hashes.add(identifier)
    assert hashes.repeated() == {duplicate_ids.id_hash("a"), duplicate_ids.id_hash("b")}
    assert hashes.rows_of(hashes.repeated()).tolist() == [0, 1, 3, 4]
    assert len(hashes) == 6


def test_it_is_time_to_look_whenever_the_number_has_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_ids, "_FIRST_CHECK", 4)
    hashes = IdHashes()
    assert [number for number in range(1, 40) if hashes.add(str(number))] == [4, 8, 16, 32]


def test_the_id_and_both_places_are_named() -> None:
    ids = UniqueIds(lambda place: f"pipe:{place}")
    for place, identifier in enumerate(["a", "b", "c", "b"], 10):
        ids.add(identifier, place)
    with pytest.raises(DataError, match="pipe:13: document id 'b' again, first at pipe:11; ids must be unique"):
        ids.refuse_duplicates()


def test_ids_whose_hashes_collide_are_not_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_ids, "hash", lambda value: 7, raising=False)
    ids = UniqueIds()
    for identifier in ["a", "b", "c"]:
        ids.add(identifier)
    ids.refuse_duplicates()
    ids.add("c")
    with pytest.raises(DataError, match="document id 'c' comes twice"):
        ids.refuse_duplicates()


def test_ids_cost_their_letters_and_a_few_bytes() -> None:
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        ids = UniqueIds()
        for number in range(60_000):
            ids.add(f"document-{number:021d}")
        ids.refuse_duplicates()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 60_000 * 16
    assert pa.total_allocated_bytes() - arrow < 60_000 * 48
