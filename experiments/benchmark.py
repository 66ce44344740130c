"""Measure the compute core: time against PyTorch, compile time, memory, FLOP/s, and how cost grows.

It prints tables and, with --out, writes them as Markdown and JSON. Alternatives take turns, and a reported ratio is the
median of the ratios within each turn. Without PyTorch and diffusers the comparison is left out, with a note.

Examples:
  python -m experiments.benchmark --quick
  python -m experiments.benchmark --repeats=3 --out=benchmarks
  python -m experiments.benchmark --tables=compilation,devices --members=8 --channels=32
"""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import platform
import resource
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import ensdiff
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.models import winograd
from ensdiff.models.conv import conv2d
from ensdiff.report import Table
from experiments import common
from experiments.abstract import STEPS, Case
from experiments.benchmarks import jobs
from experiments.benchmarks.jobs import Setting
from experiments.benchmarks.timing import interleave, ratio
from experiments.tables import as_records, markdown, table

GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured."""

    setting: Setting
    repeats: int
    channels: tuple[int, ...]
    quick: bool


def milliseconds(seconds: np.ndarray) -> float:
    """Median, in ms."""
    return float(np.median(seconds) * 1e3)


def spread(values: tuple[float, float, float]) -> str:
    """Median and range."""
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def against_pytorch(effort: Effort) -> Table:
    """Whole jobs, ensdiff against a PyTorch loop over members."""
    import torch

    from experiments.benchmarks import pytorch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    for channels in effort.channels:
        setting = dataclasses.replace(effort.setting, channels=channels)
        params = jobs.ensemble(setting)
        for name, make in jobs.JOBS.items():
            ours, theirs = make(setting, params), pytorch.JOBS[name](setting, params)
            seconds = interleave({"ensdiff": ours.call, "PyTorch": theirs.call}, effort.repeats)
            row = {
                "job": name,
                "channels": channels,
                "ensdiff ms": milliseconds(seconds["ensdiff"]),
                "PyTorch ms": milliseconds(seconds["PyTorch"]),
                "ratio (range)": spread(ratio(seconds, "ensdiff", "PyTorch")),
                "ensdiff GFLOP/s": ours.flops / np.median(seconds["ensdiff"]) / GIGA,
            }
            if name != "train":  # whose noise differs
                got, want = ours.call(), theirs.call()
                row["largest difference"] = f"{np.abs(got - want).max() / np.abs(want).max():.0e}"
            rows.append(row)
            print(row, flush=True)
    s = effort.setting
    note = (
        f"K = {s.members}, {s.side}x{s.side}x1, batch {s.batch} a member, float32. factual: {s.factual} samples, "
        f"{s.factual_steps} steps; landscape: {s.landscape[0]} units x {s.landscape[1]} samples, {s.landscape_steps} "
        f"step; jacobian: {s.jacobian} samples, {s.jacobian_steps} step. PyTorch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; the landscape's batches of ensdiff hold "
        f"{jobs.padding(s, jobs.ensemble(s)):.3f} times the surviving predictions. {describe(rates(effort))} {NOMINAL}"
    )
    return table("Against PyTorch, one member after another", rows, note)


def rates(effort: Effort) -> dict[str, float]:
    """The machine's best measured GFLOP/s, all devices together: a convolution of the U-Net, and a matrix product."""
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
    """`rates` in a sentence."""
    best = ", ".join(f"{kind} {value:.0f}" for kind, value in rates.items())
    return f"Best measured GFLOP/s of {len(jax.devices())} devices: {best}."


NOMINAL = "Products are counted as those of plain convolutions, of which Winograd's filtering executes fewer."


def flop_rates(effort: Effort) -> Table:
    """Achieved FLOP/s of each job, alone, against the best measured rates."""
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
    """Seconds to compile the training step of one member and of many, and predicting steps; and their memory."""
    wanted = [("train", "map", 1), ("train", "map", 20)]
    if not effort.quick:  # minutes
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
    """Cost of a job over a range of settings."""
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
    """How cost grows with members, batch, units and image size."""
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
    """The ways of computing members."""
    base = dataclasses.replace(effort.setting, members=4, landscape=(6, 8))
    settings = [
        ({"conv": conv}, dataclasses.replace(base, conv=conv)) for conv in ("map", "winograd", "loop", "matmul")
    ]
    return [
        growth(effort, f"{what} against strategies, K = 4", job, settings)
        for what, job in (("Training step", "train"), ("Sampling", "factual"))
    ]


