"""The kernel of one member, which takes into account what the member saw.

(k1) ``tau(x, i) = phi(x) . A^-1 phi(i)`` with ``A = Phi_S^T Phi_S + n_S lambda I``, where the rows of Phi_S are the
gradients of the n_S items in S, and lambda is a share of the mean eigenvalue of ``Phi_S^T Phi_S / n_S`` (TRAK, Park et
al. 2023, arXiv 2303.14186, eq. 13, without its weights, which are constant to first order for a squared loss).

(k2) S is what the member saw. With the leverage ``h_i = phi(i) . A^-1 phi(i)``, removing an item that it saw divides
the score by ``1 - h_i``, and adding an item that it did not see divides the score by ``1 + h_i``: the kernel that the
member would have without the item, or with it (Sherman and Morrison).

Everything is computed in float64, over chunks of items. Gradients may be memory-mapped and larger than memory.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from ensdiff.attribution.gradients.config import SMALLEST_RIDGE
from ensdiff.attribution.gradients.reduction import row_chunks
from ensdiff.typing import ArrayLike


class MemberKernel:
    """The kernel (k1) of one member, with the leverages (k2). One decomposition serves all ridges.

    It decomposes either the (D, D) or the (n_S, n_S) matrix of inner products, whichever is smaller.

    Args:
        phi_nD: gradients of all training items under the member: an array, or `Reduced` rows.
        seen_n: the items that the member trained on. None makes the plain kernel of all items, without leverages.
        ridges: ridges whose leverages are computed together, in one pass over the items.

    Raises:
        ValueError: ``seen_n`` does not fit the items.

    >>> kernel = MemberKernel(np.eye(3), np.array([True, True, False]))
    >>> (kernel.scores(np.eye(3), 1.5) * 3).round(6).tolist()  # lambda is 1.5 * 1/3, n_S lambda is 1
    [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.5]]
    """

    def __init__(self, phi_nD: Any, seen_n: ArrayLike | None = None, ridges: Iterable[float] = ()) -> None:
        n, D = phi_nD.shape
        if seen_n is not None and np.shape(seen_n) != (n,):
            raise ValueError(f"seen_n has shape {np.shape(seen_n)}: expected one entry for each of {n} items")
        self._phi = phi_nD
        self._seen_n = None if seen_n is None else np.asarray(seen_n, bool)
        used_n = np.ones(n, bool) if self._seen_n is None else self._seen_n
        if used_n.sum() <= D:
            rows = [chunk[used_n[part]] for part, chunk in row_chunks(phi_nD)]
            phi_sD = np.concatenate(rows) if rows else np.zeros((0, D))
            self._square, U = _eigh(phi_sD @ phi_sD.T)
            self._basis = phi_sD.T @ U
            self._dual = True
        else:
            gram = np.zeros((D, D))
            for part, chunk in row_chunks(phi_nD):
                inside = chunk[used_n[part]]
                gram += inside.T @ inside
            self._square, self._basis = _eigh(gram)
            self._dual = False
        self._square = np.maximum(self._square, 0.0)
        self._mean = self._square.sum() / D
        self._leverages: dict[float, np.ndarray] = {}
        self._ridges = tuple(ridges)

    def scores(self, query_BD: ArrayLike, ridge: float) -> Float[np.ndarray, "B n"]:
        """Return the scores of all training items. Those that the member saw are removals, the others additions.

        Raises:
            ValueError: the ridge is not at least `SMALLEST_RIDGE`.
        """
        return products(self.solve(query_BD, ridge), self._phi) / self.divisors(ridge)

    def scores_of(self, query_BD: ArrayLike, other_mD: Any, ridge: float) -> Float[np.ndarray, "B m"]:
        """Return the scores of items outside of training, as additions.

        Raises:
            ValueError: the ridge is not at least `SMALLEST_RIDGE`.
        """
        return products(self.solve(query_BD, ridge), other_mD) / self.divisors_of(other_mD, ridge)

    def solve(self, rows_D: ArrayLike, ridge: float) -> Float[np.ndarray, "... D"]:
        """Return ``A^-1`` times each row; zeros if all gradients are zero."""
        return self.solve_each(rows_D, (ridge,))[0]

    def solve_each(self, rows_D: ArrayLike, ridges: Sequence[float]) -> Float[np.ndarray, "r ... D"]:
        """Return `solve` for several ridges."""
        rows = np.asarray(rows_D, np.float64)
        inside = rows @ self._basis
        inverses = map(self._inverse, ridges)
        return np.stack([constant * rows + (inside * gain_R) @ self._basis.T for constant, gain_R in inverses])

    def divisors(self, ridge: float) -> Float[np.ndarray, " n"]:
        """Return ``1 - h_i`` of the items that the member saw and ``1 + h_i`` of the others (k2); ones if plain."""
        if self._seen_n is None:
            return np.ones(self._phi.shape[0])
        if ridge not in self._leverages:
            ridges = tuple(dict.fromkeys((ridge, *self._ridges)))
            self._leverages |= dict(zip(ridges, self._leverage(self._phi, ridges), strict=True))
        return 1.0 + np.where(self._seen_n, -1.0, 1.0) * self._leverages[ridge]

    def divisors_of(self, other_mD: Any, ridge: float) -> Float[np.ndarray, " m"]:
        """Return ``1 + h_j`` of items outside of training (k2).

        A plain kernel contains every training item. The divisor makes it contain item j as well, so the scores of
        training items and of other items can be compared. With DAS, this holds as far as the two gradients of an item
        are parallel.
        """
        return 1.0 + self._leverage(other_mD, (ridge,))[0]

    def _leverage(self, rows_nD: Any, ridges: Sequence[float]) -> Float[np.ndarray, "r n"]:
        out = np.empty((len(ridges), rows_nD.shape[0]))
        inverses = [self._inverse(ridge) for ridge in ridges]
        constant_r, gain_rR = np.array([c for c, _ in inverses]), np.array([g for _, g in inverses])
        for part, chunk in row_chunks(rows_nD):
            out[:, part] = gain_rR @ np.square(chunk @ self._basis).T
            out[:, part] += constant_r[:, None] * np.square(chunk).sum(1)
        return out

    def _inverse(self, ridge: float) -> tuple[float, Float[np.ndarray, " R"]]:
        """Return ``constant`` and ``gain`` with ``A^-1 = constant I + basis diag(gain) basis^T``."""
        if not ridge >= SMALLEST_RIDGE:
            raise ValueError(f"ridge={ridge}: expected a share of the mean eigenvalue, at least {SMALLEST_RIDGE:g}")
        damping = ridge * self._mean  # n_S lambda
        if damping == 0:
            return 0.0, np.zeros_like(self._square)
        if self._dual:  # Woodbury
            return 1 / damping, -1 / ((self._square + damping) * damping)
        return 0.0, 1 / (self._square + damping)


def _eigh(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors, computed by one thread.

    On a busy machine, threads that wait for one another took ten times as long (700 items, 2 cores).
    """
    with threadpool_limits(1, "blas"):
        return np.linalg.eigh(gram)


def products(left_BD: Float[np.ndarray, "B D"], rows_nD: Any) -> Float[np.ndarray, "B n"]:
    """Return the inner product of each row of ``left_BD`` with each row of ``rows_nD``, which is read in chunks."""
    out = np.empty((len(left_BD), rows_nD.shape[0]))
    for part, chunk in row_chunks(rows_nD):
        out[:, part] = left_BD @ chunk.T
    return out
