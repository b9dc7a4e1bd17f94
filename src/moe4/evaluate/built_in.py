"""What comes with moe4 to be asked of any model, where its user has nothing of their own."""

from pathlib import Path

HARD_CASES = Path(__file__).parent / "toolcheck" / "data" / "hard-cases.jsonl"
"""Conversations with tools, made for toolcheck: no model was trained or calibrated on them."""
