"""Means over some of the members, which differ from unit to unit, and differences of such means."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Moments(NamedTuple):
    """Means and unbiased variances over the chosen members; NaN where they are too few.

    Args:
        mean_N: means.
        variance_N: variances; NaN for a single member.
        count_N: number of chosen members.
    """

    mean_N: Float[np.ndarray, " N"]
    variance_N: Float[np.ndarray, " N"]
    count_N: Float[np.ndarray, " N"]


class MeanDifference(NamedTuple):
    """Differences of means and their standard errors; NaN where there are too few values."""

    value_N: Float[np.ndarray, " N"]
    error_N: Float[np.ndarray, " N"]


def moments(value_NK: Float[np.ndarray, "N K"], chosen_NK: Bool[np.ndarray, "N K"]) -> Moments:
    """Return the mean and the unbiased variance of each unit's values over its chosen members."""
    count = chosen_NK.sum(1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(chosen_NK, value_NK, 0).sum(1) / count
        square = np.where(chosen_NK, np.square(value_NK - mean[:, None]), 0).sum(1)
        variance = np.where(count > 1, square / (count - 1), np.nan)
    return Moments(np.where(count > 0, mean, np.nan), variance, count)


def mean_difference(
    value_NK: Float[np.ndarray, "N K"], first_NK: Bool[np.ndarray, "N K"], second_NK: Bool[np.ndarray, "N K"]
) -> MeanDifference:
    """Return the mean over the first members minus the mean over the second members of each unit."""
    first, second = moments(value_NK, first_NK), moments(value_NK, second_NK)
    with np.errstate(invalid="ignore", divide="ignore"):
        error_N = np.sqrt(first.variance_N / first.count_N + second.variance_N / second.count_N)
    return MeanDifference(first.mean_N - second.mean_N, error_N)
