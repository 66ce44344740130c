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
from ensdiff.ensemble.mesh import make_mesh
from ensdiff.training.execution import Execution
from ensdiff.training.tuning import candidates

from ..benchmarks import jobs
from ..benchmarks.comparison import TERA, compare
from ..benchmarks.jobs import Setting
from ..benchmarks.timing import Entry, race
from .card import peak, peak_gib
from .journal import Row

GIB = 2**30


def stacking(
    left: Callable[[], float],
    networks: Mapping[str, Setting],
    most: int | None,
    repeats: int,
    chosen: dict[str, Mapping[str, Any]],
) -> Iterable[Row]:
    """Yield the time of a train step for each network and each way of computing members that training would time.

    Args:
        left: the seconds that remain.
        networks: the networks.
        most: how many ways to time; None for all.
        repeats: timings of each way.
        chosen: gets the fastest way of each network.
    """
    for name, setting in networks.items():
        if left() <= 0:
            return
        params = jobs.ensemble(setting)
        local = setting.members // make_mesh(setting.members, setting.batch).shape["member"]
        executions = candidates(Execution.of(setting.model), setting.model, local, jax.default_backend())[:most]
        ways = [{"conv": execution.conv, "stack": execution.stack} for execution in executions]
        known: dict[str, Mapping[str, Any]] = {_label(way): way for way in ways}
        fastest = float("inf")
        for entry in _raced(known, setting, params, repeats, left):
            row: Row = {"network": name, "way": entry.name}
            made = entry.job
            if made is not None:
                row |= {"compile s": made.compile_seconds, "program GiB": (made.memory or 0) / GIB}
            if made is not None and entry.seconds:
                row |= {"ms": 1e3 * entry.median, "TFLOP/s": made.flops / entry.median / TERA}
                if entry.median < fastest:
                    fastest, chosen[name] = entry.median, dict(known[entry.name])
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
        way = chosen.get(name, {})
        own = dataclasses.replace(setting, **way if job == "train" else differentiable(way))
        later = left() * (1 - 1 / (len(cases) - place))
        found = compare(
            name, own, job, repeats=repeats,
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


def _raced(
    ways: dict[str, Mapping[str, Any]],
    setting: Setting,
    params: ensdiff.Ensemble,
    repeats: int,
    left: Callable[[], float],
) -> Iterable[Entry]:
    """Yield the entries of a race of ways, and then the fastest of them with fused attention, which is added."""

    def times(some: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
        makers = {
            label: functools.partial(jobs.train_job, dataclasses.replace(setting, **way), params)
            for label, way in some.items()
        }
        return race(makers, repeats, pause=_pause(), left=left)

    entries = times(ways)
    yield from entries
    best = min(entries, key=lambda entry: entry.median, default=None)
    if best is not None and best.seconds and setting.dtype == "bfloat16" and jax.default_backend() == "gpu":
        fused = {**ways[best.name], "attention": "fused"}
        ways[_label(fused)] = fused
        yield from times({_label(fused): fused})


def _pause() -> float | None:
    """Return the seconds before a timing: none on a device of its own, see `timing.PAUSE`."""
    return None if jax.default_backend() == "cpu" else 0.0


def _label(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{field}={value}" for field, value in fields.items())


def _less(left: Callable[[], float], kept: float) -> float:
    return left() - kept


def differentiable(way: Mapping[str, Any]) -> dict[str, Any]:
    """Return a way without fused attention, which has no forward-mode derivative and is for training only."""
    return {field: value for field, value in way.items() if field != "attention"}


def pipelines(
    left: Callable[[], float],
    settings: Mapping[str, Setting],
    options: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Mapping[str, Any]],
    steps: int,
) -> Iterable[Row]:
    """Yield, for each way of feeding batches, how long the device waits for the host in a training step.

    That is the time of a step in `ensdiff.train`, less the time of the same compiled step on a batch that is there.

    Args:
        left: the seconds that remain.
        settings: the networks.
        options: fields of `ensdiff.TrainConfig`, for each way.
        chosen: how members are computed, as fields of `Setting`; by default one after another.
        steps: steps between the two marks.
    """
    for name, plain in settings.items():
        setting = dataclasses.replace(plain, **chosen.get(name, {"conv": "map"}))
        params = jobs.ensemble(setting)
        (alone,) = race({"": functools.partial(jobs.train_job, setting, params)}, 7, pause=_pause())
        images = np.random.default_rng(0).integers(0, 256, (4096, *setting.image_shape), np.uint8)
        data = ensdiff.data.arrays(images, groups=np.arange(len(images)) % params.code.units)
        if not alone.seconds:
            yield {"network": name, "way": "compiled step alone", "error": alone.error}
            continue
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
        if done:  # it is also called while ways to compute members are timed
            marks.append((time.perf_counter() - begin, done))
        return done >= 2 * steps

    with contextlib.suppress(ensdiff.Preempted):
        ensdiff.train(
            data, code, setting.model, setting.train, steps=10**6, checkpoint_every=10**6, log_every=10**6,
            progress=False, stop=stop, **option,
        )  # fmt: skip
    early = next(mark for mark in marks if mark[1] >= steps)
    return marks[0][0], (marks[-1][0] - early[0]) / max(marks[-1][1] - early[1], 1)
