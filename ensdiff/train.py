"""Training all members as one compiled step, and the loop around it.

Each member minimises the simple loss of Ho et al. 2020, ``E |eps - eps_k(x_t, t)|^2`` (mean over pixels), over its own
split. Nothing is shared: batches, noise, clip, optimiser and average of a member are functions of its own split, its
number and the step (`step_keys`, `data.splits`). That is what makes an ablation exact: a member that did not see a
unit has bit for bit the parameters it would have without the unit.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, UInt8
from tqdm import tqdm

from ensdiff import hosts
from ensdiff.checkpoint import RunDirectory
from ensdiff.codes import Code
from ensdiff.data import Dataset, Splits, batch_indices
from ensdiff.ensemble import Ensemble, init_params, make_mesh, pace, to_model
from ensdiff.environment import environment
from ensdiff.images import grid, to_png
from ensdiff.sample import sample
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

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("warmup", "sample_every", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 (none) or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: expected a positive number")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: expected a decay in [0, 1); 0 is none")
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"decay={self.decay!r}: expected 'constant' or 'cosine'")


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


class DivergedError(RuntimeError):
    """Training stopped because a member's loss or gradient was not finite."""


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
    placed = None if mesh is None else NamedSharding(mesh, P("member"))
    opt_state = jax.jit(jax.vmap(optimizer(config).init), out_shardings=placed)(params)
    return TrainState(params, opt_state, jax.tree.map(jnp.copy, params) if config.ema else None)


def step_keys(seed: int, step: Array, member: Array, position: Array) -> Array:
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


def update_members(config: TrainConfig, state_K: TrainState, grads_K: Params, step: Array):
    """`member_update` of every member, each on its own."""
    return jax.vmap(functools.partial(member_update, config), in_axes=(0, 0, None))(state_K, grads_K, step)


@functools.lru_cache(maxsize=16)
def make_train_step(
    model: UNetConfig,
    schedule: Schedule,
    config: TrainConfig,
    mesh: Mesh,
    value_range: tuple[float, float] = (-1.0, 1.0),
    update: Callable = update_members,
) -> Callable[[TrainState, Batch, Array | np.integer], tuple[TrainState, StepMetrics]]:
    """The compiled step of the whole ensemble: ``(state, batch, step) -> (state, metrics)``; the state is donated.

    Each device works on its own members (and on its share of their batches, where there is a data axis: then the
    gradients are summed over it; over a pure member mesh there is no collective).
    """
    shards = mesh.shape["data"]

    def local_step(state, images_KBHWC, mask_KB, step):
        K, B = mask_KB.shape
        member_K = jax.lax.axis_index("member") * K + jnp.arange(K)
        position_B = jax.lax.axis_index("data") * B + jnp.arange(B)
        keys_KB = jax.vmap(
            lambda member: jax.vmap(lambda position: step_keys(config.seed, step, member, position))(position_B)
        )(member_K)
        loss_of = functools.partial(member_loss, model, schedule, value_range, config.flip)

        def total(params_K):
            loss_K = jax.vmap(loss_of)(params_K, images_KBHWC, mask_KB, keys_KB) / (B * shards)
            return loss_K.sum(), loss_K

        grads_K, loss_K = jax.grad(total, has_aux=True)(state.params)
        if shards > 1:
            grads_K, loss_K = jax.lax.psum((grads_K, loss_K), "data")
        state, norm_K = update(config, state, grads_K, step)
        return state, StepMetrics(loss_K, norm_K)

    mapped: Any = jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(P("member"), P("member", "data"), P("member", "data"), P()),
        out_specs=(P("member"), P("member")),
        check_vma=False,
    )
    return jax.jit(lambda state, batch, step: mapped(state, *batch, step), donate_argnums=0)


def make_batch(
    data: Dataset,
    splits: Splits,
    config: TrainConfig,
    step: int,
    members: slice = slice(None),
    positions: slice = slice(None),
) -> Batch:
    """Step ``step``'s batch of every member: images of its own split, and the mask looked up anew from the code.

    ``members`` and ``positions`` in their batches are all, or those whose images this process needs.
    """
    index_KB = batch_indices(splits, config.seed, step, config.batch_size, members)[:, positions]
    return Batch(data.images[index_KB], splits.mask(index_KB, members))


