"""moe4 beside other quantizers over many models, draws and amounts of calibration data."""
