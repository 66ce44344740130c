"""Baselines: other ways of scoring training units, with one signature. Every evaluation should compare with them."""

from ensdiff.baselines.gradients import projected_gradients
from ensdiff.baselines.scores import BASELINES, BaselineConfig, baseline_scores
from ensdiff.baselines.trak import cosine_scores, trak_scores

__all__ = [
    "BASELINES",
    "BaselineConfig",
    "baseline_scores",
    "cosine_scores",
    "projected_gradients",
    "trak_scores",
]
