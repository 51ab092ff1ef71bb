"""Measuring runs: by relevance judgments, as MS MARCO does, by answers in passages; holes; significance."""

from __future__ import annotations

from ance_fast.evaluation.answer_match import AnswerWords, has_answer
from ance_fast.evaluation.holes import HoleRates, hole_rates
from ance_fast.evaluation.metrics import Evaluation, evaluate
from ance_fast.evaluation.msmarco import MsmarcoEvaluation, evaluate_msmarco, write_ranks
from ance_fast.evaluation.open_qa import evaluate_answers
from ance_fast.evaluation.runs import best_chunks
from ance_fast.evaluation.significance import Significance, paired_significance

__all__ = [
    "AnswerWords",
    "Evaluation",
    "HoleRates",
    "MsmarcoEvaluation",
    "Significance",
    "best_chunks",
    "evaluate",
    "evaluate_answers",
    "evaluate_msmarco",
    "has_answer",
    "hole_rates",
    "paired_significance",
    "write_ranks",
]
