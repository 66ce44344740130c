"""Leave-one-group-out: classes ranked by the ensemble's ablations, against models retrained without each class.

Decided before any number of this version of the study was seen. A column is one number of members K and one of the two
effects of leaving a class out of training.

(a) `combined` is recommended for groups if in no column its top-1 is more than 0.02 below that of a part: the gradient
    score that it combines with the members' losses, with the settings that the members choose, and `loss`.
(b) Another reading of exact ablation (`experiments.studies.readings`) replaces the distance of pixels in
    docs/choosing.md if its top-1 is higher in all columns. The goal is a top-1 of 0.75.
"""

from typing import NamedTuple

import numpy as np

import ensdiff
from ensdiff import metrics
from ensdiff.data import Dataset
from ensdiff.metrics.arrays import distances

from ..tables import interval, table
from .figures import interval_figure
from .findings import Findings
from .scores import all_baselines, loss_scores, member_products, quadratic
from .workshop import Workshop, quiet_matrix

NAME = "groups"


class Models(NamedTuple):
    """The data with classes as units, an ensemble with balanced code words of the classes, and retrained models.

    Args:
        data: the data, whose units are classes.
        judged: the evaluated ensemble.
        truth: retrained models as one stacked ensemble: for each class, ``seeds`` members trained without it, followed
            by ``seeds`` members trained on everything.
    """

    data: Dataset
    judged: ensdiff.Ensemble
    truth: ensdiff.Ensemble


def models(shop: Workshop) -> Models:
    """Train the ensemble and the retrained models."""
    s = shop.settings(NAME)
    part = shop.data.subset(np.arange(min(s.images, shop.data.items)))
    data = part.regroup(part.labels % s.groups)
    G = data.units
    code = ensdiff.Code.balanced(members=s.members, units=G, weight=s.weight, seed=0)
    truth_GK = np.repeat(np.concatenate([1 - np.eye(G, dtype=np.uint8), np.ones((G, 1), np.uint8)], axis=1), s.seeds, 1)
    return Models(
        data,
        shop.train(f"{NAME}/judged", data, code),
        shop.train(f"{NAME}/truth", data, quiet_matrix(truth_GK), seed=1),
    )


def study(shop: Workshop) -> Findings:
    """Compare each method's ranking of classes with two effects of leaving a class out of training."""
    s = shop.settings(NAME)
    trained = models(shop)
    data, judged, truth = trained
    G, R, B = data.units, s.seeds, s.samples
    samples = shop.samples(NAME, judged, B)
    images = np.asarray(samples.images, np.float32)
    without_GB = shop.counterfactuals(f"{NAME}/exact", judged, samples, judged.code.ablate(np.arange(G)))
    scores = {
        "exact": distances(without_GB, images).T,
        "loss": loss_scores(shop, f"{NAME}/loss", judged, images, s.draws),
        **all_baselines(shop, f"{NAME}/baseline", judged, data, images, s.baseline_members),
    }

    effects: dict[str, dict[str, np.ndarray]] = {}
    seeds = {"all": list(range(R)), "first": [0], "others": list(range(1, R))}
    products = member_products(shop, f"{NAME}/outputs", truth, images, s.draws)
    for which, chosen in seeds.items():
        weights = _weights(G, R, chosen)
        noise = shop.samples(NAME, truth, B, weights=weights[-1])  # the same noise as for the samples
        made_GB = shop.counterfactuals(f"{NAME}/retrained {which}", truth, noise, weights)
        loss_BG = quadratic(products, weights)
        effects[which] = {
            "image": distances(made_GB[:-1], made_GB[-1]).T,
            "loss": loss_BG[:, :-1] - loss_BG[:, -1:],
        }
    found = {
        truth_name: {name: metrics.group_retrieval(score, effect) for name, score in scores.items()}
        | {
            "retraining, another seed": metrics.group_retrieval(
                effects["first"][truth_name], effects["others"][truth_name]
            )
        }
        for truth_name, effect in effects["all"].items()
    }
    class_BG = np.eye(G)[shop.classifier.predict(images) % G]
    rankings = {f"retraining, {name}": effect for name, effect in effects["all"].items()} | scores
    own = {name: metrics.group_retrieval(score, class_BG).top_1 for name, score in rankings.items()}
    seconds = shop.seconds_of({name: f"{NAME}/{key}" for name, key in _KEYS.items()})
    note = (
        f"{G} classes of {data.items} images; {B} samples of an ensemble of K = {s.members} with one code word of "
        f"weight {judged.code.weight} per class. Ground truth: {R} models retrained without each class and {R} trained "
        "on all classes, averaged as an ensemble. 'retraining, another seed' compares the ranking by one seed's models "
        f"with that by the other seeds' models. Chance level of top-1: {1 / G:.2f}. Published for CIFAR-10 classes "
        "(other data and models): .727, .677 and .265."
    )
    tables = [
        table(
            f"Against the {words}",
            [
                {
                    "method": name,
                    "top-1": interval(one.top_1),
                    "NDCG@3": interval(one.ndcg),
                    "MRR": interval(one.mrr),
                    "rank correlation": interval(one.correlation),
                    "seconds per query": f"{seconds[name] / B:.2g}" if name in seconds else "",
                }
                for name, one in found[truth_name].items()
            ],
            note if truth_name == "image" else "",
        )
        for truth_name, words in (
            ("image", "distance between samples of retrained models from the same noise"),
            ("loss", "rise of the sample's loss under retrained models"),
        )
    ]
    tables.append(
        table(
            "Share of samples whose top-ranked class is their own class, according to a classifier",
            [{"method": n, "share": interval(e)} for n, e in own.items()],
        )
    )
    panels = {f"against {name}": {n: one.top_1 for n, one in rows.items()} for name, rows in found.items()}
    return Findings(
        "Leave-one-group-out: classes",
        tables,
        {"against": found, "own_class": own, "seconds": seconds, "effects": effects["all"], "scores": scores},
        {"groups": interval_figure(panels, "top-1", 1 / G)},
    )


_KEYS = {
    "exact": "exact",
    "loss": "loss",
    **{name: f"baseline {name}" for name in ("pixel", "feature", "trak", "d-trak")},
}
"""The name under which the seconds of each method are stored."""


def _weights(G: int, R: int, chosen: list[int]) -> np.ndarray:
    """Return (G + 1, K) weights that average the chosen seeds' models without each class, and then those with all."""
    weights = np.zeros((G + 1, G + 1, R), np.float32)
    for g in range(G + 1):
        weights[g, g, chosen] = 1 / len(chosen)
    return weights.reshape(G + 1, -1)
