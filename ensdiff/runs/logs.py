"""The files that a run writes line by line.

- ``metrics.jsonl``: one sealed line per logged step, with the same values for TensorBoard.
- ``environment.jsonl``: one sealed line per start. It records where and how the steps from its own up to the next
  line's were trained.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ensdiff.files.checksums import DamagedError, damage, read_lines, seal_line, warn
from ensdiff.files.writing import make_folder, write_atomically

METRICS = "metrics.jsonl"
ENVIRONMENTS = "environment.jsonl"


def write_lines(path: pathlib.Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a complete file of sealed lines, atomically."""
    write_atomically(path, "".join(seal_line(line) + "\n" for line in lines))


class MetricsLog:
    """Writer of the metrics of a run directory. With several processes, only one has it."""

    def __init__(self, run: pathlib.Path):
        self.path = run / METRICS
        self._board: Any = None

    def write(self, step: int, **values_K: np.ndarray) -> None:
        """Append one line to ``metrics.jsonl`` and to TensorBoard. Each value has one number per member."""
        line = {"step": step, "time": time.time(), **{k: [float(x) for x in v] for k, v in values_K.items()}}
        with open(self.path, "a") as file:
            file.write(seal_line(line) + "\n")
        self._write_board(step, values_K)

    def _write_board(self, step: int, values_K: dict[str, np.ndarray]) -> None:
        # tensorboardX's event writer without its SummaryWriter, because errors in that one's thread are lost
        from tensorboardX.event_file_writer import EventsWriter  # slow to import
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._board is None:
            folder = make_folder(self.path.parent / "tensorboard")
            self._board = EventsWriter(str(folder / "events"))
        values = []
        for name, value_K in values_K.items():
            tag = name.removesuffix("_K")
            values.append(Summary.Value(tag=f"{tag}/mean", simple_value=float(np.mean(value_K))))
            for k, value in enumerate(value_K):
                values.append(Summary.Value(tag=f"{tag}/member_{k:03d}", simple_value=float(value)))
        self._board.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._board.flush()

    def drop_after(self, step: int) -> None:
        """Remove lines of later steps, which will be repeated after an interruption, and damaged lines."""
        if self.path.exists():
            write_lines(self.path, (line for line in read_metrics(self.path.parent) if line["step"] <= step))

    def close(self) -> None:
        """Close TensorBoard's file. Every earlier `write` has either written its line or raised an error."""
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Return the lines of a run's ``metrics.jsonl``, oldest first, without an unfinished last line.

    Args:
        path: the run directory.

    Warns:
        DamageWarning: some lines do not match their checksums and are left out. The warning lists them.

    >>> [line["step"] for line in ensdiff.read_metrics("runs/tiny")]
    [4]
    """
    file = pathlib.Path(path) / METRICS
    if not file.exists():
        return []
    lines = read_lines(file)
    if wrong := damage(lines):
        warn(f"{file} is damaged: {wrong}; damaged lines are left out")
    return [line for line in lines if line is not None]


def read_environments(run: pathlib.Path) -> list[dict[str, Any] | None]:
    """Return the lines of a run's ``environment.jsonl``, with None in place of a damaged line.

    A line has its first ``step`` and either the values of `ensdiff.runs.environment` or ``unknown``, which states why
    they are not known. ``execution`` has the fields of `ensdiff.training.execution.Execution`; lines of older versions
    do not have it.

    Raises:
        FileNotFoundError: the run has no such file.
    """
    file = run / ENVIRONMENTS
    lines = read_lines(file)
    whole = file.read_bytes().endswith(b"\n")  # the file is always written completely
    return [line if line is None or _is_place(line) else None for line in lines] + ([] if whole else [None])


def checked(file: pathlib.Path, lines: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return a file's lines after checking that all are good and their steps ascend.

    Args:
        file: the file, for the error message.
        lines: what `read_lines` or `read_environments` read from it.

    Raises:
        DamagedError: some line is damaged or out of order. The message names it.
    """
    good = [line for line in lines if line is not None]
    wrong = damage(lines) or _disorder([line.get("step") for line in good])
    if wrong:
        raise DamagedError(f"{file} is damaged: {wrong}")
    return good


def _disorder(steps: Sequence[Any]) -> str:
    """Describe the first line whose step is not later than the previous one, or return an empty string."""
    for number, step in enumerate(steps, start=1):
        if type(step) is not int or (number > 1 and step <= steps[number - 2]):
            return f"its steps are not ascending at line {number}, which is of step {step}"
    return ""


def note_environment(run: pathlib.Path, step: int, values: Mapping[str, Any]) -> None:
    """Record where and how the steps from ``step`` on are trained, and drop earlier records of these steps."""
    file = run / ENVIRONMENTS
    lines = read_environments(run) if file.exists() else [None] * (step > 0)
    if wrong := damage(lines):
        what = f"is damaged: {wrong}" if file.exists() else "is missing"
        warn(f"{file} {what}; it is rewritten, with the place of training of those steps recorded as unknown")
    kept = [line for line in known_environments(lines) if line["step"] < step]
    write_lines(file, [*kept, {"step": step, **values}])


def _is_place(line: Mapping[str, Any]) -> bool:
    mesh = line.get("mesh")
    known = isinstance(mesh, dict) and all(
        type(mesh.get(axis)) is int and mesh[axis] > 0 for axis in ("member", "data")
    )
    return type(line.get("step")) is int and line["step"] >= 0 and (known or "unknown" in line)


def known_environments(lines: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return the good lines, with damaged ones replaced by a line that marks the steps as unknown."""
    found: list[dict[str, Any]] = []
    gap = False
    for line in [*lines, {"step": np.inf}]:
        first = found[-1]["step"] + 1 if found else 0
        if gap and line is not None and first < line["step"]:
            found.append({"step": first, "unknown": f"no good line of {ENVIRONMENTS} was about these steps"})
        gap = line is None
        found += [] if line is None else [line]
    return found[:-1]
