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
from ensdiff.diffusion.samplers import SamplerConfig, StepRule, advance, first_scale, rule_of, stages
from ensdiff.ensemble.compiling import jit_once, per_device
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.members import group_size
from ensdiff.ensemble.memory import Resources, images_at_once, least_bytes
from ensdiff.ensemble.mesh import make_mesh, on_mesh, pace, platform
from ensdiff.ensemble.placing import member_specs, place_members
from ensdiff.models.adapters import opened
from ensdiff.models.denoiser import Denoiser
from ensdiff.sampling.conditions import Given, Mode, mode_of, predict_given, predictions_of
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


class Exogenous(NamedTuple):
    """Everything that B states are generated from, except the weights of the members.

    Args:
        noise: the noise of each state.
        cond: a condition tree of some rows; None for unconditional members.
        row_B: the row of each state in ``cond``.
        guidance: the scale of classifier-free guidance; 1 is none.
    """

    noise: Noise
    cond: Any = None
    row_B: Int[ArrayLike, " B"] | None = None
    guidance: float = 1.0

    def take(self, index) -> "Exogenous":
        """Return what some of the states are generated from."""
        row_B = None if self.row_B is None else np.asarray(self.row_B)[index]
        return self._replace(noise=self.noise.take(index), row_B=row_B)

    def given(self, params: Ensemble) -> Given | None:
        """Return the conditions as the compiled steps take them; None for unconditional members."""
        if params.condition is None:
            return None
        count = len(self.noise.index_B)
        rows = np.zeros(count, np.int32) if self.row_B is None else np.asarray(self.row_B, np.int32)
        cond = params.condition.null(1) if self.cond is None else self.cond
        return Given.of(params.condition, cond, rows, self.guidance)


