"""Linear datamodeling score (LDS), its ceiling, and correlation with leave-one-out effects.

(l1) ``LDS_b = spearman_m(f(x_b; S_m), sum_{i in S_m} tau_bi)`` over random subsets S_m of the training units, f the
output of a model trained on S_m (Park et al. 2023, arXiv 2303.14186, def. 2.3; Ilyas et al. 2022, arXiv 2202.00622).
(l2) The ceiling due to noise between seeds: let r be the rank correlation between the mean outputs of R/2 seeds and of
the other R/2. Then ``rho = 2 r / (1 + r)`` is the reliability of the mean of R seeds (Spearman-Brown), and
``sqrt(rho)`` is the LDS of a method that knows the expected outputs.

(l3) Over n columns that follow a bivariate normal distribution with correlation rho, the expected rank correlation is
``6 / (pi (n + 1)) (asin rho + (n - 2) asin(rho / 2))``, and ``6 / pi asin(rho / 2)`` over many (P. A. P. Moran, "Rank
correlation and product-moment correlation", Biometrika 35, 1948). So an LDS over few models is too near to 0.

A positive score means that a unit's *presence* raises the output. For a method that scores the rise of the loss on
removal, pass minus the loss as outputs with ``sign=1``, or the loss with ``sign=-1``.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ensdiff.metrics.arrays import correlate, merged, precision, rankable, resampled_spearman, spearman, table, tied
from ensdiff.metrics.bootstrap import RESAMPLES, Estimate, bootstrap_counts, mean
from ensdiff.settings import check_value

Correlation = Literal["spearman", "pearson"]


def lds(
    scores_BN: ArrayLike,
    subsets_NM: ArrayLike,
    outputs_BM: ArrayLike,
    *,
    sign: Literal[1, -1] = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the linear datamodeling score (l1), averaged over queries.

    The interval resamples both queries and subsets, so few subsets make it wide even with many queries.

    Args:
        scores_BN: (B, N) score of each unit for each query.
        subsets_NM: (N, M) 1 where unit i is in subset m; usually each column has ``alpha`` N ones.
        outputs_BM: (B, M) output on each query of the model trained on each subset; or (B, M, R) outputs of R seeds,
            which are averaged.
        sign: 1 if a positive score means that presence raises the output, -1 if it lowers it.
        resamples: number of resamples for the interval; 0 gives no interval.
        seed: seed of the resampling.

    Returns:
        `Estimate` in [-1, 1]; a query with constant scores or outputs counts as 0. Outputs that differ only by rounding
        are ties. So are sums of scores, whose rounding is taken as ``4 eps sqrt(N)`` times the sum of the query's
        absolute scores.

    Raises:
        ValueError: the shapes do not match, there are fewer than three subsets, or ``subsets_NM`` has entries other
            than 0 and 1.

    >>> rng = np.random.default_rng(0)
    >>> scores, subsets = rng.normal(size=(4, 20)), rng.integers(0, 2, (20, 30))
    >>> lds(scores, subsets, scores @ subsets).value.__round__(9)
    1.0
    """
    scores = table(scores_BN, "scores_BN", "BN")
    subsets = table(subsets_NM, "subsets_NM", "NM")
    outputs = table(outputs_BM, "outputs", "BMR" if np.ndim(outputs_BM) == 3 else "BM")
    rounding = precision(outputs_BM)
    outputs = tied(outputs.mean(2), max(rounding, precision(1.0))) if outputs.ndim == 3 else tied(outputs, rounding)
    (B, N), M = scores.shape, subsets.shape[1]
    if len(subsets) != N or outputs.shape != (B, M):
        raise ValueError(
            f"scores {scores.shape}, subsets {subsets.shape}, outputs {outputs.shape}: expected (B, N), (N, M), (B, M)"
        )
    if M < 3 or not np.isin(subsets, (0, 1)).all():
        raise ValueError(f"subsets_NM holds {M} subsets: expected at least 3, of zeros and ones")
    check_value("sign", sign, Literal[1, -1])
    return rank_agreement(sign * subset_sums(scores, subsets), outputs, resamples=resamples, seed=seed)


def subset_sums(scores_BN: Float[np.ndarray, "B N"], subsets_NM: np.ndarray) -> Float[np.ndarray, "B M"]:
    """Return the sums of scores over subsets, in float64, with sums that differ only by rounding made equal.

    A matrix product may give equal subsets sums that differ by rounding. The rounding of a sum is taken as
    ``4 eps sqrt(N)`` times the sum of the row's absolute scores.
    """
    rounding_B = precision(1.0) * np.sqrt(scores_BN.shape[1]) * np.abs(scores_BN).sum(1)
    return merged(scores_BN @ subsets_NM, rounding_B)


