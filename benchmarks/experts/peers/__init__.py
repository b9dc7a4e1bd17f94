"""Engines that run in processes of their own, from an environment that `setup_peers.py` makes.

`worker` is such a process, `remote` the benchmark's end of it, and each other module one engine. What a
worker imports needs torch and its engine, not moe4.
"""
