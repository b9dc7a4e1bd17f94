"""Commands that size, write and lint deployments."""
