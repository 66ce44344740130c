"""The training loop around the compiled step, with checkpoints, metrics and progress."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ensdiff import hosts
from ensdiff.codes import Code
from ensdiff.data import Dataset, Splits, batch_indices
from ensdiff.data.images import grid, to_png
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.mesh import make_mesh, pace
from ensdiff.models.unet import UNetConfig
from ensdiff.runs.directory import RunDirectory
from ensdiff.runs.environment import environment
from ensdiff.runs.logs import read_environments
from ensdiff.sampling.sample import sample
from ensdiff.training.config import TrainConfig, seed_of
from ensdiff.training.execution import Execution, repeatable
from ensdiff.training.preemption import Preempted
from ensdiff.training.step import Batch, StepMetrics, TrainState, init_state, make_train_step, make_train_steps


class DivergedError(RuntimeError):
    """Training stopped because a member's loss or gradient was not finite.

    >>> ensdiff.train(data, code, params.model, steps=9, batch_size=2, learning_rate=1e30, progress=False)
    Traceback (most recent call last):
    ensdiff.training.loop.DivergedError: member ... diverged at step ...
    """


def make_batch(
    data: Dataset,
    splits: Splits,
    config: TrainConfig,
    step: int,
    members: slice = slice(None),
    positions: slice = slice(None),
) -> Batch:
    """Return the batch of every member at ``step``: images of its own split, and the mask recomputed from the code.

    ``members`` and ``positions`` (in the batches) restrict the result to the images that this process needs.
    """
    index_KB = batch_indices(splits, config.seed, step, config.batch_size, members)[:, positions]
    return Batch(data.images[index_KB], splits.mask(index_KB, members))


def stepper(
    data: Dataset,
    splits: Splits,
    model: UNetConfig,
    schedule: Schedule,
    config: TrainConfig,
    mesh: Mesh,
    execution: Execution,
) -> Callable[[TrainState, int, int], tuple[TrainState, StepMetrics]]:
    """Return a function ``(state, step, count) -> (state, metrics)`` that makes ``count`` steps, starting at ``step``.

    ``count`` is at most ``steps_per_call``. The state is donated; the metrics have a leading axis of steps. Every
    process places its own part of the batches.
    """
    shape_KB = splits.code.members, config.batch_size
    mine = hosts.local_block(mesh, P("member", "data"), shape_KB)
    per_call = config.steps_per_call
    seed = seed_of(config)
    model = execution.apply_to(model)
    step_fn = make_train_step(model, schedule, config, mesh)
    steps_fn = make_train_steps(model, schedule, config, mesh)

    def assemble(batch: Batch, spec: P, shape: tuple[int, ...]) -> Batch:
        return Batch(
            *(hosts.assemble(part, mesh, spec, shape + part.shape[len(shape) :]) for part in map(np.asarray, batch))
        )

    def call(state: TrainState, step: int, count: int) -> tuple[TrainState, StepMetrics]:
        batches = [make_batch(data, splits, config, s, *mine) for s in range(step, step + count)]
        if per_call == 1:
            state, metrics = step_fn(state, assemble(batches[0], P("member", "data"), shape_KB), np.int32(step), seed)
            metrics_S = jax.tree.map(lambda a: a[None], hosts.local(metrics))
        else:
            batches += batches[-1:] * (per_call - count)
            stacked = Batch(*(np.stack(part) for part in zip(*batches, strict=True)))
            placed = assemble(stacked, P(None, "member", "data"), (per_call, *shape_KB))
            state, metrics = steps_fn(state, placed, np.int32(step), np.int32(count), seed)
            metrics_S = jax.tree.map(lambda a: a[:count], hosts.local(metrics))
        if mesh.shape["data"] > 1:  # then the step contains a collective
            pace(metrics_S, mesh)
        return state, metrics_S

    return call


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
    stop: Callable[[int], bool] | None = None,
    **options,
) -> Ensemble:
    """Train an encoded ensemble: member k on the units whose code word has a 1 at k.

    Args:
        data: the images and their units.
        code: the code; ``code.units`` must equal ``data.units``. If both have names, these must agree in order.
        model: the U-Net; by default a small one for the data's channels.
        config: the settings; single fields can also be given as keyword arguments (``steps=200``).
        schedule: the noise schedule.
        run_dir: folder for checkpoints, metrics and sample grids; None writes nothing.
        resume: continue from the newest good checkpoint in ``run_dir``. Without it, a folder with checkpoints is
            refused.
        progress: show a progress bar.
        mesh: the devices, as a ('member', 'data') mesh; by default all.
        on_open: called on every process when the run directory is open and, on resuming, known to be of the same run.
        stop: called on every process after every step with the number of steps done. When it returns True (on all
            processes at the same step), a checkpoint is written and training ends with `Preempted`.
            `ensdiff.training.preemption.on_signals` yields such a function.
        **options: fields of `TrainConfig`.

    Returns:
        The trained `Ensemble`, with the moving average of the parameters if ``ema`` is not 0.

    Raises:
        ValueError: settings do not fit together.
        DivergedError: a loss or gradient was not finite. The message names the member and the step. The newest
            checkpoint is still good.
        DamagedError: there are checkpoints to resume from, but all of them are damaged.
        FolderInUseError: another run is writing into ``run_dir``.
        OSError: ``run_dir`` cannot be written to. The message gives the reason and the checkpoint that is kept.
        Preempted: ``stop`` returned True.

    Warns:
        UserWarning: training ends before a setting has its full effect, see `TrainConfig.unreached`.

    >>> small = ensdiff.UNetConfig(channels=4, multipliers=(1,), norm_groups=2)
    >>> ensdiff.train(data, code, small, steps=2, batch_size=2, run_dir="runs/mine", progress=False)
    Ensemble(8 members, 40 units, 8x8x1 images, ... parameters per member)
    >>> again = ensdiff.train(  # two more steps of the same run
    ...     data, code, params.model, steps=4, batch_size=2, run_dir="runs/mine", resume=True, progress=False
    ... )
    >>> [line["step"] for line in ensdiff.read_metrics("runs/mine")]
    [2, 4]
    """
    unknown = sorted(set(options) - {field.name for field in dataclasses.fields(TrainConfig)})
    if unknown:
        names = ", ".join(field.name for field in dataclasses.fields(TrainConfig))
        raise ValueError(f"unknown option {unknown[0]!r}: expected fields of TrainConfig, {names}")
    config = dataclasses.replace(config or TrainConfig(), **options)
    for text in config.unreached():
        hosts.warn(text, stacklevel=2)
    model = UNetConfig(image_channels=data.shape[-1]) if model is None else model
    schedule = Schedule() if schedule is None else schedule
    mesh = make_mesh(code.members, config.batch_size) if mesh is None else mesh
    if config.batch_size % mesh.shape["data"]:
        raise ValueError(
            f"batch_size={config.batch_size} cannot be split over {mesh.shape['data']} data shards: give a multiple"
        )

    data.check_present("training", "give data with these items, or a data.subset of the other items")
    splits = Splits.build(data, code, hosts.local_members(mesh, code.members))
    state = init_state(model, data.shape, code.members, config, mesh)
    digest = hosts.decide(data.digest)  # only process 0 reads all the data

    def ensemble(state: TrainState) -> Ensemble:
        params = state.params if state.ema is None else state.ema
        return Ensemble(params, code, model, schedule, data.shape, data_digest=digest)

    with RunDirectory.open(run_dir, keep=config.keep, keep_every=config.keep_every, resume=resume) as run:
        run.begin(ensemble(state), train=config, data=data)
        start, state, unlogged = run.restore(state) if run.latest is not None else (0, state, None)
        execution = hosts.decide(lambda: _execution(run, start, model, mesh))
        run.note_environment(start, {**environment(mesh), "execution": execution.record()})
        if on_open is not None:
            on_open()
        call = stepper(data, splits, model, schedule, config, mesh, execution)
        watch = _Watch(run, config, start, progress, unlogged)
        with watch:
            done = start
            while done < config.steps:
                state, metrics = call(state, done, config.steps_to_stop(done))
                watch.after(done, metrics)
                done += len(metrics.loss_K)
                stopping = stop is not None and stop(done) and done < config.steps
                if stopping or done % config.checkpoint_every == 0 or done == config.steps:
                    watch.settle()
                    run.save(done, state, watch.unlogged())
                if stopping:
                    run.wait()
                    told = f"{run_dir} has the checkpoint; set resume to continue"
                    kept = "nothing is saved" if run_dir is None else told
                    raise Preempted(f"asked to stop at step {done} of {config.steps}: {kept}")
                if config.sample_every and done % config.sample_every == 0:
                    run.write_file(f"samples/step_{done:07d}.png", sample_grid(ensemble(state)))
    return ensemble(state)


def _execution(run: RunDirectory, start: int, model: UNetConfig, mesh: Mesh) -> Execution:
    """Return how the steps from ``start`` on are executed: as before if the run is resumed in the same environment."""
    try:
        lines = read_environments(run.path) if run.path is not None and start else []
    except FileNotFoundError:
        lines = []
    before = repeatable(lines, environment(mesh), model)
    return Execution.of(model) if before is None else before


def sample_grid(params: Ensemble, n: int = 36) -> bytes:
    """Return a PNG of n samples (on every process), always from the same noise."""
    images = sample(params, 0, n, steps=min(50, params.schedule.timesteps), sampler="ddim").images
    return to_png(grid(np.asarray(images)), scale=4)


class _Watch:
    """Checks, logs and shows losses. It reads them one call late, so that the host never waits for the device."""

    def __init__(
        self, run: RunDirectory, config: TrainConfig, start: int, progress: bool, unlogged: dict[str, Any] | None
    ):
        self.run, self.config = run, config
        self.waiting: tuple[int, StepMetrics] | None = None
        before = unlogged or {"steps": 0, "loss_K": 0.0}
        self.steps, self.loss_K = before["steps"], np.asarray(before["loss_K"], np.float64)
        self.bar = hosts.progress_bar(config.steps, "train", "step", shown=progress, done=start)

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def after(self, first: int, metrics_S: StepMetrics) -> None:
        self.settle()
        self.waiting = first, metrics_S

    def settle(self) -> None:
        if self.waiting is None:
            return
        (first, metrics_S), self.waiting = self.waiting, None
        losses, norms = np.asarray(metrics_S.loss_K), np.asarray(metrics_S.grad_norm_K)
        for step, (loss_K, norm_K) in enumerate(zip(losses, norms, strict=True), first):
            self.check(step, loss_K, norm_K)

    def unlogged(self) -> dict[str, Any] | None:
        """Return the number of steps since the last logged one and the sums of their losses; None if there are none."""
        return {"steps": self.steps, "loss_K": self.loss_K.tolist()} if self.steps else None

    def check(self, step: int, loss_K: np.ndarray, norm_K: np.ndarray) -> None:
        bad = np.flatnonzero(~(np.isfinite(loss_K) & np.isfinite(norm_K)))
        if len(bad):
            self.run.wait()
            kept = f"the newest good checkpoint is step {self.run.latest}" if self.run.latest else "no checkpoint yet"
            raise DivergedError(
                f"member {bad[0]} diverged at step {step}: loss {loss_K[bad[0]]}, gradient norm {norm_K[bad[0]]} "
                f"({len(bad)} of {len(loss_K)} members; {kept}). Lower learning_rate, raise warmup or lower clip"
            )
        self.steps, self.loss_K = self.steps + 1, self.loss_K + loss_K
        self.bar.update(1)
        if (step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps:
            mean_K = self.loss_K / self.steps
            self.steps, self.loss_K = 0, np.zeros(())
            self.bar.set_postfix(loss=f"{mean_K.mean():.4f}", refresh=False)
            self.run.write_metrics(step + 1, loss_K=mean_K, grad_norm_K=norm_K)
