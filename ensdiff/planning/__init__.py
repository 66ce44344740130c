"""Estimates of the cost of a study, from shapes and compiled programs alone."""
