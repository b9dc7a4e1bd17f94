"""How small a fault `moe4 prove` would notice: faults are planted in memory, and each is measured."""
