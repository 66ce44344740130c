"""A table of gradients: a folder with the projected gradients (g2) of n items under each of K members.

All gradients of a table are of one output, such as ``"loss"`` (`ensdiff.attribution.gradients.config.Output`). The
noise levels are divided into G parts. An item has one gradient per part, and a projected gradient has D numbers
(`ensdiff.attribution.gradients.features`).

```
loss/
  settings.json      what the table holds; in a complete table, also the checksums of its chunks
  progress.jsonl     only in an incomplete table: one line per finished chunk of items, with its checksums
  member_00.npy      (n, G, D) float16: the gradients of every item under member 0, divided by the item's scale
  scales.npy         (n, K) float32: the scale of every item under every member
```
The gradients of an item under a member are divided by its scale, a power of two. This brings the largest of the G x D
numbers into 2^14 .. 2^15, so that gradients of any size fit into float16. A number x is stored with an error of at most
``2^-11 |x| + 2^-39 max |x|``.

A chunk of items is finished when its line is in ``progress.jsonl``. The line is written after the chunk's rows, but
after a crash some rows may be missing on the disk. Each restart compares the rows of finished chunks with their
checksums, and recomputes the chunks that do not match. So neither a killed process nor a loss of power leaves a wrong
number behind.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float16, Float32

from ensdiff.files.checksums import DamagedError, read_lines, read_sealed
from ensdiff.files.npy import map_npy

FORMAT = 1
"""Version of the files."""
SETTINGS, PROGRESS, SCALES = "settings.json", "progress.jsonl", "scales.npy"
HEADROOM = 15
"""Numbers are stored below 2^15; float16 ends below 2^16."""


class Encoded(NamedTuple):
    """Gradients as they are stored.

    Args:
        values_KnGD: the gradients divided by their scales.
        scales_nK: a power of two per item and member.
    """

    values_KnGD: Float16[np.ndarray, "K n G D"]
    scales_nK: Float32[np.ndarray, "n K"]


def encode(phi_KnGD: Float[np.ndarray, "K n G D"], first: int = 0) -> Encoded:
    """Return gradients in float16 with a float32 scale per item and member.

    Args:
        phi_KnGD: the gradients.
        first: number of the first item, for error messages.

    Raises:
        ValueError: a gradient is not finite; the message gives the member and the item.

    >>> encode(np.full((1, 1, 1, 2), 1e6, np.float32)).scales_nK.tolist()
    [[32.0]]
    """
    largest_Kn = np.abs(phi_KnGD).max((2, 3))
    if not np.isfinite(largest_Kn).all():
        k, i = np.argwhere(~np.isfinite(largest_Kn))[0]
        raise ValueError(f"the gradient of item {first + i} under member {k} is not finite: has the member diverged?")
    exponent_Kn = np.frexp(largest_Kn)[1]  # largest < 2^exponent
    scales_Kn = np.ldexp(np.float32(1), np.maximum(exponent_Kn - HEADROOM, np.finfo(np.float32).minexp))
    values = (phi_KnGD / scales_Kn[:, :, None, None]).astype(np.float16)  # the division is exact
    return Encoded(values, np.ascontiguousarray(scales_Kn.T, np.float32))


@dataclasses.dataclass(frozen=True)
class TableSettings:
    """What a table holds. Tables with equal settings hold equal numbers.

    Args:
        fingerprint: that of the ensemble.
        data: digest of the items.
        output: the quantity whose gradients the table holds.
        items: n.
        members: K.
        parts: G.
        dimension: D.
        draws: draws per gradient.
        projection: kind of the random projection.
        seed: seed of the draws and the projection.
    """

    fingerprint: str
    data: str
    output: str
    items: int
    members: int
    parts: int
    dimension: int
    draws: int
    projection: str
    seed: int

    def files(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Return the shape and dtype of every ``.npy`` file by name."""
        width = max(2, len(str(self.members - 1)))
        rows = (self.items, self.parts, self.dimension)
        members = {f"member_{k:0{width}}.npy": (rows, np.float16) for k in range(self.members)}
        return {**members, SCALES: ((self.items, self.members), np.float32)}

    def differences(self, other: "TableSettings") -> str:
        """Return what differs in words, or an empty string if nothing does.

        >>> one = TableSettings("a", "b", "loss", 9, 4, 1, 8, 16, "signs", 0)
        >>> dataclasses.replace(one, draws=32).differences(one)
        'draws=16, expected 32'
        """
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        names = [name for name in ours if ours[name] != theirs[name]]
        for name, what in (("fingerprint", "another ensemble"), ("data", "other data")):
            if name in names:
                return f"they are of {what} ({theirs[name][:12]}..., expected {ours[name][:12]}...)"
        return ", ".join(f"{name}={theirs[name]!r}, expected {ours[name]!r}" for name in names)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.items * self.members * (2 * self.parts * self.dimension + 4)


