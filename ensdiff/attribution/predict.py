"""Counterfactual images predicted from the Jacobian, without regeneration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.differential import linearize
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.sampling.sample import Samples, check_samples


def predicted_counterfactuals(
    params: Ensemble,
    samples: Samples,
    units: Sequence[Any],
    *,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "M B H W C"]:
    """Predict by (5) what each sample would have been without each unit: ``clip(x + J (w_-i - w), 0, 1)``.

    This takes one sampling run per sample for any number of units; `ensdiff.counterfactuals` regenerates instead.

    Args:
        params: the ensemble.
        samples: the result of `ensdiff.sample`.
        units: M entries, each a unit id or a collection of ids that are removed together.
        memory_budget: bytes of activations that a device may hold.
        progress: show a progress bar.

    Returns:
        (M, B, H, W, C) in [0, 1].

    Raises:
        NoSurvivorError: every member saw some unit of a set.
        ValueError: an unknown unit, samples from another ensemble, or samples made with weights.

    >>> ensdiff.predicted_counterfactuals(params, samples, [3, {4, 7}]).shape
    (2, 2, 8, 8, 1)
    """
    check_samples(params, samples, "a predicted counterfactual")
    step_MK = params.code.ablate(units) - np.asarray(samples.weights_K)
    out = np.empty((len(step_MK), *samples.images.shape), np.float32)
    for rows, part in linearize(params, samples, None, Resources(None, memory_budget, progress)):
        moved = np.tensordot(step_MK, np.asarray(part.tangent_KBF), axes=1)
        out[:, rows] = np.clip(np.asarray(part.value_BF) + moved, 0.0, 1.0)
    return out
