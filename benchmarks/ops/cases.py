"""What is measured on which device: shapes, dtypes, and how thoroughly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.ops import problems
from benchmarks.ops.problems import Problem

GROUPS = ("contrastive", "pool", "pairwise", "overhead")
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
# Rows of logits that the op may hold while its memory is fitted: given, so that the formula beside it is exact.
FIT_CHUNK_ROWS = 256


@dataclass(frozen=True)
class Case:
    """One shape in one dtype. `op` names the contestants' forms, `group` the part of the suite."""

    group: str
    op: str
    shape: str
    dtype: torch.dtype
    device: str
    make: Callable[[], Problem]
    checked: bool = True
    most_rounds: int | None = None  # of samples that take seconds, few are enough and all that time allows

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class MemoryFit:
    """Batches of one width over which the peak memory of the contrastive loss is fitted."""

    batches: tuple[int, ...]
    columns: int
    dim: int
    masks: bool

    @property
    def shape(self) -> str:
        return f"B={','.join(map(str, self.batches))} N={self.columns} D={self.dim}, {_masks(self.masks)}"

    def case(self, batch: int) -> Case:
        make = partial(
            problems.contrastive,
            batch,
            self.columns,
            self.dim,
            FP32,
            "cpu",
            masks=self.masks,
            chunk_rows=FIT_CHUNK_ROWS,
        )
        return Case("contrastive", "contrastive", self.shape, FP32, "cpu", make)

    def formula(self, batch: int) -> float:
        """1.2 x (the chunk of logits and both gradients), bytes."""
        return 1.2 * (FIT_CHUNK_ROWS * self.columns * 4 + (batch + self.columns) * self.dim * 4)


def cases(device: str, shapes: str, groups: tuple[str, ...]) -> list[Case]:
    """In the order of running: short ones first, so that an interrupted run has most rows."""
    makers = {
        ("cpu", "small"): _small,
        ("cuda", "small"): _small,
        ("cpu", "full"): _cpu,
        ("cuda", "full"): _cuda,
    }
    return [case for case in makers[device, shapes](device) if case.group in groups]


def memory_fits(shapes: str) -> list[MemoryFit]:
    batches, columns, dim = ((32, 64, 96), 128, 16) if shapes == "small" else ((1024, 2048, 4096), 4096, 768)
    return [MemoryFit(batches, columns, dim, masks) for masks in (True, False)]


def odd_cases(device: str) -> Iterator[Case]:
    """Shapes that no tile divides, in every dtype: for checks of memory accesses, not for time."""
    for dtype in (FP32, FP16, BF16):
        for batch, columns, dim in ((1, 3, 8), (63, 65, 24), (127, 1000, 100)):
            yield _contrastive(batch, columns, dim, dtype, device, masks=True)
        for mode in ("mean", "cls", "last", "max"):
            for norm in ("none", "l2", "layernorm"):
                yield _pool(7, 100, dtype, device, mode=mode, norm=norm)
        yield _pairwise(65, 3, 100, dtype, device)


def _small(device: str) -> Iterator[Case]:
    yield from _overhead(device)
    yield _contrastive(64, 128, 32, FP32, device, masks=True)
    yield _contrastive(64, 128, 32, FP32, device)
    yield _pool(16, 32, FP32, device)
    yield _pool(16, 32, FP32, device, length=9)
    yield _pool(16, 32, FP32, device, backward=False)
    yield _pool(16, 32, FP32, device, mode="max", norm="layernorm")
    yield _pairwise(16, 4, 32, FP32, device)
    yield _step(16, 32, 32, FP32, device)


def _cpu(device: str) -> Iterator[Case]:
    yield from _overhead(device)
    yield _pairwise(256, 4, 768, FP32, device)
    for dim in (384, 768):
        yield _pool(256, dim, FP32, device)
        yield _pool(256, dim, FP32, device, length=57)
    for mode, norm in (("cls", "layernorm"), ("max", "layernorm"), ("mean", "layernorm"), ("cls", "l2"), ("max", "l2")):
        yield _pool(256, 768, FP32, device, mode=mode, norm=norm)
    yield _contrastive(512, 1024, 384, FP32, device)
    yield _contrastive(1024, 8192, 384, FP32, device, masks=True, note=" H=7")
    yield _contrastive(2048, 4096, 768, FP32, device)
    yield _contrastive(2048, 4096, 768, FP32, device, masks=True)


