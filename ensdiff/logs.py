"""The metrics of a run: ``metrics.jsonl``, one sealed line a logged step, and the same for TensorBoard."""

import contextlib
import os
import pathlib
import time
from typing import Any

import numpy as np

from ensdiff.integrity import read_lines, seal_line, warn
from ensdiff.storage import write_atomically


class MetricsLog:
    """Writes the metrics of a run directory. Of several processes, one has it."""

    def __init__(self, run: pathlib.Path):
        self.path = run / "metrics.jsonl"
        self._board: Any = None

    def write(self, step: int, **values_K: np.ndarray) -> None:
        """Append one line to ``metrics.jsonl`` and to TensorBoard; each value has one number a member."""
        line = {"step": step, "time": time.time(), **{k: [float(x) for x in v] for k, v in values_K.items()}}
        with open(self.path, "a") as file:
            file.write(seal_line(line) + "\n")
        self._write_board(step, values_K)

    def _write_board(self, step: int, values_K: dict[str, np.ndarray]) -> None:
        # tensorboardX's own writers without its SummaryWriter, whose thread fails where no one sees it
        from tensorboardX.event_file_writer import EventsWriter  # slow to import
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._board is None:
            folder = self.path.parent / "tensorboard"
            folder.mkdir(exist_ok=True)
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
        """Leave out steps that will be taken again (a killed run may have logged them), and damaged lines."""
        if self.path.exists():
            lines = [line for line in read_metrics(self.path.parent) if line["step"] <= step]
            write_atomically(self.path, "".join(seal_line(line) + "\n" for line in lines))

    def close(self) -> None:
        """Close TensorBoard's file. Every line has been written to it, or its error raised."""
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The lines of a run's ``metrics.jsonl``, oldest first; an unfinished last line is left out.

    Args:
        path: the run directory.

    Warns:
        DamageWarning: lines that do not match their checksum are left out; says which.

    >>> [line["step"] for line in ensdiff.read_metrics("runs/tiny")]
    [4]
    """
    file = pathlib.Path(path) / "metrics.jsonl"
    if not file.exists():
        return []
    lines, damaged = read_lines(file)
    if damaged:
        warn(f"{file} is damaged: lines {', '.join(map(str, damaged))} do not match their checksums and are left out")
    return lines
