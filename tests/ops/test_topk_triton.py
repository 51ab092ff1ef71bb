"""The Triton form of the exact top-k against brute force; without a GPU Triton's interpreter runs it on CPU tensors."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast.ops import StreamingTopK, topk_inner_product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
assert DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before triton is imported"

from ance_fast.ops import topk_inner_product_triton as form  # noqa: E402


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Several blocks of everything at sizes that the interpreter gets through."""
    for name, value in {"SMALLEST_BUFFER": 16, "BLOCK": 16, "QUERY_ROWS": 2, "TILE_ROWS": 64}.items():
        monkeypatch.setattr(form, name, value)


def check(found, queries, vectors, k, **filters):
    wanted = topk_inner_product(queries, vectors, k, **filters, backend="reference")
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def integers(rows, columns, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (rows, columns), generator=draw).float().to(DEVICE)


def lists(seed, rows, total):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (rows,), generator=draw)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return offsets.to(DEVICE), torch.randint(-1, total + 2, (int(offsets[-1]),), generator=draw).to(DEVICE)


@settings(deadline=None, max_examples=12)
@given(
    rows=st.integers(0, 3),
    total=st.integers(0, 60),
    k=st.integers(1, 12),
    filtered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_equals_brute_force_with_many_ties(rows, total, k, filtered, seed):
    queries, vectors = integers(rows, 5, seed), integers(total, 5, seed + 1)
    filters = {}
    if filtered:
        filters = {"allow": vectors[:, 0] < 1, "exclude": lists(seed, rows, total)}
    check(topk_inner_product(queries, vectors, k, **filters, backend="triton"), queries, vectors, k, **filters)


def test_tiles_in_any_order_give_the_same():
    queries, vectors = integers(3, 4, 0), integers(90, 4, 1)
    search = StreamingTopK(queries, 3, exclude=lists(2, 3, 90), backend="triton")
    for start, stop in ((50, 90), (0, 7), (7, 50)):
        search.add(vectors[start:stop].half() if start else vectors[start:stop].cpu(), start)
        search.result()
    check(search.result(), queries, vectors, 3, exclude=lists(2, 3, 90))


@pytest.mark.parametrize("filtered", [False, True])
def test_queries_whose_buffer_overflowed_are_searched_again(filtered, monkeypatch):
    again = []
    monkeypatch.setattr(
        form.Collector,
        "_search_overflowed",
        lambda self, *arguments, search=form.Collector._search_overflowed: (
            again.append(self._overflowed.nonzero()[:, 0].tolist()),
            search(self, *arguments),
        ),
    )
    # Every score of the second query beats those before it, so that a wide tile brings more than a buffer holds.
    queries = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1e4]], device=DEVICE)
    vectors = torch.stack([torch.arange(200.0), -torch.arange(200.0)], 1).to(DEVICE)
    filters = {"exclude": lists(0, 3, 200), "allow": vectors[:, 0] % 5 > 0} if filtered else {}
    search = StreamingTopK(queries, 2, **filters, backend="triton")
    search.add(vectors[:120], 0)
    search.add(vectors[120:], 120)
    check(search.result(), queries, vectors, 2, **filters)
    assert again
    assert again[0] == [1]


@pytest.mark.parametrize("mine", [[4], [0, 4], [3, 4], [4, 5], [0, 1, 2, 3, 4], []])
def test_an_excluded_position_is_found_wherever_it_stands_in_its_list(mine):
    queries, vectors = torch.ones(3, 1, device=DEVICE), torch.tensor([[1.0], [0], [2], [3], [9]], device=DEVICE)
    offsets = torch.tensor([0, 1, 1 + len(mine), 2 + len(mine)], device=DEVICE)
    exclude = offsets, torch.tensor([3, *mine, 2], device=DEVICE)
    found = topk_inner_product(queries, vectors, 5, exclude=exclude, backend="triton")
    check(found, queries, vectors, 5, exclude=exclude)


def test_nan_and_infinity():
    values = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, -3.4028234663852886e38, -0.0, 0.0, torch.inf])
    vectors = values[:, None].to(DEVICE)
    scores, positions = topk_inner_product(torch.ones(1, 1, device=DEVICE), vectors, 8, backend="triton")
    assert positions.tolist() == [[2, 7, 0, 5, 6, 4, -1, -1]]
    assert torch.equal(scores[0, :6], vectors[positions[0, :6], 0])


def test_the_last_positions_of_all():
    search = StreamingTopK(torch.ones(1, 1, device=DEVICE), 2, backend="triton")
    search.add(torch.ones(3, 1, device=DEVICE), 2**32 - 3)
    assert search.result()[1].tolist() == [[2**32 - 3, 2**32 - 2]]


def test_the_custom_op_passes_opcheck():
    queries, vectors = integers(2, 3, 0), integers(9, 3, 1)
    op = torch.ops.ance_fast.topk_inner_product.default
    torch.library.opcheck(op, (queries, vectors, 2, None, None, None, "triton"), test_utils="test_faketensor")
