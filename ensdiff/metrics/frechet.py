"""Frechet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

``d^2 = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` for Gaussians with the means and covariances of the sets. It
is the FID only with Inception features; for other features, report the name of the feature space.

The estimate from samples is biased upwards, and more so for smaller sets. Compare only distances computed from sets of
equal sizes, such as those of `frechet_floor`.
"""

import numpy as np

from ensdiff.metrics.arrays import table
from ensdiff.metrics.bootstrap import Estimate
from ensdiff.metrics.bootstrap import bootstrap as resampled
from ensdiff.typing import ArrayLike


def frechet_distance(a_NF: ArrayLike, b_MF: ArrayLike, *, bootstrap: int = 0, seed: int = 0) -> Estimate:
    """Return the squared Frechet distance between two sets of features, in float64.

    Resampling repeats rows, which narrows the spectra and raises the distance. The interval shows the noise of the
    estimate, but can lie entirely above it.

    Args:
        a_NF: (N, F) features of one set, N >= 2.
        b_MF: (M, F) features of the other set, M >= 2.
        bootstrap: number of resamples of both sets for the interval; 0 gives no interval (NaN).
        seed: seed of the resampling.

    Raises:
        ValueError: a set has fewer than two rows, the sets differ in F, or a value is not finite.

    >>> a = np.random.default_rng(0).normal(size=(500, 3))
    >>> round(frechet_distance(a, a + 2).value, 6)
    12.0
    """
    a, b = _features(a_NF, "the first set"), _features(b_MF, "the second set")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the sets have {a.shape[1]} and {b.shape[1]} features: expected the same feature function")
    return resampled(
        lambda rows_a, rows_b: _distance(a[rows_a], b[rows_b]), len(a), len(b), resamples=bootstrap, seed=seed
    )


def frechet_floor(features_NF: ArrayLike, size: int | None = None, *, splits: int = 20, seed: int = 0) -> float:
    """Return the mean distance between disjoint random sets of *real* data with ``size`` rows each.

    Args:
        features_NF: (N, F) features of real data.
        size: number of rows in each set; by default half of all rows.
        splits: number of random pairs of sets that are averaged.
        seed: seed of the pairs.

    Raises:
        ValueError: the size is less than 2 or more than half of the rows, or a value is not finite.

    >>> features = np.random.default_rng(0).normal(size=(400, 2))
    >>> 0 < frechet_floor(features) < frechet_floor(features, 20)
    True
    """
    features = _features(features_NF, "the set")
    size = len(features) // 2 if size is None else size
    if not 2 <= size <= len(features) // 2:
        raise ValueError(
            f"size={size}: expected 2 .. {len(features) // 2}, for two disjoint sets of {len(features)} rows"
        )
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(features)) for _ in range(splits)]
    return float(np.mean([_distance(features[o[:size]], features[o[size : 2 * size]]) for o in orders]))


def _features(features: ArrayLike, name: str) -> np.ndarray:
    array = table(features, name, "NF")
    if len(array) < 2:
        raise ValueError(f"{name} has one row: expected (N, F) with at least two rows")
    return array


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the distance without the square root of a possibly singular matrix.

    tr (S_a S_b)^(1/2) is the sum of the singular values of A B^T, where A and B are the centred and scaled data. If
    there are more rows than features, QR factors replace the data.
    """
    mean = a.mean(0) - b.mean(0)
    A, B = (_root((x - x.mean(0)) / np.sqrt(len(x) - 1)) for x in (a, b))
    cross = np.linalg.svd(A @ B.T, compute_uv=False).sum()
    return max(float(mean @ mean + (A**2).sum() + (B**2).sum() - 2 * cross), 0.0)


def _root(x: np.ndarray) -> np.ndarray:
    """Return a matrix R with R^T R = X^T X and no more rows than columns, or X itself if it has no more."""
    return np.asarray(np.linalg.qr(x, mode="r")) if len(x) > x.shape[1] else x
