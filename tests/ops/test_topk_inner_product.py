"""Exact top-k: the whole matrix, tiles in any order, parts joined, on every backend of a CPU, against brute force."""

from __future__ import annotations

import importlib
import itertools
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ance_fast import _C
from ance_fast.errors import ConfigError
from ance_fast.ops import StreamingTopK, merge_topk, topk_inner_product
from ance_fast.ops.topk_keys import EMPTY, POSITIONS, pack_keys, unpack_keys

BACKENDS = ["cpp", "torch", "reference"]
STREAMING = ["cpp", "torch"]


def brute_force(queries, vectors, k, allow=None, exclude=None):
    """In float64 by (-score, position), padded with -inf and -1."""
    with np.errstate(invalid="ignore"):
        scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    scores[np.isnan(scores)] = -np.inf
    if allow is not None:
        scores[:, ~allow] = -np.inf
    for row, positions in enumerate(exclude or []):
        scores[row, [p for p in positions if 0 <= p < len(vectors)]] = -np.inf
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores))[:, :k]
    best = np.take_along_axis(scores, order, 1)
    order[np.isneginf(best)] = -1
    pad = ((0, 0), (0, k - order.shape[1]))
    return np.pad(best, pad, constant_values=-np.inf), np.pad(order, pad, constant_values=-1)


