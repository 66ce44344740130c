"""Safe reading of untrusted ``.npy`` and ``.npz`` files: nothing is unpickled, and memory is bounded by file size.

`numpy.load` trusts the shape in an array's header and allocates it before reading; here the header is first compared
with the size of the file. A compressed member is bounded by the size that the archive states, which ``zipfile`` checks
while it reads, and the stated sizes are bounded by the size of the file (`most_bytes`).
"""

import contextlib
import io
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ensdiff.files.reading import existing_file, open_regular

FREE, RATIO = 2**28, 100


def most_bytes(size: int) -> int:
    """Return how many bytes a compressed file of ``size`` bytes may expand to: the larger of 256 MiB and 100 * size.

    Compressed images rarely reach a ratio of 10; all-zero bytes reach 1,000.

    >>> most_bytes(10**6), most_bytes(10**9)
    (268435456, 100000000000)
    """
    return max(FREE, RATIO * size)


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """Return the array of an ``.npy`` file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, is not an ``.npy`` file, or holds an array of objects. The message names it.
    """
    path = existing_file(path)
    try:
        with open(path, "rb") as file:
            return _array(file, path.stat().st_size)
    except Exception as error:  # a damaged file can raise anything in NumPy, zipfile or zlib
        raise ValueError(f"{path} is not a readable .npy file: {error}") from error


