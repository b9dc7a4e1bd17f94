"""Checkpoints on the Hugging Face hub: found by id, pinned to a commit, fetched whole or by shards."""
