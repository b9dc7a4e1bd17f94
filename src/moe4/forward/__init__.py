"""A forward pass over token ids, one decoder layer at a time, and the weights it reads by name."""
