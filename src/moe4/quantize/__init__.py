"""The quantizer: plan a release, quantize it layer by layer, commit each layer."""
