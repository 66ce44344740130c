"""Baselines: scores of training units without a model, with one signature. Every method should beat them."""

from ensdiff.baselines.scores import BASELINES, BaselineConfig, baseline_scores

__all__ = [
    "BASELINES",
    "BaselineConfig",
    "baseline_scores",
]
