"""What bench_quantize.py is made of: one expert by steps, and whole runs beside peers."""
