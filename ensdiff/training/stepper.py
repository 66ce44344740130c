"""Training steps as the loop calls them: on batches from the host or from the devices, in calls of suitable length."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ensdiff import hosts
from ensdiff.data import Dataset, Splits
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.mesh import on_mesh
from ensdiff.models.adapters import Adapted
from ensdiff.models.denoiser import Denoiser
from ensdiff.training.config import TrainConfig
from ensdiff.training.device import CAPACITY, device_steps
from ensdiff.training.execution import Execution
from ensdiff.training.host import host_steps
from ensdiff.training.step import StepMetrics, TrainState
from ensdiff.typing import Params

SECONDS = 0.5
"""The time that one call takes at most, so that logs, checkpoints and signals stay timely."""
GROWTH = 8
"""The most by which one measurement lengthens the calls."""


class Stepper(NamedTuple):
    """Training steps.

    Args:
        call: ``(state, step, count) -> (state, metrics)`` makes ``count`` steps, of which ``step`` is the first. The
            state is donated. The metrics are of one step, or have a leading axis of which the first ``count`` steps are
            written. They may not have been computed yet.
        most: the largest ``count``.
    """

    call: Callable[[TrainState, int, int], tuple[TrainState, StepMetrics]]
    most: int


@contextlib.contextmanager
def stepper(
    data: Dataset,
    splits: Splits,
    model: Denoiser,
    schedule: Schedule,
    config: TrainConfig,
    mesh: Mesh,
    execution: Execution,
    steps: range,
    base: Params | None = None,
) -> Iterator[Stepper]:
    """Yield a `Stepper` for the given steps, which must be made in this order, with a given execution.

    Bits do not depend on the numbers of steps per call. All processes must make the same calls. Adapted networks need
    the parameters of their base.
    """
    model = execution.apply_to(model)
    placed = (on_mesh(base, mesh, P()),) if isinstance(model, Adapted) else ()
    if execution.pipeline == "host":
        with host_steps(data, splits, model, schedule, config, mesh, steps, placed) as call:
            yield Stepper(call, 1)
    else:
        with device_steps(data, splits, model, schedule, config, mesh, placed) as call:
            yield Stepper(call, CAPACITY)


class CallLength:
    """Chooses the number of steps of each call, from the measured time per step.

    Args:
        given: the number that the user chose; 0 measures.

    >>> length = CallLength()
    >>> length.next()  # the first call also compiles, so that its time says nothing
    1
    >>> for start in range(4):  # steps of about 1 ms
    ...     count = length.next()
    ...     length.measured(count, start, start + count / 1024)
    >>> length.next()
    512
    """

    def __init__(self, given: int = 0):
        self._fixed = given > 0
        self._count = self._agreed = max(given, 1)
        self._calls = self._measured = 0
        self._finished = float("-inf")

    def next(self) -> int:
        """Return the number of steps of the next call. All processes must ask, and get the same number.

        Process 0 decides. Asking it takes as long as the call in progress, so this happens ever less often.
        """
        self._calls += 1
        if self._fixed or jax.process_count() == 1:
            return self._count
        if self._calls & (self._calls - 1) == 0:
            self._agreed = hosts.decide(lambda: self._count)
        return self._agreed

    def measured(self, count: int, started: float, finished: float) -> None:
        """Take into account that a call of ``count`` steps started and finished at these times, in seconds.

        A call that started before the previous one had finished waited for it.
        """
        took = (finished - max(started, self._finished)) / count
        self._finished, first = finished, self._measured == 0
        self._measured += 1
        if not self._fixed and not first:
            self._count = max(1, min(int(SECONDS / max(took, 1e-9)), GROWTH * count))
