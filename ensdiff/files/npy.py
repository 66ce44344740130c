"""NumPy's ``.npy`` and ``.npz`` files from anywhere: nothing is unpickled, and no more is allocated than they hold.

`numpy.load` believes the shape in an array's header and allocates it before it reads; here the header is compared with
the size of the file first. A compressed member is bounded by the size that the archive says, which ``zipfile`` checks
while it reads, and what an archive says is bounded by the size of its file (`most_bytes`).
"""

import contextlib
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import numpy as np

FREE, RATIO = 2**28, 100


def most_bytes(size: int) -> int:
    """How many bytes a compressed file of ``size`` bytes may expand to: 256 MiB, or 100 times its size if that is more.

    Compressed images rarely reach a ratio of 10; all-zero bytes reach 1,000.

    >>> most_bytes(10**6), most_bytes(10**9)
    (268435456, 100000000000)
    """
    return max(FREE, RATIO * size)


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
        ValueError: damaged, another kind of file, an array of objects, no array of that name (says which there are),
            two of one name, or more bytes than a file of its size may expand to (`most_bytes`).
    """
    with _opened(path) as (archive, found):
        missing = sorted(set(names or ()) - set(found))
        if missing:
            raise _RefusedError(f"it holds no array {missing[0]!r}; it has {', '.join(found)}")
        wanted = {name: info for name, info in found.items() if names is None or name in names}
        size, claimed = pathlib.Path(path).stat().st_size, sum(info.file_size for info in wanted.values())
        if claimed > most_bytes(size):
            raise _RefusedError(
                f"it has {size} bytes, and its arrays {', '.join(wanted)} would expand to {claimed}: more than {FREE} "
                f"and more than {RATIO} times its size. If you trust it, write it again uncompressed, with numpy.savez"
            )
        out = {}
        for name, info in wanted.items():
            with archive.open(info) as file:
                out[name] = _array(file, info.file_size)  # type: ignore[arg-type]
        return out


def npz_names(path: str | os.PathLike) -> list[str]:
    """The names of the arrays in an ``.npz`` file; errors are those of `read_npz`."""
    with _opened(path) as (_, found):
        return list(found)


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """The archive and its members by their names; whatever goes wrong names the file."""
    path = _existing(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in found:
                    raise _RefusedError(f"it holds two arrays of the name {name!r}: expected one")
                found[name] = info
            yield archive, found
    except _RefusedError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # what a damaged file raises, in NumPy, zipfile or zlib, is not limited
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error


class _RefusedError(Exception):
    """An archive that can be read, but is not what was asked for."""


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
