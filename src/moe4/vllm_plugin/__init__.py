"""The vLLM plugin: W4A16 routed experts on CPUs, through moe4's kernels (docs/serving.md)."""

from moe4.vllm_facts.versions import TESTED_VLLM
from moe4.vllm_plugin.registration import register

__all__ = ["TESTED_VLLM", "register"]