def rank_agreement(
    predicted_BM: Float[np.ndarray, "B M"],
    outputs_BM: Float[np.ndarray, "B M"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the rank correlation over m of predicted and observed outputs, averaged over queries.

    The interval resamples both queries and columns. Values that should be ties must be equal. A query with constant
    predictions or outputs counts as 0.

    >>> rank_agreement(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 4.0, 9.0]]), resamples=0).value
    1.0
    """
    B, M = predicted_BM.shape

    def statistic(rows_RB: np.ndarray, columns_RM: np.ndarray) -> np.ndarray:
        return (rows_RB * resampled_spearman(predicted_BM, outputs_BM, columns_RM)).sum(1) / B

    return bootstrap_counts(statistic, B, M, resamples=resamples, seed=seed)


def pooled_slope(
    predicted_BM: Float[np.ndarray, "B M"],
    outputs_BM: Float[np.ndarray, "B M"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the slope of the outputs on the predictions, both centred per query; 0 if nothing is predicted.

    The interval resamples both queries and columns.

    >>> pooled_slope(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 3.0, 5.0]]), resamples=0).value
    2.0
    """
    B, M = predicted_BM.shape
    x_BM = predicted_BM - predicted_BM.mean(1, keepdims=True)
    y_BM = outputs_BM - outputs_BM[:, :1]
    y_BM = y_BM - y_BM.mean(1, keepdims=True)

    def covariance(rows_RB: np.ndarray, columns_RM: np.ndarray, other_BM: np.ndarray) -> np.ndarray:
        products = columns_RM @ (x_BM * other_BM).T - (columns_RM @ x_BM.T) * (columns_RM @ other_BM.T) / M
        return (rows_RB * products).sum(1)

    def statistic(rows_RB: np.ndarray, columns_RM: np.ndarray) -> np.ndarray:
        variance_R = covariance(rows_RB, columns_RM, x_BM)
        known_R = variance_R > precision(1.0) * np.square(x_BM).sum()
        return np.divide(covariance(rows_RB, columns_RM, y_BM), variance_R, out=np.zeros(len(rows_RB)), where=known_R)

    return bootstrap_counts(statistic, B, M, resamples=resamples, seed=seed)


def of_many(value: float, columns: int) -> float:
    """Return the rank correlation over many columns (l3), from the mean rank correlation over few.

    An LDS is a mean over queries of rank correlations over M retrained models, or over K members. The correction
    compares LDS over different numbers. For one query with normally distributed scores and outputs it is exact on
    average; for a mean over queries whose correlations differ it is an approximation.

    Args:
        value: mean rank correlation, in [-1, 1].
        columns: number of columns of which each is a rank correlation, at least 3.

    Raises:
        ValueError: the value is not a correlation, or there are fewer than three columns.

    >>> [round(of_many(0.36, columns), 3) for columns in (8, 16, 48, 10**6)]
    [0.403, 0.381, 0.367, 0.36]
    """
    if not abs(value) <= 1 + 1e-9 or columns < 3:  # a perfect correlation may be above 1 by rounding
        raise ValueError(f"value={value}, columns={columns}: expected a correlation in [-1, 1] over at least 3 columns")
    rho = np.linspace(-1.0, 1.0, 20_001)
    of_columns = 6 / (np.pi * (columns + 1)) * (np.arcsin(rho) + (columns - 2) * np.arcsin(rho / 2))
    return float(np.interp(value, of_columns, 6 / np.pi * np.arcsin(rho / 2)))


def lds_ceiling(outputs_BMR: ArrayLike, *, splits: int = 20, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the LDS of a perfect method, limited only by noise between seeds (l2), averaged over queries.

    Args:
        outputs_BMR: (B, M, R) output on each query of the models trained on each subset with R >= 2 seeds.
        splits: number of random splits of the seeds into halves, over which the correlation is averaged.
        resamples: number of resamples (of queries and subsets) for the interval; 0 gives no interval.
        seed: seed of the splits and the resampling.

    Raises:
        ValueError: there are fewer than two seeds or three subsets.

    >>> same = np.random.default_rng(0).normal(size=(3, 10, 1))
    >>> lds_ceiling(np.repeat(same, 2, axis=2)).value.__round__(6)
    1.0
    """
    outputs = table(outputs_BMR, "outputs_BMR", "BMR")
    B, M, R = outputs.shape
    if R < 2 or M < 3:
        raise ValueError(f"outputs of {M} subsets and {R} seeds: expected at least 3 subsets and 2 seeds")
    rng = np.random.default_rng(seed)
    half, orders = R // 2, [rng.permutation(R) for _ in range(1 if R == 2 else splits)]
    rounding = max(precision(outputs_BMR), precision(1.0))
    halves = [[tied(outputs[..., some].mean(2), rounding) for some in (o[:half], o[half : 2 * half])] for o in orders]

    def statistic(rows_RB: np.ndarray, columns_RM: np.ndarray) -> np.ndarray:
        r = np.mean([(rows_RB * resampled_spearman(a, b, columns_RM)).sum(1) / B for a, b in halves], axis=0)
        grown = R / half  # Spearman-Brown from half to R seeds
        return np.sqrt(np.maximum(0.0, grown * r / (1 + (grown - 1) * r)))

    return bootstrap_counts(statistic, B, M, resamples=resamples, seed=seed)


def loo(
    scores_BN: ArrayLike,
    effects_BN: ArrayLike,
    *,
    kind: Correlation = "spearman",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the correlation of scores with leave-one-out (or leave-one-group-out) effects, averaged over queries.

    Args:
        scores_BN: (B, N) score of each unit, or group, for each query.
        effects_BN: (B, N) effect of retraining without each unit, or group; larger for a larger dependence.
        kind: ``"spearman"`` or ``"pearson"``.
        resamples: number of resamples (of queries) for the interval; 0 gives no interval.
        seed: seed of the resampling.

    Returns:
        `Estimate` in [-1, 1]; a query with constant scores or effects counts as 0. Values that differ only by rounding
        count as equal.

    Raises:
        ValueError: the shapes differ, or the kind is unknown.

    >>> effects = np.random.default_rng(0).normal(size=(4, 9))
    >>> loo(np.exp(effects), effects).value.__round__(9)
    1.0
    """
    check_value("kind", kind, Correlation)
    effects = rankable(effects_BN, "effects_BN", "BN")
    scores = rankable(scores_BN, "scores_BN", "BN", like=effects)
    rho_B = (spearman if kind == "spearman" else correlate)(scores, effects)
    return mean(rho_B, resamples=resamples, seed=seed)
