"""The learning rate over the steps of a run: one rise and fall, or one for each generation of negatives.

microsoft/ANCE has both. Its drivers rise once with `--single_warmup`; else they begin anew whenever new negatives are
taken up, and fall to zero over as many optimizer steps as the generation has queries (lines of `ann_training_data_N`),
however many triples these give. Its warm-up script also has a cosine that ends at 1e-8.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

LOWEST = 1e-8
"""Where the cosine ends, as in the original."""


@dataclass(frozen=True)
class RateSchedule:
    """The learning rate of each optimizer step, as a part of the full one.

    shape: "linear" falls to 0, "cosine" to `floor`, a part of the full rate. rise: steps it rises, from 0. starts: the
    steps at which it begins anew, ascending, the first is 0; horizons: how many steps each takes to rise and fall.
    """

    shape: str
    rise: int
    floor: float
    starts: Sequence[int]
    horizons: Sequence[int]

    def at(self, step: int) -> float:
        """The factor of optimizer step `step`, counted from 0."""
        begun = bisect.bisect_right(self.starts, step) - 1
        step, horizon = step - self.starts[begun], self.horizons[begun]
        if step < self.rise:
            return step / self.rise
        left = min(1.0, max(0.0, (horizon - step) / max(1, horizon - self.rise)))
        if self.shape == "linear":
            return left
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 - math.cos(math.pi * left))
