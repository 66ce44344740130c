"""Counterfactual radius, false attribution and the differential approximation against the number of units N."""

import math
from typing import Any

import numpy as np

import ensdiff
from ensdiff import metrics
from ensdiff.attribution import quadratic_influence
from ensdiff.attribution.candidates import uniform
from ensdiff.baselines import baseline_scores
from ensdiff.data.drawing import svg
from ensdiff.metrics.arrays import distances
from ensdiff.metrics.bootstrap import mean
from ensdiff.report import radius_figure

from ..comparison import agreement, named_first
from ..tables import interval, table
from .findings import Findings
from .workshop import Workshop

NAME = "size"


def models(shop: Workshop) -> dict[int, ensdiff.Ensemble]:
    """Train one ensemble for each number of units N in ``config.size.sizes``; the units are the first N items."""
    s = shop.settings(NAME)
    return {int(N): model(shop, int(N), s.members) for N in s.sizes}


def model(shop: Workshop, N: int, members: int) -> ensdiff.Ensemble:
    """Train the ensemble whose units are the first N items, or open it if it is already trained.

    Raises:
        ValueError: there are fewer than N items.
    """
    if shop.data.items < N:
        raise ValueError(f"config.size.sizes: {N} items, but the data have only {shop.data.items}")
    code = ensdiff.Code.balanced(members=members, units=N, seed=0)
    return shop.train(f"{NAME}/N{N}_K{members}", shop.data.subset(np.arange(N)), code)


def landscape(shop: Workshop, N: int, params: ensdiff.Ensemble) -> tuple[ensdiff.Samples, np.ndarray]:
    """Return B samples, and their counterfactuals without each of the N units, (N, B, H, W, C)."""
    samples = shop.samples(NAME, params, shop.settings(NAME).samples)
    return samples, shop.counterfactuals(f"{NAME}/landscape N{N}", params, samples, params.code.ablate(np.arange(N)))


def study(shop: Workshop) -> Findings:
    """Compute radius, false attribution and how well the differential method agrees with the exact one, for each N."""
    s = shop.settings(NAME)
    trained = models(shop)
    scale = metrics.published_scale(shop.data.shape)
    rows, found, radii = [], {}, []
    for N, params in trained.items():
        one = _at(shop, N, params)
        radii.append(one["radius"].radius_B)
        found[N] = one
        rows.append(
            {
                "N": N,
                "radius": interval(one["radius"]),
                "of 256x256x3": f"{scale * one['radius'].value:.1f}",
                "one unit": interval(one["mean_influence"]),
                "null": interval(one["null"]),
                "false attribution, distance": interval(one["false_distance"]),
                "false attribution, class": interval(one["false_class"]),
                "unattributable": interval(one["unattributable"]),
            }
        )
    sizes = list(trained)
    law = metrics.power_law(sizes, np.array(radii))
    nulls = np.array([found[N]["null_B"] for N in sizes])
    null_law = metrics.power_law(sizes, nulls)
    agreement = [
        {
            "N": N,
            "Spearman with exact": interval(found[N]["differential_spearman"]),
            "relative error": interval(found[N]["differential_error"]),
            "top-1 agrees": interval(found[N]["differential_top1"]),
        }
        for N in sizes
    ]
    note = (
        f"K = {s.members}, {s.samples} samples. radius: largest L2 distance, in [0, 1] pixels, by which the removal of "
        "one unit moves a sample; mean over samples. one unit: mean distance over units. null: mean distance over code "
        "words that no unit owns. false attribution: probability that the sample stays the same when the unit with the "
        "nearest image in pixels is removed, divided by that probability when another unit is removed; a ratio of 1 "
        "means that the match has no meaning. Same means a distance below the median over units, or the same class "
        "according to a classifier. unattributable: share of samples without a unit with q <= 0.1 by `differential` "
        "against all words that no unit owns."
    )
    slopes = table(
        "Slopes of log distance against log N",
        [
            {"distance": "radius", "slope": interval(law.slope, 3)},
            {"distance": "null", "slope": interval(null_law.slope, 3)},
        ],
        "Intervals resample samples; they do not include the variation between trainings.",
    )
    figure = radius_figure(sizes, np.array(radii), law.slope.value, (law.slope.low, law.slope.high))
    return Findings(
        "Counterfactual radius, false attribution and differential ablation against the number of units",
        [
            table("Against N", rows, note),
            slopes,
            table("Differential against exact ablation, over all units", agreement),
        ],
        {"sizes": sizes, "published_scale": scale, "radius_law": law, "null_law": null_law, "at": found},
        {"radius": svg(figure)},
    )


def _at(shop: Workshop, N: int, params: ensdiff.Ensemble) -> dict[str, Any]:
    """Compute all results for the ensemble of N units."""
    samples, without_NB = landscape(shop, N, params)
    images = np.asarray(samples.images)
    influence_BN = distances(without_NB, images).T
    null_words = params.code.unowned(min(shop.settings(NAME).null, _unowned(params.code)), seed=0)
    null_LB = shop.counterfactuals(f"{NAME}/null N{N}", params, samples, uniform(null_words))
    null_B = distances(null_LB, images).mean(0)

    part = shop.data.subset(np.arange(N))
    match_B = baseline_scores(images, part, methods=["pixel"])["pixel"].argmax(1)
    near_BN = influence_BN < np.median(influence_BN, axis=1, keepdims=True)
    class_B = shop.classifier.predict(images)
    class_NB = shop.classifier.predict(without_NB.reshape(-1, *images.shape[1:])).reshape(N, -1)
    same_BN = (class_NB == class_B).T

    gram_BKK = shop.kept(
        f"{NAME}/gram N{N}", lambda: ensdiff.gram(params, samples, progress=shop.progress), params, samples
    )
    linear_BN = quadratic_influence(gram_BKK, params.code.ablate(np.arange(N)), np.asarray(samples.weights_K))
    rho_B = agreement(influence_BN, linear_BN)
    error_B = np.abs(linear_BN - influence_BN).mean(1) / influence_BN.mean(1)
    top1 = named_first(influence_BN, linear_BN.argmax(1)[:, None]).top1

    def q_values() -> np.ndarray:
        att = ensdiff.attribute(params, samples, "differential", top=1, null="all", progress=shop.progress)
        assert att.q_value is not None
        return att.q_value

    q_B1 = shop.kept(f"{NAME}/q N{N}", q_values, params, samples)
    return {
        "radius": metrics.radius(influence_BN),
        "mean_influence": mean(influence_BN.mean(1)),
        "null": mean(null_B),
        "null_B": null_B,
        "false_distance": _false(near_BN, match_B),
        "false_class": _false(same_BN, match_B),
        "unattributable": metrics.unattributable(q_B1),
        "differential_spearman": mean(rho_B),
        "differential_error": mean(error_B),
        "differential_top1": metrics.proportion(round(top1 * len(images)), len(images)),
    }


def _unowned(code: ensdiff.Code) -> int:
    """Return the number of words of the code's weight that no unit owns."""
    assert code.weight is not None
    return math.comb(code.members, code.weight) - code.units


def _false(unchanged_BN: np.ndarray, match_B: np.ndarray) -> metrics.Estimate:
    """Return `metrics.false_attribution` of the matched unit against all other units."""
    rows = np.arange(len(match_B))
    others = np.ones(unchanged_BN.shape, bool)
    others[rows, match_B] = False
    return metrics.false_attribution(unchanged_BN[rows, match_B], unchanged_BN[others].reshape(len(rows), -1))
