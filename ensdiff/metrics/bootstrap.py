"""Estimates with intervals, which all metrics return."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
BLOCK = 2**22
"""Largest number of counts for one resampled axis in memory at a time."""


class Estimate(NamedTuple):
    """A value and its 95 % interval, which is NaN if none was requested.

    Args:
        value: value for the data without resampling.
        low: lower end of the interval.
        high: upper end of the interval.

    >>> Estimate(0.5, 0.4, 0.6).low
    0.4
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")


def bootstrap(statistic: Callable[..., float], *sizes: int, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return a statistic with the 2.5 and 97.5 % points of its bootstrap distribution.

    Args:
        statistic: function of one index array for each of ``sizes``, such as ``lambda rows: values[rows].mean()``.
        sizes: length of each resampled axis; the axes are resampled independently.
        resamples: number of resamples; 0 gives no interval.
        seed: seed of the resampling.

    Raises:
        ValueError: no sizes are given, or one of them is 0.

    >>> values = np.arange(100.0)
    >>> estimate = bootstrap(lambda rows: values[rows].mean(), 100)
    >>> estimate.value, estimate.low < 45 < 54 < estimate.high
    (49.5, True)
    """
    _check(sizes)
    value = float(statistic(*(np.arange(size) for size in sizes)))
    if not resamples:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    return _interval(value, [statistic(*_draw(rng, sizes)) for _ in range(resamples)])


def bootstrap_counts(
    statistic: Callable[..., np.ndarray], *sizes: int, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return the same estimate as `bootstrap`, but faster, for a statistic that handles many resamples at once.

    Args:
        statistic: function of one (R, size) array for each of ``sizes``, which holds how often each element was drawn
            in each of R resamples. It returns one value per resample.
        sizes: length of each resampled axis; the axes are resampled independently.
        resamples: number of resamples; 0 gives no interval.
        seed: seed of the resampling.

    Raises:
        ValueError: no sizes are given, or one of them is 0.

    >>> values = np.arange(100.0)
    >>> sooner = bootstrap_counts(lambda counts: counts @ values / 100, 100)
    >>> np.allclose(sooner, bootstrap(lambda rows: values[rows].mean(), 100))
    True
    """
    _check(sizes)
    value = float(statistic(*(np.ones((1, size)) for size in sizes))[0])
    if not resamples:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    block, values = max(1, BLOCK // max(sizes)), []
    for start in range(0, resamples, block):
        counts = [np.empty((min(block, resamples - start), size)) for size in sizes]
        for r in range(len(counts[0])):
            for count, drawn in zip(counts, _draw(rng, sizes), strict=True):
                count[r] = np.bincount(drawn, minlength=count.shape[1])
        values.append(statistic(*counts))
    return _interval(value, np.concatenate(values))


def _check(sizes: tuple[int, ...]) -> None:
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes={sizes}: expected at least one size, each at least 1")


def _draw(rng: np.random.Generator, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Draw one resample: an index array for each size."""
    return [rng.integers(size, size=size) for size in sizes]


def _interval(value: float, draws: np.ndarray | list[float]) -> Estimate:
    low, high = np.nanquantile(draws, [0.025, 0.975]) if np.isfinite(draws).any() else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def mean(values_B: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the mean over rows, with an interval from resampled rows.

    >>> mean(np.ones(5))
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    values = np.asarray(values_B, np.float64)
    n = len(values)
    return bootstrap_counts(lambda counts_RB: counts_RB @ values / n, n, resamples=resamples, seed=seed)


def proportion(hits: int, trials: int, confidence: float = 0.95) -> Estimate:
    """Return a share of independent trials with its exact (Clopper-Pearson) interval, 95 % by default.

    Raises:
        ValueError: there are no trials, or more hits than trials.

    >>> proportion(0, 20).high.__round__(3)
    0.168
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"{hits} of {trials}: expected at least one trial and no more hits than trials")
    from scipy import stats  # takes a second to import

    found = stats.binomtest(int(hits), int(trials)).proportion_ci(confidence, method="exact")
    return Estimate(hits / trials, float(found.low), float(found.high))
