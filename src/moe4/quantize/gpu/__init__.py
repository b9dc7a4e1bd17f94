"""The routed experts of a layer on a GPU, in batches."""
