"""Commands that measure what the quantization cost, and show it."""
