"""Conformal p-values (11): are they uniform where nothing is to be found, and do they find training images?"""

import numpy as np
from scipy import stats

import ensdiff
from ensdiff.attribution import gradient_scores, held_out_null, unseen_scores
from ensdiff.attribution.calibration import Calibration
from ensdiff.data import Dataset
from ensdiff.report import Table

from ..tables import table
from .workshop import Workshop


def p_values(shop: Workshop, name: str, params: ensdiff.Ensemble, data: Dataset, count: int, null: int) -> np.ndarray:
    """Return the p-values (2, B, N) of all units by TRAK, for ``count`` held-out and as many training images.

    The null are ``null`` other held-out images.
    """
    queries = np.concatenate([shop.held_out.images[:count], data.images[:count]]) / np.float32(255)
    config = shop.gradients(ridge=0.1, levels="all", normalize=False)
    others = shop.held_out.images[count : count + null] / np.float32(255)

    def compute() -> np.ndarray:
        scores = gradient_scores(params, queries, data, "trak", config, held_out=others, progress=shop.progress)
        code_NK = params.code.matrix()
        assert scores.extra_KBm is not None
        calibration = Calibration(*held_out_null(scores.extra_KBm, code_NK))
        return calibration.p_values(unseen_scores(scores.items_KBn, code_NK), None)

    found = shop.kept(f"{name}/p-values", compute, params, queries, others, repr(config))
    return found.reshape(2, count, -1)


def conformal_table(p_KBN: np.ndarray, unit_of_item: np.ndarray, null: int) -> Table:
    """Return the table of the p-values of held-out queries (all units) and of training queries (their own unit)."""
    held_out_BN, training_BN = p_KBN
    B = len(training_BN)
    own_B = training_BN[np.arange(B), unit_of_item[:B]]
    rows = []
    for what, p in (("held-out images, all units", held_out_BN.ravel()), ("training images, their own unit", own_B)):
        row = {"queries": what, "p-values": len(p)}
        row |= {f"share <= {level:g}": f"{(p <= level).mean():.3f}" for level in (0.01, 0.05, 0.1, 0.5)}
        rows.append(row | {"distance from uniform": f"{stats.kstest(p, 'uniform').statistic:.3f}"})
    note = (
        f"TRAK at ridge 0.1, scored by members that did not see the unit; the null are {null} other held-out images. "
        "distance from uniform: Kolmogorov-Smirnov, the largest difference of the distribution functions. The p-values "
        "of one query share a null, so they are not independent."
    )
    return table("Conformal p-values", rows, note)
