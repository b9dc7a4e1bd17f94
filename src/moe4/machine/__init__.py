"""What this machine offers: memory, processors, the disk."""
