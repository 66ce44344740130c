"""Sampling, factual and ablated, of many weight rows at once.

A *state* is one image being denoised under one row of weights. The states of all ablations and samples form one flat
axis R, so that the factual samples (one row), a landscape (every unit for every sample) and a verification (different
units for every sample) are the same computation:

(2) ``eps_r = sum_k w_rk eps_k(x_r, t)``, and then the sampler's step (s1) to (s3) of `ensdiff.diffusion.coefficients`.

Member k is applied only to the states that keep it (w_rk != 0). The indices of these states are gathered into batches
of one member each, or of a group of members that are computed together (`ensdiff.ensemble.members.group_size`). A step
is a loop over batches, and its work is proportional to the number of surviving members summed over states. All states
of a sample share its noise, so that a counterfactual differs from its sample only by the weights. Nothing reduces over
R, so that chunks of any size give the same images.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from ensdiff import hosts
from ensdiff.diffusion.samplers import SamplerConfig, StepRule, advance, rule_of, stages
from ensdiff.ensemble.compiling import jit_once, per_device
from ensdiff.ensemble.ensemble import Ensemble, to_images
from ensdiff.ensemble.members import apply_member, group_size
from ensdiff.ensemble.memory import Resources, images_at_once, least_bytes
from ensdiff.ensemble.mesh import make_mesh, on_mesh, pace, platform
from ensdiff.models.unet import UNetConfig
from ensdiff.sampling.packing import Batches, batch_numbers, choose_places, gather_batches, kept_counts, round_up
from ensdiff.typing import Array, ArrayLike


@functools.partial(jax.tree_util.register_dataclass, data_fields=["index_B", "key", "array"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Noise:
    """The exogenous noise of samples, drawn from a key when needed or given as an array.

    Args:
        index_B: the number of each sample under the key, or its index on the array's second axis.
        key: a JAX key; sample b at step j gets ``normal(fold_in(fold_in(key, b), j))``, whatever batch it is in.
        array: (S + 1, B, H, W, C): x_T, then the noise of each step.
    """

    index_B: Int[Array, " B"]
    key: Array | None = None
    array: Float[Array, "S+1 B H W C"] | None = None

    def at(self, step: int | Array, image_shape: tuple[int, int, int]) -> Float[Array, "B H W C"]:
        """Return the standard normal noise with number ``step``: 0 is x_T, and j + 1 belongs to sampling step j."""
        if self.array is not None:
            return self.array[step][self.index_B]

        def draw(index):
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(self.key, index), step), image_shape)

        return jax.vmap(draw)(self.index_B)

    @staticmethod
    def specs() -> Any:
        """Return its placement on a mesh whose data axis splits the samples: a pytree prefix of `PartitionSpec`."""
        place: Any = P
        return Noise(place("data"), place(), place())

    def on_mesh(self, mesh: Mesh) -> "Noise":
        """Return the same noise, placed as `specs` defines."""
        return Noise(
            on_mesh(jnp.asarray(self.index_B), mesh, P("data")),
            None if self.key is None else on_mesh(self.key, mesh, P()),
            None if self.array is None else on_mesh(self.array, mesh, P()),
        )

    def take(self, index) -> "Noise":
        """Return the noise of some of the samples."""
        return dataclasses.replace(self, index_B=jnp.asarray(self.index_B)[index])


@functools.lru_cache(maxsize=64)
def sampling_step(model: UNetConfig, image_shape: tuple[int, int, int], rule: StepRule, mesh: Mesh) -> Callable:
    """Return the compiled sampling step of all states: ``(params_K, x_R, noise, batches, stage) -> x_R``.

    ``x_R`` is donated. `ensdiff.diffusion.samplers.advance` documents ``rule`` and ``stage``. Only the sum over
    members crosses devices.
    """
    summed = mesh.shape["member"] > 1

    def weighted(params, x_R, index_P, weight_P, t):
        eps_P = apply_member(model, params, x_R[index_P], jnp.full(index_P.shape, t, jnp.int32))
        return weight_P[:, None, None, None] * eps_P

    def unless_empty(params_K, x_R, group, index_GP, weight_GP, t):
        G, places = index_GP.shape

        def predict():
            if G == 1:
                params = jax.tree.map(lambda a: a[group], params_K)
                return weighted(params, x_R, index_GP[0], weight_GP[0], t)
            params_G = params_K
            if jax.tree.leaves(params_K)[0].shape[0] > G:
                params_G = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, group * G, G), params_K)
            eps_GP = jax.vmap(weighted, in_axes=(0, None, 0, 0, None))(params_G, x_R, index_GP, weight_GP, t)
            return eps_GP.reshape(-1, *x_R.shape[1:])

        def nothing():
            return jnp.zeros((G * places, *x_R.shape[1:]))

        return jax.lax.cond(weight_GP.any(), predict, nothing)

    def mean(params_K, x_R, batches, t):
        def add(eps_R, batch):
            return eps_R.at[batch[1].reshape(-1)].add(unless_empty(params_K, x_R, *batch, t)), None

        return jax.lax.scan(add, jnp.zeros_like(x_R), batches)[0]

    def step(params_K, x_R, noise, batches, stage):
        time = stage.time.astype(jnp.int32)
        eps_R = mean(params_K, x_R, jax.tree.map(lambda a: a[0, 0], batches), time)
        if summed:
            eps_R = jax.lax.psum(eps_R, "member")
        return advance(rule, x_R, eps_R, noise.at(stage.number + 1, image_shape), None, stage)[0]

    in_specs = P("member"), P("data"), Noise.specs(), P("data", "member"), P()
    return per_device(step, mesh, in_specs, P("data"), donate=1)


class Chunks(NamedTuple):
    """How R states are processed.

    They are in chunks of ``states``, with ``number`` batches per device, each of ``places`` states for each of
    ``together`` members.
    """

    states: int
    places: int
    number: int
    together: int = 1


def plan(
    params: Ensemble,
    weights_RK: Float[np.ndarray, "R K"],
    mesh: Mesh | AbstractMesh,
    resources: Resources,
) -> Chunks:
    """Return the size of equal chunks that fit in memory, and batch sizes for all chunks, so that one program suffices.

    Args:
        params: the ensemble.
        weights_RK: the weights of all states.
        mesh: the devices.
        resources: its chunk is a number of states, by default as many as `STATES_AT_ONCE` and the memory budget allow.
            The budget covers states and activations.

    Raises:
        ValueError: not even one state fits in the budget.
    """
    R, K = weights_RK.shape
    shards, member_shards = mesh.shape["data"], mesh.shape["member"]
    budget, chunk = resources.budget(), resources.chunk
    # bytes per state: its image, noise, prediction, next image, the compiler's copies of them, and its batch entries
    state = 4 * 8 * int(np.prod(params.image_shape)) + 8 * K
    least = least_bytes(params.model, params.image_shape, mesh, K)
    if budget < state + least:
        raise ValueError(
            f"memory_budget={budget} bytes: one state needs up to {state + least} bytes on a device; give at least that"
        )
    most = min(max(1, min(budget // 2, budget - least) // state), STATES_AT_ONCE) * shards if chunk is None else chunk
    parts = -(-R // most)
    states = -(-R // (parts * shards)) * shards  # equal chunks, a multiple of the data shards
    if parts == 1 and shards == 1:
        states = max(states, min(round_up(R, FEW_STATES), most))  # pad with states without weight, to a common size
    counts_CDK = np.stack([kept_counts(weights, shards) for _, weights in _padded(weights_RK, states)])
    together = group_size(params.model, K // member_shards)
    at_once = max(1, images_at_once(params.model, params.image_shape, mesh, K, budget - states // shards * state))
    overhead = BATCH_OVERHEAD.get(platform(mesh), 32.0)
    places = choose_places(counts_CDK, member_shards, at_once, overhead, together)
    return Chunks(states, places, batch_numbers(counts_CDK, places, member_shards, together), together)


STATES_AT_ONCE = 1024
"""Most states per chunk and data shard: enough to fill batches, few enough to see progress."""

FEW_STATES, FEW_BATCHES = 32, 16
"""Numbers of states and batches are rounded up to at least these, and to powers of two, if that costs nothing (a state
without weight is in no batch, and an empty batch is skipped). This lets many calls share one compiled program."""

BATCH_OVERHEAD = {"cpu": 0.5}
"""The fixed cost of a batch, in images."""


def _padded(weights_RK: np.ndarray, states: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the state numbers and weights of each chunk. The last chunk is padded with its first state, weight 0."""
    for start in range(0, len(weights_RK), states):
        rows = np.arange(start, min(start + states, len(weights_RK)))
        index = np.concatenate([rows, np.full(states - len(rows), rows[0])])
        yield index, np.where(np.arange(states)[:, None] < len(rows), weights_RK[index], 0)


