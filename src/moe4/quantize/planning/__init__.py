"""Before a run, from headers alone: what the release will hold, and what the run will need."""
