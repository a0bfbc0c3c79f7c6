"""Measuring a model: calibration, fidelity against speed."""
