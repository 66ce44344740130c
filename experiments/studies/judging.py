"""Members as judges: does the member-LDS (9) order methods and settings as the LDS of retrained models does?

Stated before any number was seen. For each ensemble (single images with K = 8 to 64 and N = 64 to 1,024, groups of
like pictures, classes, a conditional model, another data set) and each kind of query (generated, training, held out),
all methods and settings are scored twice: by the members, and by models retrained on random halves of the units.
Member-LDS is left out of the defaults if

1. the rank correlation of both over the settings is below 0.8 at the usual size (256 images, K = 16), or
2. the setting that the members choose is more than 0.02 below the best setting in most columns.

The combination (10) is recommended for groups if it is no worse than its parts in any column, and for single images
only if it is better there.

Added later, before any other ensemble than those with K = 16 on digits was seen:

3. `ensdiff.metrics.of_many` corrects a rank correlation over few columns (l3). The member-LDS is given corrected,
   beside its own value, if over all columns this lowers the mean absolute difference between it and the LDS of single
   retrained models, corrected alike.
4. A number of queries or members is called enough if the setting that they choose is at most 0.02 below the best one,
   on the mean over random choices of the queries.
"""

from typing import Any, NamedTuple

import numpy as np

from ensdiff import metrics
from ensdiff.attribution.judging import choose, held_out
from ensdiff.metrics import Estimate
from ensdiff.metrics.arrays import spearman
from ensdiff.metrics.datamodel import rank_agreement, subset_sums
from ensdiff.report import Table

from ..tables import interval, table
from . import conformal, judged
from .ensembles import NAME, Setting, models, single_images
from .figures import labelled_scatter
from .findings import Findings
from .scores import member_products
from .workshop import Workshop

COUNTS = (1, 2, 4, 8, 16, 24)
"""Numbers of queries whose choice of a setting is compared with the choice by all."""
DRAWS = 200
"""Random choices of so many queries."""


class Choosing(NamedTuple):
    """What so many queries choose, on the mean over random choices of the queries.

    Args:
        agreement: rank correlation, over the settings, of the member-LDS on these queries and the LDS by retraining on
            all queries.
        short: by how much the LDS of the chosen setting is below that of the best.
    """

    agreement: float
    short: float


class Column(NamedTuple):
    """What was found for one kind of query.

    Args:
        lds: LDS by retraining of every way to score, by name; the outputs of a subset's seeds are averaged.
        single: LDS of the chosen setting against single retrained models.
        ceiling: what the noise between seeds allows; None with one seed.
        members: member-LDS of the ways that can be judged.
        chosen: the name of what the members choose.
        nested: member-LDS of the nested choice.
        corrected: ``nested`` and ``single`` as they would be with many members and many subsets (l3).
        by_count: what fewer queries choose, by their number.
        combined: numbers of the fit of the combination.
    """

    lds: dict[str, Estimate]
    single: Estimate
    ceiling: Estimate | None
    members: dict[str, Estimate]
    chosen: str
    nested: Estimate
    corrected: tuple[float, float]
    by_count: dict[int, Choosing]
    combined: dict[str, Any]

    @property
    def settings(self) -> list[str]:
        """Return the names of the gradient methods with their settings, kernels that know membership only."""
        return [name for name in self.members if _can_be_chosen(name)]

    @property
    def best(self) -> str:
        """Return the name of the setting with the highest LDS by retraining."""
        return max(self.settings, key=lambda name: self.lds[name].value)

    @property
    def agreement(self) -> float:
        """Return the rank correlation, over the settings, of member-LDS and LDS by retraining."""
        both = [np.array([[of[name].value for name in self.settings]]) for of in (self.members, self.lds)]
        return float(spearman(*both)[0])


def _can_be_chosen(name: str) -> bool:
    return "ridge" in name and "plain" not in name


