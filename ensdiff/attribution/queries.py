"""Marks of the images that an attribution is of, by which a saved attribution is told from one of other images.

Each image has four numbers: sums over its P values x_p in [0, 1] with weights that are as good as random,

(q1) ``m_j = sqrt(2 / P) sum_p x_p cos(sqrt(j) p^2)`` for j = 2, 3, 5, 7.

They differ between two images by about the root mean square of the images' difference. Unlike a hash, they are nearly
the same for an image that was sampled again on another device, where it differs by rounding.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from ensdiff.typing import ArrayLike

FREQUENCIES = np.sqrt([2.0, 3.0, 5.0, 7.0])
TOLERANCE = 1e-3
"""Largest difference between marks of one image that was computed on different devices."""


def query_marks(images: ArrayLike) -> list[list[float]]:
    """Return the marks (q1) of B images in Python's own types, which JSON can write: B lists of four numbers.

    Args:
        images: (B, H, W, C) in [0, 1], or uint8.

    >>> query_marks(np.ones((1, 1, 1, 1)))  # one value, p = 0
    [[1.414214, 1.414214, 1.414214, 1.414214]]
    """
    return [[round(value, 6) for value in row] for row in _marks_BJ(images).tolist()]


def same_queries(marks: Any, images: ArrayLike) -> bool:
    """Return whether the marks, as read from a file, are those of these images up to `TOLERANCE`.

    >>> images = np.eye(4).reshape(2, 2, 2, 2)
    >>> same_queries(query_marks(images), images + 1e-5), same_queries(query_marks(images), images[::-1])
    (True, False)
    """
    now_BJ = _marks_BJ(images)
    try:
        then_BJ = np.asarray(marks, np.float64)
    except (TypeError, ValueError):
        return False
    return then_BJ.shape == now_BJ.shape and bool((np.abs(then_BJ - now_BJ) <= TOLERANCE).all())


def _marks_BJ(images: ArrayLike) -> Float[np.ndarray, "B J"]:
    x = np.asarray(images)
    x_BP = x.reshape(len(x), -1).astype(np.float64) / (255 if x.dtype == np.uint8 else 1)
    P = x_BP.shape[1]
    return np.sqrt(2 / P) * x_BP @ np.cos(np.square(np.arange(P))[:, None] * FREQUENCIES)
