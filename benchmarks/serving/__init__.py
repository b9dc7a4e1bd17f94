"""Measuring servers: a client, a server started as users start it, what a step has to read."""
