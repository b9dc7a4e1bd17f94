"""GPTQ of many matrices of one shape at a time, on a GPU: Triton for the loops, torch for the products."""
