"""The training loop around the compiled steps, with checkpoints, metrics and progress."""

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensdiff import hosts
from ensdiff.codes import Code
from ensdiff.codes.unit_names import UnitNames
from ensdiff.data import Dataset, Splits
from ensdiff.data.images import grid, to_png
from ensdiff.data.viewing import viewer
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.ensemble import Combine, Ensemble, check_scale
from ensdiff.ensemble.mesh import make_mesh, platform
from ensdiff.models.adapters import Adapted, check_start
from ensdiff.models.denoiser import Denoiser, check_null
from ensdiff.models.parameters import digest_of
from ensdiff.models.unet import UNetConfig
from ensdiff.runs.directory import RunDirectory
from ensdiff.runs.environment import environment
from ensdiff.runs.logs import read_environments
from ensdiff.sampling.sample import sample
from ensdiff.settings import check_value
from ensdiff.training.config import TrainConfig
from ensdiff.training.device import fits
from ensdiff.training.execution import Execution, repeatable
from ensdiff.training.preemption import Preempted
from ensdiff.training.step import TrainState, init_state
from ensdiff.training.stepper import CallLength, Stepper, stepper
from ensdiff.training.tuning import NAME, is_measured, tune
from ensdiff.training.watch import DivergedError, Watch
from ensdiff.typing import Params

__all__ = ["DivergedError", "sample_grid", "train"]


