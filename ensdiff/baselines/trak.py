"""From projected gradients to scores: cosines, and TRAK's ridge regression.

(k1) ``tau(x, i) = phi(x) . (Phi^T Phi / n + lambda I)^-1 phi(i) / n``, averaged over members, where Phi has the
projected gradients of the n training items, and lambda is a share of the mean eigenvalue of ``Phi^T Phi / n`` (Park et
al. 2023, arXiv 2303.14186, eq. 13, without its weights, which are constant to first order for a squared loss). With
gradients of the loss this is TRAK, with gradients of the squared prediction D-TRAK (Zheng et al. 2024, arXiv
2311.00500).

Both gradients point to a larger loss, so a positive score means that the item's presence lowers the query's loss.
"""

import numpy as np
from jaxtyping import Float

from ensdiff.typing import ArrayLike


def trak_scores(query_KBD: ArrayLike, train_KND: ArrayLike, ridge: float) -> Float[np.ndarray, "B N"]:
    """Return the scores (k1), averaged over members, in float64.

    Args:
        query_KBD: (K, B, D) projected gradients of the queries under each member.
        train_KND: (K, N, D) projected gradients of the training items under each member.
        ridge: lambda as a share of the mean eigenvalue; 0 is the pseudo-inverse.

    Raises:
        ValueError: shapes that do not fit together, or a negative ridge.

    >>> phi = np.eye(3)[None]
    >>> trak_scores(phi, phi, 0.0).round(6).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    _check(query_KBD, train_KND)
    if not ridge >= 0:
        raise ValueError(f"ridge={ridge}: expected a share of the mean eigenvalue, at least 0")
    total = np.zeros((query_KBD.shape[1], train_KND.shape[1]))
    for query, train in zip(query_KBD, train_KND, strict=True):
        phi = np.asarray(train, np.float64)
        # the singular values serve any ridge, including 0
        U, s, Vt = np.linalg.svd(phi, full_matrices=False)
        kernel = s**2 / len(phi)
        damped = kernel + ridge * kernel.sum() / phi.shape[1]
        keep = kernel > kernel.max(initial=0) * 1e-12
        gain = np.divide(s / len(phi), damped, out=np.zeros_like(s), where=keep & (damped > 0))
        total += (np.asarray(query, np.float64) @ Vt.T * gain) @ U.T
    return total / len(query_KBD)


def cosine_scores(query_KBD: ArrayLike, train_KND: ArrayLike) -> Float[np.ndarray, "B N"]:
    """Return the cosines of projected gradients, averaged over members; 0 for a gradient of zeros.

    Raises:
        ValueError: shapes that do not fit together.

    >>> cosine_scores(np.ones((1, 1, 2)), np.array([[[1.0, 1.0], [-2.0, -2.0]]])).round(6).tolist()
    [[1.0, -1.0]]
    """
    _check(query_KBD, train_KND)
    query, train = (_unit(np.asarray(a, np.float64)) for a in (query_KBD, train_KND))
    return np.einsum("kbd,knd->bn", query, train, optimize=True) / len(query)


def _check(query_KBD: ArrayLike, train_KND: ArrayLike) -> None:
    a, b = np.shape(query_KBD), np.shape(train_KND)
    if len(a) != 3 or len(b) != 3 or (a[0], a[2]) != (b[0], b[2]) or 0 in a + b:
        raise ValueError(f"gradients of shapes {a} and {b}: expected (K, B, D) and (K, N, D), all at least 1")


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
