"""Sampling, factual and ablated, of many weight rows at once.

A *state* is one image being denoised under one row of weights. The states of all ablations and samples form one flat
axis R, so that the factual samples (one row), a landscape (every unit for every sample) and a verification (another
choice of units for every sample) are the same computation:

(2) ``eps_r = sum_k w_rk eps_k(x_r, t)``, and then the sampler's step (s1), (s2) of `ensdiff.schedule`.

Member k is applied only to the states that keep it (w_rk != 0): their indices are gathered into one batch a member.
States share the noise of their sample, so that a counterfactual differs from its sample by the weights alone; and
nothing reduces over R, so that chunks of any size give the same images.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
from tqdm import tqdm

from ensdiff import hosts
from ensdiff.ensemble import Ensemble, activation_bytes, apply_members, make_mesh, on_mesh, pace, to_images
from ensdiff.schedule import SamplerConfig, SamplerSteps, sampler_steps
from ensdiff.typing import Array, ArrayLike


@functools.partial(jax.tree_util.register_dataclass, data_fields=["index_B", "key", "array"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Noise:
    """The exogenous noise of samples: drawn from a key when needed, or given as an array.

    Args:
        index_B: the number of each sample under the key, or its place on the array's second axis.
        key: a JAX key; sample b at step j gets ``normal(fold_in(fold_in(key, b), j))``, whatever the batch.
        array: (S + 1, B, H, W, C): x_T, then the noise of each step.
    """

    index_B: Int[Array, " B"]
    key: Array | None = None
    array: Float[Array, "S+1 B H W C"] | None = None

    def at(self, step: int | Array, image_shape: tuple[int, int, int]) -> Float[Array, "B H W C"]:
        """Standard normal noise number ``step``; 0 is x_T, j + 1 belongs to sampling step j."""
        if self.array is not None:
            return self.array[step][self.index_B]

        def draw(index):
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(self.key, index), step), image_shape)

        return jax.vmap(draw)(self.index_B)

    @staticmethod
    def specs() -> Any:
        """How it lies on a mesh whose data axis splits the samples: a pytree prefix of `PartitionSpec`."""
        place: Any = P
        return Noise(place("data"), place(), place())

    def on_mesh(self, mesh: Mesh) -> "Noise":
        """The same noise, placed as `specs` says."""
        return Noise(
            on_mesh(jnp.asarray(self.index_B), mesh, P("data")),
            None if self.key is None else on_mesh(self.key, mesh, P()),
            None if self.array is None else on_mesh(self.array, mesh, P()),
        )

    def take(self, index) -> "Noise":
        """The noise of some of the samples."""
        return dataclasses.replace(self, index_B=jnp.asarray(self.index_B)[index])


class Batches(NamedTuple):
    """Which states each member is applied to, padded to one length.

    D data shards, K members, P places a member. ``index_DKP`` counts within a shard; padded places have weight 0.
    """

    index_DKP: Int[np.ndarray, "D K P"]
    weight_DKP: Float[np.ndarray, "D K P"]


def gather_batches(weights_RK: Float[np.ndarray, "R K"], shards: int, places: int | None = None) -> Batches:
    """Lists of the states that keep each member, from the non-zeros of the weights.

    Args:
        weights_RK: weights of each state; R is a multiple of ``shards``.
        shards: D, equal runs of states.
        places: P, at least the longest list; None is the longest list.
    """
    weights_DQK = weights_RK.reshape(shards, -1, weights_RK.shape[-1])
    keep_DKQ = weights_DQK.transpose(0, 2, 1) != 0
    places = int(keep_DKQ.sum(-1).max()) if places is None else places
    order = np.argsort(~keep_DKQ, axis=-1, kind="stable")[..., :places]  # the kept states first
    weight = np.take_along_axis(weights_DQK.transpose(0, 2, 1), order, axis=-1)
    return Batches(order.astype(np.int32), weight.astype(np.float32))


@functools.lru_cache(maxsize=64)
def _step_fn(params_spec: tuple, clip: bool, mesh: Mesh):
    """One compiled sampling step of all states; cached on everything static."""
    model, image_shape = params_spec
    summed = mesh.shape["member"] > 1

    def step(params_K, x_R, noise, index_KP, weight_KP, j, coefficients):
        t, signal, sigma, keep, target, scale = coefficients
        index_KP, weight_KP = index_KP[0], weight_KP[0]
        places = index_KP.shape[1]
        eps_KP = apply_members(model, params_K, x_R[index_KP], jnp.full((places,), t, jnp.int32))
        weighted = weight_KP[..., None, None, None] * eps_KP
        eps_R = jnp.zeros_like(x_R).at[index_KP.reshape(-1)].add(weighted.reshape(-1, *x_R.shape[1:]))
        if summed:
            eps_R = jax.lax.psum(eps_R, "member")
        x0_R = (x_R - sigma * eps_R) / signal
        if clip:
            x0_R = jnp.clip(x0_R, -1.0, 1.0)
        return keep * x_R + target * x0_R + scale * noise.at(j + 1, image_shape)

    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(P("member"), P("data"), Noise.specs(), P("data", "member"), P("data", "member"), P(), P()),
        out_specs=P("data"),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=1)


def float_coefficients(steps: SamplerSteps) -> list[tuple]:
    """The coefficients as one tuple of scalars a step: an int level, then float32."""
    columns = [np.asarray(column, np.float32) for column in steps[1:]]
    return [(np.int32(t), *(column[j] for column in columns)) for j, t in enumerate(steps.t_S)]


def denoise(
    params: Ensemble,
    config: SamplerConfig,
    noise: Noise,
    weights_RK: Float[np.ndarray, "R K"],
    *,
    places: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "R H W C"]:
    """Run the sampler for R states at once and return them in model space, not clipped.

    Args:
        params: the ensemble.
        config: the sampler.
        noise: the noise of each state: ``noise.index_B`` has R entries.
        weights_RK: the weights of each state; a member is evaluated only where its weight is not 0.
        places: pad each member's list of states to this length, so that several calls share one compilation.
        mesh: the devices; by default all that can share the work.
    """
    R = len(weights_RK)
    mesh = make_mesh(params.members, R) if mesh is None else mesh
    shards = mesh.shape["data"]
    if R % shards:
        raise ValueError(f"{R} states cannot be split over {shards} data shards; choose a multiple of {shards}")
    batches = gather_batches(np.asarray(weights_RK, np.float32), shards, places)
    step = _step_fn((params.model, params.image_shape), config.clip, mesh)
    stacked = on_mesh(params.params, mesh)
    index, weight = (on_mesh(a, mesh, P("data", "member")) for a in batches)
    noise = noise.on_mesh(mesh)
    x_R = _first_noise(noise, params.image_shape)
    x_R = on_mesh(x_R, mesh, P("data"))
    for j, coefficients in enumerate(float_coefficients(sampler_steps(params.schedule, config))):
        x_R = pace(step(stacked, x_R, noise, index, weight, np.int32(j), coefficients), mesh)
    return x_R


@functools.partial(jax.jit, static_argnums=1)
def _first_noise(noise: Noise, image_shape: tuple[int, int, int]) -> Array:
    return noise.at(0, image_shape)


def memory_budget_default() -> int:
    """Bytes that sampling may use: half of what an accelerator has, 1 GiB on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    # the least of all processes: their chunks must be the same
    return min(hosts.exchange(stats.get("bytes_limit", 2 * 2**30) // 2))


def chunk_size(params: Ensemble, mesh: Mesh, survivors: int, memory_budget: int | None = None) -> int:
    """States at a time, from a bound on the activation memory of one state on one device.

    Raises:
        ValueError: not even one state a device fits in the budget.
    """
    budget = memory_budget_default() if memory_budget is None else memory_budget
    local = -(-survivors // mesh.shape["member"])
    state = local * activation_bytes(params.model, params.image_shape)
    if budget < state:
        raise ValueError(
            f"memory_budget={budget} bytes: one state needs up to {state} bytes on a device; give at least that"
        )
    return int(budget // state) * mesh.shape["data"]


def run_states(
    params: Ensemble,
    config: SamplerConfig,
    noise: Noise,
    weights_RK: ArrayLike,
    *,
    chunk: int | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
    what: str = "denoise",
) -> Iterator[tuple[slice, Array]]:
    """Denoise any number of states in chunks that fit in memory.

    Args:
        params: the ensemble.
        config: the sampler.
        noise: ``noise.index_B`` names the noise of each state, R entries.
        weights_RK: weights of each state.
        chunk: states at a time; by default from the memory budget.
        memory_budget: bytes of activations a device may hold, see `chunk_size`.
        progress: show a progress bar.
        what: its label.

    Yields:
        The slice of R and the images, (rows, H, W, C) in [0, 1] and still on the device (of every process), of each
        chunk in order.
    """
    weights_RK = np.asarray(weights_RK, np.float32)
    R = len(weights_RK)
    mesh = make_mesh(params.members)
    survivors = max(1, int((weights_RK != 0).sum(1).max()))
    shards = mesh.shape["data"]
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}: expected at least 1 state at a time")
    limit = chunk_size(params, mesh, survivors, memory_budget) if chunk is None else chunk
    parts = -(-R // limit)
    size = -(-R // (parts * shards)) * shards  # equal chunks, a multiple of the data shards
    starts = range(0, R, size)

    def padded(
        start,
    ):  # the last chunk repeats its first state with no weight, so that all chunks compile once
        rows = np.arange(start, min(start + size, R))
        index = np.concatenate([rows, np.full(size - len(rows), rows[0])])
        return index, np.where(np.arange(size)[:, None] < len(rows), weights_RK[index], 0)

    places = max(gather_batches(padded(start)[1], shards).index_DKP.shape[-1] for start in starts)
    with tqdm(total=R, desc=what, unit="image", disable=not (progress and hosts.is_writer())) as bar:
        for start in starts:
            index, weights = padded(start)
            x = hosts.local(denoise(params, config, noise.take(index), weights, places=places, mesh=mesh))
            count = min(size, R - start)
            yield slice(start, start + count), to_images(x, params.value_range)[:count]
            bar.update(count)
