"""One training step of all members, compiled.

Each member minimises the simple loss of Ho et al. 2020, ``E |eps - eps_k(x_t, t)|^2`` (mean over pixels), over its own
split. Nothing is shared: batches, noise, clip, optimiser and average of a member are functions of its own split, its
number and the step (`step_keys`, `data.splits`). That is what makes an ablation exact: a member that did not see a
unit has bit for bit the parameters it would have without the unit.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, UInt8

from ensdiff.ensemble import count_pieces, init_params, sum_over_pieces, to_model, update_members
from ensdiff.schedule import Schedule, add_noise
from ensdiff.settings import check_fields
from ensdiff.typing import Array, ArrayLike, Params
from ensdiff.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        steps: optimiser steps.
        batch_size: images a member a step.
        learning_rate: peak rate of Adam.
        warmup: steps of linear warm-up from 0.
        decay: ``"constant"`` or ``"cosine"`` (to 0 at the last step).
        clip: largest norm of one member's gradient; 0 is no clipping.
        ema: decay of the exponential moving average of the parameters; 0 is none. The ensemble uses the average.
        flip: mirror images left to right at random.
        seed: of the initial parameters, the batches, the noise and dropout.
        log_every: steps between lines of metrics.
        checkpoint_every: steps between checkpoints; the last step is always kept.
        sample_every: steps between grids of samples; 0 is none.
        keep: the newest checkpoints that are kept.
        keep_every: checkpoints at multiples of so many steps are kept as well; 0 is none.
        steps_per_call: steps that one call of the compiled program makes. More than 1 saves an accelerator the wait
            for the host between steps; losses are then looked at once a call.

    >>> config = ensdiff.TrainConfig(steps=200, learning_rate=1e-3, decay="cosine")
    >>> config.steps, config.decay
    (200, 'cosine')
    """

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 2e-4
    warmup: int = 100
    decay: Literal["constant", "cosine"] = "constant"
    clip: float = 1.0
    ema: float = 0.0
    flip: bool = False
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 0
    keep: int = 3
    keep_every: int = 0
    steps_per_call: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep", "steps_per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("warmup", "sample_every", "clip", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 (none) or more")
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every={self.keep_every}: expected a multiple of checkpoint_every={self.checkpoint_every}, "
                "or 0 for none"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: expected a positive number")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: expected a decay in [0, 1); 0 is none")
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"decay={self.decay!r}: expected 'constant' or 'cosine'")

    def unreached(self) -> list[str]:
        """Settings that ``steps`` ends before, a sentence each: `ensdiff.train` warns of them.

        >>> TrainConfig(steps=50).unreached()
        ['warmup=100 is more than steps=50: the learning rate ends at 0.0001 and never reaches 0.0002; ...']
        """
        found = []
        if self.warmup > self.steps:
            last = self.learning_rate * self.steps / self.warmup
            found.append(
                f"warmup={self.warmup} is more than steps={self.steps}: the learning rate ends at {last:g} and never "
                f"reaches {self.learning_rate:g}; give a warmup of at most {self.steps}"
            )
        if self.sample_every > self.steps:
            found.append(
                f"sample_every={self.sample_every} is more than steps={self.steps}: no grid of samples is written; "
                f"give at most {self.steps}, or 0 for none"
            )
        return found

    def steps_to_stop(self, done: int) -> int:
        """Steps of the next call after ``done`` steps: up to the next checkpoint, grid of samples or end.

        >>> TrainConfig(steps=50, checkpoint_every=20, steps_per_call=8).steps_to_stop(16)
        4
        """
        stops = [self.steps - done, self.checkpoint_every - done % self.checkpoint_every]
        if self.sample_every:
            stops.append(self.sample_every - done % self.sample_every)
        return min(self.steps_per_call, *stops)


def decisive(train: Mapping[str, Any]) -> dict[str, Any]:
    """Of the fields of a `TrainConfig`, those that decide the parameters at a step; the others may change in resuming.

    >>> sorted(decisive({"seed": 0, "keep": 3, "steps": 40, "decay": "constant"}))
    ['decay', 'seed']
    """
    free = {"log_every", "checkpoint_every", "sample_every", "keep", "keep_every"}
    if train.get("decay") == "constant":
        free.add("steps")  # with cosine decay the number of steps shapes the learning rate
    return {name: value for name, value in train.items() if name not in free}