def read_npz(path: str | os.PathLike, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file by name: all of them, or only those in ``names``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or is not an ``.npz`` file, it holds an array of objects, it has no array of a
            requested name (the message lists the names), it has two arrays of one name, or its arrays would expand to
            more bytes than a file of its size may hold (`most_bytes`).
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
    """Return the names of the arrays in an ``.npz`` file. It raises the same errors as `read_npz`."""
    with _opened(path) as (_, found):
        return list(found)


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Open an archive and yield it with its members by name. Every error names the file."""
    path = existing_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in found:
                    raise _RefusedError(f"it holds two arrays named {name!r}: expected one")
                found[name] = info
            yield archive, found
    except _RefusedError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file can raise anything in NumPy, zipfile or zlib
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error


class _RefusedError(Exception):
    """Raised when an archive can be read but does not hold what was requested."""


class Header(NamedTuple):
    """What the first bytes of an ``.npy`` file state about its array.

    Args:
        shape: shape of the array.
        fortran: whether the first axis varies fastest.
        dtype: type of its numbers.
        offset: bytes before the array.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int


def map_npy(path: str | os.PathLike) -> np.memmap:
    """Return the array of an ``.npy`` file as a read-only memory map.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, empty or not an ``.npy`` file, or holds an array of objects. The message names
            it.
    """
    path = existing_file(path)
    try:
        with open_regular(path) as file:
            header = _header(file, path.stat().st_size)
            order: Literal["F", "C"] = "F" if header.fortran else "C"
            return np.memmap(file, header.dtype, "r", header.offset, header.shape, order)
    except Exception as error:  # a damaged file can raise anything in NumPy
        raise ValueError(f"{path} is not a readable .npy file: {error}") from error


def map_npz(path: str | os.PathLike, name: str) -> np.ndarray:
    """Return one array of an uncompressed ``.npz`` file, as `numpy.savez` writes it, as a read-only memory map.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the array does not exist or is compressed, or the file is damaged. The message names it.
    """
    with _opened(path) as (_, found):
        if name not in found:
            raise _RefusedError(f"it holds no array {name!r}; it has {', '.join(found)}")
        info = found[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise _RefusedError(f"its array {name!r} is compressed or encrypted: write it again, with numpy.savez")
        with open_regular(path) as file:
            file.seek(info.header_offset)
            local = struct.unpack("<4s22xHH", file.read(30))  # signature, lengths of the name and of extra fields
            if local[0] != b"PK\x03\x04":
                raise ValueError(f"no header of {name!r} at byte {info.header_offset}")
            start = info.header_offset + 30 + local[1] + local[2]
            if start + info.file_size > pathlib.Path(path).stat().st_size:
                raise ValueError(f"{name!r} ends beyond the file")
            file.seek(start)
            header = _header(file, start + info.file_size)
            order: Literal["F", "C"] = "F" if header.fortran else "C"
            return np.memmap(file, header.dtype, "r", header.offset, header.shape, order)


def reserve_npy(path: str | os.PathLike, shape: tuple[int, ...], dtype: DTypeLike) -> None:
    """Write an ``.npy`` file of zeros for `write_rows`. It takes no space on the disk until rows are written.

    Raises:
        OSError: the file cannot be written.
    """
    dtype = np.dtype(dtype)
    with open(path, "wb") as file:
        described = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
        np.lib.format.write_array_header_1_0(file, described)
        file.truncate(file.tell() + math.prod(shape) * dtype.itemsize)


def write_rows(path: str | os.PathLike, start: int, rows: np.ndarray) -> None:
    """Replace consecutive rows of the array in an ``.npy`` file.

    Args:
        path: a file of `reserve_npy`.
        start: the first row to replace.
        rows: the rows, with the dtype of the array.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the rows do not fit the array.
        OSError: the file cannot be written, for example because the disk is full.
    """
    path = existing_file(path)
    with open(path, "r+b") as file:
        header = _header(file, path.stat().st_size)
        fits = rows.shape[1:] == header.shape[1:] and 0 <= start <= header.shape[0] - len(rows)
        if header.fortran or rows.dtype != header.dtype or not fits:
            raise ValueError(
                f"rows {start} to {start + len(rows) - 1} of shape {rows.shape[1:]} and dtype {rows.dtype} do not fit "
                f"into {path}, which holds an array of shape {header.shape} and dtype {header.dtype}"
            )
        file.seek(header.offset + start * math.prod(header.shape[1:]) * header.dtype.itemsize)
        file.write(np.ascontiguousarray(rows).data)


class Appender:
    """Appends rows to a new ``.npy`` file, for arrays whose length is not known beforehand. Made by `growing_npy`."""

    def __init__(self, file: BinaryIO, path: pathlib.Path):
        self._file, self._path = file, path
        self.count = 0
        self.row: tuple[tuple[int, ...], np.dtype] | None = None

    def append(self, row: np.ndarray) -> None:
        """Append one row.

        Raises:
            ValueError: its shape or dtype differs from that of the first.
        """
        if self.row is None:
            self.row = (row.shape, row.dtype)
            self._write_header()
        if self.row != (row.shape, row.dtype):
            raise ValueError(
                f"row {self.count} has shape {row.shape} and dtype {row.dtype}, the first has {self.row[0]} and "
                f"{self.row[1]}"
            )
        self._file.write(np.ascontiguousarray(row).data)
        self.count += 1

    def _write_header(self) -> None:
        """Write the header at the position of the file. Its length does not depend on the number of rows."""
        if self.row is None:
            raise ValueError(f"{self._path} would be empty: expected at least one row")
        described = {"descr": np.lib.format.dtype_to_descr(self.row[1]), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, {**described, "shape": (self.count, *self.row[0])})

    def finish(self) -> None:
        """Write the number of rows."""
        self._file.seek(0)
        self._write_header()


@contextlib.contextmanager
def growing_npy(path: str | os.PathLike) -> Iterator[Appender]:
    """Yield an `Appender` to a new ``.npy`` file, which is readable once the ``with`` block is left without an error.

    Raises:
        ValueError: no row was appended.
        OSError: the file cannot be written, for example because the disk is full.
    """
    with open(path, "wb") as file:
        appender = Appender(file, pathlib.Path(path))
        yield appender
        appender.finish()


def parse_npy(content: bytes) -> np.ndarray:
    """Return the array of the content of an ``.npy`` file.

    Raises:
        ValueError: the content is damaged, is not that of an ``.npy`` file, or is an array of objects.
    """
    try:
        return _array(io.BytesIO(content), len(content))
    except Exception as error:  # damaged content can raise anything in NumPy
        raise ValueError(f"not a readable .npy file: {error}") from error


def _header(file: BinaryIO, size: int) -> Header:
    """Read the first bytes of a stream of ``size`` bytes, and compare them with this size."""
    version = np.lib.format.read_magic(file)
    read_header: Any = {
        (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0
    }.get(version)  # fmt: skip
    if read_header is None:
        raise ValueError(f"version {version} of the format: expected (1, 0) or (2, 0)")
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which would have to be unpickled: expected numbers or strings")
    held, claimed = size - file.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed != held:
        raise ValueError(f"an array of shape {shape} and dtype {dtype} has {claimed} bytes, but the file holds {held}")
    return Header(shape, fortran, dtype, file.tell())


def _array(file: BinaryIO, size: int) -> np.ndarray:
    """Read one array from a stream of ``size`` bytes."""
    shape, fortran, dtype, offset = _header(file, size)
    claimed = size - offset
    content: Any = np.empty(claimed, np.uint8)
    done = file.readinto(content)  # type: ignore[attr-defined]
    if done != claimed:
        raise ValueError(f"it ends after {done} of {claimed} bytes")
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")
