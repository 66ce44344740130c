"""Retrieval: is what should be found ranked first? Ties count as if they were broken at random.

A thing with g things strictly above it and e of equal score (itself among them) has a rank that is uniform
over ``g + 1 .. g + e``. Recall and reciprocal rank are expected values over it: a constant score gets what chance gets.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from ensdiff.metrics.arrays import spearman, table
from ensdiff.metrics.bootstrap import RESAMPLES, Estimate, mean


class GroupRetrieval(NamedTuple):
    """How well groups are ranked against the effects of leaving each out.

    Args:
        top_1: share of queries whose truly most influential group is ranked first.
        ndcg: normalised discounted cumulative gain of the first three; the gain of
            a group is its effect less the query's smallest.
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
    from sklearn.metrics import ndcg_score

    effects = table(effects_BG, "effects_BG", "BG")
    scores = table(scores_BG, "scores_BG", "BG", like=effects)
    if effects.shape[1] < 2:
        raise ValueError("one group: expected at least two, to rank")
    rank = _Ranks.of(scores, effects.argmax(1))
    gains = effects - effects.min(1, keepdims=True)
    ndcg_B = np.array([ndcg_score(gains[[b]], scores[[b]], k=3) for b in range(len(scores))])
    parts = rank.recall(1), ndcg_B, rank.reciprocal(), spearman(scores, effects)
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
    scores = table(scores_BN, "scores_BN", "BN")
    unit = np.asarray(unit_B)
    if unit.shape != (len(scores),) or unit.dtype.kind not in "iu":
        raise ValueError(f"unit_B has shape {unit.shape}, dtype {unit.dtype}: expected ({len(scores)},) integers")
    if not ((unit >= 0) & (unit < scores.shape[1])).all():
        raise ValueError(f"unit_B holds a unit outside of 0 .. {scores.shape[1] - 1}")
    ranks = _Ranks.of(scores, unit)
    reciprocal = ranks.reciprocal()
    first, ten, mrr = (mean(part, resamples, seed) for part in (ranks.recall(1), ranks.recall(10), reciprocal))
    if twin_scores_BN is None:
        return PlantedRetrieval(first, ten, mrr, None, None)
    twin = _Ranks.of(table(twin_scores_BN, "twin_scores_BN", "BN", like=scores), unit).reciprocal()
    gain = mean(reciprocal - twin, resamples, seed)
    return PlantedRetrieval(first, ten, mrr, mean(twin, resamples, seed), gain)


class _Ranks(NamedTuple):
    """How many things are strictly above the one that is looked for, and how many are equal to it, itself included."""

    above_B: Int[np.ndarray, " B"]
    equal_B: Int[np.ndarray, " B"]

    @classmethod
    def of(cls, scores_BN: np.ndarray, which_B: np.ndarray) -> "_Ranks":
        own = np.take_along_axis(scores_BN, which_B[:, None], axis=1)
        return cls((scores_BN > own).sum(1), (scores_BN == own).sum(1))

    def recall(self, k: int) -> Float[np.ndarray, " B"]:
        return np.clip((k - self.above_B) / self.equal_B, 0, 1)

    def reciprocal(self) -> Float[np.ndarray, " B"]:
        pairs = zip(self.above_B, self.equal_B, strict=True)
        return np.array([(1 / np.arange(g + 1, g + e + 1)).mean() for g, e in pairs])
