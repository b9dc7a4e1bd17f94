"""The run: layer after layer, each committed before it counts."""
