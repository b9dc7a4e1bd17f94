"""What a run says of itself: a record of each layer, progress, the report."""
