"""A release's expected answers: token sequences, and the likeliest tokens after each (docs/probe.md)."""