def train(
    data: Dataset,
    code: Code,
    model: Denoiser | None = None,
    config: TrainConfig | None = None,
    *,
    schedule: Schedule | None = None,
    start: Params | None = None,
    combine: Combine | None = None,
    scale: float = 1.0,
    run_dir: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
    mesh: Mesh | None = None,
    on_open: Callable[[], None] | None = None,
    on_metrics: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    stop: Callable[[int], bool] | None = None,
    **options,
) -> Ensemble:
    """Train an encoded ensemble: member k on the units whose code word has a 1 at k.

    Args:
        data: the images and their units.
        code: the code; ``code.units`` must equal ``data.units``. If both have names, these must agree in order.
        model: the network of one member, a `Denoiser` such as a `UNetConfig` or `DiTConfig`; by default a small U-Net
            for the data's channels and conditions.
        config: the settings; single fields can also be given as keyword arguments (``steps=200``).
        schedule: the process, and what the members predict; by default 1,000 noise levels and the noise.
        start: parameters of one member (without a member axis) that all members start from, to fine-tune a trained
            network; by default every member draws its own. Adapted networks start from their base.
        combine: what the generator combines, see `ensdiff.ensemble.ensemble.Combine`; ``"parameters"`` needs members
            that share their start. By default ``"predictions"``.
        scale: the factor of averaged changes with ``"parameters"``; training does not depend on it, and `ensdiff.load`
            may choose another.
        run_dir: folder for checkpoints, metrics and sample grids; None writes nothing.
        resume: continue from the newest good checkpoint in ``run_dir``. Without it, a folder with checkpoints is
            refused.
        progress: show a progress bar.
        mesh: the devices, as a ('member', 'data') mesh; by default all.
        on_open: called on every process when the run directory is open and, on resuming, known to be of the same run.
        on_metrics: called on process 0 with the number of steps done and what ``metrics.jsonl`` gets, one number per
            member: the mean loss since the call before (``loss_K``) and the norm of the gradient (``grad_norm_K``).
        stop: called on every process after every call of the compiled program (every step, or with the device
            pipeline about every half second, and while ways to compute members are timed) with the number of steps
            done. When it returns True (on all processes
            at the same step), a checkpoint is written and training ends with `Preempted`.
            `ensdiff.training.preemption.on_signals` yields such a function.
        **options: fields of `TrainConfig`.

    Returns:
        The trained `Ensemble`, with the moving average of the parameters if ``ema`` is not 0.

    Raises:
        ValueError: settings do not fit together.
        DivergedError: a loss or gradient was not finite. The message names the member and the step. The newest
            checkpoint is still good.
        RuntimeError: the ways to compute members were timed (`ensdiff.training.tuning`), and none works.
        DamagedError: there are checkpoints to resume from, but all of them are damaged.
        FolderInUseError: another run is writing into ``run_dir``.
        OSError: ``run_dir`` cannot be written to. The message gives the reason and the checkpoint that is kept.
        Preempted: ``stop`` returned True.

    Warns:
        UserWarning: training ends before a setting has its full effect, see `TrainConfig.unreached`; or the host
            makes the batches, although ``steps_per_call`` is given.

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
    if combine is not None:
        check_value("combine", combine, Combine)
    scale = check_scale(scale)
    if data.condition_spec is not None and config.condition_dropout == 0:
        hosts.warn(
            "condition_dropout=0: members never learn what no condition means, so give each sample its condition, and "
            "no guidance other than 1",
            stacklevel=2,
        )
    model = default_model(data) if model is None else model
    schedule = Schedule() if schedule is None else schedule
    model, base = _start_of(model, start, combine)
    mesh = make_mesh(code.members, config.batch_size) if mesh is None else mesh
    if config.batch_size % mesh.shape["data"]:
        raise ValueError(
            f"batch_size={config.batch_size} cannot be split over {mesh.shape['data']} data shards: give a multiple"
        )

    data.check_present("training", "give data with these items, or a data.subset of the other items")
    check_null(model, data.shape, data.condition_spec)
    splits = Splits.build(data, code, hosts.local_members(mesh, code.members))
    state = init_state(model, data.shape, code.members, config, mesh, data.condition_spec, base)
    digest = hosts.decide(data.digest)  # only process 0 reads all the data
    start_digest = None if base is None else digest_of(base)
    named = UnitNames.of(data.unit_names)

    def ensemble(state: TrainState) -> Ensemble:
        params = state.params if state.ema is None else state.ema
        spec, how = data.condition_spec, combine or "predictions"
        return Ensemble(
            params, code, model, schedule, data.shape, data.space, spec, digest, base, how, scale, start_digest, named
        )

    def steps_of(execution: Execution, steps: range) -> AbstractContextManager[Stepper]:
        return stepper(data, splits, model, schedule, config, mesh, execution, steps, base)

    with RunDirectory.open(run_dir, keep=config.keep, keep_every=config.keep_every, resume=resume) as run:
        run.begin(ensemble(state), train=config, data=data)
        start, state, unlogged = run.restore(state) if run.latest is not None else (0, state, None)
        pipeline = _pipeline(data, splits, config, mesh)
        recorded = hosts.decide(lambda: _recorded(run, start, model, config, mesh))
        execution = Execution.of(model, pipeline) if recorded is None else recorded
        untimed = recorded is None and start < config.steps
        if untimed and isinstance(model, UNetConfig) and is_measured(model, mesh):
            local = code.members // mesh.shape["member"]
            execution, state = tune(
                execution, model, local, mesh, steps_of, state, start, run, stop=stop, progress=progress
            )
        run.note_environment(start, {**environment(mesh), "execution": execution.record()})
        if on_open is not None:
            on_open()
        if execution.pipeline == "host" and config.steps_per_call > 1:
            hosts.warn(
                f"steps_per_call={config.steps_per_call} has no effect where the host makes the batches, one step per "
                "call; pipeline='device' makes many",
                stacklevel=2,
            )
        length = CallLength(1 if execution.pipeline == "host" else config.steps_per_call)
        with (
            Watch(run, config, start, progress, unlogged, length, on_metrics) as watch,
            steps_of(execution, range(start, config.steps)) as (call, most),
        ):
            done = start
            while done < config.steps:
                count = min(length.next(), most, config.steps_to_stop(done))
                started = time.monotonic()
                state, metrics = call(state, done, count)
                watch.after(done, count, metrics, started)
                done += count
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


def _start_of(model: Denoiser, start: Params | None, combine: Combine | None) -> tuple[Denoiser, Params | None]:
    """Return the network without the parameters of its base, and the parameters that all members start from."""
    if isinstance(model, Adapted):
        if start is not None:
            raise ValueError("start= is given, but adapted members start from their base: leave it out")
        if model.base_params is None:
            raise ValueError(f"{model.name} does not hold its base's parameters: make it with ensdiff.models.adapted")
        return model.without_base(), model.base_params
    if start is not None:
        check_start(model, start)
        start = jax.tree.map(jnp.asarray, start)
    elif combine == "parameters":
        raise ValueError(
            'combine="parameters" needs members that share their start, and every member draws its own here: give '
            "start=, the parameters of a trained network, or a model of ensdiff.models.adapted"
        )
    return model, start


def _pipeline(data: Dataset, splits: Splits, config: TrainConfig, mesh: Mesh) -> Literal["host", "device"]:
    """Return the pipeline that the settings select. All processes must call it."""
    if config.pipeline != "auto":
        return config.pipeline
    if platform(mesh) == "cpu":
        return "host"
    if fits(data, splits, config.batch_size, mesh):
        return "device"
    hosts.warn(
        "the data set takes more than a quarter of a device's memory, so the host makes the batches; "
        "pipeline='device' puts it into the devices' memory all the same",
        stacklevel=3,
    )
    return "host"


def _recorded(run: RunDirectory, start: int, model: Denoiser, config: TrainConfig, mesh: Mesh) -> Execution | None:
    """Return the execution to repeat, if the run is resumed in an environment in which it was trained before."""
    if run.path is not None and getattr(model, "conv", None) == "measure" and not (run.path / NAME).exists():
        return None  # trained without timing so far
    try:
        lines = read_environments(run.path) if run.path is not None and start else []
    except FileNotFoundError:
        lines = []
    return repeatable(lines, environment(mesh), model, config.pipeline)


def default_model(data: Dataset) -> UNetConfig:
    """Return a small U-Net for the data's channels and conditions.

    Raises:
        ValueError: the condition is neither a class, nor a vector, nor tokens.
    """
    spec = data.condition_spec
    if spec is None:
        return UNetConfig(image_channels=data.shape[-1])
    leaf = spec.leaves[0]
    if len(spec.leaves) == 1 and leaf.classes is not None:
        return UNetConfig(image_channels=data.shape[-1], classes=leaf.classes)
    if len(spec.leaves) == 1 and leaf.dtype == "float32" and len(leaf.shape) == 1:
        return UNetConfig(image_channels=data.shape[-1], condition_width=leaf.shape[0])
    if len(spec.leaves) == 1 and leaf.dtype == "float32" and len(leaf.shape) == 2:
        length, width = leaf.shape
        return UNetConfig(image_channels=data.shape[-1], context_width=width, context_length=length)
    raise ValueError(
        "the data's condition is neither a class nor a vector nor tokens per image: give a model that takes it, such "
        "as ensdiff.models.functions(init, apply)"
    )


def sample_grid(params: Ensemble, n: int = 36) -> bytes:
    """Return a PNG of n samples (on every process), always from the same noise.

    Classes take turns; other conditions are left out. Latents are shown as
    `ensdiff.data.viewing.rough_view`, without a decoder.
    """
    cond = None if params.condition is None else params.condition.in_turn(n)
    images = sample(params, 0, n, steps=min(50, params.schedule.timesteps), sampler="ddim", cond=cond).images
    return to_png(grid(viewer(params.space, like=images)(images)), scale=4)
