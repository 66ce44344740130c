"""The data manifest: the content hash and the unit of every training item, without the items.

It is a text file. The first line states the format and the sizes. Then follows one line per item, in order: its unit
and the SHA-256 of its pixels (H x W x C bytes, row by row, channels last). The manifest's own SHA-256 is the digest of
the data set. After pictures have been deleted, the manifest still suffices to recompute index streams and to find the
remaining items by their content.
"""

import hashlib
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

NAME = "data.manifest"
FIRST_LINE = re.compile(rb"ensdiff data manifest 1: (\d{1,12}) items of (\d{1,6})x(\d{1,6})x(\d{1,3})\n")


class Manifest(NamedTuple):
    """The items of a data set.

    Args:
        shape: (H, W, C) of every item.
        unit_of_item: (N_items,) unit of each item.
        sha256: (N_items,) hexadecimal digits, dtype ``S64``.

    >>> manifest = ensdiff.data.digits().manifest()
    >>> manifest.items, manifest.shape
    (1797, (8, 8, 1))
    >>> Manifest.from_bytes(manifest.to_bytes()).digest() == manifest.digest()
    True
    """

    shape: tuple[int, int, int]
    unit_of_item: Int[np.ndarray, " N"]
    sha256: np.ndarray

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.unit_of_item)

    def to_bytes(self) -> bytes:
        """Return the content of the manifest file."""
        H, W, C = self.shape
        first = f"ensdiff data manifest 1: {self.items} items of {H}x{W}x{C}\n".encode()
        pairs = zip(self.unit_of_item.tolist(), self.sha256.tolist(), strict=True)
        return first + b"".join(b"%d %s\n" % pair for pair in pairs)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Manifest":
        """Read the manifest from a file's content, as `to_bytes` returned it.

        Raises:
            ValueError: a line is not that of a manifest; the message gives the line.

        >>> Manifest.from_bytes(b"ensdiff data manifest 1: 1 items of 8x8x1\\n0 " + b"ab" * 32 + b"\\n").items
        1
        """
        first = FIRST_LINE.match(content)
        if first is None:
            raise ValueError("line 1 is not the first line of a data manifest")
        items, H, W, C = map(int, first.groups())
        lines = content[first.end() :].split(b"\n")
        if lines.pop() != b"" or len(lines) != items:
            raise ValueError(f"{len(lines)} complete lines of items: expected {items}, the number in line 1")
        for number, line in enumerate(lines, 2):
            if not re.fullmatch(rb"(0|[1-9]\d{0,17}) [0-9a-f]{64}", line):
                raise ValueError(f"line {number} is not a unit and a SHA-256")
        pairs = [line.split(b" ") for line in lines]
        units = np.array([int(unit) for unit, _ in pairs], np.int64)
        return cls((H, W, C), units, np.array([content for _, content in pairs], "S64"))

    def digest(self) -> str:
        """Return the SHA-256 of the file's content as hexadecimal digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def hash_item(image: np.ndarray) -> str:
    """Return the SHA-256 of one item's pixels, uint8 (H, W, C), as the manifest lists it."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
