"""The ways to refresh, by the name `AnceConfig.refresh` gives them."""

from __future__ import annotations

from collections.abc import Callable

from ance_fast.training.async_refresh import AsyncRefresh
from ance_fast.training.refresher import Refresher, RunParts
from ance_fast.training.rolling import RollingRefresh
from ance_fast.training.sync import SyncRefresh

# "none" has an empty schedule.
MODES: dict[str, Callable[[RunParts], Refresher]] = {
    "none": SyncRefresh,
    "sync": SyncRefresh,
    "rolling": RollingRefresh,
    "async": AsyncRefresh,
}
