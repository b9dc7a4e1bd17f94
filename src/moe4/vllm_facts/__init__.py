"""What moe4 knows of vLLM without importing it."""
