"""CUDA graphs of the inference stack: one launch a batch instead of some eight a layer.

A graph has fixed shapes, so a batch is padded to a bucket: tokens to an eighth of a power of two (at most 1/8 more),
sequences and the longest of them to a power of two. Padding tokens form sequences of their own, so that attention of
the others does not see them, and sequences that are left over are empty.

A bucket is captured when it comes for the second time: one that comes once is not worth it. All graphs share one memory
pool, in which only their results stay apart; their workspaces overlap, so the pool is about as large as the largest
graph. Graphs read the weights where they lie, so those may change in place. Nothing waits for the device except a
capture. Not yet run on a GPU.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ance_fast.errors import ConfigError
from ance_fast.models.bert_packed import BertStack, Workspace

logger = logging.getLogger(__name__)

MAX_GRAPHS = 32
MOST_TOKENS = 32768
LEAST_TOKENS = 64
# FlashAttention launches a block for each 64 or 128 queries of the longest sequence.
LEAST_LONGEST = 128

# Makes of a function that launches work, whose result lies in the same place each time, one that launches it again.
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


@dataclass(frozen=True)
class Bucket:
    """The shapes of a graph: room for `tokens` in `sequences`, none of them over `longest`."""

    tokens: int
    sequences: int
    longest: int
    cls_only: bool

    @classmethod
    def of(cls, tokens: int, sequences: int, longest: int, cls_only: bool) -> Bucket:
        """The smallest bucket that takes a batch of this many tokens in this many sequences."""
        step = max(LEAST_TOKENS, _power_of_two(tokens) // 16)
        room = -(-tokens // step) * step
        longest = max(LEAST_LONGEST, _power_of_two(longest))
        return cls(room, _power_of_two(sequences + -(-(room - tokens) // longest)), longest, cls_only)


class StaticInputs:
    """The inputs of a graph: tensors that stay where they are, and into which each batch is copied."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        self.input_ids = torch.zeros(bucket.tokens, dtype=torch.int64, device=device)
        self.position_ids = torch.zeros(bucket.tokens, dtype=torch.int64, device=device)
        self._steps = bucket.longest * torch.arange(1, bucket.sequences + 1, dtype=torch.int32, device=device)
        # Until a batch is there, padding is all there is.
        self.cu_seqlens = torch.zeros(bucket.sequences + 1, dtype=torch.int32, device=device)
        self.cu_seqlens[1:] = self._steps.clamp(max=bucket.tokens)

    def fill(self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> None:
        """Copy a batch that fits the bucket; five launches, and no wait."""
        tokens, sequences = len(input_ids), len(cu_seqlens) - 1
        # Behind the batch stand the ids and positions of earlier ones: valid, and nobody reads what they become.
        self.input_ids[:tokens].copy_(input_ids)
        self.position_ids[:tokens].copy_(position_ids)
        self.cu_seqlens[: sequences + 1].copy_(cu_seqlens)
        # tokens + longest, tokens + 2 longest, ... until the bucket is full.
        rest = self.cu_seqlens[sequences + 1 :]
        torch.add(self._steps[: len(rest)], tokens, out=rest).clamp_(max=self.bucket.tokens)


@dataclass(frozen=True)
class _Graph:
    inputs: StaticInputs
    replay: Callable[[], None]
    out: Tensor


class GraphedStack:
    """`BertStack` with the launches of frequent shapes captured; called as the stack is, with the same results.

    `reason` says how batches run. A capture that fails leaves all further batches to the stack itself, is logged, and
    is a ConfigError when ANCE_FAST_STRICT=1; running out of memory is passed on. At most `max_graphs` are kept; shapes
    that come later run uncaptured.
    """

    def __init__(self, stack: BertStack, capture: Capture | None = None, max_graphs: int = MAX_GRAPHS) -> None:
        self.stack = stack
        self.max_graphs = max_graphs
        self.reason = "CUDA graphs of frequent shapes, experimental: not yet run on a GPU"
        self._capture = capture
        self._seen: set[Bucket] = set()
        self._graphs: dict[Bucket, _Graph] = {}

    def __call__(
        self, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, cls_only: bool = False
    ) -> Tensor:
        """Hidden states [T, D], or with cls_only [B, D], valid until the next call."""
        tokens, sequences = len(input_ids), len(cu_seqlens) - 1
        bucket = Bucket.of(tokens, sequences, max_seqlen, cls_only)
        graph = self._graph(bucket, input_ids.device)
        if graph is None:
            return self.stack(input_ids, position_ids, cu_seqlens, max_seqlen, cls_only=cls_only)
        graph.inputs.fill(input_ids, position_ids, cu_seqlens)
        graph.replay()
        return graph.out[: sequences if cls_only else tokens]

    def _graph(self, bucket: Bucket, device: torch.device) -> _Graph | None:
        if bucket.tokens > MOST_TOKENS or self.max_graphs == 0:
            return None
        if bucket not in self._graphs and bucket not in self._seen:
            self._seen.add(bucket)
        elif bucket not in self._graphs and len(self._graphs) < self.max_graphs:
            captured = self._captured(bucket, device)
            if captured is not None:
                self._graphs[bucket] = captured
        return self._graphs.get(bucket)

    def _captured(self, bucket: Bucket, device: torch.device) -> _Graph | None:
        inputs = StaticInputs(bucket, device)

        def run() -> Tensor:
            # A workspace of its own, so that the graph's memory comes from, and goes back to, the graphs' pool.
            return self.stack(
                inputs.input_ids,
                inputs.position_ids,
                inputs.cu_seqlens,
                bucket.longest,
                cls_only=bucket.cls_only,
                workspace=Workspace(),
            )

        if self._capture is None:
            self._capture = cuda_capture(device)
        try:
            return _Graph(inputs, *self._capture(run))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.max_graphs = 0
            self.reason = f"no CUDA graphs, the capture of {bucket} failed: {error}"
            if os.environ.get("ANCE_FAST_STRICT") == "1":
                raise ConfigError(f"{self.reason}; unset ANCE_FAST_STRICT to run without graphs") from error
            logger.warning("%s", self.reason)
            return None


def cuda_capture(device: torch.device) -> Capture:
    """A capture on a stream of its own, every graph of it in one memory pool."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def capture(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        # Once without capturing, so that kernels are compiled and libraries have made their handles for this stream.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            run()
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate page-locked memory or ask for events meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            out = run()
        return graph.replay, out

    return capture


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()
