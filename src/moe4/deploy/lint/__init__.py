"""Lint of manifests and command lines: what schemas check, and what they cannot see."""
