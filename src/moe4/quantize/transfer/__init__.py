"""What moves: tensors between source, ranks, devices and layers."""
