"""Ablation against retraining: equal noise through the ablated ensemble and one retrained without a unit."""

from typing import NamedTuple

import numpy as np

import ensdiff
from ensdiff import metrics
from ensdiff.attribution.candidates import uniform
from ensdiff.metrics.arrays import distances
from ensdiff.metrics.bootstrap import mean

from .. import comparison
from ..tables import interval, table
from . import size
from .figures import scatter_figure
from .findings import Findings
from .workshop import Workshop, quiet_matrix

NAME = "retraining"


class Models(NamedTuple):
    """An ensemble, and retrained ensembles with the same code except that the word of one removed unit is zero.

    Args:
        whole: the ensemble.
        units: U units that are removed, one at a time.
        without: U ensembles, each trained without one of the units, from the same seeds.
        reseeded: the whole ensemble trained from other seeds, as a reference for the size of the changes.
    """

    whole: ensdiff.Ensemble
    units: np.ndarray
    without: list[ensdiff.Ensemble]
    reseeded: ensdiff.Ensemble


def models(shop: Workshop) -> Models:
    """Train all ensembles."""
    s = shop.settings(NAME)
    whole = size.model(shop, s.units, s.members)
    data = shop.data.subset(np.arange(s.units))
    removed = np.sort(np.random.default_rng(2).permutation(s.units)[: s.removed])
    without = []
    for unit in removed:
        code_NK = whole.code.matrix()
        code_NK[unit] = 0
        without.append(shop.train(f"{NAME}/without_{unit}", data, quiet_matrix(code_NK)))
    return Models(whole, removed, without, shop.train(f"{NAME}/reseeded", data, whole.code, seed=1))


def study(shop: Workshop) -> Findings:
    """Compare each sample, its ablation, and the sample of an ensemble retrained without the unit, from equal noise."""
    s = shop.settings(NAME)
    trained = models(shop)
    whole, U = trained.whole, len(trained.units)
    samples = shop.samples(NAME, whole, s.samples)
    x = np.asarray(samples.images, np.float64)
    ablated_UB = shop.counterfactuals(f"{NAME}/ablated", whole, samples, whole.code.ablate(trained.units))
    null_words = whole.code.unowned(s.null, seed=0)
    null_LB = shop.counterfactuals(f"{NAME}/null", whole, samples, uniform(null_words))

    def again(params: ensdiff.Ensemble) -> np.ndarray:
        """Return the samples of another ensemble from the same noise."""
        return np.asarray(shop.samples(NAME, params, s.samples).images)

    retrained_UB = np.stack([again(params) for params in trained.without]).astype(np.float64)
    reseeded_B = again(trained.reseeded)
    B = len(x)

    def over_samples(values_UB: np.ndarray) -> metrics.Estimate:
        return mean(values_UB.mean(0))

    by_ablation, by_retraining = distances(ablated_UB, x), distances(retrained_UB, x)
    move_a, move_r = ((a - x).reshape(U, B, -1) for a in (ablated_UB, retrained_UB))
    cosine = (move_a * move_r).sum(-1) / np.maximum(
        np.linalg.norm(move_a, axis=-1) * np.linalg.norm(move_r, axis=-1), 1e-12
    )

    def rank_correlation(rows: np.ndarray) -> float:
        return float(
            comparison.agreement(by_ablation[:, rows].reshape(1, -1), by_retraining[:, rows].reshape(1, -1))[0]
        )

    rank = metrics.bootstrap(rank_correlation, B)
    rows = {
        "ablated, from the sample": over_samples(by_ablation),
        "retrained without the unit, from the sample": over_samples(by_retraining),
        "ablated, from retrained": over_samples(distances(ablated_UB, retrained_UB)),
        "ablated by words that no unit owns, from the sample": over_samples(distances(null_LB, x)),
        "the whole ensemble from other seeds, from the sample": over_samples(distances(reseeded_B, x)[None]),
    }
    agreement = {
        "rank correlation of the two distances, over samples and units": rank,
        "cosine of the two displacements": over_samples(cosine),
    }
    note = (
        f"N = {s.units}, K = {s.members}, {U} units removed one at a time, {B} samples. Retrained: the members that "
        "saw the unit are trained again without it, from the same seeds; the other members are bit-for-bit identical."
    )
    return Findings(
        "Ablation against retraining without the unit",
        [
            table("L2 distances, mean over samples and units", _table(rows), note),
            table("Agreement per sample and unit", _table(agreement)),
        ],
        {
            "units": trained.units,
            "distances": rows,
            "agreement": agreement,
            "ablation_UB": by_ablation,
            "retraining_UB": by_retraining,
        },
        {
            "retraining": scatter_figure(
                by_ablation.ravel(), by_retraining.ravel(), ("moved by ablation", "moved by retraining")
            )
        },
    )


def _table(rows: dict[str, metrics.Estimate]) -> list[dict[str, str]]:
    return [{"what": what, "value": interval(estimate)} for what, estimate in rows.items()]
