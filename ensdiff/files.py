"""Reading files that others may have written."""

import json
import os
import pathlib
import stat
from typing import Any, BinaryIO


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading; links to one are followed.

    Raises:
        OSError: no such file, or it may not be read.
        ValueError: a folder, pipe, socket or device: reading one could wait without end.
    """
    wrong = f"{path} is a folder, pipe, socket or device: expected a regular file"
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(wrong)
    # what has taken the file's place since then is not waited for either
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(wrong)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike) -> bytes:
    """All bytes of a regular file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or nested too deep; names the file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    try:
        return json.loads(read_bytes(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file, or is damaged: {error}") from error
