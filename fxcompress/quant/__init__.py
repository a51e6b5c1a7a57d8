"""Quantization: affine arithmetic, observers, calibration, and the integer operations in plain torch that define the right answer."""
