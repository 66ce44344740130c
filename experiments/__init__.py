"""Command-line programs over the ensdiff library: train, sample, attribute, quickstart."""
