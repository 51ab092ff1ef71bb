"""Random numbers that are a function of what they are for, so that no order of drawing can change them."""

from __future__ import annotations

from typing import Any

import numpy as np


def counter_hash(*parts: int | np.ndarray) -> np.ndarray:
    """SplitMix64 over broadcast integer parts: uint64, uniform (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        state: Any = np.uint64(0x9E3779B97F4A7C15)
        for part in parts:
            value = (
                np.asarray(part).astype(np.int64).view(np.uint64) if np.ndim(part) else np.int64(part).view(np.uint64)
            )
            state = (state ^ value) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)