class TrainState(NamedTuple):
    """What a checkpoint holds. Every array has a leading member axis; ``ema`` is None without averaging."""

    params: Params
    opt_state: Any
    ema: Params | None


class Batch(NamedTuple):
    """One step's images and the mask that repeats, from the code alone, which of them may teach their member."""

    images_KBHWC: UInt8[ArrayLike, "K B H W C"]
    mask_KB: Float[ArrayLike, "K B"]


class StepMetrics(NamedTuple):
    """Loss (mean over pixels and batch) and norm of the gradient before clipping, of each member."""

    loss_K: Float[Array, " K"]
    grad_norm_K: Float[Array, " K"]


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam with warm-up and a clip, for *one* member."""
    peak = config.learning_rate
    if config.decay == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup, max(config.steps, config.warmup + 1))
    else:
        rate = optax.linear_schedule(0.0 if config.warmup else peak, peak, max(config.warmup, 1))
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    return optax.chain(clip, optax.adam(rate))


def init_state(
    model: UNetConfig, image_shape: tuple[int, int, int], members: int, config: TrainConfig, mesh: Mesh | None = None
) -> TrainState:
    """Initial parameters, optimiser state and average of all members; on a mesh, computed where they stay."""
    params = init_params(model, image_shape, members, jax.random.fold_in(jax.random.key(config.seed), 0), mesh)
    return TrainState(
        params, _init_optimizer(config, mesh)(params), jax.tree.map(jnp.copy, params) if config.ema else None
    )


@functools.lru_cache(maxsize=16)
def _init_optimizer(config: TrainConfig, mesh: Mesh | None) -> Callable[[Params], Any]:
    placed = None if mesh is None else NamedSharding(mesh, P("member"))
    return jax.jit(jax.vmap(optimizer(config).init), out_shardings=placed)


def seed_of(config: TrainConfig) -> np.uint32:
    """The seed as an argument of the compiled steps, so that one program serves all seeds."""
    return np.uint32(config.seed % 2**32)  # as much of it as a JAX key takes


def step_keys(seed: Array | np.integer, step: Array, member: Array, position: Array) -> Array:
    """The key of one image in one member's batch: a function of nothing else, so of no other member."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, member), step), position)


def member_loss(
    model: UNetConfig, schedule: Schedule, value_range, flip: bool, params, images_BHWC, mask_B, keys_B
) -> Float[Array, ""]:
    """Sum over the batch of one member's masked loss, mean over pixels."""

    def draw(key):
        level, noise, dropout, mirror = jax.random.split(key, 4)
        t = jax.random.randint(level, (), 0, schedule.timesteps)
        return t, jax.random.normal(noise, images_BHWC.shape[1:]), dropout, jax.random.bernoulli(mirror)

    t_B, eps_BHWC, dropout_B, mirror_B = jax.vmap(draw)(keys_B)
    if flip:
        images_BHWC = jnp.where(mirror_B[:, None, None, None], images_BHWC[:, :, ::-1], images_BHWC)
    x_BHWC = add_noise(schedule, to_model(images_BHWC, value_range), t_B, eps_BHWC)
    predicted = UNet(model).apply({"params": params}, x_BHWC, t_B, dropout_B if model.dropout else None)
    error_B = jnp.square(predicted - eps_BHWC).mean((1, 2, 3))
    return jnp.sum(jnp.where(mask_B > 0, mask_B * error_B, 0.0))


def member_update(
    config: TrainConfig, state: TrainState, grads: Params, step: Array
) -> tuple[TrainState, Float[Array, ""]]:
    """One member's optimiser step and average; returns the norm of its gradient too."""
    updates, opt_state = optimizer(config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.ema:
        decay = jnp.minimum(config.ema, (1.0 + step) / (10.0 + step))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, ema, params)
    return TrainState(params, opt_state, ema), optax.tree.norm(grads)


