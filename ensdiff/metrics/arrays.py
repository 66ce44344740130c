"""What all metrics ask of their arrays, and rank correlation over their last axis."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats


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


def spearman(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "..."]:
    """Rank correlation over the last axis, ties sharing their mean rank; 0 where either is constant."""
    return correlate(stats.rankdata(a, axis=-1), stats.rankdata(b, axis=-1))
