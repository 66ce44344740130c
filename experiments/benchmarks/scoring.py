"""A benchmark of the time and memory that scoring very many units takes."""

import time
from typing import NamedTuple

import numpy as np

from ensdiff.attribution.forms import evaluate, gram_forms, stream
from ensdiff.attribution.ranking import Top
from ensdiff.codes import Code


class ScoringBenchmark(NamedTuple):
    """Time and memory of ranking all units of a code for some samples.

    Args:
        seconds: wall-clock time from the code to the best units, including compilation.
        peak_bytes: peak memory of the process since it started; None if the system does not report it.
        best_B: id of the best unit of each sample.
        largest_error: largest relative difference between the best scores and those of the same units in float64.
    """

    seconds: float
    peak_bytes: int | None
    best_B: np.ndarray
    largest_error: float


def benchmark_scoring(
    code: Code, samples: int = 1, top: int = 10, chunk: int | None = None, seed: int = 0, progress: bool = False
) -> ScoringBenchmark:
    """Score every unit of a code with random Gram matrices, as ``method="differential"`` does after its model runs.

    Args:
        code: the code of the units.
        samples: number of Gram matrices.
        top: number of units kept per sample.
        chunk: number of units scored at a time.
        seed: seed of the matrices.
        progress: show a progress bar.
    """
    K = code.members
    tangent_BKF = np.random.default_rng(seed).normal(size=(samples, K, 2 * K))
    forms = gram_forms(tangent_BKF @ tangent_BKF.transpose(0, 2, 1), np.full(K, 1.0 / K))
    begin = time.perf_counter()
    best = Top(samples, top)
    for start, score_BM in stream(forms, code.units, code, chunk=chunk, progress=progress):
        best.update(start, score_BM)
    seconds = time.perf_counter() - begin
    known = np.stack([evaluate(forms, code.rows(index))[b] for b, index in enumerate(best.index_BT)])
    error = float(np.max(np.abs(best.scores_BT - known) / known))
    return ScoringBenchmark(seconds, _peak_bytes(), best.index_BT[:, 0], error)


def _peak_bytes() -> int | None:
    try:
        import resource
        import sys
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
