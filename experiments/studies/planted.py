"""Retrieval of planted units, each with 1, 2, 4 or 8 copies of one picture, by every method and for several K."""

from typing import NamedTuple

import numpy as np

import ensdiff
from ensdiff import metrics
from ensdiff.data import Dataset, arrays

from ..tables import interval, table
from .figures import interval_figure
from .findings import Findings
from .scores import all_baselines, loss_scores
from .workshop import Workshop

NAME = "planted"


class Planting(NamedTuple):
    """Two data sets whose units are the same except for the planted ones.

    Args:
        data: the data with the planted pictures.
        twin: the same data with other pictures instead of the planted ones, in the same numbers of copies.
        unit_P: the planted units.
        copies_P: number of copies in each planted unit.
        pictures: (P, H, W, C) the planted pictures, the queries.
    """

    data: Dataset
    twin: Dataset
    unit_P: np.ndarray
    copies_P: np.ndarray
    pictures: np.ndarray


def planting(shop: Workshop) -> Planting:
    """Build the data: ``units`` ordinary units of one item, and ``each`` planted units for every number of copies.

    Raises:
        ValueError: there are too few held-out pictures.
    """
    s = shop.settings(NAME)
    copies_P = np.repeat(np.asarray(s.copies), s.each)
    P = len(copies_P)
    pictures, others = shop.held_out.images[:P], shop.held_out.images[P : 2 * P]
    if len(others) < P:
        raise ValueError(
            f"config.planted needs {2 * P} held-out pictures, but there are {len(shop.held_out.images)}: raise "
            "config.data.held_out, or lower config.planted.each"
        )
    ordinary = shop.data.images[: s.units]
    groups = np.concatenate([np.arange(s.units), s.units + np.repeat(np.arange(P), copies_P)])

    def build(planted: np.ndarray) -> Dataset:
        return arrays(np.concatenate([ordinary, np.repeat(planted, copies_P, axis=0)]), groups)

    return Planting(build(pictures), build(others), s.units + np.arange(P), copies_P, pictures)


def models(shop: Workshop) -> dict[int, tuple[ensdiff.Ensemble, ensdiff.Ensemble]]:
    """Train, for every K, the ensemble with the planted pictures and its twin without them."""
    s, planted = shop.settings(NAME), planting(shop)
    out = {}
    for K in map(int, s.members):
        code = ensdiff.Code.balanced(members=K, units=planted.data.units, seed=0)
        with_them, without = (
            shop.train(f"{NAME}/K{K}_{which}", data, code, steps=s.steps)
            for which, data in (("planted", planted.data), ("twin", planted.twin))
        )
        out[K] = with_them, without
    return out


def study(shop: Workshop) -> Findings:
    """Compute recall and reciprocal rank of planted units for every K and method, and by the number of copies."""
    s, planted = shop.settings(NAME), planting(shop)
    queries = planted.pictures.astype(np.float32) / np.float32(255)
    numbers: dict[int, dict[str, metrics.PlantedRetrieval]] = {}
    by_copies: dict[int, dict[str, dict[int, metrics.Estimate]]] = {}
    for K, pair in models(shop).items():
        scores, twin = (
            _scores(shop, f"{NAME}/{which} K{K}", params, data, queries)
            for which, params, data in zip(("planted", "twin"), pair, (planted.data, planted.twin), strict=True)
        )
        numbers[K] = {name: metrics.planted(scores[name], planted.unit_P, twin[name]) for name in scores}
        by_copies[K] = {
            name: {
                int(n): metrics.planted(scores[name][planted.copies_P == n], planted.unit_P[planted.copies_P == n]).mrr
                for n in s.copies
            }
            for name in scores
        }
    rows = [
        {
            "K": K,
            "method": name,
            "recall@1": interval(one.recall_1),
            "recall@10": interval(one.recall_10),
            "MRR": interval(one.mrr),
            "MRR in the twin": interval(one.twin_mrr),
        }
        for K, found in numbers.items()
        for name, one in found.items()
    ]
    copies = [
        {"K": K, "method": name, **{f"copies: {n}": interval(one) for n, one in found.items()}}
        for K, methods in by_copies.items()
        for name, found in methods.items()
        if name not in ("random", "constant", "pixel")
    ]
    note = (
        f"{planted.data.units} units, {len(queries)} of them planted: {s.each} each with "
        f"{', '.join(map(str, s.copies))} copies of one held-out picture, which is the query. All other units hold one "
        "picture. Twin: the same units hold other pictures. `pixel` finds an identical picture by definition. Members "
        "train for few steps, but see each picture often."
    )
    largest = numbers[max(numbers)]
    panels = {f"K = {K}": {name: one.mrr for name, one in found.items()} for K, found in numbers.items()}
    return Findings(
        "Planted units",
        [table("Retrieval against K", rows, note), table("Mean reciprocal rank by the number of copies", copies)],
        {"by_members": numbers, "by_copies": by_copies, "chance_mrr": largest["constant"].mrr.value},
        {"planted": interval_figure(panels, "mean reciprocal rank", largest["constant"].mrr.value)},
    )


def _scores(
    shop: Workshop, name: str, params: ensdiff.Ensemble, data: Dataset, queries: np.ndarray
) -> dict[str, np.ndarray]:
    s = shop.settings(NAME)
    found = {"loss": loss_scores(shop, f"{name} loss", params, queries, s.draws)}
    return found | all_baselines(shop, name, params, data, queries, s.baseline_members)
