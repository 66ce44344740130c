"""Wall-clock times of alternatives that take turns, so that a change in machine load affects all of them equally."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping

import numpy as np

from .jobs import Job

PAUSE = 0.3
"""Seconds between two timings, because the other library's idle threads spin for a while and would occupy a core."""


@dataclasses.dataclass
class Entry:
    """An alternative in a race.

    Args:
        name: its name.
        job: the job; None if it could not be built.
        first_seconds: wall-clock time of building it and of its first call, which include compilation.
        turns: the turns in which it was timed.
        seconds: wall-clock times of these turns.
        error: why it was not timed; empty if it was.
    """

    name: str
    job: Job | None = None
    first_seconds: float = 0.0
    turns: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        """Return the median time in seconds; infinity if it was never timed."""
        return float(np.median(self.seconds)) if self.seconds else float("inf")


def race(
    makers: Mapping[str, Callable[[], Job]],
    repeats: int,
    *,
    pause: float | None = None,
    left: Callable[[], float] | None = None,
) -> list[Entry]:
    """Build jobs and time them in turn. One that fails keeps its error and leaves the race.

    Args:
        makers: functions that build the jobs, by name.
        repeats: timings of each alternative, after one uncounted call.
        pause: seconds before each timing; None means `PAUSE`.
        left: returns the seconds that remain. When none do, no further alternative is built, and there are no further
            turns after the first.
    """
    entries = [Entry(name) for name in makers]

    def attempt(entry: Entry, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:  # another library's error may be of any type
            entry.error = describe(error)

    def build(entry: Entry) -> None:
        start = time.perf_counter()
        entry.job = makers[entry.name]()
        entry.job.call()
        entry.first_seconds = time.perf_counter() - start

    for entry in entries:
        if left is not None and left() <= 0:
            entry.error = "no time left"
        else:
            attempt(entry, functools.partial(build, entry))
    for turn in range(repeats):
        if turn and left is not None and left() <= 0:
            break
        for entry in entries:
            if entry.job is not None and not entry.error:
                attempt(entry, functools.partial(_time, entry, entry.job.call, turn, pause))
    return entries


def describe(error: BaseException) -> str:
    """Return the type and the first 300 characters of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _time(entry: Entry, call: Callable[[], object], turn: int, pause: float | None) -> None:
    time.sleep(PAUSE if pause is None else pause)
    start = time.perf_counter()
    call()
    entry.seconds.append(time.perf_counter() - start)
    entry.turns.append(turn)


def interleave(alternatives: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Time the alternatives in turn, ``repeats`` times each after one uncounted call, and return their seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(repeats + 1):
        for name, call in alternatives.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, np.ndarray], of: str, to: str) -> tuple[float, float, float]:
    """Return the median, smallest and largest ratio of times within a turn."""
    ratios = seconds[of] / seconds[to]
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())


def ratio_of(entry: Entry, other: Entry) -> tuple[float, float, float]:
    """Return the same of two entries of a race, over the turns in which both were timed."""
    both = sorted(set(entry.turns) & set(other.turns))
    times = {
        name: np.array([e.seconds[e.turns.index(turn)] for turn in both]) for name, e in (("of", entry), ("to", other))
    }
    return ratio(times, "of", "to")
