"""Evaluation through lm-evaluation-harness: `moe4 eval` (docs/evaluation.md)."""

from moe4.evaluate.harness.request import TASKS, EvaluationRequest
from moe4.evaluate.harness.results import Score, ScoreComparison
from moe4.evaluate.harness.run import evaluate_model

__all__ = ["TASKS", "EvaluationRequest", "Score", "ScoreComparison", "evaluate_model"]
