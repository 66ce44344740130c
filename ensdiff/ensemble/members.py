"""Initialisation and application of all members of an ensemble at once.

(2) ``eps_w(x, t) = sum_k w_k eps_k(x, t)``; the factual weights are ``w = 1/K``.

Members are stacked along the leading axis of every parameter. `group_size` decides how many of a device's members are
computed together. `over_members`, `sum_over_members` and `update_members` apply `jax.vmap` inside of a group and a
compiled loop over groups. Only sampling has a loop of its own, which skips members (`ensdiff.sampling.denoise`).
Everything that computes with members runs `per_device` over the
mesh axes ``'member'`` and ``'data'``, so that no collective is needed unless a result is a sum over members.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from ensdiff.diffusion.schedule import Schedule, network_inputs
from ensdiff.ensemble.compiling import jit_once, per_device
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.ensemble.placing import member_specs, place_members
from ensdiff.models.adapters import Bound, opened
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.conv import one_by_one, resolve
from ensdiff.models.denoiser import Denoiser, check_inputs, initial_shapes
from ensdiff.models.unet import UNetConfig
from ensdiff.typing import Array, ArrayLike, Key, Params, as_key


def init_params(
    model: Denoiser,
    image_shape: tuple[int, int, int],
    members: int,
    key: Key,
    mesh: Mesh | None = None,
    condition: ConditionSpec | None = None,
) -> Params:
    """Return the initial parameters of all members, each drawn with its own key ``fold_in(key, member)``.

    On a mesh every device computes its own members, so that no host holds all of them.

    Raises:
        ValueError: the images or their conditions do not fit the network.
    """
    H, W, C = image_shape
    check_inputs(model, (H, W, C), condition)
    key = as_key(key)
    return _init_fn(model, members, mesh)(key if mesh is None else on_mesh(key, mesh, P()))


@functools.lru_cache(maxsize=32)
def _init_fn(model: Denoiser, members: int, mesh: Mesh | None):
    def init(key, member_K):
        keys_K = jax.vmap(lambda k: jax.random.fold_in(key, k))(member_K)
        return jax.vmap(model.init)(keys_K)

    if mesh is None:
        return jit_once(lambda key: init(key, jnp.arange(members)))
    count = members // mesh.shape["member"]

    def local_init(key):
        return init(key, jax.lax.axis_index("member") * count + jnp.arange(count))

    return per_device(local_init, mesh, P(), P("member"), once=True)


def abstract_params(
    model: Denoiser, image_shape: tuple[int, int, int], members: int, condition: ConditionSpec | None = None
) -> Params:
    """Return the shapes and dtypes of `init_params`, without computing anything."""
    return jax.tree.map(lambda shape: shape, _abstract_params(model, tuple(image_shape), members, condition))


@functools.lru_cache(maxsize=64)
def _abstract_params(
    model: Denoiser, image_shape: tuple[int, int, int], members: int, condition: ConditionSpec | None
) -> Params:
    check_inputs(model, image_shape, condition)
    shapes = initial_shapes(model)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype), shapes)


def apply_member(
    model: Denoiser, params: Params, x_BHWC: Array, t_B: Array, cond: Any = None
) -> Float[Array, "B H W C"]:
    """Return one member's prediction, without dropout. It can be differentiated in both modes.

    Args:
        model: the network.
        params: the member's parameters.
        x_BHWC: the network's inputs, and ``t_B`` their times (`ensdiff.diffusion.schedule.network_inputs`).
        t_B: the times; integers are converted to float32.
        cond: the condition tree of the images; None for unconditional networks.
    """
    return as_predicting(model).apply(params, x_BHWC, t_B.astype(jnp.float32), cond)


def as_predicting(model: Denoiser) -> Denoiser:
    """Return the network as predictions compute it: by forms that need not be fast to differentiate."""
    if isinstance(model, Bound):
        return model.over(as_predicting(model.base))
    if not isinstance(model, UNetConfig):
        return model
    attention = "auto" if model.attention == "fused" else model.attention
    return dataclasses.replace(model, conv=resolve(model.conv, predicting=True), attention=attention)


def sum_over_micro_batches(function: Callable, count: int, *trees_B: Any) -> Any:
    """Call ``function``, which sums over a batch, on ``count`` equal micro-batches in turn and add up the results."""
    if count == 1:
        return function(*trees_B)
    return _add_up(function, jax.tree.map(lambda a: a.reshape(count, len(a) // count, *a.shape[1:]), trees_B))


def _add_up(function: Callable, parts: tuple) -> Any:
    """Sum ``function`` over the leading axis of its arguments, in a loop."""
    one = jax.eval_shape(function, *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), parts))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), one)
    return jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, function(*part)), None), zero, parts)[0]


def group_size(model: Denoiser, members: int) -> int:
    """Return how many of one device's ``members`` are computed together.

    It is 1 for strategies that compute members one by one; otherwise the largest divisor of ``members`` that is at most
    ``model.stack``, or all of them if ``model.stack`` is 0.

    >>> [group_size(UNetConfig(conv="grouped", stack=stack), 6) for stack in (0, 1, 2, 4, 9)]
    [6, 1, 2, 3, 6]
    """
    if isinstance(model, UNetConfig) and one_by_one(model.conv):
        return 1
    return max(size for size in range(1, (model.stack or members) + 1) if members % size == 0)


def _leading(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def over_members(model: Denoiser, function: Callable, *stacked_K: Any) -> Any:
    """Apply ``function`` to every member's part of the arguments and stack the results, in groups of `group_size`."""
    members = _leading(stacked_K)
    size = group_size(model, members)
    if size == 1:
        return jax.lax.map(lambda parts: function(*parts), stacked_K)
    if size == members:
        return jax.vmap(function)(*stacked_K)
    return jax.lax.map(lambda parts: function(*parts), stacked_K, batch_size=size)


