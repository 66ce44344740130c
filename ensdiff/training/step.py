"""One training step of all members, compiled.

Each member minimises ``E lambda_t |target - F_k(x_t, t, c)|^2`` (mean over pixels) over its own split. By default the
target is the noise and lambda is 1, which is the simple loss of Ho et al. 2020. Nothing is shared: a member's batches,
noise, clipping, optimiser and average are functions of its own split, its number and the step (`step_keys`,
`data.splits`). This makes an ablation exact: a member that did not see a unit has, bit for bit, the parameters that it
would have without the unit.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Shaped

from ensdiff.diffusion.schedule import Schedule, add_noise, network_inputs, target
from ensdiff.diffusion.weights import Weighting, loss_weights
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.flat import ravel, unravel
from ensdiff.ensemble.members import abstract_params, init_params, sum_over_micro_batches, update_members
from ensdiff.ensemble.memory import count_micro_batches
from ensdiff.ensemble.mesh import platform
from ensdiff.models.adapters import Adapted
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import Denoiser
from ensdiff.models.space import PIXELS, Space
from ensdiff.training.config import StepSettings, TrainConfig
from ensdiff.training.execution import Execution
from ensdiff.typing import Array, ArrayLike, Params


class TrainState(NamedTuple):
    """The training state, which a checkpoint holds. Every array has a leading member axis.

    ``params`` and ``ema`` are named trees; ``ema`` is None without averaging. Each moment of Adam is one array of rows
    per member, see `ensdiff.ensemble.flat`.
    """

    params: Params
    opt_state: Any
    ema: Params | None


class Batch(NamedTuple):
    """One step's images, their conditions, and a mask, computed from the code alone, of those to train on.

    Args:
        images_KBHWC: pixels or latents as the data set stores them.
        mask_KB: 1 for images that their member may train on, 0 for others.
        cond_KB: the condition tree of the images; None without conditions.
    """

    images_KBHWC: Shaped[ArrayLike, "K B H W C"]
    mask_KB: Float[ArrayLike, "K B"]
    cond_KB: Any = None


class StepMetrics(NamedTuple):
    """Each member's loss (mean over pixels and batch) and norm of its gradient before clipping."""

    loss_K: Float[Array, " K"]
    grad_norm_K: Float[Array, " K"]


def optimizer(settings: StepSettings) -> optax.GradientTransformation:
    """Return Adam with warm-up and clipping for *one* member, over its parameters as rows of 128 numbers."""
    peak, warmup = settings.learning_rate, settings.warmup
    if settings.decay_steps is not None:
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, settings.decay_steps)
    else:
        rate = optax.linear_schedule(0.0 if warmup else peak, peak, max(warmup, 1))
    clip = optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity()
    return optax.chain(clip, optax.adam(rate))


def init_state(
    model: Denoiser,
    image_shape: tuple[int, int, int],
    members: int,
    config: TrainConfig,
    mesh: Mesh | None = None,
    condition: ConditionSpec | None = None,
    start: Params | None = None,
) -> TrainState:
    """Return initial parameters, optimiser state and average of all members; every device computes its own members.

    Args:
        model: the network.
        image_shape: (H, W, C).
        members: K.
        config: the settings.
        mesh: the devices.
        condition: what the network is told about each image.
        start: parameters that every member starts from; by default each draws its own.
    """
    if start is not None and not isinstance(model, Adapted):
        params = _repeated(members, mesh)(start)
    else:
        key = jax.random.fold_in(jax.random.key(config.seed), 0)
        params = init_params(model, image_shape, members, key, mesh, condition)
    opt_state = _init_optimizer(StepSettings.of(config), mesh)(params)
    return TrainState(params, opt_state, jax.tree.map(jnp.copy, params) if config.ema else None)


def abstract_state(
    model: Denoiser,
    image_shape: tuple[int, int, int],
    members: int,
    config: TrainConfig,
    condition: ConditionSpec | None = None,
) -> TrainState:
    """Return the shapes and dtypes of `init_state`, without computing anything."""
    params = abstract_params(model, image_shape, members, condition)
    opt_state = jax.eval_shape(_init_optimizer(StepSettings.of(config), None), params)
    return TrainState(params, opt_state, params if config.ema else None)