class Table(NamedTuple):
    """What `read_table` found.

    Args:
        settings: what the table holds.
        chunk: items per chunk.
        sums: the checksums of each finished chunk, by its number.
        complete: whether all chunks were finished.
    """

    settings: TableSettings
    chunk: int
    sums: dict[int, list[int]]
    complete: bool

    @property
    def finished(self) -> int:
        """Number of items of finished chunks."""
        return sum(min(self.chunk, self.settings.items - number * self.chunk) for number in self.sums)


def read_table(folder: pathlib.Path) -> Table | None:
    """Read a table's settings and its progress; return None if there is no table.

    Raises:
        DamagedError: the settings are damaged.
        ValueError: a newer version wrote the table.
    """
    path = folder / SETTINGS
    if not path.exists():
        return None
    values = read_sealed(path)
    if values.get("format") != FORMAT:
        raise ValueError(f"{path} has format {values.get('format')!r}: this version of ensdiff reads format {FORMAT}")
    fields = {field.name: field.type for field in dataclasses.fields(TableSettings)}
    wrong = [name for name, kind in fields.items() if type(values.get(name)) is not kind]
    sizes = [values.get(name) for name in ("items", "members", "parts", "dimension", "chunk")]
    if wrong or not all(type(size) is int and size > 0 for size in sizes):
        raise DamagedError(f"{path} is damaged: {wrong[0] if wrong else 'a size'} is missing or has the wrong type")
    settings = TableSettings(**{name: values[name] for name in fields})
    chunks, files = -(-settings.items // values["chunk"]), settings.members + 1
    complete = values.get("complete") is True
    stated: Iterable[tuple[Any, Any]] = enumerate(values.get("sums", ()))
    if not complete:
        lines = read_lines(folder / PROGRESS) if (folder / PROGRESS).exists() else []
        stated = ((line.get("chunk"), line.get("sums")) for line in lines if line)
    sums = {number: of for number, of in stated if number in range(chunks) and _are_sums(of, files)}
    if complete and len(sums) != chunks:
        raise DamagedError(f"{path} is damaged: it has checksums of {len(sums)} chunks, expected {chunks}")
    return Table(settings, values["chunk"], sums, complete)


def _are_sums(value: Any, files: int) -> bool:
    return isinstance(value, list) and len(value) == files and all(type(one) is int for one in value)


def rows_of(folder: pathlib.Path, settings: TableSettings) -> dict[str, np.ndarray]:
    """Return all arrays of a table by file name, as read-only memory maps.

    Raises:
        DamagedError: a file is missing, or its size is wrong. The message names it.
    """
    found = {name: mapped(folder / name, *expected) for name, expected in settings.files().items()}
    for name, array in found.items():
        if array is None:
            raise DamagedError(f"{folder / name} is missing or damaged: it does not hold an array of the table's size")
    return {name: array for name, array in found.items() if array is not None}


def mapped(path: pathlib.Path, shape: tuple[int, ...], dtype: type) -> np.ndarray | None:
    """Return the array of a file, or None if the file does not hold an array of this shape and dtype."""
    try:
        array = map_npy(path)
    except (FileNotFoundError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == dtype and array.flags.c_contiguous else None


def checksum(rows: np.ndarray) -> int:
    """Return the CRC-32 of rows."""
    return zlib.crc32(np.ascontiguousarray(rows).data)


def damaged_chunks(
    folder: pathlib.Path, settings: TableSettings, chunk: int, sums: Mapping[int, Sequence[int]]
) -> dict[str, list[int]]:
    """Return the numbers of the chunks that do not match their checksums, by file name. It reads all their rows.

    Raises:
        DamagedError: a file is missing, or its size is wrong.
    """

    def check(numbered: tuple[int, tuple[str, np.ndarray]]) -> tuple[str, list[int]]:
        j, (name, array) = numbered
        chunks = {number: array[number * chunk : (number + 1) * chunk] for number in sums}
        return name, [number for number, rows in chunks.items() if checksum(rows) != sums[number][j]]

    # computing checksums releases Python's global lock
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(pool.map(check, enumerate(rows_of(folder, settings).items())))
    return {name: numbers for name, numbers in found.items() if numbers}


def describe(folder: pathlib.Path, damaged: Mapping[str, Sequence[int]], chunk: int, items: int) -> str:
    """Return a sentence about the chunks that `damaged_chunks` found.

    >>> describe(pathlib.Path("loss"), {"member_03.npy": [1, 2]}, 64, 150)
    'loss/member_03.npy is damaged: items 64 to 127, 128 to 149 do not match their checksums'
    """
    names = sorted(damaged)
    numbers = sorted(set().union(*damaged.values()))
    ranges = [f"{number * chunk} to {min((number + 1) * chunk, items) - 1}" for number in numbers]
    which = f"{', '.join(ranges[:5])}{', ...' if len(ranges) > 5 else ''}"
    more = f", and {len(names) - 1} more of its files, are" if len(names) > 1 else " is"
    return f"{folder / names[0]}{more} damaged: items {which} do not match their checksums"
