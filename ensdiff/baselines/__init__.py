"""Other ways of scoring training units, behind one signature, to compare with: every evaluation should show them."""

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
