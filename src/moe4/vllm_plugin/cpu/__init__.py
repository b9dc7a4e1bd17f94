"""What vLLM does on CPUs and moe4 does better: threads, waiting, MLA, rotary positions, collectives."""
