"""What the op tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # op_cases and contrastive_ranks


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
