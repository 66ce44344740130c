"""Floating-point operations (FLOPs) of a network and of the ensemble's steps, from abstract evaluation.

Only convolutions and matrix products are counted (`ensdiff.ensemble.tracing.count_flops`). A convolution costs 2 h w C
D per output pixel, including products with the zero padding. Element-wise work (normalisation, activations, the
optimiser, sums over members) is not counted. In predictions on CPUs, wide layers execute 16 products for every 36
counted (`ensdiff.models.winograd`), because the counts are those of plain convolutions.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ensdiff.ensemble.blending import add_change
from ensdiff.ensemble.tracing import count_flops
from ensdiff.models.adapters import Adapted, Shared, abstract_of, changes, network_of, opened
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import Denoiser, check_inputs
from ensdiff.models.parameters import named


class NetworkFlops(NamedTuple):
    """FLOPs of one member for one image.

    Args:
        forward: the prediction.
        train: the forward and backward passes, including what the backward pass recomputes. The backward pass of
            adapters has no gradients of the base's kernels.
        tangent: one directional derivative of the prediction, without the prediction itself.
        recompute: what the prediction recomputes to be differentiated in forward mode, once for all directions.
    """

    forward: int
    train: int
    tangent: int
    recompute: int


def network_flops(
    model: Denoiser, image_shape: tuple[int, int, int], condition: ConditionSpec | None = None
) -> NetworkFlops:
    """Return the FLOPs of one member for one image; multiply them by the numbers of members and images.

    Args:
        model: the network.
        image_shape: (H, W, C).
        condition: what a conditional network is told about each image.

    Raises:
        ValueError: the images or their conditions do not fit the network.

    >>> flops = network_flops(ensdiff.UNetConfig(channels=8, multipliers=(1,), middle_attention=False), (8, 8, 1))
    >>> flops.train < 3 * flops.forward  # the first layers have no input gradient
    True
    """
    H, W, C = image_shape
    check_inputs(model, (H, W, C), condition)
    return _network_flops(model, (H, W, C), condition)


@functools.lru_cache(maxsize=64)
def _network_flops(model: Denoiser, image_shape: tuple[int, int, int], condition: ConditionSpec | None) -> NetworkFlops:
    params, (x, t, cond) = abstract_of(model), _inputs(image_shape, condition)

    def predict(params, x, t):
        network, member = opened(model, params)
        return network.apply(member, x, t, cond)

    forward = count_flops(predict, params, x, t)
    one, more = _directions(lambda x, params, t: predict(params, x, t), (x,), params, t)
    train = _train_flops(model, image_shape, condition)
    return NetworkFlops(forward, train, more, one - more - forward)


def _directions(function: Callable, moved: tuple, *fixed: Any) -> tuple[int, int]:
    """Return the FLOPs of a function with one directional derivative, and of each further direction.

    Args:
        function: the function.
        moved: the shapes of its arguments that it is differentiated by.
        fixed: those of its other arguments.
    """
    pushed: list[int] = []

    def run(moved, fixed):
        y, push = jax.linearize(lambda *moved: function(*moved, *fixed), *moved)
        one, two = (jax.tree.map(lambda a, n=n: jnp.broadcast_to(a, (n, *a.shape)), moved) for n in (1, 2))
        pushed.extend(count_flops(jax.vmap(push), *some) for some in (one, two))
        return y, jax.vmap(push)(*one)

    whole = count_flops(run, moved, fixed)
    return whole, pushed[1] - pushed[0]


@functools.lru_cache(maxsize=64)
def _train_flops(model: Denoiser, image_shape: tuple[int, int, int], condition: ConditionSpec | None) -> int:
    params, (x, t, cond) = abstract_of(model), _inputs(image_shape, condition)
    trained, rest = (params.members, params.base) if isinstance(params, Shared) else (params, None)

    def loss(trained, rest, x, t):
        network, member = opened(model, trained if rest is None else Shared(rest, trained))
        return network.apply(member, x, t, cond).sum()

    return count_flops(jax.grad(loss), trained, rest, x, t)


def _inputs(image_shape: tuple[int, int, int], condition: ConditionSpec | None) -> tuple[Any, Any, Any]:
    """Return the shapes of an image and its time, and its condition."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return x, jax.ShapeDtypeStruct((1,), jnp.float32), None if condition is None else condition.null(1)


class AveragedFlops(NamedTuple):
    """FLOPs of one network of averaged parameters (8).

    Args:
        forward: its prediction for one image.
        recompute: what the prediction recomputes to be differentiated in forward mode, once for all members.
        tangent: one directional derivative of the prediction with respect to the image and the parameters.
        change: the change ``theta_k - theta_0`` of one member, for a sum over members or for a tangent.
    """

    forward: int
    recompute: int
    tangent: int
    change: int


@functools.lru_cache(maxsize=64)
def averaged_flops(
    model: Denoiser, image_shape: tuple[int, int, int], condition: ConditionSpec | None = None
) -> AveragedFlops:
    """Return the FLOPs of a network of averaged parameters (8).

    Args:
        model: the network of a member: adapters, or a network that is trained as a whole.
        image_shape: (H, W, C).
        condition: what a conditional network is told about each image.
    """
    network, (x, t, cond) = network_of(model), _inputs(image_shape, condition)
    shapes, change = abstract_of(model), 0
    base = shapes.base if isinstance(shapes, Shared) else shapes
    moved = named(base)
    if isinstance(model, Adapted):
        factors = shapes.members
        moved = jax.eval_shape(lambda factors: changes(model, factors), factors)
        change = count_flops(lambda factors: changes(model, factors), factors)

    def predict(base, moved, x, t):
        return network.apply(add_change(base, moved), x, t, cond)

    forward = count_flops(predict, base, moved, x, t)
    one, more = _directions(lambda moved, x, base, t: predict(base, moved, x, t), (moved, x), base, t)
    return AveragedFlops(forward, one - more - forward, more, change)


def train_step_flops(
    model: Denoiser,
    image_shape: tuple[int, int, int],
    members: int,
    batch: int,
    condition: ConditionSpec | None = None,
) -> int:
    """Return the FLOPs of a training step of ``members`` members with ``batch`` images each.

    For the FLOPs of one device, pass the members and images of that device.
    """
    check_inputs(model, image_shape, condition)
    return members * batch * _train_flops(model, tuple(image_shape), condition)


def landscape_step_flops(
    model: Denoiser, image_shape: tuple[int, int, int], evaluations: int, condition: ConditionSpec | None = None
) -> int:
    """Return the FLOPs of a sampling step that evaluates single members ``evaluations`` times in total.

    Without padding, that is the sum over states of the number of members that each state keeps.
    """
    return evaluations * network_flops(model, image_shape, condition).forward


def jacobian_step_flops(
    model: Denoiser,
    image_shape: tuple[int, int, int],
    members: int,
    tangents: int,
    samples: int,
    condition: ConditionSpec | None = None,
) -> int:
    """Return the FLOPs of a sampling step of ``samples`` states that carry ``tangents`` tangents through ``members``.

    On each device, all K tangents pass through the members of that device: for its FLOPs, pass K as ``tangents`` and
    the number of its members as ``members``.
    """
    flops = network_flops(model, image_shape, condition)
    return members * samples * (flops.forward + flops.recompute + tangents * flops.tangent)
