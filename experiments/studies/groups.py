"""Leave-one-group-out: classes ranked by the ensemble's ablations, against models retrained without each class.

Decided before any number of this version of the study was seen. A column is one number of members K and one of the two
effects of leaving a class out of training.

(a) `combined` is recommended for groups if in no column its top-1 is more than 0.02 below that of a part: the gradient
    score that it combines with the members' losses, with the settings that the members choose, and `loss`.
(b) Another reading of exact ablation (`experiments.studies.readings`) replaces the distance of pixels in
    docs/choosing.md if its top-1 is higher in all columns. The goal is a top-1 of 0.75.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import ensdiff
from ensdiff import metrics
from ensdiff.attribution.gradients.kernels import Method
from ensdiff.attribution.judging import LEAST_MEMBERS, choose
from ensdiff.data import Dataset
from ensdiff.metrics import Estimate, GroupRetrieval
from ensdiff.metrics.arrays import distances
from ensdiff.report import Table

from .. import building
from ..tables import interval, table
from .figures import interval_figure
from .findings import Findings
from .judged import Queries, Scored, by_gradients, combined
from .readings import exact_readings
from .scores import loss_scores, member_products, model_free, quadratic
from .workshop import Workshop, quiet_matrix

NAME = "groups"
METHODS: tuple[Method, ...] = ("trak", "d-trak")
READINGS = ("exact, features", "exact, own class", "exact, away from the group")
EFFECTS = {
    "image": "distance between samples of retrained models from the same noise",
    "loss": "rise of the sample's loss under retrained models",
}
TOLERANCE, GOAL = 0.02, 0.75
"""The numbers of (a) and (b)."""


class Models(NamedTuple):
    """The data with classes as units, ensembles with balanced code words of the classes, and retrained models.

    Args:
        data: the data, whose units are classes.
        judged: the evaluated ensembles by their number of members.
        truth: retrained models as one stacked ensemble: for each class, ``seeds`` members trained without it, followed
            by ``seeds`` members trained on everything.
    """

    data: Dataset
    judged: dict[int, ensdiff.Ensemble]
    truth: ensdiff.Ensemble


def models(shop: Workshop) -> Models:
    """Train the ensembles and the retrained models."""
    s = shop.settings(NAME)
    sizes = ensemble_sizes(s.members)
    part = shop.data.subset(np.arange(min(s.images, shop.data.items)))
    data = part.regroup(part.labels % s.groups)
    G = data.units
    truth_GK = np.repeat(np.concatenate([1 - np.eye(G, dtype=np.uint8), np.ones((G, 1), np.uint8)], axis=1), s.seeds, 1)
    codes = {K: ensdiff.Code.balanced(members=K, units=G, weight=K // 2, seed=0) for K in sizes}
    judged = {K: shop.train(f"{NAME}/judged K{K}", data, code) for K, code in codes.items()}
    return Models(data, judged, shop.train(f"{NAME}/truth", data, quiet_matrix(truth_GK), seed=1))


def ensemble_sizes(members: Any) -> tuple[int, ...]:
    """Return ``config.groups.members`` as a tuple; a single number is one size.

    Raises:
        ValueError: there is no size, or one at which the members cannot choose settings.

    >>> ensemble_sizes(20), ensemble_sizes([20, 64])
    ((20,), (20, 64))
    """
    sizes = (members,) if isinstance(members, int) else tuple(members)
    least = LEAST_MEMBERS + 1
    if not sizes or not all(isinstance(K, int) and least <= K for K in sizes):
        raise ValueError(
            f"config.groups.members={members!r}: expected numbers of members such as (20, 64), each at least {least}, "
            "because the members choose the settings of gradient methods"
        )
    return sizes


class Column(NamedTuple):
    """What was found for one ensemble.

    Args:
        scores: (B, G) scores of each method.
        effects: (B, G) effects of leaving each class out, by the names of `EFFECTS`.
        against: each method's ranking judged by each effect.
        own_class: share of samples whose top-ranked class is their own, by method.
        seconds: seconds of each method.
        chosen: what the members chose.
    """

    scores: dict[str, np.ndarray]
    effects: dict[str, np.ndarray]
    against: dict[str, dict[str, GroupRetrieval]]
    own_class: dict[str, Estimate]
    seconds: dict[str, float]
    chosen: dict[str, Any]


def study(shop: Workshop) -> Findings:
    """Compare each method's ranking of classes with two effects of leaving a class out of training."""
    s = shop.settings(NAME)
    trained = models(shop)
    moved = moved_by_retraining(shop, trained)
    columns = {K: column(shop, trained, K, moved) for K in trained.judged}
    G = trained.data.units
    panels = {
        f"K = {K}, {effect}": {name: one.top_1 for name, one in rows.items()}
        for K, found in columns.items()
        for effect, rows in found.against.items()
    }
    decided = decisions(
        {K: found.against for K, found in columns.items()},
        {K: found.chosen["combined"]["part"] for K, found in columns.items()},
    )
    numbers: dict[str, Any] = {
        field: {K: getattr(found, field) for K, found in columns.items()} for field in Column._fields
    }
    return Findings(
        "Leave-one-group-out: classes",
        [
            *(
                table(
                    f"Against the {words}",
                    _rows(columns, effect, s.samples),
                    note_of(s, trained.data, columns) if effect == "image" else "",
                )
                for effect, words in EFFECTS.items()
            ),
            table(
                "Share of samples whose top-ranked class is their own class, according to a classifier",
                [
                    {"K": K, "method": name, "share": interval(share)}
                    for K, found in columns.items()
                    for name, share in found.own_class.items()
                ],
            ),
            decided_table(decided),
        ],
        {**numbers, "decided": decided},
        {"groups": interval_figure(panels, "top-1", 1 / G)},
    )


