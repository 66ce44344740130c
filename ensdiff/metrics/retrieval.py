"""Retrieval: is what should be found ranked first? Ties count as if they were broken at random.

A thing with g things strictly above it and e of equal score (itself among them) has a rank that is uniform
over ``g + 1 .. g + e``. Recall, reciprocal rank and discounted gain are expected values over it: a constant score gets
what chance gets. Where several groups share the largest effect, each of them is the truly most influential one with
equal probability. Scores, and effects, that differ by rounding only are equal (`ensdiff.metrics.arrays`), so no result
depends on the order of the units or groups.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from ensdiff.metrics.arrays import rankable, spearman
from ensdiff.metrics.bootstrap import RESAMPLES, Estimate, mean


class GroupRetrieval(NamedTuple):
    """How well groups are ranked against the effects of leaving each out.

    Args:
        top_1: share of queries whose truly most influential group is ranked first.
        ndcg: normalised discounted cumulative gain of the first three; the gain of a group is its effect less the
            query's smallest. 0 for a query whose effects are all equal, as for ``correlation``.
        mrr: mean reciprocal rank of the truly most influential group.
        correlation: rank correlation over groups.

    >>> group_retrieval([[3.0, 1.0, 2.0]], [[0.3, 0.1, 0.2]]).top_1.value
    1.0
    """

    top_1: Estimate
    ndcg: Estimate
    mrr: Estimate
    correlation: Estimate


class PlantedRetrieval(NamedTuple):
    """How well planted units are found by queries that are their content.

    Args:
        recall_1: share of queries whose unit is ranked first.
        recall_10: share of queries whose unit is among the first ten.
        mrr: mean reciprocal rank of the unit.
        twin_mrr: the same units' mean reciprocal rank where they hold something else; None without a twin.
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
    """Compare a ranking of groups with the effects of leaving each out; means over queries.

    Args:
        scores_BG: (B, G) score of each group for each query.
        effects_BG: (B, G) what leaving it out changes, larger for a larger dependence.
        resamples: of the intervals, over queries; 0 is none.
        seed: of the resampling.

    Raises:
        ValueError: shapes that differ, or fewer than two groups.

    >>> effects = np.array([[3.0, 1.0, 0.0, 2.0], [0.0, 5.0, 1.0, 2.0]])
    >>> group_retrieval(effects, effects).ndcg.value
    1.0
    """
    effects = rankable(effects_BG, "effects_BG", "BG")
    scores = rankable(scores_BG, "scores_BG", "BG", like=effects)
    G = effects.shape[1]
    if G < 2:
        raise ValueError("one group: expected at least two, to rank")
    ranks, best_BG = _Ranks.of(scores), effects == effects.max(1, keepdims=True)
    best_BG = best_BG / best_BG.sum(1, keepdims=True)  # the probability of each to be the most influential one
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
    """Is the unit that holds a query found among all?

    Args:
        scores_BN: (B, N) score of each unit for each query.
        unit_B: (B,) the unit that holds it.
        twin_scores_BN: the same queries' scores by a model in whose training data these units held something else:
            what is found there was found without a reason.
        resamples: of the intervals, over queries; 0 is none.
        seed: of the resampling.

    Raises:
        ValueError: shapes that do not fit, or units that do not exist.

    >>> planted(np.eye(12)[:3], [0, 1, 2]).recall_1.value
    1.0
    """
    scores = rankable(scores_BN, "scores_BN", "BN")
    unit = np.asarray(unit_B)
    if unit.shape != (len(scores),) or unit.dtype.kind not in "iu":
        raise ValueError(f"unit_B has shape {unit.shape}, dtype {unit.dtype}: expected ({len(scores)},) integers")
    if not ((unit >= 0) & (unit < scores.shape[1])).all():
        raise ValueError(f"unit_B holds a unit outside of 0 .. {scores.shape[1] - 1}")
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
    """How many things are strictly above each, and how many are equal to it, itself included."""

    above_BN: Int[np.ndarray, "B N"]
    equal_BN: Int[np.ndarray, "B N"]

    @classmethod
    def of(cls, scores_BN: np.ndarray) -> "_Ranks":
        from scipy import stats  # takes a second to import

        first, last = (stats.rankdata(-scores_BN, method=kind, axis=1).astype(int) for kind in ("min", "max"))
        return cls(first - 1, last - first + 1)

    def expected(self, value_N: np.ndarray) -> Float[np.ndarray, "B N"]:
        """The mean of a value of each rank, the best one first, over the ranks that each thing may have."""
        total = np.concatenate([[0.0], np.cumsum(value_N)])
        return (total[self.above_BN + self.equal_BN] - total[self.above_BN]) / self.equal_BN


def _up_to(k: int, n: int) -> np.ndarray:
    return (np.arange(n) < k).astype(float)


def _reciprocal(n: int) -> np.ndarray:
    return 1 / np.arange(1.0, n + 1)
