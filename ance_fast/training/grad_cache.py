"""Batches of any size in bounded memory: gradient caching (GradCache; Gao et al., RepL4NLP 2021), as far as needed.

A loss with in-batch candidates needs every embedding of the batch at once, but not the encoder's graphs behind them.
So a batch is encoded in chunks, in three steps:

1. `GradCache.embed`: the first chunks keep their graphs, as many as a budget of tokens allows. Of the others only the
   embeddings stay, and the state of the random generators before each.
2. The caller back-propagates the loss. Through the kept graphs its gradient reaches the weights, which frees them; at
   the other embeddings it stops.
3. `GradCache.backward`: each of these chunks is encoded again under its random state, so that dropout draws the same
   masks, and takes the gradient of its embeddings on to the weights.

The gradient is that of one pass with all graphs kept. Cost: a second forward pass of the chunks beyond the budget (all
of them in the paper). Memory: the activations of the budget or of one chunk, whichever is more, since step 3 begins
when nothing of step 1 is left; so the first chunk, which is the longest, keeps its graph at no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from ance_fast.data.packing import PackedBatch
from ance_fast.errors import ConfigError


class RandomState:
    """The state, now, of the generators that a forward pass on `device` draws from."""

    def __init__(self, device: torch.device) -> None:
        self._host = torch.get_rng_state()
        self._devices = [device] if device.type == "cuda" else []
        self._states = [torch.cuda.get_rng_state(device) for device in self._devices]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within it draws repeat those that followed this state; after it they go on as if it had not been."""
        with torch.random.fork_rng(devices=self._devices, device_type="cuda"):
            torch.set_rng_state(self._host)
            for device, state in zip(self._devices, self._states, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


@dataclass(frozen=True)
class _Recomputed:
    chunk: PackedBatch
    state: RandomState
    embeddings: Tensor  # a leaf: the loss leaves its gradient here


class GradCache:
    """Encodes the chunks of one batch, and back-propagates those whose graphs it did not keep.

    encode: gives the embeddings [n, dim] of a chunk, and their graph where gradients are enabled.
    device: where `encode` draws random numbers, besides the host.
    kept_tokens: graphs are kept of the first chunks with so many tokens in all, and always of the first; None: of all.
    no_sync: a context in which gradients are summed on this rank only. DistributedDataParallel decides that in the
        forward pass; only the one whose backward comes last runs outside, so ranks exchange gradients once a batch.
    encode_last: `encode` for that pass. Weights that it does not use, those of the other of two towers, have to be
        within its reach: what is exchanged is the gradient of every weight when that pass goes back.
    """

    def __init__(
        self,
        encode: Callable[[PackedBatch], Tensor],
        device: torch.device,
        *,
        kept_tokens: int | None = None,
        no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
        encode_last: Callable[[PackedBatch], Tensor] | None = None,
    ) -> None:
        self._encode = encode
        self._encode_last = encode_last or encode
        self._device = device
        self._kept_tokens = kept_tokens
        self._no_sync = no_sync
        self._recomputed: list[_Recomputed] = []

    def embed(self, chunks: Sequence[PackedBatch]) -> Tensor:
        """Embeddings [sum of n, dim] of all chunks, in their order."""
        tokens = np.array([chunk.num_tokens for chunk in chunks])
        kept = len(chunks)
        if self._kept_tokens is not None and torch.is_grad_enabled():
            kept = max(1, int(np.searchsorted(np.cumsum(tokens), self._kept_tokens, side="right")))
        # A chunk without tokens may reach no weight, so it cannot be what the exchange of gradients waits for.
        last = int(np.flatnonzero(tokens).max(initial=0))
        # Kept graphs come first: older torch hands them, under an autocast around the whole batch, weights that were
        # cast without a gradient.
        parts = [
            self._embed_and_forget(chunk) if kept <= number <= last else self._run(chunk, ends_batch=number == last)
            for number, chunk in enumerate(chunks)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def backward(self) -> None:
        """Take the loss's gradient from the embeddings without graph to the weights; call it after the loss's own
        `backward`, whose factors (loss scaling, accumulation) the gradient then has."""
        while self._recomputed:
            again = self._recomputed.pop(0)
            with again.state.replayed():
                embeddings = self._run(again.chunk, ends_batch=not self._recomputed)
            embeddings.backward(again.embeddings.grad)

    def _run(self, chunk: PackedBatch, ends_batch: bool) -> Tensor:
        with nullcontext() if ends_batch else self._no_sync():
            return (self._encode_last if ends_batch else self._encode)(chunk)

    def _embed_and_forget(self, chunk: PackedBatch) -> Tensor:
        state = RandomState(self._device)
        with torch.no_grad():
            embeddings = self._run(chunk, ends_batch=False)
        leaf = embeddings.detach().requires_grad_()
        self._recomputed.append(_Recomputed(chunk, state, leaf))
        return leaf


def check_strategy(arguments: TrainingArguments, distributed: str) -> None:
    """Raise `ConfigError` where a gradient cannot come in parts: `distributed` is accelerate's name of the strategy."""
    reason = None
    if distributed != "NO" and not distributed.startswith("MULTI_"):
        reason = f"{distributed} back-propagates in one piece; use one process or DistributedDataParallel"
    elif arguments.ddp_static_graph:
        reason = "ddp_static_graph counts on one forward and backward pass a step; leave it out"
    elif arguments.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
        name = OptimizerNames(arguments.optim).value
        reason = f"optim={name!r} changes weights while it back-propagates; choose another optimizer"
    if reason is not None:
        raise ConfigError(f"encode_tokens cannot be used: {reason}")
