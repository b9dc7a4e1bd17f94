"""`moe4 eval`: lm-evaluation-harness in a process of its own, with answers kept."""
