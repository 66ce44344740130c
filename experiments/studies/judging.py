"""Members as judges: does the member-LDS (9) order methods and settings as the LDS of retrained models does?

Stated before any number was seen. For each ensemble (single images with K = 12 to 64 and N = 64 to 1,024, groups of
like pictures, classes) and each kind of query (generated, training, held out), all methods and settings are scored
twice: by the members, and by models retrained on random halves of the units. Member-LDS is left out of the defaults if

1. the rank correlation of both over the settings is below 0.8 at the usual size (256 images, K = 16), or
2. the setting that the members choose is more than 0.02 below the best setting in most columns.

The combination (10) is recommended for groups if it is no worse than its parts in any column, and for single images
only if it is better there.
"""

from typing import Any, NamedTuple

import numpy as np

import ensdiff
from ensdiff import metrics
from ensdiff.attribution.judging import choose, held_out
from ensdiff.data import Dataset
from ensdiff.metrics import Estimate
from ensdiff.metrics.arrays import spearman
from ensdiff.metrics.datamodel import rank_agreement

from ..tables import interval, table
from . import conformal, judged, lds, size
from .figures import labelled_scatter
from .findings import Findings
from .scores import member_products
from .workshop import Workshop, quiet_matrix

NAME = "judging"


class Setting(NamedTuple):
    """One ensemble to be judged, and the models retrained on random halves of its units.

    Args:
        name: what the tables call it.
        data: the training data; its units are what is scored.
        judged: the ensemble.
        truth: the retrained models, as one stacked ensemble.
        subset_NM: 1 where unit i is in the subset of retrained model m; the seeds of a subset are neighbours.
        seeds: seeds per subset.
    """

    name: str
    data: Dataset
    judged: ensdiff.Ensemble
    truth: ensdiff.Ensemble
    subset_NM: np.ndarray
    seeds: int


def single_images(shop: Workshop, members: int) -> Setting:
    """Return an ensemble of single images, with the retrained models of the study ``lds``."""
    N = shop.settings(lds.NAME).units
    judged = size.model(shop, N, members)
    truth = lds.models(shop)[1]
    return Setting(
        f"{N} images, K = {members}", shop.data.subset(np.arange(N)), judged, truth, lds.subsets(shop),
        shop.settings(lds.NAME).seeds,
    )  # fmt: skip


def other_size(shop: Workshop, units: int) -> Setting:
    """Return an ensemble of another number of single images, with its own retrained models."""
    s = shop.settings(NAME)
    judged = size.model(shop, units, shop.settings(lds.NAME).members)
    data = shop.data.subset(np.arange(units))
    subset_NM = halves(units, s.subsets)
    truth = shop.train(f"{NAME}/truth N{units}", data, quiet_matrix(subset_NM), seed=1)
    return Setting(f"{units} images, K = {judged.members}", data, judged, truth, subset_NM, 1)


