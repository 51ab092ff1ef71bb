from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

def build_info() -> dict[str, Any]: ...
def best_isa() -> str: ...
def pool_normalize_forward(
    hidden: Array,
    cu_seqlens: Array,
    *,
    mode: str,
    norm: str,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    out: Array,
    pooled: Array | None = None,
    stats: Array | None = None,
    argmax: Array | None = None,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...
def pool_normalize_backward(
    grad_out: Array,
    cu_seqlens: Array,
    *,
    mode: str,
    norm: str,
    weight: Array | None,
    pooled: Array | None,
    stats: Array | None,
    argmax: Array | None,
    eps: float,
    grad_hidden: Array,
    grad_weight: Array | None = None,
    grad_bias: Array | None = None,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...
def pairwise_loss(
    q: Array,
    pos: Array,
    neg: Array,
    loss: Array,
    grad_q: Array | None = None,
    grad_pos: Array | None = None,
    grad_neg: Array | None = None,
    grad_scale: Array | None = None,
    *,
    scale: float,
    mask: Array | None = None,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...
def softmax_gradient(
    logits: Array,
    scale: float,
    *lists: Array | None,
    losses: Array,
    gradient: bool,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...
def softmax_statistics(
    logits: Array,
    scale: float,
    *lists: Array | None,
    column_begin: int,
    top: Array,
    sum: Array,
    target_logits: Array,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...
def softmax_tile_gradient(
    logits: Array,
    scale: float,
    *lists: Array | None,
    column_begin: int,
    top: Array,
    factor: Array,
    slopes: Array,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...
def embed_layernorm(
    input_ids: Array,
    position_ids: Array,
    words: Array,
    positions: Array,
    constant: Array,
    weight: Array,
    shift: Array,
    *,
    eps: float,
    out: Array,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...
def bias_gelu(x: Array, bias: Array, *, threads: int = 1, isa: str = "auto") -> None: ...
def bias_residual_layernorm(
    x: Array,
    bias: Array,
    residual: Array,
    weight: Array,
    shift: Array,
    *,
    eps: float,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...
def packed_cls_attention(
    q: Array,
    kv: Array,
    cu_seqlens: Array,
    *,
    heads: int,
    scale: float,
    out: Array,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...
def packed_attention(
    qkv: Array,
    bias: Array,
    cu_seqlens: Array,
    *,
    heads: int,
    scale: float,
    out: Array,
    threads: int = 1,
    isa: str = "auto",
) -> None: ...

# Only in a build with CUDA. Arrays on the device are addresses (0: none).
pool_max_dim_cuda: int

def pool_forward_workspace_cuda(tokens: int, sequences: int, dim: int, mode: str, multiprocessors: int) -> int: ...
def pool_backward_workspace_cuda(sequences: int, dim: int, with_parameters: bool) -> int: ...
def pool_normalize_forward_cuda(
    hidden: int,
    cu_seqlens: int,
    *,
    tokens: int,
    sequences: int,
    dim: int,
    mode: str,
    norm: str,
    hidden_dtype: str,
    out_dtype: str,
    weight: int,
    bias: int,
    eps: float,
    multiprocessors: int,
    out: int,
    pooled: int,
    stats: int,
    argmax: int,
    workspace: int,
    workspace_bytes: int,
    stream: int,
    resident: int = 0,
    resident_rows: int = 0,
    resident_dtype: str = "float32",
    host_slot: int = 0,
    host_dtype: str = "float32",
) -> None: ...
def pool_normalize_backward_cuda(
    grad_out: int,
    cu_seqlens: int,
    *,
    tokens: int,
    sequences: int,
    dim: int,
    mode: str,
    norm: str,
    grad_out_dtype: str,
    grad_hidden_dtype: str,
    weight: int,
    pooled: int,
    stats: int,
    argmax: int,
    eps: float,
    multiprocessors: int,
    grad_hidden: int,
    grad_weight: int,
    grad_bias: int,
    workspace: int,
    workspace_bytes: int,
    stream: int,
) -> None: ...
def few_products(queries: Array, vectors: Array, scores: Array, *, threads: int = 1, isa: str = "auto") -> None: ...

class TopKCollector:
    def __init__(
        self,
        rows: int,
        k: int,
        *,
        allow: Array | None = None,
        exclude_offsets: Array | None = None,
        excluded: Array | None = None,
    ) -> None: ...
    def add(self, scores: Array, *, row: int, first: int, threads: int = 1, isa: str = "auto") -> None: ...
    def result(self, scores: Array, positions: Array, *, threads: int = 1) -> None: ...

class TokenPacker:
    def __init__(
        self, shards: Sequence[tuple[Array, Array]], *, max_length: int = 0, keep_last: bool = True
    ) -> None: ...
    def __len__(self) -> int: ...
    def lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]: ...
    def plan(
        self, rows: npt.NDArray[np.int64], *, token_budget: int, window: int, max_sequences: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
    def pack(
        self,
        rows: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        *,
        ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        cu_seqlens: npt.NDArray[np.int32],
        position_offset: int = 0,
    ) -> list[int]: ...

class FillTicket:
    def view(self) -> Array: ...
    def publish(self, rows: int, tag: int) -> Literal["done", "failed"]: ...
    def copy(self, address: int, first: int, rows: int) -> None: ...
    def copy_from_device(
        self, address: int, first: int, rows: int, device: int, stream: int, owner: object
    ) -> None: ...
    def abandon(self) -> None: ...

class DrainTicket:
    @property
    def rows(self) -> int: ...
    @property
    def tag(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    def view(self) -> Array: ...
    def copy_to(self, target: Array) -> None: ...
    def release(self) -> None: ...

class EmbeddingRing:
    copies_from_cuda: bool
    def __init__(
        self, *, slots: int, rows: int, dim: int, dtype: np.dtype[Any], consumers: int, page_locked: bool = False
    ) -> None: ...
    def acquire(self, timeout: float | None) -> FillTicket | Literal["timeout", "ended", "failed"]: ...
    def take(self, consumer: int, timeout: float | None) -> DrainTicket | Literal["timeout", "ended", "failed"]: ...
    def close(self) -> None: ...
    def fail(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def failed(self) -> bool: ...
    @property
    def copy_failure(self) -> str: ...
    @property
    def copy_seconds(self) -> float: ...
    @property
    def states(self) -> list[str]: ...

def unite_candidates(
    sources: Sequence[tuple[Array, Array]],
    positives: tuple[Array, Array],
    *,
    queries: Array,
    passages: int,
    documents: Array | None,
    contents: Array | None,
    rank_min: int,
    rank_max: int,
    per_source: int,
    seed: int,
    generation: int,
    rows: Array,
    scores: Array,
    origins: Array,
    threads: int = 1,
) -> dict[str, int]: ...
def select_candidates(
    rows: Array,
    scores: Array,
    origins: Array,
    *,
    teacher: Array | None,
    answers: Array | None,
    positive_offsets: Array | None,
    positive_scores: Array | None,
    min_score: float,
    max_score: float,
    margin: float,
    percentage: float,
    teacher_min: float,
    teacher_max: float,
    duplicate_tolerance: float,
    keep: int,
    by_score: bool,
    weighting: str,
    power: float,
    temperature: float,
    a: float,
    b: float,
    bins: int,
    out_rows: Array,
    out_scores: Array,
    out_origins: Array,
    out_log_weights: Array | None,
    threads: int = 1,
) -> dict[str, int]: ...
def draw_negatives(
    rows: Array,
    log_weights: Array | None,
    queries: Array,
    positives: tuple[Array, Array],
    *,
    passages: int,
    documents: Array | None,
    contents: Array | None,
    seed: int,
    generation: int,
    step: int,
    drawn: Array,
    threads: int = 1,
) -> None: ...

class Vocabulary:
    def __init__(self, table: Array) -> None: ...
    def learn(self, texts: tuple[str, ...]) -> tuple[Array, Array]: ...
    def look_up(self, texts: tuple[str, ...], *, threads: int = 1) -> tuple[Array, Array]: ...
    def __len__(self) -> int: ...

def match_answers(
    passages: tuple[Array, Array],
    answers: tuple[Array, Array],
    query_offsets: Array,
    queries: Array,
    rows: Array,
    found: Array,
    *,
    threads: int = 1,
) -> None: ...