def _member_step(
    model: UNetConfig, schedule: Schedule, config: TrainConfig, mesh: Mesh, value_range, update: Callable
) -> Callable:
    """One member's step on one device: loss, gradient, sum over the data shards, optimiser."""
    shards = mesh.shape["data"]

    def member_step(state, member, images_BHWC, mask_B, step, seed):
        B = len(mask_B)
        position_B = jax.lax.axis_index("data") * B + jnp.arange(B)
        keys_B = jax.vmap(lambda position: step_keys(seed, step, member, position))(position_B)

        def loss_of(params, images_BHWC, mask_B, keys_B):
            loss = member_loss(model, schedule, value_range, config.flip, params, images_BHWC, mask_B, keys_B)
            return loss / (B * shards)

        pieces = count_pieces(model, images_BHWC.shape[1:], B, mesh)
        gradient = functools.partial(jax.value_and_grad(loss_of), state.params)
        loss, grads = sum_over_pieces(gradient, pieces, images_BHWC, mask_B, keys_B)
        if shards > 1:
            loss, grads = jax.lax.psum((loss, grads), "data")
        state, norm = update(config, state, grads, step)
        return state, StepMetrics(loss, norm)

    return member_step


@functools.lru_cache(maxsize=16)
def make_train_step(
    model: UNetConfig,
    schedule: Schedule,
    config: TrainConfig,
    mesh: Mesh,
    value_range: tuple[float, float] = (-1.0, 1.0),
    update: Callable = member_update,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The compiled step of the whole ensemble: ``(state, batch, step, seed) -> (state, metrics)``.

    The state is donated; ``step`` and ``seed`` (`seed_of` the config) are integers.

    Each device works on its own members (and on its share of their batches, where there is a data axis: then the
    gradients are summed over it; over a pure member mesh there is no collective).
    """
    member_step = _member_step(model, schedule, config, mesh, value_range, update)
    local_step = _local_step(model, member_step)
    mapped: Any = jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(P("member"), P("member", "data"), P("member", "data"), P(), P()),
        out_specs=(P("member"), P("member")),
        check_vma=False,
    )
    return jax.jit(lambda state, batch, *numbers: mapped(state, *batch, *numbers), donate_argnums=0)


def _local_step(model: UNetConfig, member_step: Callable) -> Callable:
    def local_step(state_K, images_KBHWC, mask_KB, step, seed):
        members = len(mask_KB)
        member_K = jax.lax.axis_index("member") * members + jnp.arange(members)
        one = functools.partial(member_step, step=step, seed=seed)
        return update_members(model, one, state_K, member_K, images_KBHWC, mask_KB)

    return local_step


@functools.lru_cache(maxsize=16)
def make_train_steps(
    model: UNetConfig,
    schedule: Schedule,
    config: TrainConfig,
    mesh: Mesh,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """``config.steps_per_call`` steps in one program: ``(state, batches, step, count, seed) -> (state, metrics)``.

    Batches and metrics have a leading axis of ``steps_per_call`` steps; only the first ``count`` of them are made, so
    that the program is the same, and gives the same bits, whatever the number.
    """
    local_step = _local_step(model, _member_step(model, schedule, config, mesh, value_range, member_update))

    def local_steps(state_K, images_SKBHWC, mask_SKB, first, count, seed):
        zeros_SK = jnp.zeros(mask_SKB.shape[:2])

        def one(i, carry):
            state_K, metrics = carry
            state_K, new = local_step(state_K, images_SKBHWC[i], mask_SKB[i], first + i, seed)
            return state_K, jax.tree.map(lambda all_S, now: all_S.at[i].set(now), metrics, new)

        return jax.lax.fori_loop(0, count, one, (state_K, StepMetrics(zeros_SK, zeros_SK)))

    mapped: Any = jax.shard_map(
        local_steps,
        mesh=mesh,
        in_specs=(P("member"), P(None, "member", "data"), P(None, "member", "data"), P(), P(), P()),
        out_specs=(P("member"), P(None, "member")),
        check_vma=False,
    )
    return jax.jit(lambda state, batches, *numbers: mapped(state, *batches, *numbers), donate_argnums=0)
