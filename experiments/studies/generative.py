"""The quality of generated images: distances of ensembles, members and ordinary models to held-out data."""

from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

import ensdiff
from ensdiff import metrics
from ensdiff.data import Dataset
from ensdiff.report import Table

from .. import building
from ..tables import interval, table
from .figures import interval_figure
from .findings import Findings
from .workshop import Workshop

NAME = "generative"


class Models(NamedTuple):
    """An ensemble, and ordinary models of the same size and steps, trained on all the data.

    Args:
        data: the training data of all models.
        held_out: the data that samples are compared with.
        ensemble: the ensemble, whose units are items.
        singles: ordinary models from different seeds.
    """

    data: Dataset
    held_out: Dataset
    ensemble: ensdiff.Ensemble
    singles: list[ensdiff.Ensemble]


def models(shop: Workshop) -> dict[str, Models]:
    """Train the ensemble and the ordinary models for each data set in ``config.generative.sets``.

    Models that are already trained are opened.
    """
    s = shop.settings(NAME)
    out = {}
    for name, values in s.sets.items():
        data, held_out = _data(shop, values)
        code = ensdiff.Code.balanced(members=values.members, units=data.units, seed=0)
        ensemble = shop.train(f"{NAME}/{name}_ensemble", data, code, steps=values.steps)
        singles = [
            shop.train(
                f"{NAME}/{name}_single{seed}",
                data,
                ensdiff.Code.undivided(data.units),
                seed=seed + 1,
                steps=values.steps,
            )
            for seed in range(values.singles)
        ]
        out[name] = Models(data, held_out, ensemble, singles)
    return out


def _data(shop: Workshop, values: ConfigDict) -> tuple[Dataset, Dataset]:
    """Return the training and held-out data of an entry of ``config.generative.sets``.

    They are read as its field ``data`` says. Without this field, they are the data of the whole evaluation.
    """
    if "data" not in values:
        return shop.data, shop.held_out
    options = building.section(values, "data")
    return building.load_data(options), building.load_held_out(options)


def study(shop: Workshop) -> Findings:
    """Compare the models by the Frechet and kernel distances of their images to held-out images.

    Distances are between the features of a small classifier.
    """
    s = shop.settings(NAME)
    tables: list[Table] = []
    numbers: dict[str, Any] = {}
    panels: dict[str, dict[str, metrics.Estimate]] = {}
    for name, trained in models(shop).items():
        data, held_out = trained.data, trained.held_out
        n = min(s.samples, len(held_out.images), data.items // 2)
        if data.labels is None or held_out.labels is None:
            raise ValueError(f"config.generative.sets.{name}: expected data with labels, to fit a classifier")
        classifier = shop.classifier if data is shop.data else metrics.fit_classifier(data.images, data.labels)
        real = classifier.features(held_out.images[:n])
        ensemble = trained.ensemble
        made: dict[str, list[tuple[ensdiff.Ensemble, np.ndarray | None]]] = {
            "ensemble": [(ensemble, None)],
            "one member": _members(ensemble, len(trained.singles)),
            "one model on all the data": [(single, None) for single in trained.singles],
        }
        found: dict[str, list[tuple[metrics.Estimate, metrics.Estimate]]] = {}
        for kind, sources in made.items():
            found[kind] = []
            for params, weights in sources:
                images = np.asarray(shop.samples(NAME, params, n, seed=5, weights=weights).images)
                found[kind].append(_distances(classifier.features(images), real, s.resamples))
        found["real training images (the floor)"] = [
            _distances(classifier.features(data.images[:n]), real, s.resamples)
        ]
        found["uniform noise"] = [
            _distances(classifier.features(np.random.default_rng(0).random((n, *data.shape))), real, s.resamples)
        ]
        rows = [
            {
                "what": kind if len(each) == 1 else f"{kind}, mean of {len(each)}",
                "Frechet distance": _summary([frechet for frechet, _ in each], 2),
                "kernel distance": _summary([kernel for _, kernel in each], 3),
            }
            for kind, each in found.items()
        ]
        note = (
            f"{n} images against {n} held-out ones; classifier accuracy on held-out images "
            f"{classifier.accuracy(held_out.images, held_out.labels):.1%}. K = {ensemble.members}; every model trains "
            f"for {s.sets[name].steps} steps. Brackets show the interval for one model (Frechet: bootstrap, which is "
            "biased upwards; kernel: jackknife), and the range for several models."
        )
        tables.append(table(f"{name}: {data.items} images of {'x'.join(map(str, data.shape))}", rows, note))
        numbers[name] = found
        panels[name] = {kind: each[0][1] for kind, each in found.items() if kind != "uniform noise"}
    return Findings(
        "Ensembles as generative models",
        tables,
        numbers,
        {"generative": interval_figure(panels, "kernel distance", 0.0)},
    )


def _members(params: ensdiff.Ensemble, count: int) -> list[tuple[ensdiff.Ensemble, np.ndarray | None]]:
    """Return ``count`` evenly spaced members, each as the ensemble with weight 1 for that member alone."""
    chosen = np.linspace(0, params.members - 1, count).astype(int)
    return [(params, np.eye(params.members, dtype=np.float32)[k]) for k in chosen]


def _distances(a: np.ndarray, b: np.ndarray, resamples: int) -> tuple[metrics.Estimate, metrics.Estimate]:
    return metrics.frechet_distance(a, b, bootstrap=resamples), metrics.kernel_distance(a, b)


def _summary(each: list[metrics.Estimate], digits: int) -> str:
    """Return a single estimate with its interval, or the mean of several with their range."""
    if len(each) == 1:
        return interval(each[0], digits)
    values = [one.value for one in each]
    return interval(metrics.Estimate(float(np.mean(values)), min(values), max(values)), digits)