def layers(effort: Effort) -> Table:
    """3x3 convolutions on one device, plain and by Winograd's filtering."""
    rows = []
    for side, C, D, images in [
        (28, 32, 32, 16), (28, 64, 32, 16), (28, 32, 64, 16), (28, 40, 40, 16), (28, 64, 64, 16), (28, 64, 64, 7),
        (14, 32, 32, 16), (14, 64, 32, 16), (14, 64, 64, 16), (7, 128, 128, 16), (4, 256, 256, 16), (64, 64, 64, 2),
    ]:  # fmt: skip
        x, kernel = jnp.ones((images, side, side, C)), jnp.ones((3, 3, C, D)) / C
        calls = {}
        for strategy in ("map", "winograd"):
            # the thresholds of "winograd" are what is measured: the filtering itself
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
    """Predictions of one member on one device, by the images of one application."""
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
    rows = [{"images at once": n, "ms an image": milliseconds(s) / 128} for n, s in seconds.items()]
    return table("Predictions against the images of one application", rows)


def devices(effort: Effort) -> Table:
    """The training step on more and more devices."""
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


def machine() -> str:
    """Processor, devices and versions, in a line."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores ({platform.machine()}), {len(jax.devices())} {device.platform} devices ({device.device_kind}), "
        f"jax {jax.__version__}, ensdiff {ensdiff.__version__}"
    )


def choose_groups(asked: list[str], quick: bool, missing: list[str]) -> list[str]:
    """The groups of tables to make: ensdiff's rates stand in for a comparison with PyTorch that cannot be made.

    Raises:
        ValueError: an unknown group, or none but the comparison is asked for and packages are missing.
    """
    groups = asked or (["pytorch", "compilation"] if quick else list(GROUPS))
    if set(groups) - set(GROUPS):
        raise ValueError(f"--tables={','.join(groups)}: expected some of {', '.join(GROUPS)}")
    if not missing or "pytorch" not in groups:
        return groups
    why = f"{', '.join(missing)} not installed (pip install 'ensdiff[benchmark]')"
    if groups == ["pytorch"]:
        raise ValueError(f"--tables=pytorch: {why}")
    print(f"not compared with PyTorch: {why}")
    return list(dict.fromkeys("rates" if name == "pytorch" else name for name in groups))


def main() -> None:
    """Measure, print and write."""
    f = flags.FLAGS
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are of the compiler
    channels = tuple(int(c) for c in f.channels) or ((32,) if f.quick else (32, 64))
    members = f.members if f.members is not None else 8 if f.quick else 16
    setting = Setting(members=members, side=f.side, channels=channels[0])
    if f.quick:
        setting = dataclasses.replace(setting, factual_steps=2, jacobian=1, landscape=(8, 8))
    effort = Effort(setting, repeats=f.repeats or (3 if f.quick else 7), channels=channels, quick=f.quick)
    print(machine(), flush=True)
    missing = [name for name in ("torch", "diffusers", "safetensors") if importlib.util.find_spec(name) is None]
    for name in choose_groups(f.tables, f.quick, missing):
        tables = GROUPS[name](effort)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        head = f"{machine()}; peak memory of the program so far {peak:.1f} GiB; median of {effort.repeats}\n"
        text = "\n".join([head, *map(markdown, tables)])
        print(text, flush=True)
        if f.out:  # each when it is there: the whole takes long
            out = pathlib.Path(f.out)
            out.mkdir(parents=True, exist_ok=True)
            record = {"machine": machine(), "tables": [as_records(table) for table in tables]}
            (out / f"{name}.md").write_text(text)
            (out / f"{name}.json").write_text(json.dumps(record, indent=1, default=float) + "\n")
            print(f"wrote {out / name}.md and .json", flush=True)


GROUPS: dict[str, Callable[[Effort], list[Table]]] = {
    "pytorch": lambda effort: [against_pytorch(effort)],
    "rates": lambda effort: [flop_rates(effort)],
    "compilation": lambda effort: [compilation(effort)],
    "strategies": strategies,
    "growth": growths,
    "batch": lambda effort: [batch_sizes(effort)],
    "layers": lambda effort: [layers(effort)],
    "devices": lambda effort: [devices(effort)],
}


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_bool("quick", False, "Under 5 minutes on 2 cores: one width, 8 members, fewer repeats, two tables.")
    flags.DEFINE_integer("members", None, "Members K, at least 1; by default 16 (8 with --quick).", lower_bound=1)
    flags.DEFINE_integer("side", 28, "Height and width of the images.")
    flags.DEFINE_list("channels", [], "Widths of the U-Net, by default 32,64 (32 with --quick).")
    flags.DEFINE_integer("repeats", None, "Timings of each alternative; by default 7 (3 with --quick).")
    flags.DEFINE_list(
        "tables",
        [],
        f"Tables, of {', '.join(GROUPS)}; by default all, or with --quick pytorch (rates without PyTorch) and "
        "compilation.",
    )
    flags.DEFINE_string("out", None, "Folder to write the tables to, as Markdown and JSON.")
    flags.adopt_module_key_flags(common)


if __name__ == "__main__":
    define_flags()
    common.run(main, __doc__)
