"""Files on a disk that may fill up, vanish, or be shared: atomic writes, one writer a folder, one clear error."""

import contextlib
import errno
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator

import filelock

_LOW = 2**20
"""Bytes below which a disk counts as full, whatever the error said."""


class FolderInUseError(OSError):
    """Another process is writing into the folder.

    >>> with lock("."):
    ...     ensdiff.save(params, ".")
    Traceback (most recent call last):
    ensdiff.storage.FolderInUseError: ...
    """


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a file that is there whole or not at all, also after a loss of power; until then the old one stays.

    Raises:
        OSError: the disk is full, read-only or gone; the file is as it was.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    """Make a rename last; not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
    """Be the only writer of a folder. The system drops the lock when the process ends, however it ends.

    Raises:
        FolderInUseError: another process (or another run in this one) holds it; says which.
        OSError: the folder cannot be written to.
    """
    path = pathlib.Path(folder) / ".lock"
    held = filelock.FileLock(path)
    try:
        held.acquire(blocking=False)
    except filelock.Timeout:
        raise FolderInUseError(
            f"{folder} is in use{_holder(path)}: wait until that is done, end it, or choose another folder"
        ) from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    with contextlib.suppress(OSError):  # where a locked file cannot be written to, the message names no process
        path.write_text(f"{os.getpid()} {socket.gethostname()}")
    try:
        yield
    finally:
        held.release()


def _holder(path: pathlib.Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        pid, host = path.read_text().split()
        return f" by process {int(pid)} on {host}"
    return ""


def explain(error: BaseException, path: str | os.PathLike) -> str:
    """Why writing under ``path`` failed, in a few words: from the state of the disk, then from the error itself.

    Libraries wrap the system's errors in their own types and long texts.
    """
    path = pathlib.Path(path)
    text = " ".join(str(error).split())
    codes = {e.errno for e in _chain(error) if isinstance(e, OSError)}
    if not path.exists():
        return f"{path} is gone"
    free = shutil.disk_usage(path).free
    if errno.ENOSPC in codes or "No space left on device" in text or free < _LOW:
        return f"the disk is full ({free / 2**20:.1f} MiB are free)"
    if errno.EDQUOT in codes or "Disk quota exceeded" in text:
        return "the disk quota is used up"
    if errno.EFBIG in codes or "File too large" in text:
        return "a file grew larger than the system allows (see ulimit -f)"
    if errno.EROFS in codes or "Read-only file system" in text:
        return "the file system is read-only"
    if codes & {errno.EACCES, errno.EPERM} or "Permission denied" in text or not os.access(path, os.W_OK):
        return "this user may not write there"
    return text[:300] or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
