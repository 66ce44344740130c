"""The data manifest: the content hash and the unit of every training item, without the items.

It is a text file. The first line states the format and the sizes. Then follows one line per item, in order: its unit
and its SHA-256 (`hash_item`). The manifest's own SHA-256 is the digest of the data set. After pictures have been
deleted, the manifest still suffices to recompute index streams and to find the remaining items by their content.

Format 1 is for 8-bit pixels without a condition: an item's hash is that of its H x W x C bytes, row by row, channels
last. Format 2 is for everything else. Its first line also states the dtype and, for items with a condition, the digest
of the specification of conditions. An item's hash then covers its condition too, so a further column has the hash of
the item alone: the same picture with another caption is another item, but still the same picture.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ensdiff.models.condition import ConditionSpec

NAME = "data.manifest"
FIRST_LINE = re.compile(
    rb"ensdiff data manifest (?P<format>[12]): (?P<items>\d{1,12}) items of "
    rb"(?P<H>\d{1,6})x(?P<W>\d{1,6})x(?P<C>\d{1,3})"
    rb"( (?P<dtype>uint8|float16|float32)(, condition (?P<condition>[0-9a-f]{64}))?)?\n"
)


class Manifest(NamedTuple):
    """The items of a data set.

    Args:
        shape: (H, W, C) of every item.
        unit_of_item: (N_items,) unit of each item.
        sha256: (N_items,) the hash of each item and its condition, hexadecimal digits, dtype ``S64``.
        dtype: of the items: ``"uint8"`` for pixels, ``"float16"`` or ``"float32"`` for latents.
        condition: the digest of the specification of conditions (`spec_digest`), or None without conditions.
        sha256_alone: (N_items,) the hash of each item without its condition; None without conditions.

    >>> manifest = ensdiff.data.digits().manifest()
    >>> manifest.items, manifest.shape
    (1797, (8, 8, 1))
    >>> Manifest.from_bytes(manifest.to_bytes()).digest() == manifest.digest()
    True
    """

    shape: tuple[int, int, int]
    unit_of_item: Int[np.ndarray, " N"]
    sha256: np.ndarray
    dtype: str = "uint8"
    condition: str | None = None
    sha256_alone: np.ndarray | None = None

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.unit_of_item)

    @property
    def contents(self) -> np.ndarray:
        """The hash of each item without its condition: equal for equal pictures, whatever their conditions."""
        return self.sha256 if self.sha256_alone is None else self.sha256_alone

    def to_bytes(self) -> bytes:
        """Return the content of the manifest file."""
        H, W, C = self.shape
        plain = self.dtype == "uint8" and self.condition is None
        first = f"ensdiff data manifest {1 if plain else 2}: {self.items} items of {H}x{W}x{C}"
        first += "" if plain else f" {self.dtype}"
        first += "" if self.condition is None else f", condition {self.condition}"
        columns = [self.unit_of_item.tolist(), self.sha256.tolist()]
        line = b"%d %s\n"
        if self.sha256_alone is not None:
            columns.append(self.sha256_alone.tolist())
            line = b"%d %s %s\n"
        return f"{first}\n".encode() + b"".join(line % row for row in zip(*columns, strict=True))

    @classmethod
    def from_bytes(cls, content: bytes) -> "Manifest":
        """Read the manifest from a file's content, as `to_bytes` returned it.

        Raises:
            ValueError: a line is not that of a manifest; the message gives the line.

        >>> Manifest.from_bytes(b"ensdiff data manifest 1: 1 items of 8x8x1\\n0 " + b"ab" * 32 + b"\\n").items
        1
        """
        first = FIRST_LINE.match(content)
        if first is None or (first["format"] == b"1") != (first["dtype"] is None):
            raise ValueError("line 1 is not the first line of a data manifest")
        items, H, W, C = (int(first[name]) for name in ("items", "H", "W", "C"))
        dtype = "uint8" if first["dtype"] is None else first["dtype"].decode()
        condition = None if first["condition"] is None else first["condition"].decode()
        lines = content[first.end() :].split(b"\n")
        if lines.pop() != b"" or len(lines) != items:
            raise ValueError(f"{len(lines)} complete lines of items: expected {items}, the number in line 1")
        hashes = 1 if condition is None else 2
        expected = re.compile(rb"(0|[1-9]\d{0,17})( [0-9a-f]{64}){%d}" % hashes)
        for number, line in enumerate(lines, 2):
            if not expected.fullmatch(line):
                raise ValueError(f"line {number} is not a unit and {('a SHA-256', 'two SHA-256')[hashes - 1]}")
        rows = [line.split(b" ") for line in lines]
        columns = [np.array([row[i] for row in rows], "S64") for i in range(1, 1 + hashes)]
        units = np.array([int(row[0]) for row in rows], np.int64)
        return cls((H, W, C), units, columns[0], dtype, condition, columns[1] if hashes == 2 else None)

    def digest(self) -> str:
        """Return the SHA-256 of the file's content as hexadecimal digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def hash_item(item: np.ndarray, condition: Mapping[str, np.ndarray] | None = None) -> str:
    """Return the SHA-256 of one item, (H, W, C), and of its condition, as the manifest lists it.

    For 8-bit pixels without a condition, only the pixels are hashed. Otherwise the dtype is hashed before the item, and
    then, for each array of the condition in the order of their paths, its path, dtype, shape and numbers. All numbers
    are little-endian.

    Args:
        item: uint8, float16 or float32.
        condition: the arrays of the item's condition by their paths.

    >>> hash_item(np.zeros((2, 2, 1), np.uint8)) == hashlib.sha256(bytes(4)).hexdigest()
    True
    """
    if item.dtype == np.uint8 and condition is None:
        return hashlib.sha256(np.ascontiguousarray(item).tobytes()).hexdigest()
    found = hashlib.sha256(f"ensdiff item 2: {item.dtype.name}\n".encode() + _little_endian(item))
    for path, row in sorted((condition or {}).items()):
        row = np.asarray(row)
        found.update(f"\ncondition {json.dumps(path)}: {row.dtype.name} {row.shape}\n".encode() + _little_endian(row))
    return found.hexdigest()


def _little_endian(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def spec_digest(spec: ConditionSpec | None) -> str | None:
    """Return the SHA-256 of the JSON text of a specification of conditions, or None for None."""
    if spec is None:
        return None
    return hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode()).hexdigest()
