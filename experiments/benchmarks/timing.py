"""Wall-clock times of alternatives that take turns, so that a change in machine load affects all of them equally."""

import time
from collections.abc import Callable, Mapping

import numpy as np

PAUSE = 0.3
"""Seconds between two timings, because the other library's idle threads spin for a while and would occupy a core."""


def interleave(alternatives: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Time the alternatives in turn, ``repeats`` times each after one uncounted call, and return their seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(repeats + 1):
        for name, call in alternatives.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, np.ndarray], of: str, to: str) -> tuple[float, float, float]:
    """Return the median, smallest and largest ratio of times within a turn."""
    ratios = seconds[of] / seconds[to]
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())
