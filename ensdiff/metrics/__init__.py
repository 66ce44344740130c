"""Metrics: arrays in, NamedTuple out."""

from ensdiff.metrics.classifier import Classifier, fit_classifier
from ensdiff.metrics.frechet import FrechetDistance, frechet_distance, frechet_floor

__all__ = ["Classifier", "FrechetDistance", "fit_classifier", "frechet_distance", "frechet_floor"]
