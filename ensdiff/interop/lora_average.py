"""Sums of low-rank adapters: exactly, by putting their factors side by side, or with a smaller rank.

With ``delta_k = s down_k up_k`` and ``s = alpha / r`` for each of n members,

(1) ``sum_k w_k delta_k = s [down_1 ... down_n] [w_1 up_1; ...; w_n up_n]``, whose rank is n r. For equal weights
    ``w_k = 1/n`` the factors stay as they are: ``1/n`` is in the scale ``alpha / (n r)``.
(2) The closest adapter of rank q is the truncated singular value decomposition (Eckart and Young 1936). The factors are
    narrow, so it is computed from their QR decompositions: with ``down = Q R`` and ``up^T = P L``, that of ``R L^T``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ensdiff.interop.lora_files import Factors


class Compressed(NamedTuple):
    """An adapter of a smaller rank.

    Args:
        factors: the adapter; its alpha is its rank.
        lost: squared Frobenius norm of what it leaves out.
        total: squared Frobenius norm of what it stands for.
    """

    factors: Factors
    lost: float
    total: float


def weighted_sum(members: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return the sum of adapters of one module (1). Members of weight 0 are left out.

    Args:
        members: adapters of equal ranks and alphas.
        weights: one weight for each; they sum to 1.

    >>> one = Factors(np.ones((2, 3), np.float32), np.ones((4, 2), np.float32), 1.0)
    >>> two = Factors(np.ones((2, 3), np.float32), 3 * one.up, 1.0)
    >>> total = weighted_sum([one, two], [0.5, 0.5])
    >>> total.rank, total.alpha, float(total.delta()[0, 0])
    (4, 1.0, 2.0)
    """
    used = [(one, weight) for one, weight in zip(members, weights, strict=True) if weight]
    equal = len({weight for _, weight in used}) == 1
    ups = [one.up if equal else (one.up * np.float64(weight * len(used))).astype(np.float32) for one, weight in used]
    return Factors(np.concatenate([one.down for one, _ in used]), np.concatenate(ups, axis=1), used[0][0].alpha)


def compress(factors: Factors, rank: int) -> Compressed:
    """Return the adapter of a rank that is closest to a given one (2). If fewer columns are enough, the rest are zeros.

    >>> wide = Factors(np.ones((3, 5), np.float32), np.ones((4, 3), np.float32), 3.0)
    >>> found = compress(wide, 1)
    >>> found.factors.rank, bool(np.allclose(found.factors.delta(), wide.delta())), found.lost < 1e-9 * found.total
    (1, True, True)
    """
    down_PR = factors.down.reshape(factors.rank, -1).T.astype(np.float64)
    up_DR = factors.up.reshape(len(factors.up), -1).astype(np.float64) * (factors.alpha / factors.rank)
    (left_PQ, inner_QR), (right_DQ, other_QR) = np.linalg.qr(down_PR), np.linalg.qr(up_DR)
    left, values, right = np.linalg.svd(inner_QR @ other_QR.T, full_matrices=False)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    down = np.zeros((rank, len(down_PR)))
    up = np.zeros((len(up_DR), rank))
    down[:kept] = (left_PQ @ left[:, :kept] * root).T
    up[:, :kept] = right_DQ @ right[:kept].T * root
    found = Factors(
        down.reshape(rank, *factors.down.shape[1:]).astype(np.float32),
        up.reshape(len(up), rank, *factors.up.shape[2:]).astype(np.float32),
        float(rank),
    )
    return Compressed(found, float(np.square(values[kept:]).sum()), float(np.square(values).sum()))
