"""The tables of `experiments.benchmark`: the timed computations, and their presentation."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import ensdiff
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.models import winograd
from ensdiff.models.conv import conv2d
from ensdiff.report import Table

from ..abstract import STEPS, Case
from ..tables import table
from . import jobs
from .comparison import compare
from .jobs import Setting
from .timing import interleave, ratio

GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Effort:
    """The size of the benchmark.

    Args:
        setting: the sizes of all tables but the first.
        repeats: timings of each alternative.
        networks: the sizes that are compared with PyTorch, by name.
        ways: names of PyTorch's ways (`ways.choose`); none means the usual ones.
        quick: whether to keep it short.
    """

    setting: Setting
    repeats: int
    networks: Mapping[str, Setting]
    ways: tuple[str, ...]
    quick: bool


def milliseconds(seconds: np.ndarray) -> float:
    """Return the median, in ms."""
    return float(np.median(seconds) * 1e3)


def spread(values: tuple[float, float, float]) -> str:
    """Return the median and range as text."""
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def against_pytorch(effort: Effort) -> list[Table]:
    """Time whole jobs with ensdiff and with PyTorch, and return the ratios, and the times of every way."""
    import torch

    on_gpu = jax.default_backend() == "gpu"
    dtypes, pause = (("float32", "bfloat16"), 0.0) if on_gpu else (("float32",), None)
    every, best = [], []
    for name, setting in effort.networks.items():
        params = jobs.ensemble(setting)
        for job in jobs.JOBS:
            found = compare(
                name, setting, job, repeats=effort.repeats, dtypes=dtypes, ways=list(effort.ways), pause=pause,
                params=params,
            )  # fmt: skip
            every += found.rows
            best.append(found.summary)
            print(found.summary, flush=True)
    sizes = "; ".join(f"{name}: {describe_setting(setting)}" for name, setting in effort.networks.items())
    s = effort.setting
    padding = (
        ""
        if on_gpu
        else (
            f" In the landscape, ensdiff evaluates {jobs.padding(s, jobs.ensemble(s)):.3f} times the "
            "necessary predictions (padding of batches)."
        )
    )
    note = (
        f"{sizes}. PyTorch {torch.__version__}, {torch.get_num_threads()} threads. A ratio is the median over turns of "
        f"ensdiff's time over that of the fastest PyTorch way.{padding} {describe(rates(effort))} {NOMINAL}"
    )
    return [table("Against PyTorch", best, note), table("Every way", every)]


def describe_setting(s: Setting) -> str:
    """Return the sizes of a setting as one clause."""
    H, W, C = s.image_shape
    return (
        f"K = {s.members}, {H}x{W}x{C}, {s.channels} channels times {s.multipliers}, batch {s.batch} per member, "
        f"factual {s.factual} samples, {s.factual_steps} steps, landscape {s.landscape[0]} units x {s.landscape[1]} "
        f"samples, {s.landscape_steps} step, jacobian {s.jacobian} samples, {s.jacobian_steps} step, loss "
        f"{s.loss[0]} images, {s.loss[1]} draws"
    )


def rates(effort: Effort) -> dict[str, float]:
    """Return the best measured GFLOP/s of all devices together, for a convolution of the U-Net and a matrix product."""
    mesh = make_mesh(len(jax.devices()))
    count, width, side = mesh.size, 2 * effort.setting.channels, effort.setting.side // 2
    x = on_mesh(jnp.ones((count, 64, side, side, width)), mesh)
    kernel = on_mesh(jnp.ones((count, 3, 3, width, width)) / width, mesh)
    a = on_mesh(jnp.ones((count, 1024, 1024)), mesh)

    def best(function: Callable, *arguments: Any, flops: int) -> float:
        compiled = per_device(function, mesh, P("member"), P("member"))
        seconds = interleave({"": lambda: jax.block_until_ready(compiled(*arguments))}, 2 * effort.repeats)[""]
        return count * flops / seconds.min() / GIGA

    return {
        "convolution": best(
            lambda x, k: conv2d(x[0], k[0], strategy="map")[None],
            x,
            kernel,
            flops=64 * side * side * 18 * width * width,
        ),
        "matrix product": best(lambda a: a @ a, a, flops=2 * 1024**3),
    }


def describe(rates: dict[str, float]) -> str:
    """Return `rates` as a sentence."""
    best = ", ".join(f"{kind} {value:.0f}" for kind, value in rates.items())
    return f"Best measured GFLOP/s of {len(jax.devices())} devices: {best}."


NOMINAL = "FLOPs are those of plain convolutions; Winograd's filtering executes fewer."


def flop_rates(effort: Effort) -> Table:
    """Compare the achieved FLOP/s of each job with the best measured rates."""
    params = jobs.ensemble(effort.setting)
    made = {name: make(effort.setting, params) for name, make in jobs.JOBS.items()}
    seconds = interleave({name: job.call for name, job in made.items()}, effort.repeats)
    machine = rates(effort)
    rows = []
    for name, job in made.items():
        achieved = job.flops / np.median(seconds[name]) / GIGA
        shares = {f"share of the best {kind}": achieved / best for kind, best in machine.items()}
        rows.append({"job": name, "ms": milliseconds(seconds[name]), "GFLOP/s": achieved, **shares})
    return table("Achieved rate", rows, f"{describe(machine)} {NOMINAL}")


def compilation(effort: Effort) -> Table:
    """Measure compile time and memory of the training step of one member and of many, and of predicting steps."""
    wanted = [("train", "map", 1), ("train", "map", 20)]
    if not effort.quick:  # these take minutes
        wanted += [("train", conv, members) for conv in ("loop", "grouped", "matmul") for members in (1, 20)]
        wanted += [(program, conv, 20) for program in ("landscape", "jacobian") for conv in ("map", "winograd")]
    rows = []
    for program, conv, members in wanted:
        setting = dataclasses.replace(effort.setting, members=members, conv=conv)
        mesh = make_mesh(members, devices=jax.devices()[:1])
        case = Case(
            setting.model, setting.image_shape, members, 6, ensdiff.Schedule(), setting.train, mesh,
            states=setting.factual, samples=1,
        )  # fmt: skip
        step = STEPS[program](case)
        lowered = step.function.lower(*step.arguments)
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        memory: Any = compiled.memory_analysis()
        rows.append({
            "step": program, "conv": conv, "members": members, "compile s": seconds,
            "temporaries MiB": memory.temp_size_in_bytes / 2**20,
            "arguments MiB": memory.argument_size_in_bytes / 2**20,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return table("Compiling a step", rows, "On one device, without the compilation cache.")


def growth(effort: Effort, title: str, job: str, settings: Iterable[tuple[dict[str, Any], Setting]]) -> Table:
    """Time a job over a range of settings."""
    rows = []
    for labels, setting in settings:
        made = jobs.JOBS[job](setting, jobs.ensemble(setting))
        seconds = interleave({"": made.call}, effort.repeats)[""]
        rows.append({
            **labels, "ms": milliseconds(seconds), "GFLOP": made.flops / GIGA,
            "GFLOP/s": made.flops / np.median(seconds) / GIGA,
        })  # fmt: skip
        print(title, rows[-1], flush=True)
    return table(title, rows)


def growths(effort: Effort) -> list[Table]:
    """Measure how cost grows with members, batch, units and image size."""
    base = dataclasses.replace(effort.setting, members=4, landscape=(8, 8))

    def vary(name: str, values: Iterable[Any]) -> list[tuple[dict[str, Any], Setting]]:
        return [({name: value}, dataclasses.replace(base, **{name: value})) for value in values]

    units = [({"units": m}, dataclasses.replace(base, landscape=(m, 8))) for m in (2, 8, 32)]
    return [
        growth(effort, "Training step against members", "train", vary("members", (2, 4, 8, 16, 32))),
        growth(effort, "Training step against the batch of a member", "train", vary("batch", (4, 8, 16, 32, 64))),
        growth(effort, "Training step against the side of the image", "train", vary("side", (8, 16, 28, 32, 64))),
        growth(effort, "Landscape step against units", "landscape", units),
    ]


def strategies(effort: Effort) -> list[Table]:
    """Compare the strategies that compute members."""
    base = dataclasses.replace(effort.setting, members=4, landscape=(6, 8))
    settings = [
        ({"conv": conv}, dataclasses.replace(base, conv=conv)) for conv in ("map", "winograd", "loop", "matmul")
    ]
    return [
        growth(effort, f"{what} against strategies, K = 4", job, settings)
        for what, job in (("Training step", "train"), ("Sampling", "factual"))
    ]


def layers(effort: Effort) -> Table:
    """Time 3x3 convolutions on one device, plain and by Winograd's filtering."""
    rows = []
    for side, C, D, images in [
        (28, 32, 32, 16), (28, 64, 32, 16), (28, 32, 64, 16), (28, 40, 40, 16), (28, 64, 64, 16), (28, 64, 64, 7),
        (14, 32, 32, 16), (14, 64, 32, 16), (14, 64, 64, 16), (7, 128, 128, 16), (4, 256, 256, 16), (64, 64, 64, 2),
    ]:  # fmt: skip
        x, kernel = jnp.ones((images, side, side, C)), jnp.ones((3, 3, C, D)) / C
        calls = {}
        for strategy in ("map", "winograd"):
            # time the filtering itself, without the thresholds of "winograd", which are chosen from this table
            layer = winograd.output if strategy == "winograd" else functools.partial(conv2d, strategy="map")

            def repeat(x, kernel, layer=layer):
                return jax.lax.map(lambda shift: layer(x + shift, kernel).sum(), jnp.arange(8.0))

            compiled = jax.jit(repeat).lower(x, kernel).compile()
            calls[strategy] = lambda compiled=compiled, x=x, k=kernel: jax.block_until_ready(compiled(x, k))
        seconds = interleave(calls, 2 * effort.repeats + 1)
        rows.append({
            "side": side, "channels": f"{C} to {D}", "C D / (C + D)": C * D / (C + D), "images": images,
            "map ms": milliseconds(seconds["map"]) / 8, "winograd / map": spread(ratio(seconds, "winograd", "map")),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return table("3x3 convolutions", rows)


def batch_sizes(effort: Effort) -> Table:
    """Time predictions of one member on one device, for several numbers of images per call."""
    from ensdiff.ensemble.members import apply_member

    setting = dataclasses.replace(effort.setting, members=2)
    params = jax.tree.map(lambda a: a[0], jobs.ensemble(setting).params)
    calls = {}
    for size in (2, 4, 8, 16, 32, 64, 128):
        x = jnp.ones((128 // size, size, *setting.image_shape))

        def predict(params, x, size=size):
            return jax.lax.map(lambda x: apply_member(setting.model, params, x, jnp.zeros((size,), jnp.int32)), x)

        compiled = jax.jit(predict).lower(params, x).compile()
        calls[str(size)] = lambda compiled=compiled, x=x: jax.block_until_ready(compiled(params, x))
    seconds = interleave(calls, effort.repeats)
    rows = [{"images at once": n, "ms per image": milliseconds(s) / 128} for n, s in seconds.items()]
    return table("Predictions against images per call", rows)


def devices(effort: Effort) -> Table:
    """Time the training step on increasing numbers of devices."""
    setting, every = effort.setting, jax.devices()
    params = jobs.ensemble(setting)
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= len(every) and setting.members % n == 0]
    meshes: dict[str, Mesh] = {str(n): make_mesh(setting.members, devices=every[:n]) for n in counts}
    made = {n: jobs.train_job(setting, params, mesh) for n, mesh in meshes.items()}
    seconds = interleave({n: job.call for n, job in made.items()}, effort.repeats)
    rows = [
        {"devices": n, "ms": milliseconds(s), "speed-up": float(np.median(seconds["1"] / s))}
        for n, s in seconds.items()
    ]
    return table("Training step against devices", rows)
