"""How fast: ways of stacking members, the comparison with PyTorch, and how long the device waits for the host."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import ensdiff
from experiments.benchmarks import jobs
from experiments.benchmarks.comparison import TERA, compare
from experiments.benchmarks.jobs import Setting
from experiments.benchmarks.timing import race
from experiments.on_device.card import peak, peak_gib
from experiments.on_device.journal import Row

GIB = 2**30


def stacking(
    left: Callable[[], float],
    networks: Mapping[str, Setting],
    ways: Sequence[Mapping[str, Any]],
    repeats: int,
    chosen: dict[str, Mapping[str, Any]],
) -> Iterable[Row]:
    """Yield the time of a train step for each way of computing members and each network.

    Args:
        left: the seconds that remain.
        networks: the networks.
        ways: fields of `Setting`, for each way.
        repeats: timings of each way.
        chosen: gets the fastest way of each network.
    """
    for name, setting in networks.items():
        if left() <= 0:
            return
        params = jobs.ensemble(setting)
        makers = {}
        for way in ways:
            own = dataclasses.replace(setting, **way)
            makers[_label(way)] = functools.partial(jobs.train_job, own, params)
        fastest = float("inf")
        for entry in race(makers, repeats, pause=_pause(), left=left):
            row: Row = {"network": name, "way": entry.name}
            made = entry.job
            if made is not None:
                row |= {"compile s": made.compile_seconds, "program GiB": (made.memory or 0) / GIB}
            if made is not None and entry.seconds:
                row |= {"ms": 1e3 * entry.median, "TFLOP/s": made.flops / entry.median / TERA}
                if entry.median < fastest:
                    fastest, chosen[name] = entry.median, ways[list(makers).index(entry.name)]
            if entry.error:
                row["error"] = entry.error
            yield row
        if name in chosen:
            yield {"finding": f"Fastest train step, {name}: {_label(chosen[name])} ({1e3 * fastest:.3g} ms)."}


def against_pytorch(
    left: Callable[[], float],
    cases: Sequence[tuple[str, Setting, str]],
    repeats: int,
    chosen: Mapping[str, Mapping[str, Any]],
) -> Iterable[Row]:
    """Yield the rows of the comparison of each case (network, sizes, job), among which the time is divided.

    Args:
        left: the seconds that remain.
        cases: the cases.
        repeats: timings of each way.
        chosen: how ensdiff computes the members of a network, as fields of `Setting`; by default as `auto` chooses.
    """
    for place, (name, setting, job) in enumerate(cases):
        if left() <= 0:
            return
        later = left() * (1 - 1 / (len(cases) - place))
        found = compare(
            name, dataclasses.replace(setting, **chosen.get(name, {})), job, repeats=repeats,
            dtypes=("float32", "bfloat16"), pause=_pause(), peak=peak(),
            left=functools.partial(_less, left, later),
        )  # fmt: skip
        yield {"table": "Best against best", **found.summary}
        yield from ({"table": "Every way", **row} for row in found.rows)
        if "ratio (range)" in found.summary:
            yield {
                "finding": f"{name}, {job}: ensdiff takes {found.summary['ratio (range)']} of the time of the fastest "
                f"PyTorch ({found.summary['PyTorch']})."
            }
        shares = [row["share of bf16 peak"] for row in found.rows if "share of bf16 peak" in row]
        if job == "train" and shares:
            yield {"finding": f"{name}, {job}: up to {max(shares):.1%} of the card's bfloat16 peak."}


def _pause() -> float | None:
    """Return the seconds before a timing: none on a device of its own, see `timing.PAUSE`."""
    return None if jax.default_backend() == "cpu" else 0.0


def _label(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{field}={value}" for field, value in fields.items())


def _less(left: Callable[[], float], kept: float) -> float:
    return left() - kept


def pipelines(
    left: Callable[[], float], settings: Mapping[str, Setting], options: Sequence[Mapping[str, Any]], steps: int
) -> Iterable[Row]:
    """Yield, for each way of feeding batches, how long the device waits for the host in a training step.

    That is the time of a step in `ensdiff.train`, less the time of the same compiled step on a batch that is there.

    Args:
        left: the seconds that remain.
        settings: the networks.
        options: fields of `ensdiff.TrainConfig`, for each way.
        steps: steps between the two marks.
    """
    for name, setting in settings.items():
        params = jobs.ensemble(setting)
        (alone,) = race({"": functools.partial(jobs.train_job, setting, params)}, 7, pause=_pause())
        images = np.random.default_rng(0).integers(0, 256, (4096, *setting.image_shape), np.uint8)
        data = ensdiff.data.arrays(images, groups=np.arange(len(images)) % params.code.units)
        for option in options:
            if left() <= 0:
                return
            label = _label(option) or "as set by default"
            row: Row = {"network": name, "way": label, "compiled step ms": 1e3 * alone.median}
            try:
                first, per_step = _train(setting, data, params.code, option, steps)
            except Exception as error:
                yield row | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
                continue
            waits = max(0.0, 1 - alone.median / per_step)
            yield row | {
                "first call s": first, "step in training ms": 1e3 * per_step, "waits for the host": waits,
                "peak GiB so far": peak_gib(),
            }  # fmt: skip
            yield {"finding": f"{name}, {label}: the device waits for the host {waits:.1%} of the time."}


def _train(setting: Setting, data, code: ensdiff.Code, option: Mapping[str, Any], steps: int) -> tuple[float, float]:
    """Return the seconds until the first call returned, and the seconds per step after some calls."""
    begin = time.perf_counter()
    marks: list[tuple[float, int]] = []

    def stop(done: int) -> bool:
        marks.append((time.perf_counter() - begin, done))
        return done >= 2 * steps

    with contextlib.suppress(ensdiff.Preempted):
        ensdiff.train(
            data, code, setting.model, setting.train, steps=10**6, checkpoint_every=10**6, log_every=10**6,
            progress=False, stop=stop, **option,
        )  # fmt: skip
    early = next(mark for mark in marks if mark[1] >= steps)
    return marks[0][0], (marks[-1][0] - early[0]) / max(marks[-1][1] - early[1], 1)