def train(
    data: Dataset,
    code: Code,
    model: UNetConfig | None = None,
    config: TrainConfig | None = None,
    *,
    schedule: Schedule | None = None,
    run_dir: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
    mesh: Mesh | None = None,
    on_open: Callable[[], None] | None = None,
    **options,
) -> Ensemble:
    """Train an encoded ensemble: member k on the units whose code word has a 1 at k.

    Args:
        data: the images and their units.
        code: the code; ``code.units`` must equal ``data.units``.
        model: the U-Net; by default a small one for the data's channels.
        config: how to train; single fields can be given as keyword arguments instead (``steps=200``).
        schedule: the noise schedule.
        run_dir: where to write checkpoints, metrics and sample grids; None writes nothing.
        resume: continue from the newest checkpoint in ``run_dir``. Without it, a folder with checkpoints is refused.
        progress: show a progress bar.
        mesh: the devices, a ('member', 'data') mesh; by default all.
        on_open: called (on every process) once the run directory is open and, when resuming, found to be the same run.
        **options: fields of `TrainConfig`.

    Returns:
        The trained `Ensemble` (its moving average, where ``ema`` is on).

    Raises:
        ValueError: settings that do not fit together.
        DivergedError: a loss or gradient was not finite; names the member and the step. The newest checkpoint is good.
    """
    unknown = sorted(set(options) - {field.name for field in dataclasses.fields(TrainConfig)})
    if unknown:
        names = ", ".join(field.name for field in dataclasses.fields(TrainConfig))
        raise ValueError(f"unknown option {unknown[0]!r}: expected fields of TrainConfig, {names}")
    config = dataclasses.replace(config or TrainConfig(), **options)
    model = UNetConfig(image_channels=data.shape[-1]) if model is None else model
    schedule = Schedule() if schedule is None else schedule
    mesh = make_mesh(code.members, config.batch_size) if mesh is None else mesh
    if config.batch_size % mesh.shape["data"]:
        raise ValueError(f"batch_size={config.batch_size} does not divide over {mesh.shape['data']} data shards")

    splits = Splits.build(data, code, hosts.local_members(mesh, code.members))
    state = init_state(model, data.shape, code.members, config, mesh)
    shape_KB, spec_KB = (code.members, config.batch_size), P("member", "data")
    mine = hosts.local_block(mesh, spec_KB, shape_KB)

    def batch_at(step: int) -> Batch:
        parts = make_batch(data, splits, config, step, *mine)
        return Batch(
            *(hosts.assemble(part, mesh, spec_KB, shape_KB + part.shape[2:]) for part in map(np.asarray, parts))
        )

    def ensemble(state: TrainState) -> Ensemble:
        return Ensemble(state.params if state.ema is None else state.ema, code, model, schedule, data.shape)

    with RunDirectory.open(run_dir, keep=config.keep, resume=resume) as run:
        run.begin(ensemble(state), train=config, data=data)
        start, state = run.restore(state) if run.latest is not None else (0, state)
        run.note_environment(start, environment(mesh))
        if on_open is not None:
            on_open()
        step_fn = make_train_step(model, schedule, config, mesh)
        watch = _Watch(run, config, start, progress)
        with watch:
            for step in range(start, config.steps):
                state, metrics = step_fn(state, batch_at(step), np.int32(step))
                if mesh.shape["data"] > 1:  # then the step holds a collective
                    pace(metrics, mesh)
                watch.after(step, metrics)
                done = step + 1
                if done % config.checkpoint_every == 0 or done == config.steps:
                    watch.settle()
                    run.save(done, state)
                if config.sample_every and done % config.sample_every == 0:
                    run.write_file(f"samples/step_{done:07d}.png", sample_grid(ensemble(state)))
    return ensemble(state)


def sample_grid(params: Ensemble, n: int = 36) -> bytes:
    """A PNG of n samples (on every process), from the same noise whatever the parameters."""
    images = sample(params, 0, n, steps=min(50, params.schedule.timesteps), sampler="ddim").images
    return to_png(grid(np.asarray(images)), scale=4)


class _Watch:
    """Reads losses one step late (so that the device is never waited for), checks, logs and shows them."""

    def __init__(self, run: RunDirectory, config: TrainConfig, start: int, progress: bool):
        self.run, self.config = run, config
        self.waiting: tuple[int, StepMetrics] | None = None
        self.recent: list[np.ndarray] = []
        self.bar = tqdm(
            total=config.steps, initial=start, desc="train", unit="step", disable=not (progress and hosts.is_writer())
        )

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def after(self, step: int, metrics: StepMetrics) -> None:
        self.settle()
        self.waiting = step, hosts.local(metrics)

    def settle(self) -> None:
        if self.waiting is None:
            return
        (step, metrics), self.waiting = self.waiting, None
        loss_K, norm_K = np.asarray(metrics.loss_K), np.asarray(metrics.grad_norm_K)
        bad = np.flatnonzero(~(np.isfinite(loss_K) & np.isfinite(norm_K)))
        if len(bad):
            kept = f"the newest good checkpoint is step {self.run.latest}" if self.run.latest else "no checkpoint yet"
            raise DivergedError(
                f"member {bad[0]} diverged at step {step}: loss {loss_K[bad[0]]}, gradient norm {norm_K[bad[0]]} "
                f"({len(bad)} of {len(loss_K)} members; {kept}). Lower learning_rate, raise warmup or lower clip"
            )
        self.recent.append(loss_K)
        self.bar.update(1)
        if (step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps:
            mean_K = np.mean(self.recent, axis=0)
            self.recent.clear()
            self.bar.set_postfix(loss=f"{mean_K.mean():.4f}", refresh=False)
            self.run.write_metrics(step + 1, loss_K=mean_K, grad_norm_K=norm_K)
