"""Finished pieces of a long computation, kept in a folder so that the same computation goes on after an interruption.

A piece is named by what it is computed from. So whatever asks for it again, in any order, gets what was kept, and
another ensemble's, other samples' or other settings' pieces are never taken for it.
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
    """Pieces in a folder; ``Pieces(None, ...)`` keeps nothing. Made by `pieces`.

    Args:
        folder: where they are.
        of: digest of what all pieces depend on.
        seconds: between two `snapshot` writes.
    """

    def __init__(self, folder: pathlib.Path | None, of: str, seconds: float = 30.0):
        self.folder, self.of, self.seconds = folder, of, seconds
        self._written = time.monotonic()

    def get(self, compute: Callable[[], np.ndarray], *inputs: Any) -> np.ndarray:
        """What ``compute()`` returned for these inputs, now or before the interruption. All processes must call it."""
        return self.get_all(lambda: {"value": compute()}, *inputs)["value"]

    def get_all(self, compute: Callable[[], dict[str, np.ndarray]], *inputs: Any) -> dict[str, np.ndarray]:
        """`get` of several arrays by their names."""
        if self.folder is None:
            return compute()
        path = self._path(inputs)
        found = hosts.decide(lambda: _read(path))
        if found is None:
            found = compute()
            hosts.decide(lambda: _write(path, found))
        return found

    def snapshot(self, state: dict[str, np.ndarray], *inputs: Any) -> None:
        """Keep how far a computation has come, not more often than ``seconds`` allow. For one that is the same on all
        processes: the first writes."""
        if self.folder is None or not hosts.is_writer() or time.monotonic() < self._written + self.seconds:
            return
        _write(self._path(inputs), state)
        self._written = time.monotonic()

    def last(self, *inputs: Any) -> dict[str, np.ndarray] | None:
        """What `snapshot` kept last; None for nothing. All processes must call it."""
        if self.folder is None:
            return None
        path = self._path(inputs)
        return hosts.decide(lambda: _read(path))

    def _path(self, inputs: Any) -> pathlib.Path:
        assert self.folder is not None
        return self.folder / f"{digest(self.of, *inputs)}.npz"


@contextlib.contextmanager
def pieces(folder: str | os.PathLike | None, *of: Any) -> Iterator[Pieces]:
    """Pieces of a computation on ``of`` (pytrees), in a folder; they are removed when the block ends without an error.

    So is the folder, unless it holds other files.

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
        # the last is what a killed process was writing
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
    """The arrays of a piece; None where there is none, or it is not what was written."""
    if not path.exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[_SUM:]).digest() != content[:_SUM]:
        warn(f"{path} is damaged: it does not match its checksum, and is computed again")
        return None
    with np.load(io.BytesIO(content[_SUM:]), allow_pickle=False) as arrays:
        return dict(arrays)
