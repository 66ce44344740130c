"""Scores of every unit for any images, from the ensemble's loss and from every baseline."""

import dataclasses

import numpy as np

import ensdiff
from ensdiff.baselines import BASELINES, BaselineConfig, baseline_scores
from ensdiff.data import Dataset
from experiments.studies.workshop import Workshop


def loss_scores(
    shop: Workshop, name: str, params: ensdiff.Ensemble, images: np.ndarray, draws: int, seed: int = 0
) -> np.ndarray:
    """Return (B, N), the rise of each image's loss (7) when each unit is removed."""
    matrix = member_products(shop, name, params, images, draws, seed)
    weights_NK, factual_K = params.code.ablate(np.arange(params.code.units)), params.code.factual()[0]
    return quadratic(matrix, weights_NK) - quadratic(matrix, factual_K[None])


def member_products(
    shop: Workshop, name: str, params: ensdiff.Ensemble, images: np.ndarray, draws: int, seed: int = 0
) -> np.ndarray:
    """Return the matrix R (7) of each image, (B, K, K), whose diagonal holds the loss of each member alone."""
    config = ensdiff.LossConfig(draws=draws, block=min(32, draws // 2))

    def compute() -> np.ndarray:
        return ensdiff.loss_matrix(params, images, seed, config, progress=shop.progress).mean_BKK

    return shop.kept(name, compute, params, images, repr(config), seed)


def quadratic(matrix_BKK: np.ndarray, weights_MK: np.ndarray) -> np.ndarray:
    """Return ``w^T R w``, (B, M)."""
    w = np.asarray(weights_MK, np.float64)
    return np.einsum("mk,bkl,ml->bm", w, matrix_BKK, w, optimize=True)


def all_baselines(
    shop: Workshop, name: str, params: ensdiff.Ensemble, data: Dataset, images: np.ndarray, members: int
) -> dict[str, np.ndarray]:
    """Return the (B, N) scores of each baseline; those with gradients average the first ``members`` members."""
    config = BaselineConfig()
    found = {}
    for method in BASELINES:

        def compute(method: str = method) -> np.ndarray:
            return baseline_scores(
                images, data, params, [method], config, features=shop.classifier.features,
                members=range(min(members, params.members)), progress=shop.progress,
            )[method]  # fmt: skip

        inputs = (params, data.images, data.unit_of_item, images, repr(dataclasses.astuple(config)), members)
        found[method] = shop.kept(f"{name} {method}", compute, *inputs)
    return found
