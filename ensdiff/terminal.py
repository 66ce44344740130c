"""What somebody who waits sees on stderr: bars and lines on a terminal or in a notebook, a few lines in a log file."""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

TICK = 1.0
"""Seconds between two updates of the time that a bar shows before its first unit of work is done."""
QUIET = 2.0
"""Seconds of waiting that a log file says nothing about."""
MEASURED = 5.0
"""Seconds of measured work before an estimate."""
WORTH = 30.0
"""Seconds of remaining work from which an estimate is worth a line."""

LINE = 60.0
"""Seconds between two lines about the same work in a log file."""

_MENTIONED: set[str] = set()
"""The lines that log files hold already."""


def interactive() -> bool:
    """Return whether stderr is a terminal or belongs to a notebook; otherwise it is a file, where bars are noise."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(shell, "kernel")  # that ipykernel was imported does not make a notebook


def say(text: str) -> None:
    """Write a line to stderr, above any bars."""
    tqdm.write(text, file=sys.stderr)


class Bar(tqdm):
    """A progress bar whose clock runs from the start, also while the first unit of work is compiled.

    Where no bar is drawn, a line is written when work is counted, at most every `LINE` seconds.

    Args:
        first: what takes time before the first unit, such as "compiling"; it is shown beside the clock, and is a line
            of its own where no bar is drawn, after `QUIET` seconds.
        shown: whether anything is written.
        desc: the label.
        **options: of `tqdm.tqdm`.
    """

    def __init__(self, *, first: str = "", shown: bool = True, desc: str, **options: Any) -> None:
        drawn = shown and interactive()
        self._label, self._first, self._started = desc, first, threading.Event()
        self._lines = _Lines(desc, options) if shown and not drawn else None
        super().__init__(desc=f"{desc}, {first}" if first else desc, disable=not drawn, **options)
        if drawn or (shown and first):
            target = self._tick if drawn else self._mention
            threading.Thread(target=target, name="ensdiff-clock", daemon=True).start()

    def _tick(self) -> None:
        while not self._started.wait(TICK):
            self.refresh()

    def _mention(self) -> None:
        text = f"{self._label}: {self._first}..."
        if not self._started.wait(QUIET) and text not in _MENTIONED:
            _MENTIONED.add(text)
            say(text)

    def begin(self) -> None:
        """Note that the first unit of work is done."""
        if not self._started.is_set():
            self._started.set()
            if self._first:
                self.set_description_str(self._label, refresh=False)

    def update(self, n: float | None = 1) -> bool | None:
        """Count units of work."""
        self.begin()
        if self._lines is not None:
            self._lines.count(n or 0)
        return super().update(n)

    def close(self) -> None:
        """End the bar."""
        getattr(self, "_started", threading.Event()).set()  # tqdm also closes bars whose constructor failed
        super().close()


class _Lines:
    """The lines of a log file about one piece of work."""

    def __init__(self, label: str, options: dict[str, Any]) -> None:
        self.label, self.unit, self.total = label, options.get("unit", "unit"), options.get("total")
        self.done = options.get("initial", 0)
        self.began = self.spoke = time.monotonic()
        self.first: tuple[float, float] | None = None

    def count(self, n: float) -> None:
        self.done, now = self.done + n, time.monotonic()
        if self.first is None:  # the first unit also compiled
            self.first = self.done, now
        if now - self.spoke < LINE:
            return
        self.spoke = now
        of = f" of {self.total:,}" if self.total else ""
        text = f"{self.label}: {self.done:,}{of} {self.unit}s after {tqdm.format_interval(now - self.began)}"
        done, since = self.first
        if self.total and self.done > done:
            rest = max(0.0, self.total - self.done) * (now - since) / (self.done - done)
            text += f", about {tqdm.format_interval(rest)} left"
        say(text)


class Estimate:
    """The time that the rest of a loop will take, stated once, after some of its work was measured.

    Args:
        total: units of work in all.
        unit: the name of one.
        clock: the time in seconds.

    >>> times = iter(range(0, 100, 4))
    >>> estimate = Estimate(300, "step", clock=lambda: next(times))
    >>> [estimate.after(done) for done in (1, 2)]  # the first call also compiled; 4 seconds are too few
    [None, None]
    >>> print(estimate.after(3).partition(";")[0])
    about 19:48 for the other 297 of 300 steps, at 4 seconds per step
    >>> estimate.after(4)
    """

    def __init__(self, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.unit, self.clock = total, unit, clock
        self._start: tuple[int, float] | None = None
        self._said = False

    def after(self, done: int) -> str | None:
        """Return the sentence when ``done`` units are finished, or None before and after it was due."""
        if self._said:
            return None
        now = self.clock()
        if self._start is None:
            self._start = done, now
            return None
        units, seconds = done - self._start[0], now - self._start[1]
        if seconds < MEASURED or units < 1:
            return None
        self._said = True
        left = self.total - done
        rest = left * seconds / units
        if rest < WORTH:
            return None
        rate = units / seconds
        pace = f"{rate:.3g} {self.unit}s per second" if rate >= 1 else f"{1 / rate:.3g} seconds per {self.unit}"
        text = f"about {tqdm.format_interval(rest)} for the other {left:,} of {self.total:,} {self.unit}s, at {pace}"
        return text + _load()


def _load() -> str:
    """Return a remark about the machine's load, if it has more to do than its cores can."""
    try:
        load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on this system
        return ""
    if load < 1.5 * cores:
        return ""
    return f"; the machine is busy (load {load:.1f} on {cores} cores), and faster when it is not"
