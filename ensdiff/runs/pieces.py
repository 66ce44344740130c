"""Finished pieces of a long computation, kept in a folder so that it can continue after an interruption.

A piece is named by the digest of its inputs. A later request for the same inputs, in any order, therefore finds the
stored piece, and a piece of another ensemble, other samples or other settings is never mistaken for it.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ensdiff import hosts
from ensdiff.ensemble.digest import digest
from ensdiff.files.checksums import warn
from ensdiff.files.writing import LOCK, lock, make_folder, write_atomically

_SUM = hashlib.sha256().digest_size
_NAME = r"[0-9a-f]{64}\.npz"


class Pieces:
    """Pieces in a folder, created by `pieces`. ``Pieces(None, ...)`` keeps nothing.

    Args:
        folder: the folder that holds them.
        of: digest of what all pieces depend on.
        seconds: minimum time between two writes by `snapshot`.
    """

    def __init__(self, folder: pathlib.Path | None, of: str, seconds: float = 30.0):
        self.folder, self.of, self.seconds = folder, of, seconds
        self._written = time.monotonic()

    def get(self, compute: Callable[[], np.ndarray], *inputs: Any) -> np.ndarray:
        """Return ``compute()`` for these inputs, or its result from before an interruption.

        All processes must call it.
        """
        return self.get_all(lambda: {"value": compute()}, *inputs)["value"]

    def get_all(self, compute: Callable[[], dict[str, np.ndarray]], *inputs: Any) -> dict[str, np.ndarray]:
        """Do what `get` does for several arrays by name."""
        if self.folder is None:
            return compute()
        path = self._path(inputs)
        found = hosts.decide(lambda: _read(path))
        if found is None:
            found = compute()
            hosts.decide(lambda: _write(path, found))
        return found

    def snapshot(self, state: dict[str, np.ndarray], *inputs: Any) -> None:
        """Save the state of a running computation, at most once every ``seconds``.

        The state must be the same on all processes; the first one writes it.
        """
        if self.folder is None or not hosts.is_writer() or time.monotonic() < self._written + self.seconds:
            return
        _write(self._path(inputs), state)
        self._written = time.monotonic()

    def last(self, *inputs: Any) -> dict[str, np.ndarray] | None:
        """Return the state that `snapshot` saved last, or None. All processes must call it."""
        if self.folder is None:
            return None
        path = self._path(inputs)
        return hosts.decide(lambda: _read(path))

    def _path(self, inputs: Any) -> pathlib.Path:
        assert self.folder is not None
        return self.folder / f"{digest(self.of, *inputs)}.npz"


@contextlib.contextmanager
def pieces(folder: str | os.PathLike | None, *of: Any) -> Iterator[Pieces]:
    """Keep the pieces of a computation on ``of`` (pytrees) in a folder while a ``with`` block runs.

    When the block ends without an error, the pieces are removed, and so is the folder unless it holds other files.

    Raises:
        FolderInUseError: another process keeps its pieces there.
        NotADirectoryError: the folder is a file.
    """
    if folder is None:
        yield Pieces(None, "")
        return
    path = pathlib.Path(folder)
    ours = digest(*of)
    with contextlib.ExitStack() as stack:

        def begin() -> None:
            make_folder(path)
            stack.enter_context(lock(path))

        hosts.decide(begin)
        yield Pieces(path, ours)
        hosts.decide(lambda: _remove(path))


def _remove(folder: pathlib.Path) -> None:
    for file in folder.iterdir():
        # the last pattern matches the temporary file of a killed process
        if file.name == LOCK or re.fullmatch(rf"{_NAME}|\.{_NAME}\.\d+", file.name):
            file.unlink()
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    stream = io.BytesIO()
    np.savez(stream, **dict[str, Any](arrays))
    content = stream.getvalue()
    write_atomically(path, hashlib.sha256(content).digest() + content)


def _read(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of a piece, or None if it does not exist or is not what was written."""
    if not path.exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[_SUM:]).digest() != content[:_SUM]:
        warn(f"{path} is damaged: it does not match its checksum and is recomputed")
        return None
    with np.load(io.BytesIO(content[_SUM:]), allow_pickle=False) as arrays:
        return dict(arrays)
