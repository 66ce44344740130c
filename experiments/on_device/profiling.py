"""A profile of some calls: which kernels take the time, the share of matrix units, and how long the device is idle.

`jax.profiler` records a trace, and `jax.profiler.ProfileData` reads it: lines of events with a start and a duration. On
a GPU the lines of a device are its streams. On a CPU they are the threads of the host, of which those that run
compiled programs count.
"""

import pathlib
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from .journal import Row

MATRIX = re.compile(
    r"gemm|cutlass|cudnn|xmma|nvjet|wgmma|hmma|implicit_convolve|conv(olution)?\b|conv_|[fwd]prop|[dw]grad|dot\b|dot_|"
    r"flash|fmha|sdpa|winograd|ynn",
    re.IGNORECASE,
)
"""Names of kernels that multiply matrices. On a GPU these are kernels of libraries for convolutions, products and
attention. On a CPU, XLA names what it passes to YNNPACK "ynn"."""

LAUNCHES = re.compile(r"stream", re.IGNORECASE)
"""Names of the lines of a GPU on which kernels run."""
OPERATION = re.compile(r"(?!while|call|conditional)[\w.\-]+")
"""Names of operations on a CPU. The events of loops and of the runtime, whose names have a namespace, contain them."""


class Event(NamedTuple):
    """A kernel or operation: its name, start and duration in nanoseconds."""

    name: str
    start: float
    duration: float


class Profile(NamedTuple):
    """A summary of a trace.

    Args:
        kernels: names with their total nanoseconds and number, longest first.
        busy: nanoseconds in which at least one kernel ran.
        span: nanoseconds from the first to the last kernel.
        matrix: nanoseconds of kernels whose names match `MATRIX`.
    """

    kernels: Sequence[tuple[str, float, int]]
    busy: float
    span: float
    matrix: float


def summarise(events: Iterable[Event]) -> Profile:
    """Summarise the events of one device.

    >>> made = summarise([Event("gemm", 0, 2), Event("add", 1, 3), Event("add", 8, 2)])
    >>> made.kernels[0], made.busy, made.span, made.matrix
    (('add', 5.0, 2), 6.0, 10, 2.0)
    """
    ordered = sorted(events, key=lambda event: event.start)
    total: dict[str, float] = defaultdict(float)
    number: Counter[str] = Counter()
    busy, end = 0.0, float("-inf")
    for event in ordered:
        total[event.name] += event.duration
        number[event.name] += 1
        stop = event.start + event.duration
        busy += max(0, stop - max(event.start, end))
        end = max(end, stop)
    kernels = [(name, time, number[name]) for name, time in sorted(total.items(), key=lambda item: -item[1])]
    matrix = sum(time for name, time, _ in kernels if MATRIX.search(name))
    return Profile(kernels, busy, end - ordered[0].start if ordered else 0.0, matrix)


def read(folder: pathlib.Path) -> list[Event]:
    """Return the events of the first device in a trace; on a CPU those of its compiled programs.

    Raises:
        FileNotFoundError: the profiler wrote no trace.
    """
    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
        raise FileNotFoundError("the profiler wrote no trace")
    data = jax.profiler.ProfileData.from_file(str(files[-1]))
    planes: dict[str, Any] = {plane.name: plane for plane in data.planes}
    devices = sorted(name for name in planes if name.startswith("/device:") and "CUSTOM" not in name)
    if devices:
        plane, wanted = planes[devices[0]], LAUNCHES
    else:
        plane, wanted = planes["/host:CPU"], re.compile("XLA|Eigen|pjrt|tf_", re.IGNORECASE)
    lines = list(plane.lines)
    chosen = [line for line in lines if wanted.search(line.name)] or lines
    events = [Event(e.name, e.start_ns, e.duration_ns) for line in chosen for e in line.events if e.duration_ns > 0]
    return events if devices else [e for e in events if OPERATION.fullmatch(e.name)]


def profile(call: Callable[[], object], calls: int, top: int = 15) -> Iterable[Row]:
    """Yield the longest kernels of some calls, and a summary. The function must have been called before.

    Args:
        call: the function to profile; it waits for its result.
        calls: how often it is called.
        top: number of kernels in the table.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                call()
        found = summarise(read(pathlib.Path(folder)))
    every = sum(time for _, time, _ in found.kernels) or 1.0
    for name, time, number in found.kernels[:top]:
        yield {
            "table": "Longest kernels", "kernel": name[:90], "ms per call": time / calls / 1e6,
            "share": time / every, "launches per call": number / calls, "matrix units": bool(MATRIX.search(name)),
        }  # fmt: skip
    idle = 1 - found.busy / found.span if found.span else 0.0
    yield {
        "table": "Summary", "kernels per call": sum(n for *_, n in found.kernels) / calls,
        "ms of kernels per call": every / calls / 1e6, "share in matrix units": found.matrix / every,
        "share of time idle": idle,
    }  # fmt: skip
    yield {
        "finding": f"Profile of a train step: {found.matrix / every:.0%} of the kernels' time in matrix products, "
        f"device idle for {idle:.0%} of the time."
    }