@functools.lru_cache(maxsize=16)
def _repeated(members: int, mesh: Mesh | None) -> Callable[[Params], Params]:
    placed = None if mesh is None else NamedSharding(mesh, P("member"))

    def repeat(start):
        return jax.tree.map(lambda a: jnp.broadcast_to(a.astype(jnp.float32), (members, *a.shape)), start)

    return jax.jit(repeat, out_shardings=placed)


@functools.lru_cache(maxsize=16)
def _init_optimizer(settings: StepSettings, mesh: Mesh | None) -> Callable[[Params], Any]:
    placed = None if mesh is None else NamedSharding(mesh, P("member"))
    return jax.jit(jax.vmap(lambda params: optimizer(settings).init(ravel(params))), out_shardings=placed)


def step_keys(seed: Array | np.integer, step: Array, member: Array, position: Array) -> Array:
    """Return the key of one image in one member's batch. It depends on the arguments alone, so on no other member."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, member), step), position)


class Problem(NamedTuple):
    """What is learnt, and how: everything static that a member's loss depends on.

    Args:
        model: the network.
        schedule: the process, and what is predicted.
        space: how stored values become numbers in model space.
        condition: what the network is told about each image; None for an unconditional one.
        flip: mirror images left to right at random.
        weighting: the factor of the loss at each noise level.
        condition_dropout: the probability of training on an image without its condition.
    """

    model: Denoiser
    schedule: Schedule
    space: Space
    condition: ConditionSpec | None
    flip: bool
    weighting: Weighting
    condition_dropout: float


def member_loss(problem: Problem, params, images_BHWC, mask_B, cond_B, keys_B) -> Float[Array, ""]:
    """Return the sum over the batch of one member's masked loss (mean over pixels)."""
    schedule = problem.schedule

    def draw(key):
        level, noise, dropout, mirror = jax.random.split(key, 4)
        t = jax.random.randint(level, (), 0, schedule.timesteps)
        return t, jax.random.normal(noise, images_BHWC.shape[1:]), dropout, jax.random.bernoulli(mirror)

    t_B, eps_BHWC, dropout_B, mirror_B = jax.vmap(draw)(keys_B)
    if problem.flip:
        images_BHWC = jnp.where(mirror_B[:, None, None, None], images_BHWC[:, :, ::-1], images_BHWC)
    clean_BHWC = problem.space.to_model(images_BHWC)
    noisy_BHWC = add_noise(schedule, clean_BHWC, t_B, eps_BHWC)
    inputs, time_B = network_inputs(schedule, noisy_BHWC, t_B)
    cond_B = _dropped(problem, cond_B, keys_B)
    predicted = problem.model.apply(params, inputs, time_B, cond_B, dropout_B)
    error_B = jnp.square(predicted - target(schedule, clean_BHWC, eps_BHWC, t_B)).mean((1, 2, 3))
    if problem.weighting != "simple":
        error_B = error_B * jnp.asarray(loss_weights(schedule, problem.weighting), jnp.float32)[t_B]
    return jnp.sum(jnp.where(mask_B > 0, mask_B * error_B, 0.0))


def _dropped(problem: Problem, cond_B: Any, keys_B: Array) -> Any:
    """Return the conditions of a batch, those of some images replaced by the null row, by each image's own key."""
    if problem.condition is None or not problem.condition_dropout:
        return cond_B
    dropped_B = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 4), problem.condition_dropout))(
        keys_B
    )

    def replaced(some_B, null):
        return jnp.where(dropped_B.reshape(-1, *[1] * (some_B.ndim - 1)), null, some_B)

    return jax.tree.map(replaced, cond_B, problem.condition.null(1))