def denoise(
    params: Ensemble,
    config: SamplerConfig,
    noise: Noise,
    weights_RK: Float[np.ndarray, "R K"],
    *,
    chunks: Chunks | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "R H W C"]:
    """Run the sampler for R states at once and return them in model space, not clipped.

    Args:
        params: the ensemble.
        config: the sampler.
        noise: the noise of each state; ``noise.index_B`` has R entries.
        weights_RK: the weights of each state; a member is evaluated only for states in which its weight is not 0.
        chunks: sizes of the batches; pass the same to several calls to share one compilation.
        mesh: the devices; by default all that can share the work.

    Raises:
        ValueError: R is not a multiple of the number of data shards.
    """
    R = len(weights_RK)
    weights_RK = np.asarray(weights_RK, np.float32)
    mesh = make_mesh(params.members, R) if mesh is None else mesh
    shards = mesh.shape["data"]
    if R % shards:
        raise ValueError(f"{R} states cannot be split over {shards} data shards; choose a multiple of {shards}")
    chunks = plan(params, weights_RK, mesh, Resources(chunk=R)) if chunks is None else chunks
    number = round_up(chunks.number, FEW_BATCHES) if chunks.together == 1 else chunks.number
    batches = gather_batches(weights_RK, shards, mesh.shape["member"], chunks.places, number, chunks.together)
    step = sampling_step(params.model, params.image_shape, rule_of(params.schedule, config), mesh)
    stacked = on_mesh(params.params, mesh)
    placed = Batches(*(on_mesh(a, mesh, P("data", "member")) for a in batches))
    noise = noise.on_mesh(mesh)
    x_R = _first_noise(params.image_shape)(noise)
    x_R = on_mesh(x_R, mesh, P("data"))
    for stage in stages(params.schedule, config):
        x_R = pace(step(stacked, x_R, noise, placed, stage), mesh)
    return x_R


