"""Exact influence: the distance between a sample and its counterfactual.

(4) ``x(w_-U)``: the same sampler, the same noise, other weights. ``influence = |f(x) - f(x_-U)|_2 >= 0``, f the
identity on the [0, 1] pixels or a caller's features.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.denoise import run_states
from ensdiff.ensemble import Ensemble
from ensdiff.sample import Samples
from ensdiff.typing import Array


def exact_influence(
    params: Ensemble,
    samples: Samples,
    weights_RK: Float[np.ndarray, "R K"],
    sample_R: Int[np.ndarray, " R"],
    features: Callable[[Array], Array] | None = None,
    *,
    chunk: int | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, " R"]:
    """Distance between sample ``sample_R[r]`` and the same sample under the weights ``weights_RK[r]``.

    Only the distances leave the device. One entry a pair, so that every sample can have its own ablations.
    """

    @jax.jit
    def embed(images):
        images = images if features is None else features(images)
        return images.reshape(len(images), -1).astype(jnp.float32)

    distance = jax.jit(lambda images, factual: jnp.linalg.norm(embed(images) - factual, axis=-1))
    factual_BF = np.asarray(embed(samples.images))
    out = np.empty(len(weights_RK), np.float32)
    for rows, images in run_states(
        params,
        samples.config,
        samples.noise.take(sample_R),
        weights_RK,
        chunk=chunk,
        memory_budget=memory_budget,
        progress=progress,
        what="ablate",
    ):
        out[rows] = distance(images, factual_BF[sample_R[rows]])
    return out
