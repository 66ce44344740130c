"""NumPy's ``.npy`` and ``.npz`` files from anywhere: nothing is unpickled, and no more is allocated than they hold.

`numpy.load` believes the shape in an array's header and allocates it before it reads; here the header is compared with
the size of the file first. A compressed member is bounded by the size that the archive says, which ``zipfile`` checks
while it reads.
"""

import io
import math
import os
import pathlib
import zipfile
from collections.abc import Collection
from typing import Any, BinaryIO

import numpy as np


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """The array of an ``.npy`` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, another kind of file, or an array of objects; names the file.
    """
    path = _existing(path)
    try:
        with open(path, "rb") as file:
            return _array(file, path.stat().st_size)
    except Exception as error:  # what a damaged file raises, in NumPy, zipfile or zlib, is not limited
        raise ValueError(f"{path} is not a readable .npy file: {error}") from error


def read_npz(path: str | os.PathLike, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file by their names; all of them, or those that are asked for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, another kind of file, an array of objects, or no array of that name; says which there are.
    """
    path = _existing(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = sorted(set(names or ()) - set(found))
            if missing:
                raise _MissingError(f"{path} holds no array {missing[0]!r}; it has {', '.join(found)}")
            out = {}
            for name, info in found.items():
                if names is None or name in names:
                    with archive.open(info) as file:
                        out[name] = _array(file, info.file_size)  # type: ignore[arg-type]
            return out
    except _MissingError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error


class _MissingError(Exception):
    """Told apart from what the archive itself raises."""


def _existing(path: Any) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    return path


def _array(file: BinaryIO, size: int) -> np.ndarray:
    """One array, from a stream of so many bytes."""
    head = io.BytesIO(file.read(min(size, 2**16)))
    version = np.lib.format.read_magic(head)
    read_header: Any = {
        (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0
    }.get(version)  # fmt: skip
    if read_header is None:
        raise ValueError(f"version {version} of the format: expected (1, 0) or (2, 0)")
    shape, fortran, dtype = read_header(head)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which would have to be unpickled: expected numbers or strings")
    held, claimed = size - head.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed != held:
        raise ValueError(f"an array of shape {shape} and dtype {dtype} has {claimed} bytes, the file holds {held}")
    content: Any = np.empty(claimed, np.uint8)
    view, done = memoryview(content), 0
    for stream in (head, file):
        while done < claimed and (count := stream.readinto(view[done:])):  # type: ignore[attr-defined]
            done += count
    if done != claimed:
        raise ValueError(f"it ends after {done} of {claimed} bytes")
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")
