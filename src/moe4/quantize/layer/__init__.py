"""The parts of one layer's work, as any device does them."""
