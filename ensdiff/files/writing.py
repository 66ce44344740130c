"""Writing to a disk that may fill up, vanish or be shared: atomic writes, one writer per folder, one clear error."""

import contextlib
import errno
import gc
import glob
import logging
import os
import pathlib
import shutil
import socket
import traceback
import warnings
from collections.abc import Iterator

import filelock

_LOW = 2**20
"""Free bytes below which a disk counts as full, whatever the error states."""
LOCK = ".lock"
"""Name of the file that is locked on behalf of its folder."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Error numbers of a file system that does not support locks."""
_DOOMED = ".deleted."
"""Prefix of the name of a folder that is being deleted."""


class FolderInUseError(OSError):
    """Raised when another process is writing into the folder.

    >>> with lock("."):
    ...     ensdiff.save(params, ".")
    Traceback (most recent call last):
    ensdiff.files.writing.FolderInUseError: ...
    """


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a file completely or not at all, even if power is lost. Until the write completes, the old file remains.

    Raises:
        OSError: the disk is full, read-only or gone. The old file is unchanged.
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
    sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """Make a rename in a folder durable against power loss, on systems that support this."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(path: str | os.PathLike) -> pathlib.Path:
    """Create a folder and its parents if they do not exist, and return its path.

    Raises:
        NotADirectoryError: the folder or one of its parents is a file. The message names the file.
        OSError: the folder cannot be created.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        check_folder(path)
        raise
    return path


def check_folder(path: str | os.PathLike) -> None:
    """Check that a path is a folder, or that no file prevents creating one there.

    Raises:
        NotADirectoryError: the path or one of its parents is a file. The message names the file.
    """
    path = pathlib.Path(path)
    for place in (path, *path.parents):
        if os.path.lexists(place) and not place.is_dir():
            raise NotADirectoryError(
                f"{place} is not a folder, but a folder is needed there: rename or remove it, or choose another place"
            )


def remove_folder(folder: str | os.PathLike) -> None:
    """Delete a folder so that a killed process never leaves a partly deleted folder under its name.

    The folder is renamed first. `sweep` deletes renamed folders that were left behind.
    """
    folder = pathlib.Path(folder)
    doomed = folder.with_name(f"{_DOOMED}{folder.name}")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def sweep(folder: str | os.PathLike, name: str = "*") -> None:
    """Delete what interrupted calls of `remove_folder` left in ``folder``, for one folder name or for all of them."""
    for doomed in pathlib.Path(folder).glob(_DOOMED + (name if name == "*" else glob.escape(name))):
        shutil.rmtree(doomed)


@contextlib.contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
    """Lock a folder for a single writer. The system releases the lock when the process ends for any reason.

    If the file system has no locks, this issues a warning and continues without one.

    Raises:
        FolderInUseError: another process (or another run in this process) holds the lock. The message names the
            process.
        OSError: the folder cannot be written to.
    """
    path = pathlib.Path(folder) / LOCK
    # filelock's fallback, a file that exists while the lock is held, is left behind by a killed process
    held = filelock.FileLock(path, fallback_to_soft=False)
    try:
        held.acquire(blocking=False)
    except filelock.Timeout:
        raise FolderInUseError(
            f"{folder} is in use{_holder(path)}: wait until that process has finished, end it, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {folder} has no locks ({error}): nothing keeps another process from writing there too",
            stacklevel=3,
        )
    if held.is_locked:
        with contextlib.suppress(OSError):  # if a locked file cannot be written to, the message names no process
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
    """Return in a few words why writing under ``path`` failed, from the state of the disk or else from the error.

    This is needed because libraries wrap system errors in their own types and long messages.
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


class _RaisedLater(logging.Filter):
    """Suppress the tracebacks that Orbax logs in each thread and task an error passes through before it is raised.

    They are still shown if the logger shows debugging messages.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        # asyncio logs errors of Orbax's tasks, which fail in TensorStore, when they are garbage-collected
        failed = str(record.exc_info[1]) if record.exc_info else ""
        of_orbax = f"{os.sep}orbax{os.sep}" in record.pathname or "tensorstore_spec" in failed
        return not (of_orbax and record.levelno >= logging.ERROR) or logging.getLogger(record.name).isEnabledFor(
            logging.DEBUG
        )


_RAISED_LATER = _RaisedLater()


def log_errors_once() -> None:
    """Keep Orbax from logging errors that it also raises. Otherwise a full disk logs a thousand lines."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_RAISED_LATER)  # adding the same filter twice has no effect


def let_go(error: BaseException) -> None:
    """Free what an error's frames hold, without warnings about coroutines that will never run."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        gc.collect()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
