"""One computation at a time, in one thread, with a short queue. Each can be watched, and cancelled between chunks."""

import collections
import contextvars
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from ensdiff import hosts

LONGEST_QUEUE = 8
"""Most computations that wait."""
STEP = "sampling step"
"""The unit of the progress inside of a chunk of samples."""


class Cancelled(Exception):
    """What ends a computation whose page was closed."""


class BusyError(Exception):
    """There are already `LONGEST_QUEUE` computations waiting."""


class State(NamedTuple):
    """What a page is told of its computation.

    Args:
        text: what is being done.
        share: the share that is done, 0 to 1; None if unknown.
        result: the result, if it is done.
        error: the error that ended it, if one did.
        over: whether it has ended.
    """

    text: str
    share: float | None = None
    result: Any = None
    error: BaseException | None = None
    over: bool = False


class Job:
    """A computation that `Worker` runs. `cancel` may be called from any thread, and at any time."""

    def __init__(self, compute: Callable[[], Any], forget: Callable[["Job"], None]) -> None:
        self._compute, self._forget = compute, forget
        self._cancelled = threading.Event()
        self._outer: hosts.Progress | None = None
        self.state = State("waiting")

    def cancel(self) -> None:
        """End the computation when its current chunk is done, or before it starts. Afterwards this does nothing."""
        self._cancelled.set()
        self._forget(self)

    def run(self) -> None:
        """Compute, in the worker's thread."""
        try:
            self._check()
            self.state = State("starting")
            with hosts.watched(self._watch):
                result = self._compute()
            self.state = State("done", 1.0, result, over=True)
        except Cancelled as error:
            self.state = State("cancelled", error=error, over=True)
        except Exception as error:
            if not isinstance(error, ValueError | OSError | ImportError | MemoryError):
                traceback.print_exc()  # for the one who started the server; the page gets a sentence
            self.state = State("failed", error=error, over=True)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def _watch(self, progress: hosts.Progress) -> None:
        self._check()
        if progress.unit != STEP:
            self._outer = progress
            self.state = State(_words(progress), _share(progress))
        elif self._outer is None or not self._outer.total or self._outer.total == 1:
            self.state = State(_words(progress), _share(progress))
        else:
            share = _share(self._outer) or _share(progress)  # the number of chunks is not known in the first one
            self.state = State(f"{_words(self._outer)}, {_words(progress)}", share)


def _words(progress: hosts.Progress) -> str:
    if progress.unit == STEP:
        return f"step {progress.done:,} of {progress.total:,}"
    if progress.total is None:
        return f"{progress.what}: {progress.done:,} {progress.unit}s"
    return f"{progress.what}: {progress.done:,} of {progress.total:,} {progress.unit}s"


def _share(progress: hosts.Progress) -> float | None:
    return progress.done / progress.total if progress.total else None


class Worker:
    """A thread that runs one `Job` after the other, for use in a ``with`` statement.

    >>> with Worker() as worker:
    ...     job = worker.submit(lambda: 6 * 7)
    ...     while not job.state.over:
    ...         pass
    >>> job.state.result
    42
    """

    def __init__(self) -> None:
        self._waiting: collections.deque[Job] = collections.deque()
        self._current: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="computations", daemon=True)
        self._thread.start()

    def submit(self, compute: Callable[[], Any]) -> Job:
        """Queue a computation.

        Raises:
            BusyError: the queue is full, or closed.
        """
        job = Job(compute, self._forget)
        with self._changed:
            if self._closed or len(self._waiting) >= LONGEST_QUEUE:
                raise BusyError
            self._waiting.append(job)
            self._changed.notify()
        return job

    def before(self, job: Job) -> int:
        """Return how many computations are done before this one, which waits; 0 if it does not wait."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._current is not None)

    def idle(self) -> bool:
        """Return whether nothing is being computed, and nothing waits."""
        with self._changed:
            return self._current is None and not self._waiting

    def close(self, timeout: float = 10.0) -> bool:
        """Cancel everything, and return whether the thread has ended within ``timeout`` seconds."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([] if self._current is None else [self._current])]
            self._changed.notify()
        for job in jobs:
            job.cancel()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _forget(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = State("cancelled", error=Cancelled(), over=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if not self._waiting:
                    return
                self._current = self._waiting.popleft()
            contextvars.Context().run(self._current.run)
            with self._changed:
                self._current = None
