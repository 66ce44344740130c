"""Being told to stop: SIGTERM or SIGINT ends training with a checkpoint, on all processes at the same step.

A machine that is taken away (a preempted or expiring job) sends SIGTERM and some seconds later SIGKILL; Ctrl-C is
SIGINT. `on_signals` gives a question that the training loop asks after every step.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax

EXIT_CODE = 75
"""``EX_TEMPFAIL`` of sysexits.h, "try again later": stopped on request, saved, and ready to go on. An error is 1, and a
shell says 128 + n of a program that signal n killed, so that a scheduler can tell these from it."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(RuntimeError):
    """Training stopped because it was asked to. Its message says what was saved.

    >>> try:
    ...     ensdiff.train(
    ...         data, code, params.model, steps=4, batch_size=2, run_dir="runs/mine", progress=False,
    ...         stop=lambda done: done == 2,
    ...     )
    ... except ensdiff.Preempted as stopped:
    ...     print(stopped)
    asked to stop, at step 2 of 4: runs/mine has it; set resume to go on
    """


@contextlib.contextmanager
def on_signals() -> Iterator[Callable[[int], bool]]:
    """Catch SIGTERM and SIGINT; gives a function for `ensdiff.train`'s ``stop``.

    It takes the number of steps done, must be asked after each of them by every process, and says yes to all of them at
    the same step. A second SIGINT interrupts at once (KeyboardInterrupt). It never says yes in another thread than the
    main one, which alone can catch signals, and of several processes without JAX's preemption service, whose signals
    keep their usual effect.
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
    """Of several processes: JAX's coordination service passes a SIGTERM of one on, and finds a step for all."""
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    count = [0]

    def pass_on(_number: int, _frame: object) -> None:
        count[0] += 1
        if count[0] > 1:
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGINT, pass_on)
    try:
        yield reached_preemption_sync_point
    finally:
        signal.signal(signal.SIGINT, before)
