"""The network, one decoder layer at a time, and what every tensor of a checkpoint is to it."""
