"""How long it takes to score very many units, and how much memory."""

import time
from typing import NamedTuple

import numpy as np

from ensdiff.attribution.forms import evaluate, gram_forms, stream
from ensdiff.attribution.ranking import Top
from ensdiff.codes import Code


class ScoringBenchmark(NamedTuple):
    """Time and memory of ranking all units of a code for some samples.

    Args:
        seconds: wall time from the code to the best units, compilation included.
        peak_bytes: most memory that the process has held since it started; None where the system does not say.
        best_B: number of the best unit of each sample.
        largest_error: largest relative difference of the best scores from a float64 computation of the same units.
    """

    seconds: float
    peak_bytes: int | None
    best_B: np.ndarray
    largest_error: float


def benchmark_scoring(
    code: Code, samples: int = 1, top: int = 10, chunk: int | None = None, seed: int = 0, progress: bool = False
) -> ScoringBenchmark:
    """Score every unit of a code under random Gram matrices, as ``method="differential"`` does after its model runs.

    Args:
        code: the units.
        samples: how many Gram matrices.
        top: units kept a sample.
        chunk: units at a time.
        seed: of the matrices.
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
