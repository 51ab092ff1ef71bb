"""What the training tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # training_runs, sampler_cases and sampler_reference
sys.path.append(str(Path(__file__).parents[1] / "data"))  # released_text


@pytest.fixture(scope="session")
def tiny_bert(tiny: Callable[..., Path]) -> Path:
    """A BERT of one layer and 32 dimensions."""
    return tiny("Bert", num_hidden_layers=1)
