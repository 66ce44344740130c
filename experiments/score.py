"""Measure the seconds and peak memory of scoring very many units, without a trained ensemble.

It prints a table and writes no file.

Examples:
  python -m experiments.score --units=100000000 --members=32
  python -m experiments.score --units=1000000 --members=64 --weight=16 --samples=8 --top=100
"""

from absl import flags

from . import common

flags.adopt_module_key_flags(common)
UNITS = flags.DEFINE_integer("units", 10**8, "Training units.")
MEMBERS = flags.DEFINE_integer("members", 32, "Members of the ensemble.")
WEIGHT = flags.DEFINE_integer("weight", None, "Members that see a unit; by default half of them.")
SAMPLES = flags.DEFINE_integer("samples", 1, "Samples, each with a random Gram matrix.")
TOP = flags.DEFINE_integer("top", 10, "Units to keep per sample.")
CHUNK = flags.DEFINE_integer("chunk", None, "Units to score at a time; by default 131,072.")


def main() -> None:
    """Score the units, and print the time and memory used."""
    import ensdiff

    from .benchmarks.scoring import benchmark_scoring

    code = ensdiff.Code.balanced(MEMBERS.value, UNITS.value, WEIGHT.value)
    result = benchmark_scoring(code, SAMPLES.value, TOP.value, CHUNK.value, progress=True)
    peak = "unknown" if result.peak_bytes is None else f"{result.peak_bytes / 2**30:.2f} GiB"
    print(f"{code}")
    print(f"{UNITS.value:,} units, {SAMPLES.value} samples: {result.seconds:.1f} s, peak memory {peak} (whole process)")
    print(f"the best unit of sample 0 is {result.best_B[0]}; scores are within {result.largest_error:.0e} of float64")


if __name__ == "__main__":
    common.run(main, __doc__)
