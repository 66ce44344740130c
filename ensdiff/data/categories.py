"""Groups and classes in the forms that users have them: lists, NumPy arrays, pandas columns, bytes from files."""

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ensdiff.codes.names import check_distinct

MISSING = ("nan", "NaN", "NaT", "None", "<NA>")
"""How NumPy and pandas write a missing value when they turn a column into text."""


def categories(
    values: Any, items: int, what: str = "group", files: Sequence[str] | None = None
) -> Shaped[np.ndarray, " N"]:
    """Return one category per image as an array of text, integers or booleans, without missing values.

    Args:
        values: text, integers or booleans, in a list or anything that NumPy can read (an array, a masked array, a
            pandas column). Bytes are decoded as UTF-8.
        items: number of images.
        what: ``"group"`` or ``"label"``, for messages.
        files: file names of the images, for messages.

    Raises:
        ValueError: a value is missing (None, NaN, NaT, pandas' NA, a masked entry, empty text, or one of `MISSING`),
            values are of several types or of an unsupported type, or two values look the same when printed. The message
            names the first such image.

    >>> categories([b"ada", b"ada", b"bob"], 3).tolist()
    ['ada', 'ada', 'bob']
    >>> categories(["ada", "bob", float("nan")], 3)
    Traceback (most recent call last):
    ValueError: 1 of 3 images have no group: the first is image 2, which has nan. ...
    """
    try:
        array = np.asarray(values) if hasattr(values, "__array__") else np.asarray(values, dtype=object)
    except ValueError as error:
        raise ValueError(f"the {what}s are not one array: expected one string or integer per image: {error}") from error
    if array.shape != (items,):
        raise ValueError(f"{what}s have shape {array.shape}: expected ({items},), one value per image")
    kind = array.dtype.kind
    entries = array if kind in "biu" else array.tolist()
    missing = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else np.zeros(items, bool)
    if kind not in "biu":
        missing = missing | np.array([_is_missing(entry) for entry in entries])

    def image(i: int) -> str:
        return f"image {i}" + (f" ({files[i]})" if files is not None else "")

    if missing.any():
        i = int(np.argmax(missing))
        message = (
            f"{missing.sum()} of {items} images have no {what}: the first is {image(i)}, which has "
            f"{reprlib.repr(entries[i])}. Give each image a {what}, or leave these images out"
        )
        if isinstance(entries[i], str | bytes) and entries[i]:
            message += "; if this is a real name rather than a missing value, spell it differently"
        raise ValueError(message)
    if kind in "biu":
        return array
    if kind in "fcmM":
        raise ValueError(f"{what}s have dtype {array.dtype}: expected strings or integers")
    kinds = [_kind(entry) for entry in entries]
    for i, found in enumerate(kinds):
        if found is None:
            raise ValueError(
                f"{image(i)} has the {what} {reprlib.repr(entries[i])} of type {type(entries[i]).__name__}: expected "
                "strings or integers"
            )
        if found != kinds[0]:
            raise ValueError(
                f"{what}s are of several types: {image(0)} has {reprlib.repr(entries[0])} ({kinds[0]}), {image(i)} has "
                f"{reprlib.repr(entries[i])} ({found}); make all of them strings, or all integers"
            )
    if kinds[0] == "boolean":
        return np.array(entries, bool)
    if kinds[0] == "integer":
        try:
            return np.array(entries, np.int64)
        except OverflowError:
            raise ValueError(f"{what}s are integers of more than 64 bits: give them as strings") from None
    if kinds[0] == "bytes":
        for i, entry in enumerate(entries):
            try:
                entries[i] = entry.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{image(i)} has the {what} {reprlib.repr(entry)}, which is not UTF-8 ({error.reason}): decode "
                    f"the {what}s first"
                ) from None
    check_distinct(dict.fromkeys(entries), f"{what}s")
    return np.array(entries, str)


def _is_missing(entry: Any) -> bool:
    if isinstance(entry, bytes):
        entry = entry.decode(errors="replace")
    if isinstance(entry, str):
        return not entry.strip() or entry in MISSING
    if entry is None or entry is np.ma.masked or type(entry).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(entry, float | complex | np.inexact | np.datetime64 | np.timedelta64) and bool(entry != entry)


def _kind(entry: Any) -> str | None:
    for name, types in (("boolean", bool | np.bool_), ("integer", int | np.integer), ("string", str), ("bytes", bytes)):
        if isinstance(entry, types):
            return name
    return None
