"""The effect on samples of removing each method's first k units together, compared with removing k random units."""

import numpy as np

import ensdiff
from ensdiff import metrics
from ensdiff.ensemble.memory import Resources
from ensdiff.metrics.arrays import rankable
from ensdiff.report import Table
from ensdiff.sampling.sample import ablated

from ..tables import interval, table
from .workshop import Workshop

RANDOM = 8
"""Number of random sets of k units."""


def first_units(code: ensdiff.Code, order: np.ndarray, count: int) -> np.ndarray:
    """Return the first ``count`` units in this order that can be removed together.

    A unit whose removal would leave no member is skipped.

    Raises:
        ValueError: fewer than ``count`` units can be removed together.
    """
    words_NK = code.rows(order)
    lost_K = np.zeros(code.members, bool)
    chosen: list[int] = []
    for unit, word_K in zip(order, words_NK.astype(bool), strict=True):
        if not (lost_K | word_K).all():
            lost_K, chosen = lost_K | word_K, [*chosen, int(unit)]
        if len(chosen) == count:
            return np.array(chosen)
    raise ValueError(f"{count} units to remove, but only {len(chosen)} can be removed together: lower the count")


def removal_effects(
    shop: Workshop, name: str, params: ensdiff.Ensemble, samples: ensdiff.Samples, scores: dict[str, np.ndarray], k: int
) -> dict[str, metrics.RemovalEffect]:
    """Compare, for each method, every sample without the k units ranked first for it and without k random units."""
    B, code = len(samples), params.code
    rng, ties = np.random.default_rng(4), np.random.default_rng(5)

    def made(sets_B: list[np.ndarray]) -> np.ndarray:
        weights = code.ablate(sets_B)
        return shop.kept(
            name, lambda: ablated(params, samples, weights, np.arange(B), Resources()), params, samples, weights
        )

    random_RBHWC = np.stack([
        made([first_units(code, rng.permutation(code.units), k) for _ in range(B)]) for _ in range(RANDOM)
    ])  # fmt: skip
    images, features = np.asarray(samples.images), shop.classifier.features

    def ranked(score_N: np.ndarray) -> np.ndarray:
        """Return the units in order of decreasing score, with equal scores in random order."""
        order = ties.permutation(len(score_N))
        return order[np.argsort(-score_N[order], kind="stable")]

    found = {}
    for method, score_BN in scores.items():
        top_BHWC = made([first_units(code, ranked(row), k) for row in rankable(score_BN, method, "BN")])
        rows = [features(x) for x in (images, top_BHWC)]
        rows.append(np.stack([features(x) for x in random_RBHWC]))
        found[method] = metrics.removal(images, top_BHWC, random_RBHWC, rows)
    return found


def removal_table(found: dict[str, metrics.RemovalEffect], k: int) -> Table:
    """Return the effects as a table, one row per method."""
    rows = [
        {
            "method": method,
            "L2": interval(one.l2),
            "more than random": interval(one.l2_gain),
            "feature cosine": interval(one.cosine, 3),
            "less than random": interval(one.cosine_gain, 3),
        }
        for method, one in found.items()
    ]
    note = (
        f"Generated images only, compared with the exact counterfactual without the {k} units that a method ranks "
        f"first, removed together. random: mean over {RANDOM} random sets of {k} units. The cosine is in the features "
        "of the classifier."
    )
    return table(f"Removing the first {k} units", rows, note)
