"""How much moe4 holds in memory at once. `quantize/planning/memory_bound.py` adds these up."""

BATCH_TOKENS = 8192
"""Of calibration, through a layer at once."""
PROBE_BATCH_TOKENS = 512
"""Of the expected answers, through a layer at once, or one sequence: its states are in float32."""
RESIDENT_BYTES = 64 << 20
"""Of a file of activations, that may lie in this process' memory before it is given back."""
BEHIND_BYTES = 1 << 30
"""Handed over to a shard writer's thread and not written."""
