"""Check and measure ensdiff on this machine's accelerator within some minutes, and write a report.

The steps come in order of their value: versions; the reference implementation's numbers; bits of equal runs and of
isolated members; ways of computing members; train steps against PyTorch; how long the device waits for the host; a
profile; the other jobs against PyTorch; one real run. Each result is written as it comes, to results.jsonl and
report.md, so that a program that is stopped or killed leaves what it has. BUILD.md says how to prepare a machine
without a network.

Examples:
  python -m experiments.device --out=device --minutes=8 --data=fashion_mnist.npz
  python -m experiments.device --out=device --minutes=6 --small  (tiny sizes, to try it on a CPU)
"""

import dataclasses
import functools
import math
import os
import pathlib
import threading
from collections.abc import Mapping
from typing import Any

from absl import flags

from . import common

GRACE = 20.0
"""Seconds after the end of its time at which the program ends itself, even in the middle of a compilation."""


def main() -> None:
    """Run the steps and write the report."""
    # JAX would take three quarters of a GPU's memory, and PyTorch needs its own
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from .on_device import journal

    f = flags.FLAGS
    check(f.minutes, f.out)
    clock = journal.Clock(60 * f.minutes)
    steps = plan(f.small, f.data, f.out)
    if unknown := sorted(set(f.steps) - {step.name for step in steps}):
        raise ValueError(f"--steps={unknown[0]}: expected some of {', '.join(step.name for step in steps)}")
    steps = [step for step in steps if not f.steps or step.name in f.steps]
    written = journal.Journal(f.out, "ensdiff on this machine", steps, clock)
    watchdog = threading.Timer(clock.left() + GRACE, _end, (written,))
    watchdog.daemon = True
    watchdog.start()
    journal.run(steps, written, clock)
    watchdog.cancel()
    print(f"report: {written.folder / journal.REPORT}")


def check(minutes: float, out: str) -> None:
    """Refuse wrong values of flags.

    Raises:
        ValueError: the time is not a number of minutes.
        NotADirectoryError: the place of the results is a file.
    """
    if not math.isfinite(minutes):
        raise ValueError(f"--minutes={minutes}: expected a finite number")
    if pathlib.Path(out).exists() and not pathlib.Path(out).is_dir():
        raise NotADirectoryError(f"--out={out} is a file: give a folder")


def _end(written: Any) -> None:
    """End the program, whatever it computes. The report is complete up to the last row."""
    written.add("program", "cut", why="the time was over in the middle of a step")
    os._exit(0)


def plan(small: bool, data: str | None, out: str) -> list[Any]:
    """Return the steps, in order."""
    import ensdiff

    from .benchmarks import jobs
    from .on_device import card, checks, profiling, real, speed
    from .on_device.journal import Step

    # read at once: a wrong file would otherwise be found when most of the time is over
    pictures = None if data is None else ensdiff.data.npz(data, labels="labels")
    networks = dict(jobs.NETWORKS)
    if small:
        networks = {name: shrink(setting) for name, setting in networks.items()}
    # members are isolated one by one, in two groups of three, and all six together
    ways: list[dict[str, Any]] = [
        {"conv": "map"}, {"conv": "matmul", "stack": 3}, {"conv": "grouped"}, {"conv": "loop", "stack": 3},
        {"conv": "matmul"},
    ]  # fmt: skip
    if small:  # there is no time for more compilations
        ways = ways[:2]
    chosen: dict[str, Any] = {}
    per_call = 2 if small else 20
    fed = {"small": networks["small"]}
    feeds: list[dict[str, Any]] = [{"pipeline": "host"}, {"pipeline": "device", "steps_per_call": per_call}]
    sizes = (8, 4) if small else (16, 16)
    repeats = 2 if small else 7
    scale = 0.1 if small else 1.0
    other = [job for job in jobs.JOBS if job != "train"]
    train = [(name, networks[name], "train") for name in list(networks)[: 1 if small else None]]
    isolated = ensdiff.UNetConfig(channels=4 if small else 32, multipliers=(1,) if small else (1, 2), norm_groups=2)
    profiled = networks["small" if small else "cifar"]

    def profile(left):
        setting = dataclasses.replace(profiled, dtype="bfloat16", **chosen.get("small", {}))
        job = jobs.train_job(setting, jobs.ensemble(setting))
        job.call()
        yield from profiling.profile(job.call, 2 if small else 5)

    def real_run(left):
        read = ensdiff.data.digits() if pictures is None else pictures
        yield from real.real_run(
            left, study(small, read, speed.differentiable(chosen.get("small", {}))), read, pathlib.Path(out)
        )

    precisions = list(checks.PRECISIONS)[: 1 if small else None]
    parity = functools.partial(checks.parity, precisions=precisions)
    compare = functools.partial(speed.against_pytorch, repeats=repeats, chosen=chosen)
    stacked = dataclasses.replace(networks["small"], dtype="float32" if small else "bfloat16")
    steps = [
        Step("versions", "Versions and card", 0, card.versions, 0.5),
        Step("parity", "Numbers of the reference implementation", 30 * scale, parity, 0.5, PARITY),
        Step(
            "isolation", "Equal runs, and isolation of members, bit for bit", 30 * scale,
            lambda left: checks.isolation(left, ways, isolated, *sizes), 0.5, ISOLATION,
        ),
        Step(
            "stacking", "Ways of computing members, train step", 30 * scale,
            lambda left: speed.stacking(left, {"small": stacked}, 2 if small else None, repeats, chosen), 0.5,
        ),
        Step("train", "Train step against PyTorch", 30 * scale, lambda left: compare(left, train), 0.4, COMPARISON),
        Step(
            "pipeline", "Waiting for the host", 30 * scale,
            lambda left: speed.pipelines(left, fed, feeds, chosen, 8 * per_call), 0.35, PIPELINE,
        ),
        Step("profile", "Profile of a train step, bfloat16", 30 * scale, profile, 0.35, PROFILE),
        Step(
            "small", "The other jobs against PyTorch, small network", 30 * scale,
            lambda left: compare(left, [("small", networks["small"], job) for job in other]), 0.25, COMPARISON,
        ),
        Step("real", "A real run", 60 * scale, real_run, 0.0, REAL),
        Step(
            "large", "The other jobs against PyTorch, larger networks", 30 * scale,
            lambda left: compare(left, [(n, networks[n], job) for n in ("cifar", "paper") for job in other]), 0.0,
            COMPARISON,
        ),
    ]  # fmt: skip
    return steps[: -1 if small else None]  # in small sizes the larger networks are the small one