@functools.lru_cache(maxsize=16)
def _first_noise(image_shape: tuple[int, int, int]) -> Callable[[Noise], Array]:
    return jit_once(lambda noise: noise.at(0, image_shape))


def run_states(
    params: Ensemble,
    config: SamplerConfig,
    noise: Noise,
    weights_RK: ArrayLike,
    resources: Resources,
    *,
    what: str = "denoise",
) -> Iterator[tuple[slice, Array]]:
    """Denoise any number of states in chunks that fit in memory.

    Args:
        params: the ensemble.
        config: the sampler.
        noise: the noise of each state; ``noise.index_B`` has R entries.
        weights_RK: weights of each state.
        resources: see `plan`.
        what: label of the progress bar.

    Yields:
        The slice of R and the images of each chunk, in order. The images are (rows, H, W, C) in [0, 1], still on a
        device of every process.
    """
    weights_RK = np.asarray(weights_RK, np.float32)
    R = len(weights_RK)
    mesh = make_mesh(params.members)
    chunks = plan(params, weights_RK, mesh, resources)
    with hosts.progress_bar(R, what, "image", shown=resources.progress) as bar:
        for number, (index, weights) in enumerate(_padded(weights_RK, chunks.states)):
            x = hosts.local(denoise(params, config, noise.take(index), weights, chunks=chunks, mesh=mesh))
            start = number * chunks.states
            count = min(chunks.states, R - start)
            yield slice(start, start + count), to_images(x, params.value_range)[:count]
            bar.update(count)