def sum_over_members(model: Denoiser, function: Callable, *stacked_K: Any) -> Any:
    """Sum ``function`` over the members; the loop over groups accumulates the sum, and holds one group's terms."""
    members = _leading(stacked_K)
    size = group_size(model, members)

    def together(*parts_G: Any) -> Any:
        return jax.tree.map(lambda a: a.sum(0), jax.vmap(function)(*parts_G))

    if size == 1:
        return _add_up(function, stacked_K)
    if size == members:
        return together(*stacked_K)
    return _add_up(together, jax.tree.map(lambda a: a.reshape(members // size, size, *a.shape[1:]), stacked_K))


def update_members(
    model: Denoiser, function: Callable, state_K: Any, *stacked_K: Any, in_place: bool = True
) -> tuple[Any, Any]:
    """Apply a function that returns a member's new state and another result to every member, as `over_members` does.

    Args:
        model: the network, which says how many members are computed together.
        function: maps a member's state and its parts of ``stacked_K`` to the new state and another result.
        state_K: the states.
        stacked_K: other arguments with a leading member axis.
        in_place: let the loop over groups replace every member's state where it lies, so that a donated state is never
            duplicated in memory. Without it, the loop writes the new states into other memory. On CPUs, XLA takes that
            memory either way, and in the loop that replaces states it copies those of *all* members twice for each
            member, which with 96 members takes three quarters of a training step.
    """
    members = _leading(state_K)
    size = group_size(model, members)
    if size == members > 1:
        return jax.vmap(function)(state_K, *stacked_K)
    if not in_place:
        return over_members(model, function, state_K, *stacked_K)

    def member(state_K, numbered):
        k, parts = numbered
        old = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, k, keepdims=False), state_K)
        new, rest = function(old, *parts)
        return jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, k, 0), state_K, new), rest

    def group(state_K, numbered):
        start, parts_G = numbered
        old_G = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), state_K)
        new_G, rest_G = jax.vmap(function)(old_G, *parts_G)
        replace = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(replace, state_K, new_G), rest_G

    if size == 1:
        return jax.lax.scan(member, state_K, (jnp.arange(members), stacked_K))
    grouped = jax.tree.map(lambda a: a.reshape(members // size, size, *a.shape[1:]), stacked_K)
    state_K, rest = jax.lax.scan(group, state_K, (jnp.arange(0, members, size), grouped))
    return state_K, jax.tree.map(lambda a: a.reshape(members, *a.shape[2:]), rest)


@functools.lru_cache(maxsize=32)
def _predict_fn(model: Denoiser, schedule: Schedule, mesh: Mesh):
    def predict(stacked, x_BHWC, t_B, cond):
        network, params_K = opened(model, stacked)
        inputs, time_B = network_inputs(schedule, x_BHWC, t_B)
        return over_members(network, lambda params: apply_member(network, params, inputs, time_B, cond), params_K)

    return per_device(predict, mesh, (member_specs(model), P("data"), P("data"), P("data")), P("member", "data"))


def predict(
    params: Ensemble,
    x_BHWC: Float[ArrayLike, "..."],
    t_B: Int[ArrayLike, " B"] | np.integer | int,
    cond: Any = None,
) -> Float[Array, "K B H W C"]:
    """Return every member's prediction for noisy images in model space.

    Args:
        params: the ensemble; ``params.schedule.prediction`` says what its members predict, by default the noise.
        x_BHWC: noisy images in model space (data in [-1, 1], plus noise), channels last.
        t_B: noise level of each image, 0 .. T - 1; a single integer applies to all images.
        cond: the conditions of the images, or one for all; None is no condition.

    Raises:
        ValueError: the shape of the images is not the ensemble's, a level is out of range, or the conditions are not
            those of the ensemble.

    >>> x_BHWC = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    >>> ensdiff.predict(params, x_BHWC, np.array([10, 500, 999])).shape
    (8, 3, 8, 8, 1)
    """
    x_BHWC = jnp.asarray(x_BHWC, jnp.float32)
    if x_BHWC.ndim != 4 or x_BHWC.shape[1:] != tuple(params.image_shape):
        raise ValueError(
            f"x_BHWC has shape {x_BHWC.shape}: expected (B, {', '.join(map(str, params.image_shape))}), channels last"
        )
    levels = np.broadcast_to(np.asarray(t_B), (len(x_BHWC),))
    if not np.issubdtype(levels.dtype, np.integer) or levels.min() < 0 or levels.max() >= params.schedule.timesteps:
        raise ValueError(f"t_B={np.asarray(t_B)}: expected integers in 0 .. {params.schedule.timesteps - 1}")
    mesh = make_mesh(params.members, len(x_BHWC))
    given = params.conditions(cond, len(x_BHWC))
    return _predict_fn(params.model, params.schedule, mesh)(
        place_members(params, mesh),
        on_mesh(x_BHWC, mesh, P("data")),
        on_mesh(levels.astype(np.int32), mesh, P("data")),
        on_mesh(given, mesh, P("data")),
    )
