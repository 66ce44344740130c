"""Time-boxed steps whose rows are written as they come, so that a program that is killed leaves a valid report.

Every row is one line of ``results.jsonl``. After each row the report is written from these lines, to another file that
then replaces the old report.
"""

import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ensdiff.report import Table

from ..benchmarks.timing import describe
from ..tables import markdown, table

RESULTS, REPORT = "results.jsonl", "report.md"
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Clock:
    """The time that a program may take.

    Args:
        seconds: all of it.
        now: the current time in seconds.
        start: when it began; by default now.
    """

    seconds: float
    now: Callable[[], float] = time.monotonic
    start: float | None = None

    def __post_init__(self) -> None:
        if self.start is None:
            object.__setattr__(self, "start", self.now())

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        assert self.start is not None
        return self.now() - self.start

    def left(self, kept: float = 0.0) -> float:
        """Return the seconds that remain if the share ``kept`` of all is kept for later."""
        return self.seconds * (1 - kept) - self.elapsed()


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the program.

    Args:
        name: its name in the results.
        title: its title in the report.
        needs: seconds that must remain for it to start.
        rows: yields the rows of its results. It gets a function that returns the seconds that remain for it, and
            should yield no further row when there are none.
        kept: the share of all time that is kept for later steps.
        note: how to read its tables.
    """

    name: str
    title: str
    needs: float
    rows: Callable[[Callable[[], float]], Iterable[Row]]
    kept: float = 0.0
    note: str = ""


class Journal:
    """The results in a folder.

    A row maps columns to cells. Three keys are not columns: ``table`` names the table that the row belongs to,
    ``finding`` is a sentence for the top of the report, and ``picture`` a file beside it.

    Args:
        folder: where to write; older results there are replaced.
        title: the title of the report.
        steps: all steps, of which the report says what became of them.
        clock: the time of the rows.
    """

    def __init__(self, folder: str | os.PathLike, title: str, steps: Sequence[Step], clock: Clock):
        self.folder, self.title, self.steps, self.clock = pathlib.Path(folder), title, steps, clock
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines: list[Row] = []
        (self.folder / RESULTS).write_text("")
        self._write_report()

    def add(self, step: str, event: str, **values: Any) -> None:
        """Append a line: an ``event`` of a step is "start", "row", "end", "skipped" or "error"."""
        line = {"step": step, "event": event, "at": round(self.clock.elapsed(), 2), **values}
        text = json.dumps(line, default=_plain)
        with open(self.folder / RESULTS, "a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(text, flush=True)
        self.lines.append(json.loads(text))
        self._write_report()

    def _write_report(self) -> None:
        partial = self.folder / f"{REPORT}.new"
        partial.write_text(report(self.title, self.steps, self.lines))
        partial.replace(self.folder / REPORT)


def _plain(value: Any) -> Any:
    """Return a NumPy scalar or array as JSON can write it, and anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def run(steps: Sequence[Step], journal: Journal, clock: Clock) -> None:
    """Run the steps for which there is time, in order. An error ends its step only."""
    for step in steps:
        left = clock.left(step.kept)
        if left < step.needs:
            journal.add(step.name, "skipped", why=f"needs {step.needs:.0f} s, {max(left, 0):.0f} s left")
            continue
        begin = clock.elapsed()
        journal.add(step.name, "start")
        try:
            for row in step.rows(functools.partial(clock.left, step.kept)):
                journal.add(step.name, "row", **row)
        except Exception as error:  # the next step is worth more than this one
            journal.add(step.name, "error", error=describe(error), seconds=round(clock.elapsed() - begin, 1))
        else:
            journal.add(step.name, "end", seconds=round(clock.elapsed() - begin, 1))
    journal.add("program", "end", seconds=round(clock.elapsed(), 1))


def read(folder: str | os.PathLike) -> list[Row]:
    """Return the lines of a folder's results. A last line that was cut is left out."""
    lines = []
    for text in (pathlib.Path(folder) / RESULTS).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def report(title: str, steps: Sequence[Step], lines: Sequence[Row]) -> str:
    """Return the report as Markdown."""
    ended = any(line["step"] == "program" and line["event"] == "end" for line in lines)
    parts = [f"# {title}\n"]
    if not ended:
        parts.append("**This report is partial: the program has not ended, or it was cut.**\n")
    findings = [f"- {line['finding']}" for line in lines if "finding" in line]
    if findings:
        parts.append("\n".join(findings) + "\n")
    for step in steps:
        own = [line for line in lines if line["step"] == step.name]
        parts += [f"## {step.title}\n", f"{_state(own)} {step.note}".strip() + "\n"]
        parts += [markdown(found) for found in _tables(own)]
        parts += [f"![{step.title}]({line['picture']})\n" for line in own if "picture" in line]
    return "\n".join(parts)


def _state(own: Sequence[Row]) -> str:
    """Return what became of a step, as a sentence."""
    if not own:
        return "Not reached."
    last = own[-1]
    if last["event"] == "skipped":
        return f"Left out: {last['why']}."
    if last["event"] == "error":
        return f"Failed after {last['seconds']:.0f} s: `{last['error']}`."
    return (
        f"Took {last['seconds']:.0f} s." if last["event"] == "end" else f"Not ended (last line at {last['at']:.0f} s)."
    )


def _tables(own: Sequence[Row]) -> list[Table]:
    rows: dict[str, list[Row]] = {}
    for line in own:
        cells = {
            name: value
            for name, value in line.items()
            if name not in ("step", "event", "at", "table", "finding", "picture")
        }
        if line["event"] == "row" and cells:
            rows.setdefault(line.get("table", "Results"), []).append(cells)
    return [table(name, some) for name, some in rows.items()]
