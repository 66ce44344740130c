"""The ensembles that the study ``judging`` judges, each with models retrained on random halves of its units."""

from typing import NamedTuple

import numpy as np

import ensdiff
from ensdiff.data import Dataset

from . import lds, size
from .workshop import Workshop, quiet_matrix

NAME = "judging"


class Setting(NamedTuple):
    """One ensemble to be judged, and the models retrained on random halves of its units.

    Args:
        shop: the workshop of its data set.
        name: what the tables call it.
        data: the training data; its units are what is scored.
        judged: the ensemble.
        truth: the retrained models, as one stacked ensemble.
        subset_NM: 1 where unit i is in the subset of retrained model m; the seeds of a subset are neighbours.
        seeds: seeds per subset.
    """

    shop: Workshop
    name: str
    data: Dataset
    judged: ensdiff.Ensemble
    truth: ensdiff.Ensemble
    subset_NM: np.ndarray
    seeds: int


def models(shop: Workshop) -> list[Setting]:
    """Train everything, the most informative first.

    Raises:
        ValueError: an ensemble of single images is named twice.
    """
    s = shop.settings(NAME)
    single = [(shop.settings(lds.NAME).units, K) for K in s.members] + [tuple(pair) for pair in s.sizes]
    for units, members in single:
        if single.count((units, members)) > 1:
            raise ValueError(
                f"config.judging: {units} images with K = {members} are given twice, in members (with config.lds.units "
                "images) or sizes: leave one of them out"
            )
    found = [single_images(shop, K) for K in s.members]
    found += [grouped(shop, groups) for groups in s.groups]
    found += [other_size(shop, units, members) for units, members in s.sizes]
    return found + [other_data(shop, name) for name in s.get("sets", {})]


def single_images(shop: Workshop, members: int) -> Setting:
    """Return an ensemble of single images, with the retrained models of the study ``lds``."""
    s = shop.settings(lds.NAME)
    data = shop.data.subset(np.arange(s.units))
    judged, truth = size.model(shop, s.units, members), lds.models(shop)[1]
    return Setting(shop, f"{s.units} images, K = {members}", data, judged, truth, lds.subsets(shop), s.seeds)


def other_size(shop: Workshop, units: int, members: int) -> Setting:
    """Return an ensemble of another number of single images, with its own retrained models."""
    judged = size.model(shop, units, members)
    data = shop.data.subset(np.arange(units))
    subset_NM = halves(units, shop.settings(NAME).subsets)
    truth = shop.train(f"{NAME}/truth N{units}", data, quiet_matrix(subset_NM), seed=1)
    return Setting(shop, f"{units} images, K = {members}", data, judged, truth, subset_NM, 1)


def grouped(shop: Workshop, groups: int) -> Setting:
    """Return an ensemble whose units are groups: the ten classes, or groups of like pictures inside of the classes."""
    s = shop.settings(NAME)
    part = shop.data.subset(np.arange(s.images))
    data = part.regroup(part.labels if groups == 10 else like_pictures(shop, part, groups // 10))
    return _own(shop, f"G{data.units}", f"{data.units} groups", data, s.group_members)


def other_data(shop: Workshop, name: str) -> Setting:
    """Return an ensemble of single images of another data set, an entry of ``config.judging.sets``."""
    s = shop.settings(NAME)
    there = shop.of_data(s.sets[name].data)
    units = shop.settings(lds.NAME).units
    data = there.data.subset(np.arange(units))
    words = f"{units} images of {name.replace('_', ' ')}"
    return _own(there, name, words, data, shop.settings(lds.NAME).members)


def _own(shop: Workshop, name: str, words: str, data: Dataset, members: int) -> Setting:
    """Return an ensemble, and models retrained on random halves of its units, one each."""
    code = ensdiff.Code.balanced(members=members, units=data.units, seed=0)
    subset_NM = halves(data.units, shop.settings(NAME).subsets)
    judged = shop.train(f"{NAME}/{name} judged", data, code)
    truth = shop.train(f"{NAME}/{name} truth", data, quiet_matrix(subset_NM), seed=1)
    return Setting(shop, f"{words}, K = {members}", data, judged, truth, subset_NM, 1)


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
