"""What bench_fidelity.py is made of: texts, the reference network, algorithms, peers, synthetic layers."""
