"""The version of vLLM that moe4 is tested with, and what holds in it."""

TESTED_VLLM = "0.32"
"""On CPUs; on GPUs what matters is looked at, whatever the version."""
IMAGE_TAG = f"v{TESTED_VLLM}.0"
GPU_MEMORY_SHARE = 0.92
"""`--gpu-memory-utilization` where it is not given."""
