"""Stopping on request: SIGTERM or SIGINT ends training with a checkpoint, on all processes at the same step.

A preempted or expiring job gets SIGTERM, and SIGKILL some seconds later; Ctrl-C sends SIGINT. `on_signals` yields a
function that the training loop calls after every call of the compiled program to learn whether to stop.
"""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax

EXIT_CODE = 75
"""Exit code of training that stopped on request, saved a checkpoint and can be resumed: ``EX_TEMPFAIL`` of sysexits.h,
"try again later". A scheduler can tell it from an error (1) and from a program killed by signal n (128 + n)."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(RuntimeError):
    """Training stopped because it was asked to. The message states what was saved.

    >>> try:
    ...     ensdiff.train(
    ...         data, code, params.model, steps=4, batch_size=2, run_dir="runs/mine", progress=False,
    ...         stop=lambda done: done == 2,
    ...     )
    ... except ensdiff.Preempted as stopped:
    ...     print(stopped)
    asked to stop at step 2 of 4: runs/mine has the checkpoint; set resume to continue
    """


@contextlib.contextmanager
def on_signals() -> Iterator[Callable[[int], bool]]:
    """Catch SIGTERM and SIGINT, and yield a function for the argument ``stop`` of `ensdiff.train`.

    The function takes the number of steps done. Every process must call it equally often, as the training loop does,
    and it returns True on all processes at the same call. A second SIGINT interrupts at once (KeyboardInterrupt). The
    function only returns True in the main thread, because other threads cannot catch signals. With several processes it
    also needs JAX's preemption service; without it, the function always returns False and signals keep their usual
    effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _never
        return
    if jax.process_count() > 1:
        enabled = getattr(jax.config, "jax_enable_preemption_service", False)
        with _routed() if enabled else contextlib.nullcontext(_never) as asked:
            yield asked
        return
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda step: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _never(_step: int) -> bool:
    return False


@contextlib.contextmanager
def _routed() -> Iterator[Callable[[int], bool]]:
    """Yield the function for several processes: JAX's coordination service passes SIGTERM on and agrees on a step."""
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    count, calls = [0], itertools.count()

    def pass_on(_number: int, _frame: object) -> None:
        count[0] += 1
        if count[0] > 1:
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGINT, pass_on)
    try:
        # the service names one of these numbers, so that none may be left out, as numbers of steps are
        yield lambda _step: reached_preemption_sync_point(next(calls))
    finally:
        signal.signal(signal.SIGINT, before)
