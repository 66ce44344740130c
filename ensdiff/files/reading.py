"""Reading files from untrusted sources: regular files only, unambiguous JSON, and safe printing of their text.

Checksums are in `ensdiff.files.checksums` and writing is in `ensdiff.files.writing`.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO


@contextlib.contextmanager
def installed(need: str, extra: str) -> Iterator[None]:
    """Add to an ImportError inside the ``with`` block who needs the packages and how to install them.

    Raises:
        ImportError: the block imports something that is not installed; the message gives the command.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{need}: pip install 'ensdiff[{extra}]'") from error


def existing_file(path: str | os.PathLike) -> pathlib.Path:
    """Return the path of a file.

    Raises:
        FileNotFoundError: it does not exist, or is no file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    return path


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading. Links to a regular file are followed.

    Raises:
        OSError: the file does not exist or may not be read.
        ValueError: the path is a folder, pipe, socket or device. Reading one could block forever.
    """
    wrong = f"{path} is a folder, pipe, socket or device: expected a regular file"
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(wrong)
    # O_NONBLOCK: if a pipe has replaced the file since the check, opening it must not block
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(wrong)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike) -> bytes:
    """Return all bytes of a regular file. It raises the same errors as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


DEPTH = 64
"""Maximum nesting of lists and objects in a JSON file, so that no code that walks the values runs out of stack."""


def read_json(path: str | os.PathLike, *, finite: bool = False) -> Any:
    """Return the value in a JSON file (see `parse_json`).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the path is a folder or a special file, or `parse_json` rejects the content. The message names the
            file.
    """
    try:
        return parse_json(read_bytes(path), finite=finite)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file, or is damaged: {error}") from error


def read_object(path: str | os.PathLike, *, finite: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        FileNotFoundError, ValueError: as for `read_json`, and ValueError if the file holds another kind of value.
    """
    values = read_json(path, finite=finite)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}: expected an object with named values")
    return values


def parse_json(content: bytes, *, finite: bool = False) -> Any:
    """Return the value of a JSON text that every parser reads in the same way.

    Args:
        content: UTF-8, without a byte order mark.
        finite: also reject NaN and infinite numbers, including numbers that overflow to infinity, such as 1e999.

    Raises:
        ValueError: the text is not JSON, an object has the same field twice, or the nesting is deeper than `DEPTH`
            levels.

    >>> parse_json(b'{"units": [3]}')
    {'units': [3]}
    >>> parse_json(b'{"units": [3], "units": [5]}')
    Traceback (most recent call last):
    ValueError: the field 'units' is given twice
    """
    text = content.decode("utf-8")
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark: save it as UTF-8 without one")
    numbers: dict[str, Any] = {"parse_constant": _finite, "parse_float": _finite} if finite else {}
    try:
        values = json.loads(text, object_pairs_hook=_without_repeats, **numbers)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH} levels") from None
    _check_depth(values)
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"the field {name[:60]!r} is given twice")
    return values


def _check_depth(values: Any) -> None:
    level, depth = [values], 0
    while level:
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH} levels")
        inside = [value for value in level if isinstance(value, dict | list)]
        level = [entry for value in inside for entry in (value.values() if isinstance(value, dict) else value)]
        depth += 1


def printable(text: Any) -> str:
    r"""Return text for a terminal, with every character escaped that could move, hide or reorder other characters.

    Such characters are line ends, control characters, escape sequences and marks of writing direction.

    >>> printable("one\x1b[2Ktwo\n")
    'one\\x1b[2Ktwo\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def whole_number(text: str) -> int | None:
    """Return the number in a text exactly as `str` writes a non-negative integer, and None for every other text.

    Signs, blanks, leading zeros and digits other than 0 to 9 are rejected, unlike in `int` or `str.isdigit`.

    >>> [whole_number(text) for text in ("60", "0", "060", "+5", " 5", "²", "６０")]
    [60, 0, None, None, None, None, None]
    """
    return int(text) if re.fullmatch(r"0|[1-9][0-9]{0,17}", text) else None
