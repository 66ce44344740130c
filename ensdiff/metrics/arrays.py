"""What all metrics ask of their arrays, and rank correlation over their last axis."""

from typing import Any

import numpy as np
from jaxtyping import Float


def table(values: Any, name: str, axes: str, like: np.ndarray | None = None) -> np.ndarray:
    """A float64 array with as many axes as ``axes`` has letters, all finite and none empty.

    Raises:
        ValueError: says the name, what was given and what was expected.
    """
    array = np.asarray(values)
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
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    # values that differ by rounding only are constant
    scale_a, scale_b = (np.sqrt(np.square(x).sum(-1)) for x in (a, b))
    product = scale_a * scale_b
    return np.divide((a * b).sum(-1), product, out=np.zeros(np.shape(product)), where=product > 1e-300)


def merged(values_BM: np.ndarray, tolerance_B: np.ndarray) -> Float[np.ndarray, "B M"]:
    """The values, but those of a row of which each is within its tolerance of the next take the least one's value.

    >>> merged(np.array([[0.3, 0.1, 0.1 + 0.2]]), np.array([1e-12])).tolist()
    [[0.3, 0.1, 0.3]]
    """
    order_BM = np.argsort(values_BM, axis=1, kind="stable")
    sorted_BM = np.take_along_axis(values_BM, order_BM, axis=1)
    first_BM = np.diff(sorted_BM, axis=1, prepend=-np.inf) > tolerance_B[:, None]
    start_BM = np.maximum.accumulate(np.where(first_BM, np.arange(values_BM.shape[1]), 0), axis=1)
    out_BM = np.empty_like(sorted_BM)
    np.put_along_axis(out_BM, order_BM, np.take_along_axis(sorted_BM, start_BM, axis=1), axis=1)
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
    """Rank correlation over the last axis, ties sharing their mean rank; 0 where either is constant."""
    from scipy import stats  # takes a second to import

    return correlate(stats.rankdata(a, axis=-1), stats.rankdata(b, axis=-1))
