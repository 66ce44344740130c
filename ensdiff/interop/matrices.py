"""Code matrices from files: NumPy's ``.npy`` and ``.npz``, the references' ``.pkl``, ensdiff's ``.json``.

Both references keep the code as an (N, K) array with 1 where member k was trained on unit i, one of them as a pickle. A
pickle is a program, so NumPy's own classes are never called by it: `_Unpickler` replaces the few that a pickled array
names by records of what they were given, and refuses every other. The array is then built from the checked record.
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
from ensdiff.files.reading import read_json

SUFFIXES = (".npy", ".npz", ".pkl", ".pickle", ".json")


def read_code(path: str | os.PathLike, key: str | None = None) -> Code:
    """The code that a file holds.

    Args:
        path: ``.npy``, ``.npz`` (an array ``"names"`` beside the matrix names the units), ``.pkl`` (an array, or nested
            lists), or ``.json`` (`Code.to_dict`).
        key: the array's name in an ``.npz`` of several; ``"code"`` is found without.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, damaged, a pickle of anything but an array of numbers, or not a code matrix.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a code matrix in a file of type {', '.join(SUFFIXES)}")
    if key is not None and path.suffix != ".npz":
        raise ValueError(
            f"key={key!r}: {path} holds one code without a name, only .npz files have names; leave key out"
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
    """The matrix, and the names of its rows where the file has them."""
    if path.suffix in (".pkl", ".pickle"):
        return read_pickled_array(path.read_bytes()), None
    if path.suffix == ".npy":
        return read_npy(path), None
    held = npz_names(path)
    names = [name for name in held if name != "names" or key == "names"]
    name = key or ("code" if "code" in names else names[0] if len(names) == 1 else None)
    if name not in names:
        raise ValueError(
            f"{path} holds the arrays {names}: " + (f"there is no {key!r}" if key else "say which by key=")
        )
    if key == "names" or "names" not in held:
        return read_npz(path, [name])[name], None
    arrays = read_npz(path, [name, "names"])
    return arrays[name], arrays["names"].tolist()


class _Dtype:
    """What a pickle says of a dtype: a kind and a size, and later the byte order."""

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
    """What a pickle says of an array: `numpy` checks it and builds the array."""

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
    """An array pickled with protocol 5: all in one call."""

    def __init__(self, content: Any, dtype: Any, shape: Any, order: Any):
        self.array = _build(content, dtype, shape, order)

    def numpy(self) -> np.ndarray:
        return self.array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols below 3 write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"pickled bytes in encoding {encoding!r}")
    return str(text).encode("latin1")


def _no_bytes() -> bytes:
    """How protocols below 3 write no bytes at all."""
    return b""


DEPTH, FREE = 32, 2**20
"""How deep lists may be nested (an array has no more axes), and how many numbers a pickle of any size may hold."""


def _check_lists(value: list | tuple, size: int) -> None:
    """Refuse nested lists that are no array of numbers, or hold more numbers than a pickle of ``size`` bytes can.

    A number takes a byte or more, but a list that is used twice is written once: forty lists of two, each holding the
    next one twice, are an array of 2^40 numbers. Lists are looked at once at every depth, however often they are used.
    """
    # lists of one depth, and how often each is part of the array
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
_ALLOWED[("numpy", "ndarray")] = "ndarray"  # only ever named, as an argument of _reconstruct
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[(f"{_core}.multiarray", "_reconstruct")] = _Array
    _ALLOWED[(f"{_core}.numeric", "_frombuffer")] = _Buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the pickle wants to call {module}.{name}; it was not run. Expected nothing but a NumPy array"
            ) from None


def _check_sizes(content: bytes) -> None:
    """Refuse a pickle that names more than it holds.

    The unpickler makes room for whatever size or memo index it reads before it looks whether the bytes are there: ten
    bytes could ask for 64 GiB.
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
    """The NumPy array of numbers (or nested lists of them) that a pickle holds; nothing else is ever called.

    Raises:
        pickle.UnpicklingError: anything else, or damaged.
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
    except Exception as error:  # what an altered pickle can raise is not limited
        raise pickle.UnpicklingError(f"not a readable pickle: {error!r}") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"a pickled {type(value).__name__}: expected an array of numbers")
    return value
