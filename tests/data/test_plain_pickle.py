from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ance_fast.data.plain_pickle import read_array_pickle, read_number_pairs, write_array_pickle
from ance_fast.errors import DataError

numbers = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(numbers, numbers, max_size=30), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_dictionaries_of_integers_come_back(
    tmp_path_factory: pytest.TempPathFactory, value: dict[int, int], protocol: int
) -> None:
    file = tmp_path_factory.mktemp("pickle") / "pid2offset.pickle"
    file.write_bytes(pickle.dumps(value, protocol))
    keys, values = read_number_pairs(file)
    assert (keys.dtype, values.dtype) == (np.int64, np.int64)
    assert dict(zip(keys.tolist(), values.tolist(), strict=True)) == value


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["<f4", ">f4", "<f2", "<f8", "<i4", "<i8"]).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(max_dims=2, min_side=0), fill=st.nothing())
    ),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
    st.booleans(),
)
def test_arrays_of_numbers_come_back(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, protocol: int, by_column: bool
) -> None:
    file = tmp_path_factory.mktemp("pickle") / "passage_0__emb_p__data_obj_0.pb"
    file.write_bytes(pickle.dumps(np.asfortranarray(array) if by_column else array, protocol))
    found = read_array_pickle(file)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    written = array.astype(array.dtype.newbyteorder("<"))
    write_array_pickle(file, written.dtype, written.shape, iter([written[:1], written[1:]]))
    for again in (read_array_pickle(file), pickle.loads(file.read_bytes())):
        assert (again.dtype, again.shape) == (written.dtype, written.shape)
        assert again.tobytes() == written.tobytes()
    assert b"numpy._core" not in file.read_bytes()


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("read", [read_number_pairs, read_array_pickle])
def test_a_pickle_that_runs_something_is_refused_before_it_does(tmp_path: Path, read: Any) -> None:
    file = tmp_path / "p.pickle"
    for value in (Command(tmp_path / "made"), {1: Command(tmp_path / "made")}):
        file.write_bytes(pickle.dumps(value))
        with pytest.raises(DataError, match=r"p\.pickle: not a pickle of plain numbers \(it asks for "):
            read(file)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [{1: "a"}, {"a": 1}, {True: 1}, {1: 1.0}, [1], {1: 2**64}, {2**64: 1}])
def test_other_values_are_no_mapping_of_numbers(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "p.pickle"
    file.write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=r"p\.pickle: (expected a pickled dictionary|a number does not fit)"):
        read_number_pairs(file)


def test_arrays_of_other_things_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.pb"
    for value in (np.array(["text"]), np.array([{}], dtype=object), np.zeros(2, dtype=[("a", "f4")]), [1.0], {}):
        file.write_bytes(pickle.dumps(value))
        with pytest.raises(DataError, match=r"p\.pb: "):
            read_array_pickle(file)


def test_a_pickle_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.pickle"
    for value, read in (({1: 2, 300: 4}, read_number_pairs), (np.arange(5.0), read_array_pickle)):
        whole = pickle.dumps(value, 4)
        for end in range(0, len(whole), 4):
            file.write_bytes(whole[:end])
            with pytest.raises(DataError, match=r"p\.pickle: "):
                read(file)


def test_the_names_of_older_numpy_are_known(tmp_path: Path) -> None:
    file = tmp_path / "p.pb"
    for protocol in (0, 2):  # protocols that spell a name without its length
        file.write_bytes(pickle.dumps(np.arange(3.0), protocol).replace(b"numpy._core.", b"numpy.core."))
        assert read_array_pickle(file).tolist() == [0.0, 1.0, 2.0]