SEEDS = ("all", "first", "others")
"""Which seeds of the retrained models are averaged."""


def moved_by_retraining(shop: Workshop, trained: Models) -> dict[str, np.ndarray]:
    """Return (B, G), how far leaving each class out moves the retrained models' samples, by `SEEDS`.

    The noise is that of the samples of all ensembles, so this is the same for all of them.
    """
    s, truth, found = shop.settings(NAME), trained.truth, {}
    for which in SEEDS:
        weights = _weights(trained.data.units, s.seeds, _members_of(which, s.seeds))
        noise = shop.samples(NAME, truth, s.samples, weights=weights[-1])
        made_GB = shop.counterfactuals(f"{NAME}/retrained {which}", truth, noise, weights)
        found[which] = distances(made_GB[:-1], made_GB[-1]).T
    return found


def column(shop: Workshop, trained: Models, K: int, moved: Mapping[str, np.ndarray]) -> Column:
    """Score the samples of one ensemble by all methods, and compare with the effects of retraining."""
    s, name = shop.settings(NAME), f"{NAME}/K{K}"
    data, params = trained.data, trained.judged[K]
    G = data.units
    samples = shop.samples(name, params, s.samples)
    images = np.asarray(samples.images, np.float32)
    without_GB = shop.counterfactuals(f"{name}/exact", params, samples, params.code.ablate(np.arange(G)))
    gradients, chosen = chosen_scores(shop, name, params, data, images)
    scores = {
        **exact_readings(images, without_GB, data, shop.classifier),
        "loss": loss_scores(shop, f"{name}/loss", params, images, s.draws),
        **model_free(shop, f"{name}/baseline", data, images),
        **gradients,
    }
    products = member_products(shop, f"{name}/outputs", trained.truth, images, s.draws)
    effects: dict[str, dict[str, np.ndarray]] = {}
    for which in SEEDS:
        loss_BG = quadratic(products, _weights(G, s.seeds, _members_of(which, s.seeds)))
        effects[which] = {"image": moved[which], "loss": loss_BG[:, :-1] - loss_BG[:, -1:]}
    against = {
        effect: {
            **{method: metrics.group_retrieval(score, effects["all"][effect]) for method, score in scores.items()},
            "retraining, another seed": metrics.group_retrieval(effects["first"][effect], effects["others"][effect]),
        }
        for effect in EFFECTS
    }
    class_BG = np.eye(G)[shop.classifier.predict(images) % G]
    rankings = {f"retraining, {effect}": found for effect, found in effects["all"].items()} | scores
    own = {method: metrics.group_retrieval(score, class_BG).top_1 for method, score in rankings.items()}
    return Column(scores, effects["all"], against, own, _seconds(shop, name, scores), chosen)


