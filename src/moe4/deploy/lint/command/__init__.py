"""Command lines: scripts as a shell would split them, and the options of vLLM in them."""