def columns(setting: Setting) -> dict[str, Column]:
    """Score and judge everything for one ensemble, by kind of query."""
    shop, params, name = setting.shop, setting.judged, f"{NAME}/{setting.name}"
    s = shop.settings(NAME)
    queries = judged.queries_of(shop, name, params, setting.data, s.queries)
    of_truth = member_products(shop, f"{name}/truth", setting.truth, queries.images, s.draws, cond=queries.cond)
    truth_BMR = -np.diagonal(of_truth, axis1=1, axis2=2).reshape(len(queries.images), -1, setting.seeds)
    products_BKK = member_products(shop, f"{name}/members", params, queries.images, s.draws, cond=queries.cond)
    outputs_BK = -np.diagonal(products_BKK, axis1=1, axis2=2)
    gradients = judged.by_gradients(shop, name, params, setting.data, queries)
    model_free = judged.without_gradients(shop, name, params, setting.data, queries.images)
    members_only = judged.from_members(params, products_BKK)
    found = {}
    for kind, rows in queries.kinds.items():
        scored = [judged.part_of(one, rows) for one in (*gradients, *model_free, *members_only)]
        found[kind] = column(setting, scored, outputs_BK[rows], truth_BMR[rows])
    return found


def column(setting: Setting, scored: list[judged.Scored], y_BK: np.ndarray, truth_BMR: np.ndarray) -> Column:
    """Judge all scores of one kind of query by the members and by retrained models."""
    part = {one.name: one for one in scored}
    judgement = choose({name: one.cross for name, one in part.items() if _can_be_chosen(name)}, y_BK)
    chosen = part[judgement.setting]
    part["combined"], numbers = judged.combined(setting.judged, chosen, y_BK)
    members = {
        name: rank_agreement(held_out(one.cross), y_BK, resamples=0)
        for name, one in part.items()
        if name not in ("combined", *judged.MEMBERS_ONLY)
    }
    shown = {judgement.setting, *(best_of(members, method) for method in METHOD_ROWS)}
    lds_of = {
        name: metrics.lds(one.score_BN, setting.subset_NM, truth_BMR, resamples=1000 if name in shown else 0)
        for name, one in part.items()
    }
    M, R = truth_BMR.shape[1:]
    each_NM = np.repeat(setting.subset_NM, R, axis=1)
    single = metrics.lds(chosen.score_BN, each_NM, truth_BMR.reshape(len(y_BK), -1))
    corrected = metrics.of_many(judgement.lds.value, y_BK.shape[1]), metrics.of_many(single.value, M)
    ceiling = metrics.lds_ceiling(truth_BMR) if R > 1 else None
    settings = [one for name, one in part.items() if _can_be_chosen(name)]
    member_SB = np.stack([spearman(held_out(one.cross), y_BK) for one in settings])
    lds_SB = np.stack([spearman(subset_sums(one.score_BN, setting.subset_NM), truth_BMR.mean(2)) for one in settings])
    return Column(
        lds_of, single, ceiling, members, judgement.setting, judgement.lds, corrected,
        fewer_queries(member_SB, lds_SB.mean(1)), numbers,
    )  # fmt: skip


def fewer_queries(member_SB: np.ndarray, lds_S: np.ndarray) -> dict[int, Choosing]:
    """Return what random choices of fewer queries choose among S settings.

    Args:
        member_SB: the member-LDS of each setting on each query.
        lds_S: the LDS of each setting by retraining.

    >>> both = fewer_queries(np.array([[0.1, 0.2], [0.3, 0.1]]), np.array([0.5, 0.25]))[2]  # the worse one is chosen
    >>> round(both.agreement), both.short
    (-1, 0.25)
    """
    rng, B = np.random.default_rng(0), member_SB.shape[1]
    found = {}
    for count in (count for count in COUNTS if count <= B):
        which_DC = rng.random((DRAWS, B)).argsort(axis=1)[:, :count]
        mean_DS = member_SB[:, which_DC].mean(2).T
        agreement = spearman(mean_DS, np.broadcast_to(lds_S, mean_DS.shape)).mean()
        short = lds_S.max() - lds_S[mean_DS.argmax(1)].mean()
        found[count] = Choosing(float(agreement), float(short))
    return found


def study(shop: Workshop) -> Findings:
    """Compare what the members say about methods and settings with what retraining says."""
    s = shop.settings(NAME)
    settings = models(shop)
    found = {setting.name: columns(setting) for setting in settings}
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
            choice_table(found, s.queries, s.subsets),
            method_table(found),
            queries_table(found),
            cost_table(settings, s.queries),
            conformal.conformal_table(p_KBN, first.data.unit_of_item, s.null),
        ],
        {**numbers, "distances": distances(found), "p_values": p_KBN},
        {"judging": labelled_scatter(panels, "member-LDS", "LDS by retraining")},
    )


Found = dict[str, dict[str, Column]]