@functools.lru_cache(maxsize=64)
def sampling_step(
    model: Denoiser, image_shape: tuple[int, int, int], rule: StepRule, mesh: Mesh, mode: Mode = "unconditional"
) -> Callable:
    """Return the compiled sampling step of all states.

    Its arguments are ``(params_K, x_R, memory_R, noise, batches, given, stage)``, and it returns ``(x_R, memory_R)``.
    ``x_R`` and ``memory_R`` are donated. `ensdiff.diffusion.samplers.advance` documents ``rule``, ``memory_R`` and
    ``stage``, `Given` the conditions. Only the sum over members crosses devices.
    """
    summed = mesh.shape["member"] > 1

    def weighted(network, params, x_R, index_P, weight_P, given, stage):
        some = None if given is None else given.take(index_P)
        predicted_P = predict_given(network, params, x_R[index_P], stage, some, mode)
        return weight_P[:, None, None, None] * predicted_P

    def unless_empty(stacked, x_R, group, index_GP, weight_GP, given, stage):
        G, places = index_GP.shape
        network, params_K = opened(model, stacked)
        one = functools.partial(weighted, network)

        def predict():
            if G == 1:
                params = jax.tree.map(lambda a: a[group], params_K)
                return one(params, x_R, index_GP[0], weight_GP[0], given, stage)
            params_G = params_K
            if jax.tree.leaves(params_K)[0].shape[0] > G:
                params_G = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, group * G, G), params_K)
            over_group = jax.vmap(one, in_axes=(0, None, 0, 0, None, None))
            return over_group(params_G, x_R, index_GP, weight_GP, given, stage).reshape(-1, *x_R.shape[1:])

        def nothing():
            return jnp.zeros((G * places, *x_R.shape[1:]))

        return jax.lax.cond(weight_GP.any(), predict, nothing)

    def mean(params_K, x_R, batches, given, stage):
        def add(total_R, batch):
            more = unless_empty(params_K, x_R, *batch, given, stage)
            return total_R.at[batch[1].reshape(-1)].add(more), None

        return jax.lax.scan(add, jnp.zeros_like(x_R), batches)[0]

    def step(params_K, x_R, memory_R, noise, batches, given, stage):
        predicted_R = mean(params_K, x_R, jax.tree.map(lambda a: a[0, 0], batches), given, stage)
        if summed:
            predicted_R = jax.lax.psum(predicted_R, "member")
        return advance(rule, x_R, predicted_R, noise.at(stage.number + 1, image_shape), memory_R, stage)

    in_specs = member_specs(model), P("data"), P("data"), Noise.specs(), P("data", "member"), Given.specs(mode), P()
    return per_device(step, mesh, in_specs, (P("data"), P("data")), donate=(1, 2))


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
    mode: Mode = "unconditional",
) -> Chunks:
    """Return the size of equal chunks that fit in memory, and batch sizes for all chunks, so that one program suffices.

    Args:
        params: the ensemble.
        weights_RK: the weights of all states.
        mesh: the devices.
        resources: its chunk is a number of states, by default as many as `STATES_AT_ONCE` and the memory budget allow.
            The budget covers states and activations.
        mode: how many predictions of each member a state needs.

    Raises:
        ValueError: not even one state fits in the budget.
    """
    R, K = weights_RK.shape
    shards, member_shards = mesh.shape["data"], mesh.shape["member"]
    budget, chunk = resources.budget(), resources.chunk
    # bytes per state: its image, noise, prediction, next image, the compiler's copies of them, and its batch entries
    state = 4 * 8 * int(np.prod(params.image_shape)) + 8 * K
    least = least_bytes(params, mesh) * predictions_of(mode)
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
    at_once = max(1, images_at_once(params, mesh, budget - states // shards * state) // predictions_of(mode))
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
    start: Exogenous,
    weights_RK: Float[np.ndarray, "R K"],
    *,
    chunks: Chunks | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "R H W C"]:
    """Run the sampler for R states at once and return them in model space, not clipped.

    Args:
        params: the ensemble.
        config: the sampler.
        start: the noise and conditions of R states.
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
    rule, mode = rule_of(params.schedule, config), mode_of(params.condition, start.guidance)
    chunks = plan(params, weights_RK, mesh, Resources(chunk=R), mode) if chunks is None else chunks
    number = round_up(chunks.number, FEW_BATCHES) if chunks.together == 1 else chunks.number
    batches = gather_batches(weights_RK, shards, mesh.shape["member"], chunks.places, number, chunks.together)
    step = sampling_step(params.model, params.image_shape, rule, mesh, mode)
    stacked = place_members(params, mesh)
    placed = Batches(*(on_mesh(a, mesh, P("data", "member")) for a in batches))
    given = start.given(params)
    given = None if given is None else given.on_mesh(mesh)
    noise = start.noise.on_mesh(mesh)
    x_R = on_mesh(first_states(params, config, noise), mesh, P("data"))
    memory_R = on_mesh(jnp.zeros_like(x_R), mesh, P("data")) if rule.memory else None
    all_stages = list(stages(params.schedule, config))
    for done, stage in enumerate(all_stages, 1):
        x_R, memory_R = pace(step(stacked, x_R, memory_R, noise, placed, given, stage), mesh)
        hosts.report_progress("sampling", done, len(all_stages), "sampling step", x_R)
    return x_R


def first_states(params: Ensemble, config: SamplerConfig, noise: Noise) -> Float[Array, "R H W C"]:
    """Return the noisiest states, from which a sampler starts."""
    scale = np.float32(first_scale(params.schedule, config))
    x_R = _first_noise(params.image_shape)(noise)
    return x_R if scale == 1 else x_R * scale


@functools.lru_cache(maxsize=16)
def _first_noise(image_shape: tuple[int, int, int]) -> Callable[[Noise], Array]:
    return jit_once(lambda noise: noise.at(0, image_shape))


def run_states(
    params: Ensemble,
    config: SamplerConfig,
    start: Exogenous,
    weights_RK: ArrayLike,
    resources: Resources,
    *,
    what: str = "denoise",
) -> Iterator[tuple[slice, Array]]:
    """Denoise any number of states in chunks that fit in memory.

    Args:
        params: the ensemble.
        config: the sampler.
        start: the noise and conditions of R states.
        weights_RK: weights of each state.
        resources: see `plan`.
        what: label of the progress bar.

    Yields:
        The slice of R and the images of each chunk, in order. The images are (rows, H, W, C), pixels in [0, 1] or
        latents as they are stored, still on a device of every process.
    """
    weights_RK = np.asarray(weights_RK, np.float32)
    R = len(weights_RK)
    mesh = make_mesh(params.members)
    chunks = plan(params, weights_RK, mesh, resources, mode_of(params.condition, start.guidance))
    with hosts.progress_bar(R, what, "image", shown=resources.progress, first=hosts.COMPILING) as bar:
        for number, (index, weights) in enumerate(_padded(weights_RK, chunks.states)):
            x = hosts.local(denoise(params, config, start.take(index), weights, chunks=chunks, mesh=mesh))
            first = number * chunks.states
            count = min(chunks.states, R - first)
            yield slice(first, first + count), params.space.to_images(x)[:count]
            bar.update(count)