def grouped(shop: Workshop, groups: int) -> Setting:
    """Return an ensemble whose units are groups: the ten classes, or groups of like pictures inside of the classes."""
    s = shop.settings(NAME)
    part = shop.data.subset(np.arange(s.images))
    data = part.regroup(part.labels if groups == 10 else like_pictures(shop, part, groups // 10))
    code = ensdiff.Code.balanced(members=s.group_members, units=data.units, seed=0)
    subset_NM = halves(data.units, s.subsets)
    name = f"{NAME}/G{data.units}"
    judged = shop.train(f"{name} judged", data, code)
    truth = shop.train(f"{name} truth", data, quiet_matrix(subset_NM), seed=1)
    return Setting(f"{data.units} groups, K = {judged.members}", data, judged, truth, subset_NM, 1)


def halves(units: int, subsets: int) -> np.ndarray:
    """Return (N, M), 1 where unit i is in subset m, a random half of the units; no unit is in all subsets."""
    rng = np.random.default_rng(1)
    while True:
        chosen = np.stack([rng.permutation(units) < units // 2 for _ in range(subsets)], axis=1).astype(np.uint8)
        if not chosen.all(1).any():
            return chosen


def like_pictures(shop: Workshop, data: Dataset, parts: int) -> np.ndarray:
    """Return a group for each item: each class is divided into clusters of the classifier's features."""
    from sklearn.cluster import KMeans

    features = np.asarray(shop.classifier.features(data.images / np.float32(255)))
    group, label_of_item = np.zeros(data.items, int), np.asarray(data.labels)
    for label in np.unique(label_of_item):
        items = np.flatnonzero(label_of_item == label)
        cluster = KMeans(parts, n_init=10, random_state=0).fit_predict(features[items])
        group[items] = label * parts + cluster
    return group


def models(shop: Workshop) -> list[Setting]:
    """Train everything, the most informative first."""
    s = shop.settings(NAME)
    found = [single_images(shop, K) for K in s.members]
    found += [grouped(shop, groups) for groups in s.groups]
    return found + [other_size(shop, units) for units in s.sizes]


class Column(NamedTuple):
    """What was found for one kind of query.

    Args:
        lds: LDS by retraining of every way to score, by name.
        members: member-LDS of the same, of those that can be judged.
        chosen: the name of what the members choose.
        nested: member-LDS of the nested choice.
        combined: numbers of the fit of the combination.
    """

    lds: dict[str, Estimate]
    members: dict[str, Estimate]
    chosen: str
    nested: Estimate
    combined: dict[str, Any]

    @property
    def settings(self) -> list[str]:
        """Return the names of the gradient methods with their settings, kernels that know membership only."""
        return [name for name in self.members if "ridge" in name and "plain" not in name]

    @property
    def best(self) -> str:
        """Return the name of the setting with the highest LDS by retraining."""
        return max(self.settings, key=lambda name: self.lds[name].value)

    @property
    def agreement(self) -> float:
        """Return the rank correlation, over the settings, of member-LDS and LDS by retraining."""
        both = [np.array([[of[name].value for name in self.settings]]) for of in (self.members, self.lds)]
        return float(spearman(*both)[0])


def columns(shop: Workshop, setting: Setting) -> dict[str, Column]:
    """Score and judge everything for one ensemble, by kind of query."""
    s = shop.settings(NAME)
    params, name = setting.judged, f"{NAME}/{setting.name}"
    queries = judged.queries_of(shop, name, params, setting.data, s.queries)
    truth_BKK = member_products(shop, f"{name}/truth", setting.truth, queries.images, s.draws)
    truth_BMR = -np.diagonal(truth_BKK, axis1=1, axis2=2).reshape(len(queries.images), -1, setting.seeds)
    products_BKK = member_products(shop, f"{name}/members", params, queries.images, s.draws)
    outputs_BK = -np.diagonal(products_BKK, axis1=1, axis2=2)
    gradients = judged.by_gradients(shop, name, params, setting.data, queries.images)
    model_free = judged.without_gradients(shop, name, params, setting.data, queries.images)
    members_only = judged.from_members(params, products_BKK)
    found = {}
    for kind, rows in queries.kinds.items():
        y_BK = outputs_BK[rows]
        part = {one.name: judged.part_of(one, rows) for one in (*gradients, *model_free)}
        candidates = {name: one.cross for name, one in part.items() if "ridge" in name and "plain" not in name}
        judgement = choose(candidates, y_BK)
        combination, numbers = judged.combined(params, part[judgement.setting], y_BK)
        part["combined"] = combination
        members = {
            name: rank_agreement(held_out(one.cross), y_BK, resamples=0)
            for name, one in part.items()
            if name != "combined"
        }
        shown = {judgement.setting, *(best_of(members, method) for method in METHOD_ROWS)}
        part |= {one.name: judged.part_of(one, rows) for one in members_only}
        lds_of = {
            name: metrics.lds(one.score_BN, setting.subset_NM, truth_BMR[rows], resamples=1000 if name in shown else 0)
            for name, one in part.items()
        }
        found[kind] = Column(lds_of, members, judgement.setting, judgement.lds, numbers)
    return found


def study(shop: Workshop) -> Findings:
    """Compare what the members say about methods and settings with what retraining says."""
    found = {setting.name: columns(shop, setting) for setting in models(shop)}
    judge_rows, method_rows = [], []
    for name, of_kind in found.items():
        for kind, column in of_kind.items():
            chosen, best = column.lds[column.chosen], column.lds[column.best]
            judge_rows.append(
                {
                    "ensemble": name,
                    "queries": kind,
                    "rank correlation": f"{column.agreement:.2f}",
                    "chosen by the members": column.chosen,
                    "its LDS": interval(chosen),
                    "best LDS": f"{best.value:.2f}",
                    "member-LDS": interval(column.nested),
                }
            )
        for method in METHOD_ROWS:
            cells = {kind: interval(_of_method(column, method)) for kind, column in of_kind.items()}
            method_rows.append({"ensemble": name, "method": method, **cells})
    s = shop.settings(NAME)
    note = (
        f"{s.queries} queries of each kind. LDS against {s.subsets} models retrained on random halves of the units. "
        "rank correlation: of member-LDS and LDS by retraining, over the settings of TRAK, D-TRAK and DAS (kernels "
        "that know membership). member-LDS: of the nested choice, which uses no retrained model."
    )
    panels = {
        f"{name}, {kind}": {
            group: np.array([[column.members[n].value, column.lds[n].value] for n in names])
            for group, names in _by_method(column).items()
        }
        for name, of_kind in found.items()
        for kind, column in of_kind.items()
    }
    numbers = {name: {kind: column._asdict() for kind, column in of.items()} for name, of in found.items()}
    first = single_images(shop, s.members[0])
    p_KBN = conformal.p_values(shop, NAME, first.judged, first.data, s.queries, s.null)
    return Findings(
        "Members as judges",
        [
            table("What the members choose", judge_rows, note),
            table(
                "LDS by retraining of each method",
                method_rows,
                "Settings of gradient methods are chosen by the members.",
            ),
            conformal.conformal_table(p_KBN, first.data.unit_of_item, s.null),
        ],
        {**numbers, "p_values": p_KBN},
        {"judging": labelled_scatter(panels, "member-LDS", "LDS by retraining")},
    )


METHOD_ROWS = ("pixel", "patches", "contrast", "loss", "members only", "trak", "d-trak", "das", "combined")
"""The rows of the table of methods."""


def _of_method(column: Column, method: str) -> Estimate:
    """Return the LDS of a method; of a gradient method, that of the setting with the highest member-LDS."""
    return column.lds[best_of(column.members, method)]


def best_of(members: dict[str, Estimate], method: str) -> str:
    """Return the setting of a method with the highest member-LDS, or the method if it has no settings."""
    names = [name for name in members if name.startswith(f"{method},") and "plain" not in name]
    return max(names, key=lambda name: members[name].value) if names else method


def _by_method(column: Column) -> dict[str, list[str]]:
    """Return the names of the settings of each gradient method, with and without membership, and of other methods."""
    groups: dict[str, list[str]] = {}
    for name in column.members:
        method = name.split(",")[0] if "ridge" in name else "model-free"
        groups.setdefault(f"{method}, plain kernel" if "plain" in name else method, []).append(name)
    return groups
