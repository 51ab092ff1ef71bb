"""How many tokens one forward pass should take: measured on the machine and the corpus at hand."""

from __future__ import annotations

import logging
import statistics
import time

import numpy as np
import torch

from ance_fast.data.packing import PackedBatch, Packer
from ance_fast.data.token_store import TokenStore
from ance_fast.encoding.workers import one_thread_an_operation
from ance_fast.models.encoder import DEFAULT_BATCH_TOKENS, Encoder
from ance_fast.progress import plain_number

logger = logging.getLogger(__name__)

# A CPU wants activations that stay in its caches, a GPU full waves of blocks.
CANDIDATES: dict[str, tuple[int, ...]] = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384, 32768)}
ROUNDS = 3
# Below this many batches of the largest budget the measurement would cost more than it can save.
WORTH_BATCHES = 100
# A larger budget has to be faster than by this factor, or noise would decide and memory be spent for nothing.
MARGIN = 1.02


def default_budget(device: torch.device) -> int:
    """The token budget without a measurement, for `device`."""
    return DEFAULT_BATCH_TOKENS.get(device.type, 4096)


def measured_budget(encoder: Encoder, store: TokenStore) -> int:
    """The smallest token budget whose time a token is within `MARGIN` of the fastest's on `store`'s passages.

    The default for a small store.

    Each candidate runs one full batch of evenly spaced passages in each of a few alternating rounds, after one round
    that warms up. A candidate that does not fit the device's memory ends the search.
    """
    candidates = CANDIDATES.get(encoder.device.type, ())
    if not candidates or store.num_tokens < WORTH_BATCHES * candidates[-1]:
        return default_budget(encoder.device)
    packer = Packer(store)
    seconds: dict[int, list[float]] = {}
    with encoder.backbone.inference(), one_thread_an_operation():  # as the pipeline runs
        for warm in (False, *[True] * ROUNDS):
            for budget in candidates:
                try:
                    rate = _seconds_per_token(encoder, _one_batch(packer, store, budget))
                except torch.OutOfMemoryError:
                    logger.info("%d tokens a batch do not fit the device's memory", budget)
                    candidates = tuple(smaller for smaller in candidates if smaller < budget)
                    seconds.pop(budget, None)
                    torch.cuda.empty_cache()
                    break
                if warm:
                    seconds.setdefault(budget, []).append(rate)
    found = {budget: statistics.median(rates) for budget, rates in seconds.items()}
    if not found:
        return min(CANDIDATES[encoder.device.type])
    fastest = min(found.values())
    chosen = min(budget for budget, rate in found.items() if rate <= MARGIN * fastest)
    rates = ", ".join(f"{budget}: {plain_number(1 / rate)}" for budget, rate in found.items())
    logger.info(
        "batches of %d tokens, the smallest within %.0f %% of the fastest (measured tokens/s: %s)",
        chosen,
        100 * (MARGIN - 1),
        rates,
    )
    return chosen


def _one_batch(packer: Packer, store: TokenStore, budget: int) -> PackedBatch:
    """The batch in the middle of what the pipeline would make of evenly spaced passages."""
    mean = max(1.0, store.num_tokens / len(store))
    wanted = min(len(store), max(1, round(3 * budget / mean)))
    rows = np.linspace(0, len(store) - 1, wanted).astype(np.int64)
    batches = list(packer.batches(rows, token_budget=budget))
    return batches[len(batches) // 2]


def _seconds_per_token(encoder: Encoder, batch: PackedBatch) -> float:
    device = encoder.device
    started = time.perf_counter()
    encoder(batch.to(device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / max(1, batch.num_tokens)