def member_update(
    settings: StepSettings, state: TrainState, gradient_R128: Array, step: Array
) -> tuple[TrainState, Float[Array, ""]]:
    """Make one member's optimiser step and update its average. Returns the new state and the norm of the gradient."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer count
        update_R128, opt_state = optimizer(settings).update(gradient_R128, state.opt_state)
    params = optax.apply_updates(state.params, unravel(update_R128, state.params))
    ema = state.ema
    if settings.ema:
        done = jnp.asarray(step, jnp.float32)
        decay = jnp.minimum(settings.ema, (1.0 + done) / (10.0 + done))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, ema, params)
    return TrainState(params, opt_state, ema), optax.tree.norm(gradient_R128)


def _member_step(problem: Problem, settings: StepSettings, mesh: Mesh | AbstractMesh, update: Callable) -> Callable:
    """Return one member's step on one device: loss, gradient, sum over the data shards, optimiser."""
    shards = mesh.shape["data"]

    def member_step(network, state, member, images_BHWC, mask_B, cond_B, step, seed):
        bound = problem._replace(model=network)
        B = len(mask_B)
        position_B = jax.lax.axis_index("data") * B + jnp.arange(B)
        keys_B = jax.vmap(lambda position: step_keys(seed, step, member, position))(position_B)

        def loss_of(params, *batch):
            return member_loss(bound, params, *batch) / (B * shards)

        def gradient(*batch):
            loss, gradient = jax.value_and_grad(loss_of)(state.params, *batch)
            return loss, ravel(gradient)

        parts = count_micro_batches(problem.model, images_BHWC.shape[1:], B, mesh)
        loss, gradient_R128 = sum_over_micro_batches(gradient, parts, images_BHWC, mask_B, cond_B, keys_B)
        if shards > 1:
            loss, gradient_R128 = jax.lax.psum((loss, gradient_R128), "data")
        state, norm = update(settings, state, gradient_R128, step)
        return state, StepMetrics(loss, norm)

    return member_step


def make_train_step(
    model: Denoiser,
    schedule: Schedule,
    config: TrainConfig,
    mesh: Mesh | AbstractMesh,
    space: Space = PIXELS,
    condition: ConditionSpec | None = None,
    update: Callable = member_update,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Return the compiled step of the whole ensemble: ``(state, batch, step, seed) -> (state, metrics)``.

    The state is donated; ``step`` and ``seed`` (`seed_of` the config) are integers. Adapted networks take a fifth
    argument, the parameters of their base. Configs with the same `StepSettings` get the same function.

    Each device computes its own members, on its share of their batches. Gradients are summed over the data axis; if
    that axis has size 1, there is no collective.
    """
    model = Execution.of(model).apply_to(model)  # so that "auto" and what it stands for share a program
    return _train_step(model, schedule, StepSettings.of(config), mesh, space, condition, update)


@functools.lru_cache(maxsize=16)
def _train_step(
    model: Denoiser,
    schedule: Schedule,
    settings: StepSettings,
    mesh: Mesh | AbstractMesh,
    space: Space,
    condition: ConditionSpec | None,
    update: Callable,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    step = local_step(model, schedule, settings, mesh, space, condition, update)
    in_specs = P("member"), P("member", "data"), P(), P(), *([P()] if isinstance(model, Adapted) else [])
    return per_device(step, mesh, in_specs, (P("member"), P("member")), donate=0)


def local_step(
    model: Denoiser,
    schedule: Schedule,
    settings: StepSettings,
    mesh: Mesh | AbstractMesh,
    space: Space,
    condition: ConditionSpec | None,
    update: Callable = member_update,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Return the step of one device's members on its part of their batches, see `make_train_step`.

    It must be called where the mesh's axes have names, as `ensdiff.ensemble.compiling.per_device` calls functions.
    """
    problem = Problem(model, schedule, space, condition, settings.flip, settings.weighting, settings.condition_dropout)
    member_step = _member_step(problem, settings, mesh, update)

    def step_of_members(state_K, batch_K, step, seed, base=None):
        members = len(batch_K.mask_KB)
        member_K = jax.lax.axis_index("member") * members + jnp.arange(members)
        network = model if base is None else model.bind(base)
        one = functools.partial(member_step, network, step=step, seed=seed)
        return update_members(network, one, state_K, member_K, *batch_K, in_place=platform(mesh) != "cpu")

    return step_of_members
