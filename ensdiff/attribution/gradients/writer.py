"""Writing a table of gradients chunk by chunk, so that an interruption at any moment loses at most one chunk."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from ensdiff.attribution.gradients.table import (
    FORMAT,
    PROGRESS,
    SETTINGS,
    TableSettings,
    checksum,
    damaged_chunks,
    describe,
    encode,
    mapped,
    read_table,
)
from ensdiff.files.checksums import seal_line, warn, write_sealed
from ensdiff.files.npy import reserve_npy, write_rows
from ensdiff.files.writing import explain, make_folder, write_atomically


@dataclasses.dataclass
class TableWriter:
    """Writes a table, chunk by chunk, and continues an unfinished one. With several processes, only one may write.

    Args:
        folder: the folder of the table.
        settings: what the table holds.
        chunk: items per chunk of a new table; an existing one keeps its own.
    """

    folder: pathlib.Path
    settings: TableSettings
    chunk: int
    _sums: dict[int, list[int]] = dataclasses.field(default_factory=dict)

    def begin(self) -> list[int]:
        """Create the table or continue it; return the numbers of its unfinished chunks.

        Raises:
            DamagedError: the settings of an existing table are damaged.
            ValueError: an existing table holds other gradients; the message says what differs.
            OSError: the folder cannot be written to.

        Warns:
            DamageWarning: finished chunks do not match their checksums; they count as unfinished.
        """
        with explained(self.folder):
            make_folder(self.folder)
            found = read_table(self.folder)
            if found is None:
                self._save({"complete": False})
            else:
                if different := self.settings.differences(found.settings):
                    raise ValueError(
                        f"{self.folder} holds other gradients: {different}. Choose another folder, or delete this one"
                    )
                self.chunk, self._sums = found.chunk, dict(found.sums)
            for name, (shape, dtype) in self.settings.files().items():
                if mapped(self.folder / name, shape, dtype) is None:
                    reserve_npy(self.folder / name, shape, dtype)
            return self._unfinished(was_complete=found is not None and found.complete)

    def _unfinished(self, was_complete: bool) -> list[int]:
        damaged = damaged_chunks(self.folder, self.settings, self.chunk, self._sums)
        if damaged:
            warn(f"{describe(self.folder, damaged, self.chunk, self.settings.items)}; they are recomputed")
            for number in set().union(*damaged.values()):
                del self._sums[number]
        todo = [number for number in range(-(-self.settings.items // self.chunk)) if number not in self._sums]
        if todo or not was_complete:
            lines = [_line(number, sums) for number, sums in sorted(self._sums.items())]
            write_atomically(self.folder / PROGRESS, "".join(lines))  # without damaged or incomplete lines
            self._save({"complete": False})
        if not todo:
            self._finish(saved=was_complete)
        return todo

    def write(self, number: int, phi_KnGD: Float[np.ndarray, "K n G D"]) -> None:
        """Write the gradients of a chunk. The table is complete once every chunk is written, in any order.

        Raises:
            ValueError: a gradient is not finite.
            OSError: the disk is full, or the folder cannot be written to. Finished chunks are kept.
        """
        start = number * self.chunk
        values_KnGD, scales_nK = encode(phi_KnGD, start)
        with explained(self.folder):
            for name, rows in zip(self.settings.files(), [*values_KnGD, scales_nK], strict=True):
                write_rows(self.folder / name, start, rows)
            sums = [checksum(rows) for rows in (*values_KnGD, scales_nK)]
            with open(self.folder / PROGRESS, "a") as file:
                file.write(_line(number, sums))
            self._sums[number] = sums
            if len(self._sums) * self.chunk >= self.settings.items:
                self._finish()

    def _finish(self, *, saved: bool = False) -> None:
        """Make all rows durable, then record that the table is complete. With ``saved``, this was done before."""
        if not saved:
            for name in self.settings.files():
                with open(self.folder / name, "r+b") as file:
                    os.fsync(file.fileno())
            self._save({"complete": True, "sums": [self._sums[number] for number in sorted(self._sums)]})
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def _save(self, more: Mapping[str, Any]) -> None:
        values = {"format": FORMAT, **dataclasses.asdict(self.settings), "chunk": self.chunk, **more}
        write_sealed(self.folder / SETTINGS, values)


def _line(number: int, sums: Sequence[int]) -> str:
    return seal_line({"chunk": number, "sums": sums}) + "\n"


@contextlib.contextmanager
def explained(folder: pathlib.Path) -> Iterator[None]:
    """Turn an `OSError` into one that says what happened, and that repeating the call continues the table."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{folder} could not be written to: {explain(error, folder)}; finished chunks are kept, and the same call "
            "continues from them"
        ) from error


def check_space(folder: pathlib.Path, writers: Sequence[TableWriter]) -> None:
    """Check that the disk has space for all rows that are not written yet.

    Raises:
        OSError: the disk has less space.
    """
    needed = sum(max(0, writer.settings.nbytes - _allocated(writer.folder)) for writer in writers)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the gradients need {format_size(needed)} more in {folder}, but the disk has only "
            f"{format_size(free)}: choose another folder, fewer outputs, a smaller dimension or fewer parts"
        )


def _allocated(folder: pathlib.Path) -> int:
    """Return how many bytes the files of a table take on the disk. Unwritten rows take none."""
    if not folder.is_dir():
        return 0
    stats = [file.stat() for file in folder.glob("*.npy")]
    return sum(512 * stat.st_blocks if hasattr(stat, "st_blocks") else stat.st_size for stat in stats)


def format_size(size: int) -> str:
    """Return a number of bytes for a message.

    >>> format_size(3_280_000_000)
    '3.28GB'
    """
    return tqdm.format_sizeof(size, "B")