PARITY = (
    "A prediction and a sample after 1,000 steps of one member; differences in standard deviations of the reference."
)
ISOLATION = (
    "Training runs of four steps on the same data must be equal; only members that saw a changed unit may change."
)
COMPARISON = (
    "Medians of interleaved runs in one process. A ratio is ensdiff's time over that of the fastest PyTorch way. The "
    "first call includes compilation. Largest differences are from ensdiff in float32."
)
PIPELINE = (
    "The time of a step in training, less that of the same compiled step with a batch that is already there. With the "
    "device pipeline a step also gathers its batch, which counts as waiting."
)
PROFILE = "Kernels that multiply matrices are recognised by their names; on a CPU, operations of all threads count."
REAL = "Units are the classes. The Frechet distance is in the features of a small classifier; it is no FID."


def shrink(setting: Any) -> Any:
    """Return tiny sizes of the same kind of network."""
    return dataclasses.replace(
        setting, members=4, channels=16, multipliers=(1,), side=8, batch=4, factual=2,
        factual_steps=2, landscape=(4, 2), jacobian=1, loss=(2, 4),
    )  # fmt: skip


def study(small: bool, data: Any, way: Mapping[str, Any]) -> Any:
    """Return the size of the real run on some data, with a way of computing members."""
    import ensdiff

    from .on_device.real import Study

    colours = data.shape[-1]
    if small:
        model = ensdiff.UNetConfig(image_channels=colours, channels=8, multipliers=(1,), norm_groups=4)
        return Study(
            model, members=12, batch=8, samples=64, steps=5, attributed=3, held_out=200, most_steps=40, fitted=500
        )
    model = ensdiff.UNetConfig(
        image_channels=colours,
        channels=64,
        multipliers=(1, 2, 2),
        attention_levels=(1,),
        compute_dtype="bfloat16",
        **{"conv": "map", **way},
    )
    return Study(model)


def define_flags() -> None:
    """Define the command line, in a function because other programs have flags with these names."""
    flags.DEFINE_string("out", "device", "Folder for results.jsonl, report.md and samples.png.")
    flags.DEFINE_float("minutes", 8.0, "Time for everything. What does not fit is left out.", lower_bound=0.1)
    flags.DEFINE_bool("small", False, "Tiny sizes: all steps in about three minutes on 2 CPU cores.")
    flags.DEFINE_string(
        "data",
        None,
        "Pictures for the real run: .npz with images and labels. Default: the handwritten digits of sklearn.",
    )
    flags.DEFINE_list("steps", [], "Names of the steps to run, as in results.jsonl; by default all.")
    flags.adopt_module_key_flags(common)


if __name__ == "__main__":
    define_flags()
    common.run(main, __doc__)
