"""The command line: one module per command. Each parses, calls the API and prints; it has no other logic."""
