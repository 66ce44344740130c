"""Sampling with forward-mode derivatives: one run carries the state and its tangents, one per member's weight (5).

Each member's prediction is computed once per step, and the tangents pass through it as one batch. With averaged
parameters (8), the tangents pass through the one network of the averaged parameters instead.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ensdiff.diffusion.samplers import StepRule, advance, rule_of, stages
from ensdiff.ensemble.blending import blend, member_change
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.members import sum_over_members
from ensdiff.ensemble.mesh import on_mesh, pace
from ensdiff.ensemble.placing import member_specs, place_members, stacked_of
from ensdiff.models.adapters import opened
from ensdiff.models.denoiser import Denoiser
from ensdiff.models.parameters import mapped, named
from ensdiff.sampling.conditions import Given, Mode, mode_of, predict_given
from ensdiff.sampling.denoise import Noise, first_states
from ensdiff.sampling.sample import Samples
from ensdiff.typing import Array


class State(NamedTuple):
    """States of the sampler, or their tangents.

    Args:
        x: the states, (B, H, W, C). Tangents have a leading axis of K, one tangent per member's weight.
        memory: what the sampler remembers of earlier steps, in the same shape; None for a sampler without memory.
    """

    x: Array
    memory: Array | None = None


@functools.lru_cache(maxsize=16)
def tangent_step(
    model: Denoiser,
    image_shape: tuple[int, int, int],
    rule: StepRule,
    mesh: Mesh,
    together: int | None = None,
    mode: Mode = "unconditional",
) -> Callable:
    """Return a compiled step ``(params_K, state, tangent, noise, given, weight_K, stage) -> (state, tangent)``.

    The step makes one evaluation of the network, for all samples. Its arguments are:

    - ``params_K``: the members, placed on the mesh;
    - ``state`` and ``tangent``: the states and their tangents (`State`). The results reuse their memory, so the caller
      must not use them afterwards;
    - ``noise``: the noise of the samples (`Noise`);
    - ``given``: the conditions of the samples (`Given`); None for unconditional members;
    - ``weight_K``: the weight of each member;
    - ``stage``: the scalars of this evaluation (`ensdiff.diffusion.samplers.Stage`).

    Args:
        model: the network of one member.
        image_shape: (H, W, C).
        rule: what is fixed about the sampler.
        mesh: the devices.
        together: the number of samples at which a member is linearised at once, a divisor of the number of samples per
            device. None linearises it at all of them. All tangents pass through the member as one batch.
        mode: how conditions are used.
    """
    summed = mesh.shape["member"] > 1

    def step(params_K, state, tangent, noise, given, weight_K, stage):
        x_B, dx_IB = state.x, tangent.x
        local, B = len(weight_K), len(x_B)
        size = B if together is None else together

        network, members = opened(model, params_K)

        def member(params, weight, number):
            def group(args):
                start, x_G, dx_IG = args
                some = None if given is None else given.take(start + jnp.arange(size))
                predict = functools.partial(predict_given, network, params, stage=stage, given=some, mode=mode)
                f_G, push = jax.linearize(predict, x_G)
                # product rule: the weights contribute F_k to row k, the states contribute through the member
                return weight * f_G, (weight * jax.vmap(push)(dx_IG)).at[number].add(f_G)

            def split(a_B):
                return a_B.reshape(-1, size, *image_shape)

            parts = jnp.arange(0, B, size), split(x_B), jax.vmap(split, out_axes=1)(dx_IB)
            f, through = jax.lax.map(group, parts)
            return f.reshape(x_B.shape), through.swapaxes(0, 1).reshape(dx_IB.shape)

        number_K = jax.lax.axis_index("member") * local + jnp.arange(local)
        f_B, through_IB = sum_over_members(network, member, members, weight_K, number_K)
        if summed:
            f_B, through_IB = jax.lax.psum((f_B, through_IB), "member")

        return _advanced(rule, state, tangent, f_B, through_IB, noise.at(stage.number + 1, image_shape), stage)

    in_specs = member_specs(model), P("data"), P(None, "data"), Noise.specs(), Given.specs(mode), P("member"), P()
    return per_device(step, mesh, in_specs, (P("data"), P(None, "data")), donate=(1, 2))


@functools.lru_cache(maxsize=16)
def averaged_step(
    model: Denoiser,
    network: Denoiser,
    image_shape: tuple[int, int, int],
    rule: StepRule,
    mesh: Mesh,
    together: int,
    mode: Mode = "unconditional",
) -> Callable:
    """Return the `tangent_step` of averaged parameters (8).

    It maps ``(stacked, base, theta, scale, state, tangent, noise, given, stage)`` to ``(state, tangent)``. One network
    carries the state and all tangents. The tangent of weight k is ``s (theta_k - theta_0)``. The first four arguments
    take the place of ``params_K`` and ``weight_K``:

    - ``stacked``: all members, on every device;
    - ``base``: the parameters theta_0 from which they started;
    - ``theta``: the averaged parameters;
    - ``scale``: s.

    Args:
        model: the network of one member.
        network: the network that has the averaged parameters.
        image_shape: (H, W, C).
        rule: what is fixed about the sampler.
        mesh: the devices.
        together: the number of samples at which the network is linearised at once, a divisor of the number of samples
            per device.
        mode: how conditions are used.
    """

    def step(stacked, base, theta, scale, state, tangent, noise, given, stage):
        x_B, dx_IB = state.x, tangent.x
        K = len(dx_IB)
        moved = jax.eval_shape(lambda: member_change(model, stacked, base, 0))

        def group(args):
            start, x_G, dx_IG = args
            some = None if given is None else given.take(start + jnp.arange(together))

            def predict(changed, x):
                whole = mapped(lambda path, leaf: changed.get(path, leaf), theta)
                return predict_given(network, whole, x, stage=stage, given=some, mode=mode)

            f_G, push = jax.linearize(predict, {path: named(theta)[path] for path in moved}, x_G)

            def moved_by(one):
                k, dx_G = one
                own = member_change(model, stacked, base, k)
                return push({path: scale * change for path, change in own.items()}, dx_G)

            through_IG = jax.lax.map(moved_by, (jnp.arange(K), dx_IG))
            return f_G, through_IG

        def split(a_B):
            return a_B.reshape(-1, together, *image_shape)

        parts = jnp.arange(0, len(x_B), together), split(x_B), jax.vmap(split, out_axes=1)(dx_IB)
        f, through = jax.lax.map(group, parts)
        through_IB = through.swapaxes(0, 1).reshape(dx_IB.shape)
        return _advanced(
            rule, state, tangent, f.reshape(x_B.shape), through_IB, noise.at(stage.number + 1, image_shape), stage
        )

    in_specs = P(), P(), P(), P(), P("data"), P(None, "data"), Noise.specs(), Given.specs(mode), P()
    return per_device(step, mesh, in_specs, (P("data"), P(None, "data")), donate=(4, 5))


def _advanced(
    rule: StepRule, state: State, tangent: State, f_B: Array, through_IB: Array, noise_B: Array, stage: Any
) -> tuple[State, State]:
    """Return the next state and its tangents, from the prediction and its tangents."""

    def update(state, f_B):
        return State(*advance(rule, state.x, f_B, noise_B, state.memory, stage))

    following, push = jax.linearize(update, state, f_B)
    return following, jax.vmap(push)(tangent, through_IB)


def run_with_tangents(params: Ensemble, samples: Samples, mesh: Mesh, together: int) -> tuple[Array, Array]:
    """Return the finished state and its tangents, in model space, not clipped."""
    noise = samples.noise.on_mesh(mesh)
    rule, mode = rule_of(params.schedule, samples.config), mode_of(params.condition, samples.guidance)
    given = samples.exogenous.given(params)
    given = None if given is None else given.on_mesh(mesh)
    x_B = first_states(params, samples.config, noise)
    state = State(x_B, jnp.zeros_like(x_B) if rule.memory else None)
    tangent = jax.tree.map(lambda a: jnp.zeros((params.members, *a.shape)), state)
    state, tangent = on_mesh(state, mesh, P("data")), on_mesh(tangent, mesh, P(None, "data"))
    if params.combine == "parameters":
        network = blend(params, np.asarray(samples.weights_K)[None])
        theta = jax.tree.map(lambda a: a[0], network.params)
        moving = averaged_step(params.model, network.model, params.image_shape, rule, mesh, together, mode)
        fixed = tuple(on_mesh(tree, mesh, P()) for tree in (stacked_of(params), params.base, theta))
        step = functools.partial(moving, *fixed, np.float32(params.scale))
    else:
        moving = tangent_step(params.model, params.image_shape, rule, mesh, together, mode)
        step = functools.partial(_in_order, moving, place_members(params, mesh), on_mesh(samples.weights_K, mesh))
    for stage in stages(params.schedule, samples.config):
        state, tangent = pace(step(state, tangent, noise, given, stage), mesh)
    return state.x, tangent.x


def _in_order(step: Callable, stacked: Any, weights_K: Array, state, tangent, noise, given, stage) -> Any:
    return step(stacked, state, tangent, noise, given, weights_K, stage)
