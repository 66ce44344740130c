"""Retrieval metrics: the rank of the unit or group that should be found, in expectation over random orders of ties.

If g candidates score strictly above a candidate and e have the same score (itself included), its rank is uniform over
``g + 1 .. g + e``. Recall, reciprocal rank and discounted gain are expected values over these ranks, so constant scores
get the result of chance. If several groups share the largest effect, each of them is the truly most influential one
with equal probability. Scores or effects that differ only by rounding count as equal (`ensdiff.metrics.arrays`). No
result depends on the order of the units or groups.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from ensdiff.metrics.arrays import rankable, spearman
from ensdiff.metrics.bootstrap import RESAMPLES, Estimate, mean


class GroupRetrieval(NamedTuple):
    """The quality of a ranking of groups, judged by the effects of leaving each group out.

    Args:
        top_1: share of queries whose truly most influential group is ranked first.
        ndcg: normalised discounted cumulative gain of the first three groups. The gain of a group is its effect minus
            the smallest effect of the query. It is 0 for a query whose effects are all equal.
        mrr: mean reciprocal rank of the truly most influential group.
        correlation: rank correlation over groups; also 0 for a query whose effects are all equal.

    >>> group_retrieval([[3.0, 1.0, 2.0]], [[0.3, 0.1, 0.2]]).top_1.value
    1.0
    """

    top_1: Estimate
    ndcg: Estimate
    mrr: Estimate
    correlation: Estimate


class PlantedRetrieval(NamedTuple):
    """How well planted units are found by queries that equal their content.

    Args:
        recall_1: share of queries whose unit is ranked first.
        recall_10: share of queries whose unit is among the first ten.
        mrr: mean reciprocal rank of the unit.
        twin_mrr: mean reciprocal rank of the same units for a twin model, in whose training data they held something
            else; None without a twin.
        gain: ``mrr - twin_mrr``, paired by query; None without a twin.

    >>> planted([[0.0, 2.0, 1.0]], [2]).mrr.value
    0.5
    """

    recall_1: Estimate
    recall_10: Estimate
    mrr: Estimate
    twin_mrr: Estimate | None
    gain: Estimate | None


def group_retrieval(
    scores_BG: ArrayLike, effects_BG: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> GroupRetrieval:
    """Compare a ranking of groups with the effects of leaving each group out, and average over queries.

    Args:
        scores_BG: (B, G) score of each group for each query.
        effects_BG: (B, G) effect of leaving out each group; larger for a larger dependence.
        resamples: number of resamples (of queries) for the intervals; 0 gives no intervals.
        seed: seed of the resampling.

    Raises:
        ValueError: the shapes differ, or there are fewer than two groups.

    >>> effects = np.array([[3.0, 1.0, 0.0, 2.0], [0.0, 5.0, 1.0, 2.0]])
    >>> group_retrieval(effects, effects).ndcg.value
    1.0
    """
    effects = rankable(effects_BG, "effects_BG", "BG")
    scores = rankable(scores_BG, "scores_BG", "BG", like=effects)
    G = effects.shape[1]
    if G < 2:
        raise ValueError("one group: expected at least two groups to rank")
    ranks, best_BG = _Ranks.of(scores), effects == effects.max(1, keepdims=True)
    best_BG = best_BG / best_BG.sum(1, keepdims=True)  # the probability that each is the most influential one
    gain_BG = effects - effects.min(1, keepdims=True)
    discount_G = np.where(np.arange(G) < 3, 1 / np.log2(np.arange(G) + 2), 0)
    ideal_B = -np.sort(-gain_BG, axis=1) @ discount_G
    found_B = (gain_BG * ranks.expected(discount_G)).sum(1)
    ndcg_B = np.divide(found_B, ideal_B, out=np.zeros_like(ideal_B), where=ideal_B > 0)
    top_1_B, mrr_B = ((best_BG * ranks.expected(value_G)).sum(1) for value_G in (_up_to(1, G), _reciprocal(G)))
    parts = top_1_B, ndcg_B, mrr_B, spearman(scores, effects)
    return GroupRetrieval(*(mean(part, resamples, seed) for part in parts))


def planted(
    scores_BN: ArrayLike,
    unit_B: ArrayLike,
    twin_scores_BN: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PlantedRetrieval:
    """Measure how highly the unit that holds each query is ranked among all units.

    Args:
        scores_BN: (B, N) score of each unit for each query.
        unit_B: (B,) the unit that holds each query.
        twin_scores_BN: (B, N) scores of the same queries for a twin model, in whose training data these units held
            something else. If a method finds these units there, it does so without a cause.
        resamples: number of resamples (of queries) for the intervals; 0 gives no intervals.
        seed: seed of the resampling.

    Raises:
        ValueError: the shapes do not match, or a unit does not exist.

    >>> planted(np.eye(12)[:3], [0, 1, 2]).recall_1.value
    1.0
    """
    scores = rankable(scores_BN, "scores_BN", "BN")
    unit = np.asarray(unit_B)
    if unit.shape != (len(scores),) or unit.dtype.kind not in "iu":
        raise ValueError(f"unit_B has shape {unit.shape}, dtype {unit.dtype}: expected ({len(scores)},) integers")
    if not ((unit >= 0) & (unit < scores.shape[1])).all():
        raise ValueError(f"unit_B holds units {unit.min()} .. {unit.max()}: expected 0 .. {scores.shape[1] - 1}")
    N = scores.shape[1]

    def of_units(scores_BN: np.ndarray, *values_N: np.ndarray) -> list[np.ndarray]:
        ranks, rows = _Ranks.of(scores_BN), np.arange(len(unit))
        return [ranks.expected(value_N)[rows, unit] for value_N in values_N]

    first_B, ten_B, reciprocal_B = of_units(scores, _up_to(1, N), _up_to(10, N), _reciprocal(N))
    first, ten = mean(first_B, resamples, seed), mean(ten_B, resamples, seed)
    mrr = mean(reciprocal_B, resamples, seed)
    if twin_scores_BN is None:
        return PlantedRetrieval(first, ten, mrr, None, None)
    [twin_B] = of_units(rankable(twin_scores_BN, "twin_scores_BN", "BN", like=scores), _reciprocal(N))
    gain = mean(reciprocal_B - twin_B, resamples, seed)
    return PlantedRetrieval(first, ten, mrr, mean(twin_B, resamples, seed), gain)


class _Ranks(NamedTuple):
    """The number of candidates with a strictly higher score than each, and with an equal score (itself included)."""

    above_BN: Int[np.ndarray, "B N"]
    equal_BN: Int[np.ndarray, "B N"]

    @classmethod
    def of(cls, scores_BN: np.ndarray) -> "_Ranks":
        from scipy import stats  # takes a second to import

        first, last = (stats.rankdata(-scores_BN, method=kind, axis=1).astype(int) for kind in ("min", "max"))
        return cls(first - 1, last - first + 1)

    def expected(self, value_N: np.ndarray) -> Float[np.ndarray, "B N"]:
        """Return the mean of ``value_N``, the values of ranks 1, 2, ..., over the possible ranks of each candidate."""
        total = np.concatenate([[0.0], np.cumsum(value_N)])
        return (total[self.above_BN + self.equal_BN] - total[self.above_BN]) / self.equal_BN


def _up_to(k: int, n: int) -> np.ndarray:
    return (np.arange(n) < k).astype(float)


def _reciprocal(n: int) -> np.ndarray:
    return 1 / np.arange(1.0, n + 1)