def distances(found: Found) -> dict[str, float]:
    """Return the mean absolute difference of member-LDS and LDS of single retrained models, plain and corrected."""
    every = [column for of_kind in found.values() for column in of_kind.values()]
    return {
        "plain": float(np.mean([abs(one.nested.value - one.single.value) for one in every])),
        "corrected": float(np.mean([abs(one.corrected[0] - one.corrected[1]) for one in every])),
    }


def choice_table(found: Found, queries: int, subsets: int) -> Table:
    """Return the table of what the members choose."""
    rows = [
        {
            "ensemble": name,
            "queries": kind,
            "rank correlation": f"{column.agreement:.2f}",
            "chosen by the members": column.chosen,
            "its LDS": interval(column.lds[column.chosen]),
            "best LDS": f"{column.lds[column.best].value:.2f}",
            "against single models": f"{column.single.value:.2f}",
            "member-LDS": interval(column.nested),
            "both, of many": " and ".join(f"{value:.2f}" for value in column.corrected),
        }
        for name, of_kind in found.items()
        for kind, column in of_kind.items()
    ]
    apart = distances(found)
    note = (
        f"{queries} queries of each kind. LDS against {subsets} subsets, random halves of the units, with one "
        "retrained model each, or with two where the next table has a ceiling: their outputs are averaged for `its "
        "LDS` and `best LDS`, and taken one by one for `against single models`, which is what the member-LDS "
        "estimates. rank correlation: of "
        "member-LDS and LDS by retraining, over the settings of TRAK, D-TRAK and DAS (kernels that know membership). "
        "member-LDS: of the nested choice, which uses no retrained model. both, of many: member-LDS and `against "
        "single models`, corrected for the number of members and of subsets (l3). Mean absolute difference of the two: "
        f"{apart['plain']:.3f}, corrected {apart['corrected']:.3f}."
    )
    return table("What the members choose", rows, note)


METHOD_ROWS = ("pixel", "patches", "contrast", "loss", "members only", "trak", "d-trak", "das", "combined")
"""The rows of the table of methods."""


def method_table(found: Found) -> Table:
    """Return the table of every method's LDS."""
    rows: list[dict[str, str]] = []
    for name, of_kind in found.items():
        for method in METHOD_ROWS:
            cells = {kind: interval(_of_method(column, method)) for kind, column in of_kind.items()}
            rows.append({"ensemble": name, "method": method, **cells})
        ceiling = {kind: interval(column.ceiling) for kind, column in of_kind.items() if column.ceiling is not None}
        if ceiling:
            rows.append({"ensemble": name, "method": "ceiling by seed noise", **ceiling})
    return table("LDS by retraining of each method", rows, "Settings of gradient methods are chosen by the members.")


def queries_table(found: Found) -> Table:
    """Return the table of what fewer queries choose, on the mean over the kinds of queries."""
    rows = []
    for name, of_kind in found.items():
        row = {"ensemble": name}
        for count in next(iter(of_kind.values())).by_count:
            parts = [column.by_count[count] for column in of_kind.values()]
            row[f"{count}"] = f"{np.mean([p.agreement for p in parts]):.2f}, {np.mean([p.short for p in parts]):.3f}"
        rows.append(row)
    note = (
        "Rank correlation of the member-LDS on so many queries with the LDS by retraining on all, over the settings; "
        f"and by how much the LDS of the setting that they choose is below the best. Means over {DRAWS} random choices "
        "of the queries and over the kinds of queries. Nothing is nested here."
    )
    return table("How many queries it takes", rows, note)


def cost_table(settings: list[Setting], queries: int) -> Table:
    """Return the table of what the members' losses and the gradients cost."""
    rows = []
    for setting in settings:
        name, shop = f"{NAME}/{setting.name}", setting.shop
        keys = {"losses": f"{name}/members", "gradients": f"{name}/gradients, members=True"}
        seconds = shop.seconds_of(keys)
        pairs = setting.data.items * setting.judged.members
        stored = judged.stored_bytes(shop, name)
        rows.append(
            {
                "ensemble": setting.name,
                "losses, s per query": f"{seconds['losses'] / (3 * queries):.2f}",
                "gradients, ms per item and member": f"{1e3 * seconds['gradients'] / pairs:.0f}",
                "stored, kB per item and member": f"{stored / pairs / 1e3:.1f}",
            }
        )
    note = (
        "Seconds of two cores. The gradients are those of three outputs for all items (computed once and stored) and "
        "all queries, with the scores of every setting."
    )
    return table("Cost", rows, note)


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
