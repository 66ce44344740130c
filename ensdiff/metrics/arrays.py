"""What all metrics ask of their arrays, which values are equal but for rounding, and correlation over the last axis.

Every metric that ranks takes `rankable` values, so that two scores such as 0.3 and 0.1 + 0.2 share a rank, and by the
expectation over random orders of what is tied, so that no result depends on where a value stands.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from ensdiff.typing import unmasked


def table(values: Any, name: str, axes: str, like: np.ndarray | None = None) -> np.ndarray:
    """A float64 array with as many axes as ``axes`` has letters, all finite and none empty.

    Raises:
        ValueError: says the name, what was given and what was expected.
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


def correlate(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "..."]:
    """Pearson correlation over the last axis; 0 where either is constant."""
    return (_direction(a) * _direction(b)).sum(-1)


def _direction(values: np.ndarray) -> np.ndarray:
    """Centred values of length 1; all 0 where they are constant."""
    # less the first value before the mean, whose rounding would make a constant vary
    centred = values - values[..., :1]
    centred = centred - centred.mean(-1, keepdims=True)
    for size in (lambda x: np.abs(x).max(-1, keepdims=True), lambda x: np.sqrt(np.square(x).sum(-1, keepdims=True))):
        scale = size(centred)  # first by the largest, so that squares of small values do not vanish
        centred = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 0)
    return centred


def precision(values: Any) -> float:
    """Relative size of the rounding that an array's numbers carry: 4 eps of their dtype, at least of float64.

    >>> precision(np.float32(1)) > 1e8 * precision(1.0) > precision(1) == 0.0
    True
    """
    dtype = np.asarray(values).dtype
    return 4 * max(float(np.finfo(dtype).eps), float(np.finfo(float).eps)) if dtype.kind == "f" else 0.0


def at_most(values: Any, level: float) -> np.ndarray:
    """Whether values are at most a level; one that exceeds it by rounding only is.

    >>> at_most([0.1, 3 * 0.1, 0.31], 0.3).tolist()
    [True, True, False]
    """
    return np.asarray(values) <= level * (1 + max(precision(values), precision(1.0)))


def rankable(values: Any, name: str, axes: str, like: np.ndarray | None = None) -> np.ndarray:
    """`table`, with the values of a row (the last axis) that differ by rounding only made equal.

    Rounding is `precision` of the dtype given; integers are exact.

    >>> rankable([[0.3, 0.1, 0.1 + 0.2]], "scores", "BN").tolist()
    [[0.3, 0.1, 0.3]]
    """
    return tied(table(values, name, axes, like), precision(values))


def tied(values_BM: np.ndarray, relative: float) -> Float[np.ndarray, "B M"]:
    """`merged` within ``relative`` times the value itself, and within float64's precision of the row's largest."""
    return merged(values_BM, precision(1.0) * np.abs(values_BM).max(1), relative) if relative else values_BM


def merged(values_BM: np.ndarray, tolerance_B: np.ndarray, relative: float = 0.0) -> Float[np.ndarray, "B M"]:
    """Return the values with near-ties made equal: in ascending order, each takes the least value within its tolerance.

    The tolerance is that of the row and ``relative`` times the larger of the two values. No value moves further than
    that, however densely the values lie.

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
    """`spearman` of every row in every resample of the last axis, in which entry m is ``counts_RM[r, m]`` times.

    A value's rank in a resample is the number of smaller ones and half of its equals, from sums of counts: nothing is
    sorted anew.

    >>> a, b, rows = np.array([[1.0, 4.0, 2.0, 2.0]]), np.array([[1.0, 2.0, 5.0, 3.0]]), np.array([0, 0, 1, 3])
    >>> np.allclose(resampled_spearman(a, b, np.array([[2, 1, 0, 1]]))[0], spearman(a[:, rows], b[:, rows]))
    True
    """
    n = counts_RM.sum(1, keepdims=True)

    def centred_ranks(values_M: np.ndarray) -> np.ndarray:
        _, place_M, equals_U = np.unique(values_M, return_inverse=True, return_counts=True)
        in_order_RM = counts_RM[:, np.argsort(place_M, kind="stable")]
        equal_RU = np.add.reduceat(in_order_RM, equals_U.cumsum() - equals_U, axis=1)
        return (equal_RU.cumsum(1) - (equal_RU + n) / 2)[:, place_M]  # the mean rank, less (n + 1) / 2

    out_RB = np.zeros((len(counts_RM), len(a_BM)))
    for b, (first_M, second_M) in enumerate(zip(a_BM, b_BM, strict=True)):
        a_RM, b_RM = centred_ranks(first_M), centred_ranks(second_M)
        product_R = (counts_RM * a_RM * b_RM).sum(1)
        scale_R = np.sqrt((counts_RM * a_RM**2).sum(1) * (counts_RM * b_RM**2).sum(1))
        np.divide(product_R, scale_R, out=out_RB[:, b], where=scale_R > 0)
    return out_RB


def spearman(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "..."]:
    """Rank correlation over the last axis, equal values sharing their mean rank; 0 where either is constant."""
    from scipy import stats  # takes a second to import

    return correlate(stats.rankdata(a, axis=-1), stats.rankdata(b, axis=-1))
