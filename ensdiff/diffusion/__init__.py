"""Noise schedules, and the coefficients of samplers."""
