"""Differential ablation: the derivative of a sample with respect to the members' weights.

(5) ``J_k = d x_0 / d w_k`` at ``w = 1/K`` by forward mode; ``x_-i ~ x + J (w_-i - w)``.
(6) with ``G = J^T J``, ``|x_-i - x|^2 ~ d_i^T G d_i``, ``d_i = w_-i - w``.

The weights are free parameters, not renormalised. Clips (of x_0 within a step, if enabled, and of the finished image)
have derivative 0 where they act. One sampling run carries the state and its K tangents: each member's prediction is
computed once per step, and the tangents pass through it as one batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ensdiff import hosts
from ensdiff.attribution.tangents import run_with_tangents
from ensdiff.ensemble.ensemble import Ensemble, member_weights
from ensdiff.ensemble.memory import Resources, images_at_once
from ensdiff.ensemble.mesh import make_mesh
from ensdiff.models.space import Pixels
from ensdiff.sampling.conditions import mode_of, predictions_of
from ensdiff.sampling.sample import Samples, check_samples
from ensdiff.typing import Array, ArrayLike

Features = Callable[[Array], Array]
"""A function from images (B, H, W, C) in [0, 1] to features with a leading axis B."""


class Linearized(NamedTuple):
    """Images, or their features, and their derivatives with respect to each member's weight."""

    value_BF: Float[Array, "B ..."]
    tangent_KBF: Float[Array, "K B ..."]


def linearize(
    params: Ensemble,
    samples: Samples,
    features: Features | None,
    resources: Resources,
) -> Iterator[tuple[slice, Linearized]]:
    """Yield images (or features) of samples and their tangents, one chunk of samples at a time, on the device.

    The tangents of all K weights are in memory at once; the memory budget bounds them and a member's activations.
    """
    check_samples(params, samples, "the Jacobian", factual=False)
    B, K = len(samples), params.members
    mesh = make_mesh(1 if params.combine == "parameters" else K, B)
    budget = resources.budget()
    shards = mesh.shape["data"]
    state = 4 * 8 * (K + 1) * int(np.prod(params.image_shape))  # a sample's image and tangents, before and after a step
    size = min(B, max(1, budget // 2 // state) * shards)
    size = -(-B // -(-B // size))  # equal chunks
    size = -(-size // shards) * shards
    twice = predictions_of(mode_of(params.condition, samples.guidance))
    together = images_at_once(params, mesh, budget // 2) // (K + 1) // twice
    together = max(g for g in range(1, size // shards + 1) if (size // shards) % g == 0 and g <= max(1, together))

    def finish(x):
        images = params.space.to_images(x)
        return images if features is None else features(images)

    with hosts.progress_bar(B, "jacobian", "image", shown=resources.progress, first=hosts.COMPILING) as bar:
        for start in range(0, B, size):
            count = min(size, B - start)
            part = samples[np.minimum(np.arange(start, start + size), B - 1)]
            x_B, dx_IB = hosts.local(run_with_tangents(params, part, mesh, together))
            value, push = jax.linearize(finish, x_B)
            tangent = jax.vmap(push)(dx_IB)
            yield slice(start, start + count), Linearized(value[:count], tangent[:, :count])
            bar.update(count)


def jacobian(
    params: Ensemble, samples: Samples, *, memory_budget: int | None = None, progress: bool = False
) -> Float[np.ndarray, "K B H W C"]:
    """Return the derivative of each image with respect to each member's weight (5), at the sampling weights.

    With averaged parameters (8), the weight of a member moves the parameters by ``theta_k - theta_0``.

    Args:
        params: the ensemble.
        samples: the result of `ensdiff.sample`.
        memory_budget: bytes of activations that a device may hold.
        progress: show a progress bar.

    Returns:
        ``J_KBHWC``, in units of the [0, 1] images or of the latents; 0 where a pixel is clipped.

    >>> J_KBHWC = ensdiff.jacobian(params, samples)
    >>> J_KBHWC.shape
    (8, 2, 8, 8, 1)
    >>> bool(np.allclose(np.einsum("kbhwc,lbhwc->bkl", J_KBHWC, J_KBHWC), ensdiff.gram(params, samples), rtol=1e-3))
    True
    """
    out = np.empty((params.members, *samples.images.shape), np.float32)
    for rows, part in linearize(params, samples, None, Resources(None, memory_budget, progress)):
        out[:, rows] = part.tangent_KBF
    return out


def gram(
    params: Ensemble,
    samples: Samples,
    features: Features | None = None,
    *,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "B K K"]:
    """Return ``G_BKK = J^T J`` of each sample's image or features (6), from which all units can be scored.

    >>> gram_BKK = ensdiff.gram(params, samples)
    >>> gram_BKK.shape, bool(np.allclose(gram_BKK, gram_BKK.swapaxes(1, 2)))
    ((2, 8, 8), True)
    """
    K = params.members
    out = np.empty((len(samples), K, K), np.float32)
    for rows, part in linearize(params, samples, features, Resources(None, memory_budget, progress)):
        tangent_KBF = part.tangent_KBF.reshape(K, part.tangent_KBF.shape[1], -1)
        out[rows] = jnp.einsum("kbf,lbf->bkl", tangent_KBF, tangent_KBF, precision="highest")
    return out


def predicted_counterfactuals(
    params: Ensemble,
    samples: Samples,
    units: Sequence[Any],
    *,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "M B H W C"]:
    """Predict by (5) what each sample would have been without each unit: ``x + J (w_-i - w)``, with pixels in [0, 1].

    This takes one sampling run per sample for any number of units; `ensdiff.counterfactuals` regenerates instead.

    Args:
        params: the ensemble.
        samples: the result of `ensdiff.sample`.
        units: M entries, each a unit id or name, or a collection of them that are removed together.
        memory_budget: bytes of activations that a device may hold.
        progress: show a progress bar.

    Returns:
        (M, B, H, W, C): pixels in [0, 1], or latents.

    Raises:
        NoSurvivorError: every member saw some unit of a set.
        ValueError: an unknown unit, samples from another ensemble, or samples made with weights.

    >>> ensdiff.predicted_counterfactuals(params, samples, [3, {4, 7}]).shape
    (2, 2, 8, 8, 1)
    """
    check_samples(params, samples, "a predicted counterfactual")
    step_MK = params.code.ablate(params.ids_of(units)) - np.asarray(samples.weights_K)
    out = np.empty((len(step_MK), *samples.images.shape), np.float32)
    for rows, part in linearize(params, samples, None, Resources(None, memory_budget, progress)):
        moved = np.tensordot(step_MK, np.asarray(part.tangent_KBF), axes=1)
        moved += np.asarray(part.value_BF)
        out[:, rows] = np.clip(moved, 0.0, 1.0) if isinstance(params.space, Pixels) else moved
    return out


def quadratic_influence(
    gram_BKK: Float[ArrayLike, "B K K"],
    weights_MK: ArrayLike,
    weights_K: ArrayLike,
) -> Float[np.ndarray, "B M"]:
    """Return the predicted distance between each sample and counterfactual (6), ``sqrt(d^T G d)``, ``d = w_m - w``.

    Raises:
        ValueError: weights that are not masks and do not sum to 1.
    """
    K = np.shape(gram_BKK)[-1]
    d_MK = member_weights(weights_MK, K, "weights_MK") - member_weights(weights_K, K, "weights_K")
    squares = np.einsum("mk,bkm->bm", d_MK, np.asarray(gram_BKK, np.float64) @ d_MK.T)
    return np.sqrt(np.maximum(squares, 0.0))
