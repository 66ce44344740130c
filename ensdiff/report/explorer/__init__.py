"""The explorer: one HTML page in which units are removed from samples, and what the samples would then have been."""

from ensdiff.report.explorer.layer import Layer, explore, same_samples
from ensdiff.report.explorer.write import Exploration, write_explorer

__all__ = ["Exploration", "Layer", "explore", "same_samples", "write_explorer"]
