"""Null rows that are not zeros, as bytes: hashable, equal if their numbers are equal, and text in JSON files.

The null row of a caption is the embedding of the empty prompt, which is what classifier-free guidance of a
text-to-image model starts from.
"""

import base64
import binascii
import math

import numpy as np


def pack(row: np.ndarray) -> bytes | None:
    """Return the numbers of a row, little-endian; None if all of them are zero.

    >>> pack(np.zeros(3, np.float32)) is None
    True
    >>> pack(np.array([1, 2], np.int32))
    b'\\x01\\x00\\x00\\x00\\x02\\x00\\x00\\x00'
    """
    positive = row + row.dtype.type(0)  # without the sign of -0.0, so that equal numbers have equal bytes
    return np.ascontiguousarray(positive, row.dtype.newbyteorder("<")).tobytes() if row.any() else None


def unpack(content: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return the row of `pack`.

    Raises:
        ValueError: the number of bytes is wrong, or a number is not finite.
    """
    kind = np.dtype(dtype)
    if len(content) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"a null row of {len(content)} bytes: expected {dtype} of shape {shape}")
    row = np.frombuffer(content, kind.newbyteorder("<")).reshape(shape).astype(kind)
    if not np.isfinite(row).all():
        raise ValueError("a null row with NaN or infinity: expected finite numbers")
    return row


def to_text(content: bytes) -> str:
    """Return the bytes of `pack` as text (base64)."""
    return base64.b64encode(content).decode()


def from_text(text: str) -> bytes:
    """Return the bytes of `to_text`.

    Raises:
        ValueError: it is no such text.

    >>> from_text(to_text(b"abc"))
    b'abc'
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"a null row {str(text)[:40]!r}: expected text in base64: {error}") from error
