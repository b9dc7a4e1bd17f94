"""What the quantization cost: scores, predictions, tool calls (docs/evaluation.md)."""