def chosen_scores(
    shop: Workshop, name: str, params: ensdiff.Ensemble, data: Dataset, images: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the scores of gradient methods with the settings that the members choose, of `combined`; and the choices.

    The part of `combined` is the method and setting with the highest member-LDS of all.
    """
    s = shop.settings(NAME)
    products_BKK = member_products(shop, f"{name}/loss", params, images, s.draws)
    outputs_BK = -np.diagonal(products_BKK, axis1=1, axis2=2)
    options, queries = building.section(s, "gradients"), Queries(images, {})
    ways: dict[str, Scored] = {}
    scores: dict[str, np.ndarray] = {}
    chosen: dict[str, Any] = {}
    for method in METHODS:
        found = by_gradients(
            shop, f"{name} {method}", params, data, queries, methods=(method,), kernels=(True,), options=options
        )
        ways |= {one.name: one for one in found}
        judgement = choose({one.name: one.cross for one in found}, outputs_BK)
        scores[f"{method}, chosen"] = ways[judgement.setting].score_BN
        chosen[f"{method}, chosen"] = {"setting": judgement.setting, "member_lds": judgement.lds}
    judgement = choose({way: one.cross for way, one in ways.items()}, outputs_BK)
    combination, fit = combined(params, ways[judgement.setting], outputs_BK)
    part = f"{judgement.setting.split(',')[0]}, chosen"
    chosen["combined"] = {"part": part, "setting": judgement.setting, "member_lds": judgement.lds, **fit}
    return scores | {"combined": combination.score_BN}, chosen


def decisions(against: Mapping[int, Mapping[str, Mapping[str, Any]]], parts: Mapping[int, str]) -> dict[str, Any]:
    """Return what (a) and (b) say.

    Args:
        against: for each K and effect, the `GroupRetrieval` of each method.
        parts: for each K, the gradient score that `combined` combines with the members' losses.
    """
    top = {
        (K, effect): {method: one.top_1.value for method, one in rows.items()}
        for K, of_effect in against.items()
        for effect, rows in of_effect.items()
    }
    behind = max(max(one[parts[K]], one["loss"]) - one["combined"] for (K, _), one in top.items())
    lead = {name: min(one[name] - one["exact"] for one in top.values()) for name in READINGS}
    goal = {name: min(one[name] for one in top.values()) >= GOAL for name in READINGS}
    return {
        "combined": {"behind": behind, "recommended": behind <= TOLERANCE},
        "readings": {name: {"lead": lead[name], "replaces": lead[name] > 0, "goal": goal[name]} for name in READINGS},
    }


def decided_table(decided: Mapping[str, Any]) -> Table:
    """Return the table of `decisions`."""
    behind, recommended = decided["combined"].values()
    rows = [{"rule": "combined is recommended", "smallest lead": f"{-behind:.2f}", "holds": _word(recommended)}]
    rows += [
        {
            "rule": f"`{name}` replaces `exact`",
            "smallest lead": f"{one['lead']:.2f}",
            "holds": _word(one["replaces"]),
            f"top-1 of {GOAL} in all columns": _word(one["goal"]),
        }
        for name, one in decided["readings"].items()
    ]
    note = (
        "The rules are in the docstring of `experiments/studies/groups.py`. smallest lead: of the top-1, over all K "
        f"and both effects. That of `combined` over the better of its parts must be at least -{TOLERANCE}, that of a "
        "reading over `exact` above 0."
    )
    return table("What was decided beforehand", rows, note)


def note_of(s: Any, data: Dataset, columns: Mapping[int, Column]) -> str:
    """Return how to read the tables."""
    sizes = " and ".join(map(str, columns))
    several = len(columns) > 1
    settings = "; ".join(
        f"K = {K}: " + ", ".join(f"`{one['setting']}`" for name, one in found.chosen.items() if name != "combined")
        + f", of which `combined` has {found.chosen['combined']['part'].split(',')[0]}"
        for K, found in columns.items()
    )  # fmt: skip
    return (
        f"{data.units} classes of {data.items} images; {s.samples} samples of {'each' if several else 'an'} ensemble, "
        f"K = {sizes}, with one code word of weight K / 2 per class. Ground truth: {s.seeds} models retrained without "
        f"each class and {s.seeds} trained on all classes, averaged as an ensemble"
        f"{', the same for all K' if several else ''}. 'retraining, another seed' compares the ranking by one seed's "
        "models with that by the other seeds' models. The readings of `exact` are from the same counterfactuals: the "
        "distance of pixels or of a classifier's features, the fall of the log-probability of the class that the "
        "classifier sees in the sample, and how far the picture moves away from the mean picture of the class. chosen: "
        f"the members choose the settings of the gradients ({settings}). Seconds of gradient methods include the "
        "gradients of all training images under all members, which the queries share. Chance level of top-1: "
        f"{1 / data.units:.2f}. Published for CIFAR-10 classes (other data and models): .727, .677 and .265."
    )


def _rows(columns: Mapping[int, Column], effect: str, samples: int) -> list[dict[str, Any]]:
    return [
        {
            "K": K,
            "method": name,
            "top-1": interval(one.top_1),
            "NDCG@3": interval(one.ndcg),
            "MRR": interval(one.mrr),
            "rank correlation": interval(one.correlation),
            "seconds per query": f"{found.seconds[name] / samples:.2g}" if name in found.seconds else "",
        }
        for K, found in columns.items()
        for name, one in found.against[effect].items()
    ]


def _seconds(shop: Workshop, name: str, scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of each method that takes any; `combined` needs the gradients of both methods and the loss."""
    keys = {method: f"{name}/{'exact' if method.startswith('exact') else method}" for method in scores}
    keys |= {method: f"{name}/baseline {method}" for method in ("pixel", "feature", "patches")}
    keys |= {f"{method}, chosen": f"{name} {method}/gradients, members=True" for method in METHODS}
    seconds = shop.seconds_of(keys)
    parts = ("loss", *(f"{method}, chosen" for method in METHODS))
    if all(part in seconds for part in parts):
        seconds["combined"] = sum(seconds[part] for part in parts)
    return seconds


def _word(true: bool) -> str:
    return "yes" if true else "no"


def _members_of(which: str, R: int) -> list[int]:
    """Return the seeds of one of `SEEDS`."""
    return {"all": list(range(R)), "first": [0], "others": list(range(1, R))}[which]


def _weights(G: int, R: int, chosen: list[int]) -> np.ndarray:
    """Return (G + 1, K) weights that average the chosen seeds' models without each class, and then those with all."""
    weights = np.zeros((G + 1, G + 1, R), np.float32)
    for g in range(G + 1):
        weights[g, g, chosen] = 1 / len(chosen)
    return weights.reshape(G + 1, -1)
