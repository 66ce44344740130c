"""Exact influence: the distance between a sample and its counterfactual.

(4) ``x_-U = x(w_-U)``: the same sampler and noise with other weights. ``influence = |f(x) - f(x_-U)|_2 >= 0``, where f
is the identity on the [0, 1] pixels or the caller's features; a caller can also supply another distance.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.sampling.blended import generate
from ensdiff.sampling.sample import Samples, check_samples
from ensdiff.typing import Array

Distance = Callable[[Array, Array], Array]
"""A function from counterfactuals and samples, both (P, H, W, C) in [0, 1] (or both features), to P distances >= 0."""


class Measure(NamedTuple):
    """A distance between images, compiled: its features, and the distances of images from the features of others.

    Both are traced once for each shape of their arguments, so that other chunks and other candidates compile nothing.
    Later changes of anything else that the caller's functions read have no effect on a measure: make one for each call.
    """

    embed: Callable[[Array], Array]
    distances: Callable[[Array, Array], Array]


def measure_of(features: Callable[[Array], Array] | None, distance: Distance | None) -> Measure:
    """Return the measure for the caller's features and distance; None stands for pixels and L2."""
    return _l2_of_pixels() if features is None and distance is None else _compile(features, distance)


@functools.cache
def _l2_of_pixels() -> Measure:
    return _compile(None, None)


def _compile(features: Callable[[Array], Array] | None, distance: Distance | None) -> Measure:
    @jax.jit
    def embed(images):
        return jnp.asarray(images if features is None else features(images), jnp.float32)

    @jax.jit
    def distances(images, factual):
        value_P = (l2 if distance is None else distance)(embed(images), factual)
        if jnp.shape(value_P) != (len(images),):
            raise ValueError(
                f"the distance {getattr(distance, '__name__', distance)} returned shape {jnp.shape(value_P)} for "
                f"{len(images)} pairs: expected ({len(images)},), one number per pair"
            )
        return value_P

    return Measure(embed, distances)


def exact_influence(
    params: Ensemble,
    samples: Samples,
    weights_RK: Float[np.ndarray, "R K"],
    sample_R: Int[np.ndarray, " R"],
    features: Callable[[Array], Array] | None = None,
    distance: Distance | None = None,
    *,
    chunk: int | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, " R"]:
    """Return the distance between sample ``sample_R[r]`` and its counterfactual under the weights ``weights_RK[r]``.

    Only the distances leave the device. Each entry r is one pair of a sample and an ablation, so that every sample can
    have its own ablations. ``features`` and ``distance`` are traced once for each shape of their arguments.

    Raises:
        ValueError: the samples are from another ensemble.
    """
    resources = Resources(chunk, memory_budget, progress)
    return measured_influence(params, samples, weights_RK, sample_R, measure_of(features, distance), resources)


def measured_influence(
    params: Ensemble,
    samples: Samples,
    weights_RK: Float[np.ndarray, "R K"],
    sample_R: Int[np.ndarray, " R"],
    measure: Measure,
    resources: Resources,
) -> Float[np.ndarray, " R"]:
    """Do what `exact_influence` does, with a measure that several calls share."""
    check_samples(params, samples, "exact ablation", factual=False)
    factual_BF = np.asarray(measure.embed(samples.images))
    out = np.empty(len(weights_RK), np.float32)
    size = 0
    for rows, images in generate(
        params, samples.config, samples.exogenous.take(sample_R), weights_RK, resources, what="ablate"
    ):
        size = max(size, len(images))
        place_P = np.minimum(np.arange(size), len(images) - 1)  # pads the last chunk to the shape of the other chunks
        images = images if size == len(images) else images[place_P]
        out[rows] = measure.distances(images, factual_BF[sample_R[rows]][place_P])[: rows.stop - rows.start]
    return out


def l2(one: Array, other: Array) -> Float[Array, " P"]:
    """Return the L2 distance of each pair."""
    return jnp.linalg.norm((one - other).reshape(len(one), -1), axis=-1)
