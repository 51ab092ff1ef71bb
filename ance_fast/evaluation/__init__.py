"""Measuring runs against relevance judgments, and whether a difference between two runs is more than chance."""

from __future__ import annotations

from ance_fast.evaluation.metrics import Evaluation, evaluate
from ance_fast.evaluation.significance import Significance, paired_significance

__all__ = ["Evaluation", "Significance", "evaluate", "paired_significance"]
