"""Linear datamodeling score (LDS) of every method and baseline against models retrained on random subsets."""

import numpy as np

import ensdiff
from ensdiff import metrics
from ensdiff.attribution import quadratic_influence
from ensdiff.metrics.arrays import distances

from ..tables import interval, table
from . import size
from .figures import interval_figure
from .findings import Findings
from .removal import removal_effects, removal_table
from .scores import all_baselines, loss_scores, member_products, quadratic
from .workshop import Workshop, quiet_matrix

NAME = "lds"


def subsets(shop: Workshop) -> np.ndarray:
    """Return (N, M), 1 where unit i is in subset m: a random share ``alpha`` of the units, with no unit in all subsets.

    Raises:
        ValueError: the share selects no units, or all of them.
    """
    s = shop.settings(NAME)
    rng = np.random.default_rng(1)
    count = round(s.alpha * s.units)
    if not 0 < count < s.units:
        raise ValueError(f"config.lds.alpha={s.alpha}: expected a share that leaves some of {s.units} units out")
    while True:
        out = np.zeros((s.units, s.subsets), np.uint8)
        for m in range(s.subsets):
            out[rng.permutation(s.units)[:count], m] = 1
        if not out.all(1).any():
            return out


def models(shop: Workshop) -> tuple[ensdiff.Ensemble, ensdiff.Ensemble]:
    """Return the evaluated ensemble, and M x R models (R seeds of each subset) as one stacked ensemble."""
    s = shop.settings(NAME)
    judged = size.model(shop, s.units, s.members)
    truth_NK = np.repeat(subsets(shop), s.seeds, axis=1)
    return judged, shop.train(f"{NAME}/truth", shop.data.subset(np.arange(s.units)), quiet_matrix(truth_NK), seed=1)


def study(shop: Workshop) -> Findings:
    """Compute the LDS for generated, training and held-out images, for squared scores, and without retraining."""
    s = shop.settings(NAME)
    judged, truth = models(shop)
    N, Q = s.units, s.queries
    data = shop.data.subset(np.arange(N))
    samples, without_NB = size.landscape(shop, N, judged)
    generated = np.asarray(samples.images, np.float32)
    others = np.concatenate([data.images[:Q], shop.held_out.images[:Q]]).astype(np.float32) / np.float32(255)
    images, G = np.concatenate([generated, others]), len(generated)
    kinds = {"generated": slice(0, G), "training": slice(G, G + Q), "held out": slice(G + Q, None)}

    products = member_products(shop, f"{NAME}/outputs", truth, images, s.draws)
    outputs_BMR = -np.diagonal(products, axis1=1, axis2=2).reshape(len(images), s.subsets, s.seeds)
    subset_NM = subsets(shop)
    scores = {"loss": loss_scores(shop, f"{NAME}/loss", judged, images, s.draws)}
    scores |= all_baselines(shop, f"{NAME}/baseline", judged, data, images, s.baseline_members)
    only_generated = {
        "exact": distances(without_NB, generated).T,
        "differential": quadratic_influence(
            shop.kept(f"{NAME}/gram", lambda: ensdiff.gram(judged, samples), judged, samples),
            judged.code.ablate(np.arange(N)),
            np.asarray(samples.weights_K),
        ),
    }

    ceiling = {kind: metrics.lds_ceiling(outputs_BMR[part]) for kind, part in kinds.items()}
    value = {
        kind: {name: metrics.lds(score_BN[part], subset_NM, outputs_BMR[part]) for name, score_BN in scores.items()}
        for kind, part in kinds.items()
    }
    value["generated"] |= {n: metrics.lds(v, subset_NM, outputs_BMR[:G]) for n, v in only_generated.items()}
    squared = {name: metrics.lds(np.square(score_BN), subset_NM, outputs_BMR) for name, score_BN in scores.items()}
    removed_NM, ablated_BM = _ablations(shop, judged, images)
    without_retraining = {name: metrics.lds(score_BN, 1 - removed_NM, ablated_BM) for name, score_BN in scores.items()}
    of_generated = only_generated | {name: score_BN[:G] for name, score_BN in scores.items()}
    removals = removal_effects(shop, f"{NAME}/removal", judged, samples, of_generated, s.removed)
    names = [*scores, *only_generated]
    rows = [
        {
            "method": name,
            **{kind: interval(value[kind][name]) if name in value[kind] else "" for kind in kinds},
            "squared scores": interval(squared[name]) if name in squared else "",
            "ensemble-LDS": interval(without_retraining[name]) if name in without_retraining else "",
        }
        for name in names
    ]
    rows.append({"method": "ceiling by seed noise", **{kind: interval(ceiling[kind]) for kind in kinds}})
    note = (
        f"N = {N}; {s.subsets} random subsets of {s.alpha:.0%} of the units x {s.seeds} seeds = {truth.members} "
        "retrained models, trained as one stacked ensemble. The output is minus the denoising loss of an image. "
        f"{G} generated, {Q} training and {Q} held-out images. `loss`, `exact` and `differential` use one ensemble of "
        f"K = {s.members}; `trak` and `d-trak` average {s.baseline_members} of its members. squared scores: all "
        "images, with each score squared, which keeps its size and drops its sign. ensemble-LDS: the outputs are those "
        f"of the ensemble itself without {s.removed} random units ({s.ablations} sets), with other noise draws; no "
        "model is trained for it."
    )
    return Findings(
        "Linear datamodeling score",
        [table("LDS", rows, note), removal_table(removals, s.removed)],
        {
            "lds": value,
            "squared": squared,
            "ensemble_lds": without_retraining,
            "ceiling": ceiling,
            "removal": removals,
            "outputs_BMR": outputs_BMR,
        },
        {"lds": interval_figure(value, "LDS", 0.0)},
    )


def _ablations(shop: Workshop, judged: ensdiff.Ensemble, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, M), 1 where unit i is in removed set m, and (B, M), minus the loss of each image without the set."""
    s = shop.settings(NAME)
    rng = np.random.default_rng(3)
    sets: list[np.ndarray] = []
    while len(sets) < s.ablations:
        units = rng.permutation(s.units)[: s.removed]
        if judged.code.survivors(units).any():
            sets.append(units)
    removed_NM = np.zeros((s.units, s.ablations), np.uint8)
    for m, units in enumerate(sets):
        removed_NM[units, m] = 1
    products = member_products(shop, f"{NAME}/ablated outputs", judged, images, s.draws, seed=1)
    return removed_NM, -quadratic(products, judged.code.ablate(sets))