def check(found, wanted):
    """Equal bits: for scores that are exact in float32."""
    scores, positions = found
    assert (scores.dtype, positions.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(positions.cpu().numpy(), wanted[1])
    np.testing.assert_array_equal(scores.cpu().numpy(), wanted[0].astype(np.float32))


def csr(lists):
    values = [position for positions in lists for position in positions]
    offsets = np.cumsum([0, *(len(positions) for positions in lists)])
    return torch.from_numpy(offsets.astype(np.int64)), torch.tensor(values, dtype=torch.int64)


@st.composite
def problems(draw):
    """Small integers, so that every score is exact and most of them occur several times."""
    n, total, dim = draw(st.integers(0, 20)), draw(st.integers(0, 70)), draw(st.sampled_from([1, 3, 16, 37]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    queries, vectors = (rng.integers(-1, 2, (rows, dim)).astype(np.float32) for rows in (n, total))
    allow = rng.random(total) < 0.6 if draw(st.booleans()) else None
    exclude = [rng.integers(-2, total + 3, rng.integers(0, 9)).tolist() for _ in range(n)]
    return queries, vectors, draw(st.integers(1, 80)), allow, exclude if draw(st.booleans()) else None


def arguments_of(problem):
    queries, vectors, k, allow, exclude = problem
    return (torch.from_numpy(queries), torch.from_numpy(vectors), k), {
        "allow": None if allow is None else torch.from_numpy(allow),
        "exclude": None if exclude is None else csr(exclude),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_it_equals_brute_force_with_many_ties(backend, problem):
    arguments, filters = arguments_of(problem)
    check(topk_inner_product(*arguments, **filters, backend=backend), brute_force(*problem))


@pytest.mark.parametrize("backend", STREAMING)
@settings(deadline=None, max_examples=60)
@given(problem=problems(), cuts=st.lists(st.integers(0, 70), max_size=5), order=st.randoms())
def test_tiles_in_any_order_and_of_any_kind_give_the_same(backend, problem, cuts, order):
    (queries, vectors, k), filters = arguments_of(problem)
    bounds = sorted({0, len(vectors), *(cut for cut in cuts if cut < len(vectors))})
    tiles = list(itertools.pairwise(bounds))
    order.shuffle(tiles)
    search = StreamingTopK(queries, k, **filters, backend=backend)
    kinds = [torch.Tensor.numpy, torch.Tensor.half, torch.Tensor.bfloat16, lambda tile: tile.half().numpy()]
    for number, (start, stop) in enumerate(tiles):
        search.add(kinds[number % 4](vectors[start:stop]), start)
        search.result()  # looking changes nothing
    check(search.result(), brute_force(*problem))


SCORES = {
    "ascending": lambda n: np.arange(n),
    "descending": lambda n: -np.arange(n),
    "equal": lambda n: np.ones(n),
    "negative zeros": lambda n: np.where(np.arange(n) % 2, 0.0, -0.0),
    "two values": lambda n: np.arange(n) % 2,
    "saw": lambda n: np.arange(n) % 1000,
    "infinite": lambda n: np.array([np.inf, -np.inf, 1.0, np.nan])[np.arange(n) % 4],
    "largest": lambda n: np.array([-1, 1])[np.arange(n) % 2] * np.finfo(np.float32).max,
}


@pytest.mark.parametrize("backend", STREAMING)
@pytest.mark.parametrize("k", [1, 200, 3000, 100_000])
@pytest.mark.parametrize("shape", SCORES)
def test_any_order_of_scores_is_selected_and_ordered(shape, k, backend):
    vectors = SCORES[shape](9000).astype(np.float32)[:, None]
    wanted = brute_force(np.ones((2, 1), np.float32), vectors, k)
    for order in ([0, 1, 2], [2, 0, 1]):
        search = StreamingTopK(torch.ones(2, 1), k, backend=backend)
        for tile in order:
            search.add(vectors[tile * 3000 : tile * 3000 + 3000], tile * 3000)
        check(search.result(), wanted)


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("columns", [1, 31, 33, 255, 1024, 1025, 2600])
def test_every_instruction_set_collects_the_same(isa, columns):
    if ["scalar", "avx2", "avx512"].index(isa) > ["scalar", "avx2", "avx512"].index(_C.best_isa()):
        isa = _C.best_isa()
    rng = np.random.default_rng(columns)
    queries, vectors = (rng.integers(-3, 4, (rows, 21)).astype(np.float32) for rows in (7, columns))
    scores = np.full((7, columns), np.nan, np.float32)
    _C.few_products(queries, vectors, scores, isa=isa, threads=2)
    np.testing.assert_array_equal(scores, queries @ vectors.T)
    collector = _C.TopKCollector(7, 19)
    collector.add(scores, row=0, first=0, isa=isa)
    found = torch.empty(7, 19), torch.empty(7, 19, dtype=torch.int64)
    collector.result(found[0].numpy(), found[1].numpy())
    check(found, brute_force(queries, vectors, 19))


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 11), count=st.integers(0, 40), dim=st.integers(1, 130), seed=st.integers(0, 99))
def test_products_of_a_few_queries_are_accurate(rows, count, dim, seed):
    draw = torch.Generator().manual_seed(seed)
    queries, vectors = torch.randn(rows, dim, generator=draw), torch.randn(count, dim, generator=draw)
    for isa in ("scalar", "auto"):
        scores = torch.full((rows, count), torch.nan)
        _C.few_products(queries.numpy(), vectors.numpy(), scores.numpy(), isa=isa)
        limit = 1e-6 * (queries.abs().double() @ vectors.abs().double().T)
        assert ((scores.double() - queries.double() @ vectors.double().T).abs() <= limit).all()


@pytest.mark.parametrize("rows", [3, 40])
def test_scores_are_float32_accurate_and_the_order_agrees_with_float64(rows):
    queries, vectors = torch.randn(rows, 100), torch.nn.functional.normalize(torch.randn(3000, 100))
    exact = queries.double() @ vectors.double().T
    scores, positions = topk_inner_product(queries, vectors, 50)
    torch.testing.assert_close(scores.double(), exact.gather(1, positions), rtol=1e-5, atol=1e-5)
    wanted = exact.sort(dim=1, descending=True).values[:, :50]
    torch.testing.assert_close(exact.gather(1, positions), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 40])
def test_threads_change_nothing(rows):
    queries, vectors = torch.randint(-3, 4, (rows, 24)).float(), torch.randint(-3, 4, (9000, 24)).float()
    was, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(topk_inner_product(queries, vectors, 100))
    finally:
        torch.set_num_threads(was)
    for scores, positions in found[1:]:
        assert torch.equal(scores, found[0][0])
        assert torch.equal(positions, found[0][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, 40])
def test_a_tile_of_half_precision_equals_one_converted_first(dtype, rows):
    queries, vectors = torch.randn(rows, 33), torch.randn(500, 33).to(dtype)
    found, wanted = (StreamingTopK(queries, 20) for _ in range(2))
    found.add(vectors, 0)
    wanted.add(vectors.float(), 0)
    for mine, theirs in zip(found.result(), wanted.result(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", STREAMING)
def test_queries_and_vectors_are_searched_in_blocks(backend, monkeypatch):
    small = {"QUERY_ROWS": 5, "TILE_SCORES": 20, "TILE_ROWS": (3, 4), "CONVERTED": 12}
    if backend == "torch":
        small = {"TILE_ROWS": 7, "BLOCK_SCORES": 60}
    module = importlib.import_module(f"ance_fast.ops.topk_inner_product_{'cpu' if backend == 'cpp' else 'torch'}")
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    rng = np.random.default_rng(0)
    queries, vectors = (rng.integers(-2, 3, (rows, 4)).astype(np.float32) for rows in (23, 50))
    allow = np.arange(50) >= 11  # whole tiles hold nothing that may be returned
    exclude = [[row, 30, 29, 49] for row in range(23)]
    found = topk_inner_product(
        torch.from_numpy(queries),
        torch.from_numpy(vectors),
        9,
        allow=torch.from_numpy(allow),
        exclude=csr(exclude),
        backend=backend,
    )
    check(found, brute_force(queries, vectors, 9, allow, exclude))


def test_a_memory_mapped_matrix_is_read_without_a_copy_or_a_warning(tmp_path):
    vectors = np.random.default_rng(0).integers(-2, 3, (60, 5)).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    queries = np.eye(3, 5, dtype=np.float32)
    search = StreamingTopK(queries, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search.add(mapped[20:], 20)
        search.add(mapped[:20], 0)
    check(search.result(), brute_force(queries, vectors, 7))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_are_taken(backend):
    queries, vectors = torch.randint(-2, 3, (5, 8)).float()[:, ::2], torch.randint(-2, 3, (4, 30)).float().T
    wanted = brute_force(queries.numpy(), vectors.numpy(), 6)
    check(topk_inner_product(queries, vectors, 6, backend=backend), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_returned_that_is_not_allowed(backend):
    queries, vectors = torch.ones(2, 3), torch.ones(5, 3)
    everything = (torch.tensor([0, 5, 5]), torch.arange(5))
    for filters in ({"allow": torch.zeros(5, dtype=torch.bool)}, {"allow": torch.tensor([False] * 4 + [True])}):
        filters["exclude"] = everything
        scores, positions = topk_inner_product(queries, vectors, 3, **filters, backend=backend)
        assert positions[0].tolist() == [-1, -1, -1]
        assert positions[1].tolist() == ([4, -1, -1] if filters["allow"].any() else [-1, -1, -1])
        assert torch.isneginf(scores[positions < 0]).all()


def test_parts_of_a_matrix_merge_into_the_whole():
    queries, vectors = torch.randint(-1, 2, (4, 3)).float(), torch.randint(-1, 2, (90, 3)).float()
    parts = []
    for start, stop in ((60, 90), (0, 25), (25, 60), (90, 90)):
        scores, positions = topk_inner_product(queries, vectors[start:stop], 31)
        parts.append((scores, torch.where(positions < 0, positions, positions + start)))
    check(merge_topk(parts), brute_force(queries.numpy(), vectors.numpy(), 31))
    check(merge_topk(parts, 5), brute_force(queries.numpy(), vectors.numpy(), 5))
    scores, positions = merge_topk(parts[1:2], 33)  # wider than the part
    assert positions[:, 25:].eq(-1).all()
    assert torch.isneginf(scores[:, 25:]).all()
    assert torch.equal(positions[:, :25], parts[1][1][:, :25])


def test_positions_beyond_32_bits_merge():
    far = torch.tensor([[2**40, 2**33]])
    scores, positions = merge_topk([(torch.tensor([[1.0, 0.5]]), far), (torch.ones(1, 1), torch.tensor([[3]]))])
    assert positions.tolist() == [[3, 2**40]]
    assert scores.tolist() == [[1.0, 1.0]]


def test_the_last_position_of_all_can_be_returned():
    for backend in STREAMING:
        search = StreamingTopK(torch.ones(1, 1), 2, backend=backend)
        search.add(torch.tensor([[1.0], [1.0]]), POSITIONS - 2)
        assert search.result()[1].tolist() == [[POSITIONS - 2, POSITIONS - 1]]


@settings(deadline=None, max_examples=100)
@given(
    scores=st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=9),
    positions=st.lists(st.integers(0, POSITIONS - 1), min_size=9, max_size=9),
)
def test_keys_order_as_score_and_position_do_and_come_back(scores, positions):
    scores, positions = torch.tensor(scores), torch.tensor(positions[: len(scores)])
    keys = pack_keys(scores, positions)
    kept = ~torch.isneginf(scores)
    assert (keys[~kept] == EMPTY).all()
    back, places = unpack_keys(keys)
    assert torch.equal(back, scores)
    assert torch.equal(places, torch.where(kept, positions, -1))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), positions[i].item() if kept[i] else 0))
    assert torch.equal(keys[order], keys.sort(descending=True).values)


@pytest.mark.timeout(60)
def test_time_is_linear_where_every_score_beats_the_last():
    def seconds(total):
        collector, scores = _C.TopKCollector(4, 500), np.tile(np.arange(total, dtype=np.float32), (4, 1))
        start = time.process_time()
        collector.add(scores, row=0, first=0)
        return time.process_time() - start

    seconds(10_000)
    small, large = (min(seconds(total) for _ in range(3)) for total in (50_000, 800_000))
    assert large < 16 * 5 * small


def test_half_precision_inputs_are_scored_in_fp32_even_under_autocast():
    queries = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    vectors = torch.tensor([[256.0, 0.0], [256.0, 1.0]], dtype=torch.bfloat16)  # equal once rounded to bf16
    for backend in BACKENDS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores, positions = topk_inner_product(queries, vectors, 2, backend=backend)
        assert (scores.tolist(), positions.tolist()) == ([[257.0, 256.0]], [[1, 0]])


def test_float64_is_ranked_in_float64():
    vectors = torch.tensor([[1.0], [1.0 + 1e-12]], dtype=torch.float64)
    assert topk_inner_product(torch.ones(1, 1, dtype=torch.float64), vectors, 2)[1].tolist() == [[1, 0]]


def test_it_gives_no_gradient_and_does_not_fail_on_tensors_that_want_one():
    scores, _ = topk_inner_product(torch.ones(1, 2, requires_grad=True), torch.ones(3, 2, requires_grad=True), 1)
    assert not scores.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_custom_op_passes_opcheck_and_compiles(backend):
    queries, vectors = torch.randn(3, 4), torch.randn(7, 4)
    op = torch.ops.ance_fast.topk_inner_product.default
    lists = csr([[3], [], [6, 0]])
    torch.library.opcheck(op, (queries, vectors, 3, None, None, None, backend))
    torch.library.opcheck(op, (queries, vectors, 9, torch.rand(7) > 0.5, *lists, backend))

    def search(q, v):
        return topk_inner_product(q, v, 3, exclude=lists, backend=backend)

    compiled = torch.compile(search, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(queries, vectors), search(queries, vectors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"queries": torch.ones(2)}, r"queries must be floating point \[n, D\]"),
        ({"queries": torch.ones(2, 4)}, "differ in width"),
        ({"vectors": torch.ones(4, 3).int()}, r"vectors must be floating point \[N, D\]"),
        ({"vectors": torch.empty(4, 3, device="meta")}, "vectors are on meta, queries on cpu; move one"),
        ({"allow": torch.ones(4)}, r"allow must be bool \[4\]"),
        ({"allow": torch.ones(3, dtype=torch.bool)}, r"allow must be bool \[4\]"),
        ({"exclude": torch.ones(3)}, r"exclude must be a pair \(offsets, values\)"),
        ({"exclude": csr([[1]])}, "exclude offsets must have 3 entries, got 2"),
        ({"exclude": (torch.tensor([0, 2, 1]), torch.ones(1).long())}, "exclude offsets must rise from 0 to its 1"),
        ({"exclude": (torch.tensor([0, 1, 1]), torch.ones(1).int())}, "exclude values must be 1-D int64"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    arguments = {"queries": torch.ones(2, 3), "vectors": torch.ones(4, 3), "k": 1} | changes
    with pytest.raises(ConfigError, match=message):
        topk_inner_product(**arguments)


@pytest.mark.parametrize(
    ("tile", "first", "message"),
    [
        (torch.ones(2, 4), 0, "differ in width"),
        (torch.ones(2, 3).double(), 0, "vectors are torch.float64; a tile must be float32, float16 or bfloat16"),
        (torch.ones(2, 3), 4, r"rows 4 \.\. 6 go past the 5 entries of allow"),
        (torch.ones(2, 3), -1, r"rows -1 \.\. 1 are not in 0 \.\. 2\^32; search parts"),
        (torch.ones(2, 3), 2**32 - 1, r"rows .* are not in 0 \.\. 2\^32"),
        ([[1.0]], 0, "vectors must be a torch tensor or an array"),
    ],
)
def test_a_wrong_tile_is_named(tile, first, message):
    search = StreamingTopK(torch.ones(1, 3), 1, allow=torch.ones(5, dtype=torch.bool))
    with pytest.raises(ConfigError, match=message):
        search.add(tile, first)


def test_the_reference_does_not_stream():
    with pytest.raises(ConfigError, match="backend 'reference' scores all vectors at once"):
        StreamingTopK(torch.ones(1, 1), 1, backend="reference")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "there are no parts to merge"),
        ([(torch.ones(2, 3), torch.ones(2, 2).long())], r"got \[2, 3\] and \[2, 2\]"),
        ([(torch.ones(2, 3), torch.ones(2, 3).long()), (torch.ones(1, 3), torch.ones(1, 3).long())], r"\[2, k\] alike"),
    ],
)
def test_parts_that_do_not_fit_are_named(parts, message):
    with pytest.raises(ConfigError, match=message):
        merge_topk(parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"row": 1, "first": 0}, "queries that are not there"),
        ({"row": 0, "first": -1}, "positions outside"),
        ({"row": 0, "first": 3}, "past the end of allow"),
    ],
)
def test_the_collector_takes_no_tile_that_does_not_fit(arguments, message):
    collector = _C.TopKCollector(2, 1, allow=np.ones(5, bool))
    with pytest.raises(ValueError, match=message):
        collector.add(np.ones((2, 3), np.float32), **arguments)


def test_the_collector_takes_no_lists_that_do_not_fit():
    offsets = np.array([0, 2, 1])
    with pytest.raises(ValueError, match="must rise from 0 to their number"):
        _C.TopKCollector(2, 1, exclude_offsets=offsets, excluded=np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="k >= 1"):
        _C.TopKCollector(2, 0)