def _cuda(device: str) -> Iterator[Case]:
    yield from _overhead(device)
    yield _pairwise(8192, 1, 768, BF16, device)
    for dtype in (BF16, FP16, FP32):
        yield _contrastive(8192, 16384, 768, dtype, device)
    yield _contrastive(8192, 16384, 768, BF16, device, masks=True)
    yield _pool(24576, 768, BF16, device, backward=False)
    yield _pool(24576, 768, BF16, device)
    yield _pool(24576, 768, BF16, device, length=60)
    for mode, norm in (("cls", "layernorm"), ("max", "l2")):
        yield _pool(24576, 768, BF16, device, mode=mode, norm=norm)
    yield _step(8192, 16384, 768, BF16, device)
    yield _contrastive(32768, 32768, 768, BF16, device, most_rounds=5)
    yield _contrastive(65536, 65536, 768, BF16, device, most_rounds=5)
    yield _contrastive(65536, 131072, 768, BF16, device, most_rounds=5)
    # The check in float64 would take longer than all other cases together.
    yield _contrastive(262144, 262144, 768, BF16, device, most_rounds=1, checked=False)


def _overhead(device: str) -> Iterator[Case]:
    """Shapes so small that what is timed is the way to the kernel and back."""
    dtypes = (FP32,) if device == "cpu" else (FP32, BF16)
    for dtype in dtypes:
        made: dict[str, Callable[[], Problem]] = {
            "contrastive": partial(problems.contrastive, 16, 32, 64, dtype, device, masks=False),
            "pairwise": partial(problems.pairwise, 16, 1, 64, dtype, device),
            "pool": partial(problems.pool, problems.lognormal_lengths(4), 64, dtype, device, mode="mean", norm="l2"),
        }
        shapes = {"contrastive": "16x32x64", "pairwise": "B=16 H=1 D=64", "pool": "4 sequences D=64 mean+l2"}
        for op, make in made.items():
            yield Case("overhead", op, f"{shapes[op]}, host time a call", dtype, device, make, most_rounds=10)


def _contrastive(
    batch: int,
    columns: int,
    dim: int,
    dtype: torch.dtype,
    device: str,
    *,
    masks: bool = False,
    note: str = "",
    most_rounds: int | None = None,
    checked: bool = True,
) -> Case:
    shape = f"{batch}x{columns}x{dim}{note}, {_masks(masks)}"
    make = partial(problems.contrastive, batch, columns, dim, dtype, device, masks=masks)
    return Case("contrastive", "contrastive", shape, dtype, device, make, checked, most_rounds)


def _masks(masks: bool) -> str:
    """What `problems.contrastive` masks: columns by their document, without lists of further positives."""
    return "masks by doc_ids" if masks else "no masks"


def _pool(
    sequences: int,
    dim: int,
    dtype: torch.dtype,
    device: str,
    *,
    mode: str = "mean",
    norm: str = "l2",
    backward: bool = True,
    length: int | None = None,
) -> Case:
    """`length`: all sequences have it, so that padding adds no token and a ratio to padded pooling is that of fusion
    alone; by default lengths vary as those of passages do."""
    lengths = problems.lognormal_lengths(sequences) if length is None else (length,) * sequences
    tokens = f", {sum(lengths)} tokens" if length is None else f" of {length} tokens"
    direction = "fwd+bwd" if backward else "fwd"
    shape = f"{sequences} sequences{tokens}, D={dim}, {mode}+{norm}, {direction}"
    make = partial(problems.pool, lengths, dim, dtype, device, mode=mode, norm=norm, backward=backward)
    return Case("pool", "pool", shape, dtype, device, make)


def _pairwise(batch: int, negatives: int, dim: int, dtype: torch.dtype, device: str) -> Case:
    make = partial(problems.pairwise, batch, negatives, dim, dtype, device)
    return Case("pairwise", "pairwise", f"B={batch} H={negatives} D={dim}", dtype, device, make)


def _step(queries: int, columns: int, dim: int, dtype: torch.dtype, device: str) -> Case:
    tokens = sum(problems.lognormal_lengths(queries + columns))
    shape = f"{queries}x{columns}x{dim}, {tokens} tokens, pool+l2+loss"
    make = partial(problems.step, queries, columns, dim, dtype, device)
    return Case("contrastive", "step", shape, dtype, device, make)
