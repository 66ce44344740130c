"""Scores of every unit for any images: by the ensemble's loss, by its gradients and by every baseline."""

import dataclasses

import numpy as np

import ensdiff
from ensdiff.attribution.gradients import (
    OUTPUTS,
    Setting,
    member_scores,
    over_units,
    projected_gradients,
)
from ensdiff.attribution.gradients.kernels import Method
from ensdiff.baselines import BASELINES, BaselineConfig, baseline_scores
from ensdiff.data import Dataset

from .workshop import Workshop


def loss_scores(
    shop: Workshop, name: str, params: ensdiff.Ensemble, images: np.ndarray, draws: int, seed: int = 0
) -> np.ndarray:
    """Return (B, N), the rise of each image's loss (7) when each unit is removed."""
    matrix = member_products(shop, name, params, images, draws, seed)
    weights_NK, factual_K = params.code.ablate(np.arange(params.code.units)), params.code.factual()[0]
    return quadratic(matrix, weights_NK) - quadratic(matrix, factual_K[None])


def member_products(
    shop: Workshop,
    name: str,
    params: ensdiff.Ensemble,
    images: np.ndarray,
    draws: int,
    seed: int = 0,
    cond: np.ndarray | None = None,
) -> np.ndarray:
    """Return the matrix R (7) of each image, (B, K, K), whose diagonal holds the loss of each member alone."""
    config = ensdiff.LossConfig(draws=draws, block=min(32, draws // 2))

    def compute() -> np.ndarray:
        return ensdiff.loss_matrix(params, images, seed, config, cond=cond, progress=shop.progress).mean_BKK

    return shop.kept(name, compute, params, images, repr(config), seed, *(() if cond is None else (cond,)))


def quadratic(matrix_BKK: np.ndarray, weights_MK: np.ndarray) -> np.ndarray:
    """Return ``w^T R w``, (B, M)."""
    w = np.asarray(weights_MK, np.float64)
    return np.einsum("mk,bkl,ml->bm", w, matrix_BKK, w, optimize=True)


RIDGES: dict[Method, float] = {"trak": 0.1, "d-trak": 1e-3}
"""The gradient methods at fixed settings, and the ridge of each."""


def gradient_scores(
    shop: Workshop, name: str, params: ensdiff.Ensemble, data: Dataset, images: np.ndarray, members: int
) -> dict[str, np.ndarray]:
    """Return the (B, N) scores of TRAK and D-TRAK at fixed settings, the mean over the first ``members`` members."""
    config, K = shop.gradients(), min(members, params.members)
    found: dict[str, np.ndarray] = {}
    for method, ridge in RIDGES.items():

        def compute(method: Method = method, ridge: float = ridge) -> np.ndarray:
            query, train = (
                {
                    output: projected_gradients(params, x, output, config, members=range(K), progress=shop.progress)
                    for output in OUTPUTS[method]
                }
                for x in (images, data.images)
            )
            seen_nK = params.code.rows(data.unit_of_item)[:, :K]
            scores = member_scores(method, query, train, seen_nK, Setting(ridge, dimension=config.dimension))
            return over_units(scores.items_KBn, data.unit_of_item, data.units).mean(0, dtype=np.float64)

        inputs = (params, data.images, data.unit_of_item, images, repr(config), ridge, K)
        found[method] = shop.kept(f"{name} {method}", compute, *inputs)
    return found


def model_free(shop: Workshop, name: str, data: Dataset, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the (B, N) scores of each baseline; none of them uses a model."""
    config = BaselineConfig()
    found = {}
    for method in BASELINES:

        def compute(method: str = method) -> np.ndarray:
            return baseline_scores(images, data, [method], config, features=shop.classifier.features)[method]

        inputs = (data.images, data.unit_of_item, images, repr(dataclasses.astuple(config)))
        found[method] = shop.kept(f"{name} {method}", compute, *inputs)
    return found


def all_baselines(
    shop: Workshop, name: str, params: ensdiff.Ensemble, data: Dataset, images: np.ndarray, members: int
) -> dict[str, np.ndarray]:
    """Return the (B, N) scores of each baseline, and the `gradient_scores` of the first ``members`` members."""
    return model_free(shop, name, data, images) | gradient_scores(shop, name, params, data, images, members)
