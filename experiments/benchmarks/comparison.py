"""ensdiff against PyTorch, best against best: one job of one network, all ways in turn in one process."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import ensdiff

from . import jobs
from .jobs import Job, Setting
from .timing import Entry, race, ratio_of
from .ways import choose

TERA = 1e12
OURS = {"float32": "ensdiff", "bfloat16": "ensdiff bf16"}


class Comparison(NamedTuple):
    """The times of one job.

    Args:
        rows: one row per way, also of those that failed.
        summary: one row: the fastest of each library, and their ratio; smaller is better for ensdiff.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def compare(
    name: str,
    setting: Setting,
    job: str,
    *,
    repeats: int,
    dtypes: Sequence[str] = ("float32",),
    ways: list[str] | None = None,
    pause: float | None = None,
    peak: float | None = None,
    left: Callable[[], float] | None = None,
    params: ensdiff.Ensemble | None = None,
) -> Comparison:
    """Time one job with ensdiff in each dtype and with PyTorch in each way.

    Args:
        name: name of the network.
        setting: its sizes.
        job: one of `jobs.JOBS`.
        repeats: timings of each way.
        dtypes: dtypes in which ensdiff computes.
        ways: names of PyTorch's ways, see `ways.choose`; None means the usual ones. Without PyTorch and diffusers,
            ensdiff alone is timed, and the summary says why.
        pause: seconds before each timing, see `timing.race`.
        peak: FLOP/s of the device, for the share of it that is reached; None leaves the column out.
        left: returns the seconds that remain; ways for which none are left get a row without a time.
        params: the ensemble of ``setting``; by default built here.

    Raises:
        ValueError: an unknown way.
    """
    params = jobs.ensemble(setting) if params is None else params
    makers: dict[str, Callable[[], Job]] = {}
    for dtype in dtypes:
        own = dataclasses.replace(setting, dtype=dtype)
        ensemble = dataclasses.replace(params, model=own.model)
        makers[OURS[dtype]] = functools.partial(jobs.JOBS[job], own, ensemble)
    theirs, why = _theirs(setting, job, params, ways)
    entries = race(_most_valuable_first(makers, theirs), repeats, pause=pause, left=left)
    ours = [entry for name in makers for entry in entries if entry.name == name]
    others = [entry for entry in entries if entry.name not in makers]
    flops = next((entry.job.flops for entry in ours if entry.job is not None), 0)
    exact = [entry for entry in ours if entry.name == OURS["float32"] and job != "train"]  # in training noise differs
    want = _result(exact[0]) if exact else None
    rows = [_row(name, job, entry, flops, peak, want) for entry in entries]
    for entry in entries:
        entry.job = None  # and with it the memory
    if theirs:
        from . import pytorch

        pytorch.release()
    summary: dict[str, Any] = {"network": name, "job": job}
    best, rival = min(ours, key=lambda e: e.median), min(others, key=lambda e: e.median, default=None)
    if best.seconds:
        summary |= {"ensdiff": best.name, "ensdiff ms": 1e3 * best.median}
    if rival is not None and rival.seconds:
        summary |= {"PyTorch": rival.name, "PyTorch ms": 1e3 * rival.median}
        for label, entry in [("ratio (range)", best), *((f"{e.name} / PyTorch", e) for e in ours[:-1])]:
            if set(entry.turns) & set(rival.turns):
                summary[label] = "{:.2f} ({:.2f} to {:.2f})".format(*ratio_of(entry, rival))
    elif not best.seconds or why or others:
        summary["note"] = why or (best.error if not best.seconds else others[0].error)
    return Comparison(rows, summary)


def _most_valuable_first(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return all makers in the order in which they are built, so that both libraries have a time when time runs out."""
    mine, rivals = list(reversed(ours.items())), list(theirs.items())  # a bfloat16 network is the faster one on GPUs
    return dict(mine[:1] + rivals[:2] + mine[1:] + rivals[2:])


def _theirs(
    setting: Setting, job: str, params: ensdiff.Ensemble, ways: list[str] | None
) -> tuple[dict[str, Callable[[], Job]], str]:
    """Return the makers of PyTorch's ways, or none and why."""
    try:
        from . import pytorch
    except ImportError as error:
        return {}, f"not compared with PyTorch: {error}"
    chosen = choose(pytorch.device(), job, ways)
    return {f"PyTorch {way.name}": functools.partial(pytorch.JOBS[job], setting, params, way) for way in chosen}, ""


def _result(entry: Entry) -> np.ndarray | None:
    return None if entry.job is None or entry.error else entry.job.call()


def _row(name: str, job: str, entry: Entry, flops: int, peak: float | None, want: np.ndarray | None) -> dict[str, Any]:
    row: dict[str, Any] = {"network": name, "job": job, "way": entry.name}
    if entry.first_seconds:
        row["first call s"] = entry.first_seconds
    if entry.job is not None and entry.job.compile_seconds is not None:
        row["compile s"] = entry.job.compile_seconds
    if entry.seconds:
        rate = flops / entry.median
        row |= {"ms": 1e3 * entry.median, "TFLOP/s": rate / TERA}
        if peak:
            row["share of bf16 peak"] = rate / peak
        got = None if want is None else _result(entry)
        if got is not None and want is not None:
            row["largest difference"] = float(np.abs(got - want).max() / np.abs(want).max())
    if entry.job is not None and entry.job.memory is not None:
        row["program GiB"] = entry.job.memory / 2**30
    if entry.error:
        row["error"] = entry.error
    return row
