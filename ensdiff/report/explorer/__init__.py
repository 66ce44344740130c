"""The explorer: an HTML page that removes units from samples and shows what the samples would have been."""

from ensdiff.report.explorer.layer import Layer, explore, same_samples
from ensdiff.report.explorer.write import Exploration, write_explorer

__all__ = ["Exploration", "Layer", "explore", "same_samples", "write_explorer"]
