"""Metrics: arrays in, NamedTuple out."""
