"""From gradients by noise level to one row per item, read in chunks so that they may be memory-mapped."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.gradients.config import Levels, Setting
from ensdiff.settings import check_value

CHUNK_BYTES = 2**23
"""Bytes of rows in float64 that are read at a time."""

HELD_BYTES = 2**27
"""Most bytes of one member's rows in float64 that are kept, instead of being read again."""


def reduce(phi_KBGD: Any, setting: Setting) -> Float[np.ndarray, "... D"]:
    """Return gradients (..., D) of the setting's noise levels and dimension, as the mean over their parts, in float64.

    With ``normalize``, each part's gradient is scaled to length 1 first; a gradient of zeros stays. A smaller dimension
    adds up equal blocks of the projection, which again has random signs.

    Args:
        phi_KBGD: (..., G, D) projected gradients by part.
        setting: levels, normalize and dimension; the ridge is not used.

    Raises:
        ValueError: the setting's dimension does not divide D.

    >>> phi = np.array([[[3.0, 4.0], [0.0, 2.0]]])
    >>> reduce(phi, Setting(0.1, "all", True, 2)).round(6).tolist()
    [[0.3, 0.9]]
    """
    return select(phi_KBGD, setting).mean(-2)


def select(phi_KBGD: Any, setting: Setting) -> Float[np.ndarray, "... G D"]:
    """Return the gradients of the parts that a setting uses, in float64: `reduce` before the mean."""
    phi = np.asarray(phi_KBGD, np.float64)
    G, D = phi.shape[-2:]
    if D % setting.dimension:
        raise ValueError(f"dimension={setting.dimension}: expected a divisor of the gradients' dimension {D}")
    check_value("levels", setting.levels, Levels)
    phi = phi[..., {"all": slice(None), "low": slice((G + 1) // 2), "high": slice(G // 2, None)}[setting.levels], :]
    if setting.dimension < D:
        phi = phi.reshape(*phi.shape[:-1], D // setting.dimension, setting.dimension).sum(-2)
    if setting.normalize:
        length = np.linalg.norm(phi, axis=-1, keepdims=True)
        phi = np.divide(phi, length, out=np.zeros_like(phi), where=length > 0)
    return phi


class Reduced:
    """One member's gradients under a setting, as rows (n, D) that are read and reduced when they are sliced.

    Rows that are small enough are reduced once and kept.

    Args:
        phi_nGD: gradients by part: an array, or anything with a shape that returns an array for a slice of rows.
        setting: how they are reduced.
    """

    def __init__(self, phi_nGD: Any, setting: Setting) -> None:
        self.shape = phi_nGD.shape[0], setting.dimension
        self._phi, self._setting, self._kept = phi_nGD, setting, None
        if 8 * self.shape[0] * self.shape[1] <= HELD_BYTES:
            rows = np.empty(self.shape)
            for part, chunk in row_chunks(self):
                rows[part] = chunk
            self._kept = rows

    def __getitem__(self, rows: slice) -> np.ndarray:
        return reduce(self._phi[rows], self._setting) if self._kept is None else self._kept[rows]


def row_chunks(rows_nD: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield neighbouring rows in float64, with their place."""
    n, D = rows_nD.shape
    step = max(1, CHUNK_BYTES // (8 * D))
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        yield part, np.asarray(rows_nD[part], np.float64)
