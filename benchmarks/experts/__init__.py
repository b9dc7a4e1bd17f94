"""What `bench_experts.py` is made of."""
