"""`moe4 compare`: how far a release's predictions are from its source's."""
