"""Files on a disk that may fill up, vanish, or be shared: atomic writes, one writer a folder, one clear error."""

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
"""Bytes below which a disk counts as full, whatever the error said."""
LOCK = ".lock"
"""Name of the file that is locked in place of its folder."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What a file system answers that cannot lock."""
_DOOMED = ".deleted."
"""Begins the name of a folder that is being deleted."""


class FolderInUseError(OSError):
    """Another process is writing into the folder.

    >>> with lock("."):
    ...     ensdiff.save(params, ".")
    Traceback (most recent call last):
    ensdiff.files.writing.FolderInUseError: ...
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
    sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """Make a rename in a folder last, also after a loss of power; not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(path: str | os.PathLike) -> pathlib.Path:
    """Make a folder, and those above it, unless it is there.

    Raises:
        NotADirectoryError: a file has the name of the folder, or of one above it; names the file.
        OSError: it cannot be made.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        check_folder(path)
        raise
    return path


def check_folder(path: str | os.PathLike) -> None:
    """Check that a path is a folder, or that one can be made there.

    Raises:
        NotADirectoryError: it, or one above it, is a file; names the file.
    """
    path = pathlib.Path(path)
    for place in (path, *path.parents):
        if os.path.lexists(place) and not place.is_dir():
            raise NotADirectoryError(
                f"{place} is no folder, but a folder is needed there: rename or remove it, or choose another place"
            )


def remove_folder(folder: str | os.PathLike) -> None:
    """Delete a folder so that its name is gone at once: a process that is killed leaves no half of it under the name.

    What it may leave has another name, and `sweep` deletes it.
    """
    folder = pathlib.Path(folder)
    doomed = folder.with_name(f"{_DOOMED}{folder.name}")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def sweep(folder: str | os.PathLike, name: str = "*") -> None:
    """Delete what an interrupted `remove_folder` of a folder of that name, by default of any, left in ``folder``."""
    for doomed in pathlib.Path(folder).glob(_DOOMED + (name if name == "*" else glob.escape(name))):
        shutil.rmtree(doomed)


@contextlib.contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
    """Be the only writer of a folder. The system drops the lock when the process ends, however it ends.

    On a file system without locks there is no check: it warns, and goes on.

    Raises:
        FolderInUseError: another process (or another run in this one) holds it; says which.
        OSError: the folder cannot be written to.
    """
    path = pathlib.Path(folder) / LOCK
    # filelock's own way out, a file that is there while the lock is held, stays behind a process that is killed
    held = filelock.FileLock(path, fallback_to_soft=False)
    try:
        held.acquire(blocking=False)
    except filelock.Timeout:
        raise FolderInUseError(
            f"{folder} is in use{_holder(path)}: wait until that is done, end it, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {folder} has no locks ({error}): nothing keeps another process from writing there too",
            stacklevel=3,
        )
    if held.is_locked:
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


class _RaisedLater(logging.Filter):
    """Leaves out the tracebacks that Orbax logs in each thread and task that an error passes: it raises the error too.

    They are shown where the logger shows debugging messages.
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
    """Keep Orbax from logging errors that it raises: a full disk is a thousand lines otherwise."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_RAISED_LATER)  # the same one again changes nothing


def let_go(error: BaseException) -> None:
    """Free what an error's frames hold, without the warnings of coroutines that will not run any more."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        gc.collect()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
