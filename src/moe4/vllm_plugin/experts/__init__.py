"""Routed experts in W4A16 on a CPU, in vLLM's own parameters."""
