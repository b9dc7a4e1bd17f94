"""The quantized formats that are read, one module each: which tensors make up a weight."""
