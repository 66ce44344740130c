"""Run directories: checkpoints and their checksums, writing, loading, and finished pieces of long computations."""
