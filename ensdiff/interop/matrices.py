"""Code matrices from files: NumPy's ``.npy`` and ``.npz``, the references' ``.pkl``, ensdiff's ``.json``.

Both reference implementations store the code as an (N, K) array with 1 where member k was trained on unit i; one of
them uses a pickle. A pickle is a program, so it is never allowed to call NumPy's own classes. `_Unpickler` replaces the
few classes that a pickled array names by records of their arguments, and rejects all others. The array is then built
from the checked record.
"""

import io
import math
import os
import pathlib
import pickle
import pickletools
import re
from typing import Any

import numpy as np

from ensdiff.codes import Code
from ensdiff.files.npy import npz_names, read_npy, read_npz
from ensdiff.files.reading import existing_file, read_json

SUFFIXES = (".npy", ".npz", ".pkl", ".pickle", ".json")


def read_code(path: str | os.PathLike, key: str | None = None) -> Code:
    """Return the code that a file holds.

    Args:
        path: ``.npy``, ``.npz`` (an array ``"names"`` beside the matrix names the units), ``.pkl`` (an array, or nested
            lists), or ``.json`` (`Code.to_dict`).
        key: the array's name in an ``.npz`` of several arrays. An array named ``"code"`` is found without it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is of another kind, is damaged, is a pickle of anything other than an array of numbers, or
            does not hold a code matrix.
    """
    path = existing_file(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a code matrix in a file of type {', '.join(SUFFIXES)}")
    if key is not None and path.suffix != ".npz":
        raise ValueError(
            f"key={key!r}: {path} holds one code without a name, because only .npz files have names; omit key"
        )
    if path.suffix == ".json":
        try:
            return Code.from_dict(read_json(path))
        except RecursionError as error:
            raise ValueError(f"{path} is not a code: {error}") from error
    try:
        matrix, names = _read(path, key)
    except (OSError, MemoryError) as error:
        raise ValueError(f"{path} is damaged, or not a {path.suffix} file: {error!r}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return Code.from_matrix(matrix, names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: pathlib.Path, key: str | None) -> tuple[np.ndarray, list[Any] | None]:
    """Return the matrix, and the names of its rows if the file has them."""
    if path.suffix in (".pkl", ".pickle"):
        return read_pickled_array(path.read_bytes()), None
    if path.suffix == ".npy":
        return read_npy(path), None
    held = npz_names(path)
    names = [name for name in held if name != "names" or key == "names"]
    name = key or ("code" if "code" in names else names[0] if len(names) == 1 else None)
    if name not in names:
        raise ValueError(
            f"{path} holds the arrays {names}: " + (f"there is no {key!r}" if key else "choose one with key=")
        )
    if key == "names" or "names" not in held:
        return read_npz(path, [name])[name], None
    arrays = read_npz(path, [name, "names"])
    return arrays[name], arrays["names"].tolist()


class _Dtype:
    """Record of a pickled dtype: a kind and a size, and later the byte order."""

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str) or not re.fullmatch(r"[biuf][1248]", name):
            raise pickle.UnpicklingError(f"a pickled array of dtype {name!r}: expected booleans, integers or floats")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"a pickled array of byte order {order!r}")
        self.order = order

    def numpy(self) -> np.dtype:
        return np.dtype(self.name).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """Record of a pickled array, which `numpy` checks and builds."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state[1:]

    def numpy(self) -> np.ndarray:
        shape, dtype, fortran, content = self.state
        return _build(content, dtype, shape, "F" if fortran else "C")


def _build(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray | pickle.PickleBuffer):
        raise pickle.UnpicklingError("a pickled array of objects: expected booleans, integers or floats")
    kind, content = dtype.numpy(), bytes(content)
    if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) * kind.itemsize != len(content):
        raise pickle.UnpicklingError(f"a pickled array of shape {shape} with {len(content)} bytes of {kind}")
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")


class _Buffer(_Array):
    """Record of an array pickled with protocol 5, in a single call."""

    def __init__(self, content: Any, dtype: Any, shape: Any, order: Any):
        self.array = _build(content, dtype, shape, order)

    def numpy(self) -> np.ndarray:
        return self.array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Return bytes from text, which is how protocols below 3 write them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"pickled bytes in encoding {encoding!r}")
    return str(text).encode("latin1")


def _no_bytes() -> bytes:
    """Return empty bytes, which protocols below 3 write as a call."""
    return b""


DEPTH, FREE = 32, 2**20
"""Maximum nesting of lists (an array has no more axes), and how many numbers a pickle of any size may hold."""


def _check_lists(value: list | tuple, size: int) -> None:
    """Reject nested lists that are not an array of numbers, or that hold more numbers than ``size`` bytes can.

    A number takes at least one byte, but a list that is used twice is written once: forty lists of two, each holding
    the next one twice, are an array of 2^40 numbers. Each list is visited once per depth, however often it is used.
    """
    # the lists at one depth, and how often each occurs in the array
    lists, times = {id(value): value}, {id(value): 1}
    numbers = 0
    for _ in range(DEPTH):
        inner: dict[int, list | tuple] = {}
        inner_times: dict[int, int] = {}
        for name, entries in lists.items():
            for entry in entries:
                if isinstance(entry, list | tuple):
                    inner[id(entry)] = entry
                    inner_times[id(entry)] = inner_times.get(id(entry), 0) + times[name]
                elif isinstance(entry, bool | int | float):
                    numbers += times[name]
                else:
                    raise pickle.UnpicklingError(f"a pickled list with a {type(entry).__name__}: expected numbers")
        if numbers + sum(inner_times.values()) > max(size, FREE):
            raise pickle.UnpicklingError(
                f"a pickle of {size} bytes whose lists, used many times, would become an array of more than "
                f"{max(size, FREE)} numbers. If you trust it, save the array itself with numpy.save"
            )
        if not inner:
            return
        lists, times = inner, inner_times
    raise pickle.UnpicklingError(f"lists nested more than {DEPTH} deep, or in themselves: expected an array of numbers")


_ALLOWED: dict[tuple[str, str], Any] = {("_codecs", "encode"): _encode, ("numpy", "dtype"): _Dtype}
_ALLOWED[("__builtin__", "bytes")] = _ALLOWED[("builtins", "bytes")] = _no_bytes
_ALLOWED[("numpy", "ndarray")] = "ndarray"  # only named, as an argument of _reconstruct
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[(f"{_core}.multiarray", "_reconstruct")] = _Array
    _ALLOWED[(f"{_core}.numeric", "_frombuffer")] = _Buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the pickle calls {module}.{name}; it was not run. Expected only a NumPy array"
            ) from None


def _check_sizes(content: bytes) -> None:
    """Reject a pickle that declares more than it holds.

    The unpickler allocates memory for any size or memo index before it checks that the bytes exist, so ten bytes could
    claim 64 GiB.
    """
    try:
        stores = [
            (argument, position)
            for op, argument, position in pickletools.genops(content)
            if op.name in ("PUT", "BINPUT", "LONG_BINPUT")
        ]
    except ValueError as error:
        raise pickle.UnpicklingError(f"the pickle is truncated, or damaged: {error}") from error
    for argument, position in stores:
        if not isinstance(argument, int) or not 0 <= argument <= len(content):
            raise pickle.UnpicklingError(
                f"a pickle of {len(content)} bytes with memo index {argument} at byte {position}: it is damaged"
            )


def read_pickled_array(content: bytes) -> np.ndarray:
    """Return the array of numbers (or of nested lists of them) that a pickle holds, without running any other code.

    Raises:
        pickle.UnpicklingError: the pickle is damaged or holds anything else.
    """
    try:
        _check_sizes(content)
        value = _Unpickler(io.BytesIO(content)).load()
        value = value.numpy() if isinstance(value, _Array) else value
        if isinstance(value, list | tuple):
            _check_lists(value, len(content))
            value = np.asarray(value)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # an altered pickle can raise anything
        raise pickle.UnpicklingError(f"not a readable pickle: {error!r}") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"a pickled {type(value).__name__}: expected an array of numbers")
    return value
