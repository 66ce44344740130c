"""Averaged parameters (8): ``theta_w = theta_0 + s sum_k w_k (theta_k - theta_0)`` for some rows of weights.

Each row becomes one network, so that everything that runs over members also runs over these networks: a prediction
under a row of weights costs one network, not one per surviving member. Members of weight 0 have no influence on the
result, whatever their parameters are.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.ensemble.placing import member_specs, place_members
from ensdiff.models.adapters import Adapted, Bound, changes, opened
from ensdiff.models.denoiser import Denoiser
from ensdiff.models.factors import factors_of
from ensdiff.models.parameters import mapped, named
from ensdiff.typing import Array, Params


class Rows(NamedTuple):
    """Takes the place of a code where each network is an average of members and so belongs to a row of weights."""

    members: int


def blended_model(params: Ensemble) -> Denoiser:
    """Return the network whose parameters are averaged: of adapted members, their base.

    Raises:
        ValueError: the members have no common start.
    """
    if params.base is None:
        raise ValueError(
            'combine="parameters" needs members that started from the same parameters, and this ensemble has no common '
            "start (Ensemble.base): train adapters (ensdiff.models.adapted) or with ensdiff.train(start=...), or use "
            'combine="predictions"'
        )
    model: Denoiser = params.model.base if isinstance(params.model, Adapted) else params.model
    return model


def blend(params: Ensemble, weights_RK: Float[np.ndarray, "R K"]) -> Ensemble:
    """Return an ensemble of R networks, whose parameters are those of (8) for each row of weights.

    It has no code, so it can only be sampled from. All R networks are on every device.

    Args:
        params: an ensemble whose members have a common start.
        weights_RK: the weights; each row sums to 1.

    Raises:
        ValueError: the members have no common start.
    """
    model = blended_model(params)
    mesh = make_mesh(params.members)
    rows = on_mesh(jnp.asarray(weights_RK, jnp.float32) * np.float32(params.scale), mesh, P(None, "member"))
    theta = blending_step(params.model, mesh)(place_members(params, mesh), on_mesh(params.base, mesh, P()), rows)
    code: Any = Rows(len(weights_RK))
    alone = dataclasses.replace(params, base=None, base_digest=None, combine="predictions", scale=1.0)
    return dataclasses.replace(alone, params=theta, code=code, model=model)


def whole_members(params: Ensemble) -> Ensemble:
    """Return an ensemble of adapters as one of whole networks, whose members predict the same; others as they are."""
    if not isinstance(params.model, Adapted):
        return params
    plain = dataclasses.replace(params, scale=1.0)
    return dataclasses.replace(blend(plain, np.eye(params.members, dtype=np.float32)), code=params.code)


@functools.lru_cache(maxsize=16)
def blending_step(model: Denoiser, mesh: Mesh | AbstractMesh) -> Any:
    """Return the program of `blend`: the members' and the base's parameters and the weights to R stacked networks."""

    def blend(stacked, base, weights_RK):
        change = functools.partial(weighted_change, model, stacked, base)
        sums = jax.lax.map(lambda weights_K: change(weights_K), weights_RK)
        if mesh.shape["member"] > 1:
            sums = jax.lax.psum(sums, "member")
        return jax.vmap(lambda some: add_change(base, some))(sums)

    return per_device(blend, mesh, (member_specs(model), P(), P(None, "member")), P())


def weighted_change(model: Denoiser, stacked: Any, base: Params, weights_K: Array) -> dict[str, Array]:
    """Return ``sum_k w_k (theta_k - theta_0)`` of one device's members, by path. Members of weight 0 are left out."""
    one = jax.eval_shape(lambda: member_change(model, stacked, base, 0))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape), one)

    def add(total: dict[str, Array], numbered: Any) -> tuple[dict[str, Array], None]:
        k, weight = numbered
        more = member_change(model, stacked, base, k)
        return {path: total[path] + jnp.where(weight == 0, 0.0, weight * more[path]) for path in total}, None

    return jax.lax.scan(add, zero, (jnp.arange(len(weights_K)), weights_K))[0]


def member_change(model: Denoiser, stacked: Any, base: Params, k: Array | int) -> dict[str, Array]:
    """Return ``theta_k - theta_0`` of one of a device's members, by path."""
    network, members = opened(model, stacked)
    member = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, k, keepdims=False), members)
    if isinstance(network, Bound):
        return changes(network.adapted, member)
    start = named(base)
    return {path: leaf - start[path] for path, leaf in named(member).items()}


def add_change(base: Params, change: dict[str, Array]) -> Params:
    """Return the parameters of the base plus changes by path; changed arrays are float32."""

    def leaf(path: str, array: Array) -> Array:
        return array.astype(jnp.float32) + change[path] if path in change else array

    return mapped(leaf, base)


def bytes_of(params: Ensemble) -> int:
    """Return the bytes of one averaged network.

    Raises:
        ValueError: the members have no common start.
    """
    blended_model(params)
    changed = factors_of(params.params) if isinstance(params.model, Adapted) else named(params.params)
    return sum(a.size * (4 if path in changed else a.dtype.itemsize) for path, a in named(params.base).items())
