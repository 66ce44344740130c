"""Kernel distance between two sets of features: the squared maximum mean discrepancy (Gretton et al. 2012).

It is the KID (Binkowski et al. 2018, arXiv 1801.01401) only with the kernel ``k(a, b) = (a . b / F + 1)^3`` and
Inception features; for other features, report the name of the feature space. The estimate is unbiased: the sets may
differ in size, the estimate can be negative, and for two sets from one distribution its mean is 0.
"""

import numbers

import numpy as np
from numpy.typing import ArrayLike

from ensdiff.metrics.arrays import table
from ensdiff.metrics.bootstrap import Estimate


def kernel_distance(a_NF: ArrayLike, b_MF: ArrayLike, *, degree: int = 3) -> Estimate:
    """Return the unbiased squared kernel distance, in float64, with 1.96 jackknife standard errors on each side.

    A bootstrap is unsuitable: it repeats rows, and the unbiased estimate would count these as similar pairs.

    Args:
        a_NF: (N, F) features of one set, N >= 3.
        b_MF: (M, F) features of the other set, M >= 3.
        degree: degree of the polynomial kernel.

    Raises:
        ValueError: a set has fewer than three rows, the sets differ in F, a value is not finite, or the degree is not a
            positive integer.

    >>> rng = np.random.default_rng(0)
    >>> near = kernel_distance(rng.normal(size=(200, 4)), rng.normal(size=(200, 4)))
    >>> near.low < 0 < near.high
    True
    """
    a, b = table(a_NF, "the first set", "NF"), table(b_MF, "the second set", "NF")
    (N, F), M = a.shape, len(b)
    if not isinstance(degree, numbers.Integral) or isinstance(degree, bool) or degree < 1:
        raise ValueError(f"degree={degree}: expected an integer of at least 1")
    if min(N, M) < 3 or b.shape[1] != F:
        raise ValueError(
            f"sets of shapes {a.shape} and {b.shape}: expected at least three rows each and the same number of features"
        )
    aa, bb, ab = ((x @ y.T / F + 1) ** degree for x, y in ((a, a), (b, b), (a, b)))
    for within in (aa, bb):
        np.fill_diagonal(within, 0.0)
    sum_aa, sum_bb, sum_ab = aa.sum(), bb.sum(), ab.sum()

    def value(n: int, m: int, aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> np.ndarray:
        return aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m)

    whole = float(value(N, M, sum_aa, sum_bb, sum_ab))
    without_a = value(N - 1, M, sum_aa - 2 * aa.sum(1), sum_bb, sum_ab - ab.sum(1))
    without_b = value(N, M - 1, sum_aa, sum_bb - 2 * bb.sum(1), sum_ab - ab.sum(0))
    variance = sum((len(x) - 1) / len(x) * np.square(x - x.mean()).sum() for x in (without_a, without_b))
    error = 1.96 * float(np.sqrt(variance))
    return Estimate(whole, whole - error, whole + error)
