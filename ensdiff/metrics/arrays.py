"""Checks of arrays for all metrics, ties between values that differ only by rounding, and correlation over an axis.

Every metric that ranks uses `rankable` values, so that two scores such as 0.3 and 0.1 + 0.2 share a rank. It returns
the expectation over random orders of tied values, so that no result depends on the position of a value.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ensdiff.typing import unmasked


def table(values: Any, name: str, axes: str, like: np.ndarray | None = None) -> np.ndarray:
    """Return the values as a finite float64 array with one non-empty axis per letter of ``axes``.

    Raises:
        ValueError: the values are not numbers, not finite, or have another shape; the message contains ``name``.
    """
    array = np.asarray(unmasked(values, name))
    expected = f"({', '.join(axes)})"
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} has dtype {array.dtype}: expected numbers of shape {expected}")
    if array.ndim != len(axes) or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}: expected {expected}, none of them 0")
    if like is not None and array.shape != like.shape:
        raise ValueError(
            f"{name} has shape {array.shape}: expected {like.shape}, as the array that it is compared with"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} holds NaN or infinity at {place}")
    return array


def distances(a: ArrayLike, b: ArrayLike, axes: int = 3) -> Float[np.ndarray, "..."]:
    """L2 distances over the last ``axes`` axes, in float64; the other axes are broadcast.

    >>> distances(np.zeros((4, 2, 2, 1)), np.ones((2, 2, 1))).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return np.sqrt(np.square(difference).sum(axis=tuple(range(-axes, 0))))


def correlate(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "..."]:
    """Return the Pearson correlation over the last axis; 0 where either array is constant."""
    return np.asarray((_direction(a) * _direction(b)).sum(-1))


def _direction(values: np.ndarray) -> np.ndarray:
    """Return the values centred and scaled to length 1 over the last axis; all 0 where they are constant."""
    # subtract the first value before the mean, so that the mean's rounding cannot make a constant vary
    centred = values - values[..., :1]
    centred = centred - centred.mean(-1, keepdims=True)
    for size in (lambda x: np.abs(x).max(-1, keepdims=True), lambda x: np.sqrt(np.square(x).sum(-1, keepdims=True))):
        scale = size(centred)  # first the largest, so that squares of small values do not underflow
        centred = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
    return centred


def precision(values: Any) -> float:
    """Return the relative rounding error assumed for an array: 4 eps of its dtype, at least of float64; 0 for integers.

    >>> precision(np.float32(1)) > 1e8 * precision(1.0) > precision(1) == 0.0
    True
    """
    dtype = np.asarray(values).dtype
    return 4 * max(float(np.finfo(dtype).eps), float(np.finfo(float).eps)) if dtype.kind == "f" else 0.0


def at_most(values: Any, level: float) -> np.ndarray:
    """Return which values are at most ``level``, or exceed it only by rounding.

    >>> at_most([0.1, 3 * 0.1, 0.31], 0.3).tolist()
    [True, True, False]
    """
    return np.asarray(values) <= level * (1 + max(precision(values), precision(1.0)))


def rankable(values: Any, name: str, axes: str, like: np.ndarray | None = None) -> np.ndarray:
    """Return `table` of the values, with those in a row (the last axis) that differ only by rounding made equal.

    The rounding is the `precision` of the given dtype; integers are exact.

    >>> rankable([[0.3, 0.1, 0.1 + 0.2]], "scores", "BN").tolist()
    [[0.3, 0.1, 0.3]]
    """
    return tied(table(values, name, axes, like), precision(values))


def tied(values_BM: np.ndarray, relative: float) -> Float[np.ndarray, "B M"]:
    """Return `merged` values; the tolerance is ``relative`` times the value plus float64's precision of the largest."""
    return merged(values_BM, precision(1.0) * np.abs(values_BM).max(1), relative) if relative else values_BM


def merged(values_BM: np.ndarray, tolerance_B: np.ndarray, relative: float = 0.0) -> Float[np.ndarray, "B M"]:
    """Return the values with near-ties made equal: in ascending order, each becomes the least value within tolerance.

    The tolerance is that of the row plus ``relative`` times the larger absolute value of the two. No value changes by
    more than its tolerance, however densely the values lie.

    >>> merged(np.array([[0.3, 0.1, 0.1 + 0.2]]), np.array([1e-12])).tolist()
    [[0.3, 0.1, 0.3]]
    """
    out_BM = np.empty_like(values_BM)
    for b, (values_M, tolerance) in enumerate(zip(values_BM, tolerance_B, strict=True)):
        values_U, place_M = np.unique(values_M, return_inverse=True)
        size_U = np.abs(values_U)
        near = np.diff(values_U) <= tolerance + relative * np.maximum(size_U[1:], size_U[:-1])
        for u in np.flatnonzero(near):  # in order, so that u is merged already
            least, value = values_U[u], values_U[u + 1]
            if value - least <= tolerance + relative * max(abs(least), abs(value)):
                values_U[u + 1] = least
        out_BM[b] = values_U[place_M]
    return out_BM


def resampled_spearman(a_BM: np.ndarray, b_BM: np.ndarray, counts_RM: np.ndarray) -> Float[np.ndarray, "R B"]:
    """Return `spearman` of every row for every resample r of the last axis, which has ``counts_RM[r, m]`` copies of m.

    The rank of a value in a resample is the number of smaller values plus half the number of equal ones. Both are sums
    of counts, so resamples are not sorted.

    >>> a, b, rows = np.array([[1.0, 4.0, 2.0, 2.0]]), np.array([[1.0, 2.0, 5.0, 3.0]]), np.array([0, 0, 1, 3])
    >>> np.allclose(resampled_spearman(a, b, np.array([[2, 1, 0, 1]]))[0], spearman(a[:, rows], b[:, rows]))
    True
    """
    n = counts_RM.sum(1, keepdims=True)

    def centred_ranks(values_M: np.ndarray) -> np.ndarray:
        _, place_M, equals_U = np.unique(values_M, return_inverse=True, return_counts=True)
        in_order_RM = counts_RM[:, np.argsort(place_M, kind="stable")]
        equal_RU = np.add.reduceat(in_order_RM, equals_U.cumsum() - equals_U, axis=1)
        return (equal_RU.cumsum(1) - (equal_RU + n) / 2)[:, place_M]  # the mean rank minus (n + 1) / 2

    out_RB = np.zeros((len(counts_RM), len(a_BM)))
    for b, (first_M, second_M) in enumerate(zip(a_BM, b_BM, strict=True)):
        a_RM, b_RM = centred_ranks(first_M), centred_ranks(second_M)
        product_R = (counts_RM * a_RM * b_RM).sum(1)
        scale_R = np.sqrt((counts_RM * a_RM**2).sum(1) * (counts_RM * b_RM**2).sum(1))
        np.divide(product_R, scale_R, out=out_RB[:, b], where=scale_R > 0)
    return out_RB


def spearman(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "..."]:
    """Return the rank correlation over the last axis, with mean ranks for equal values; 0 where either is constant."""
    from scipy import stats  # takes a second to import

    return correlate(stats.rankdata(a, axis=-1), stats.rankdata(b, axis=-1))
