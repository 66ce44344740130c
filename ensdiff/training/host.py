"""Batches made by the host: while the devices compute one step, a thread makes and places the next batches."""

import concurrent.futures
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ensdiff import hosts
from ensdiff.data import Dataset, Splits, batch_indices
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.mesh import pace
from ensdiff.models.denoiser import Denoiser
from ensdiff.training.config import TrainConfig, seed_of
from ensdiff.training.step import Batch, StepMetrics, TrainState, make_train_step
from ensdiff.typing import Params

T = TypeVar("T")
BUFFERS = 2
"""Number of batches that are made ahead of the one in use."""


def make_batch(
    data: Dataset,
    splits: Splits,
    config: TrainConfig,
    step: int,
    members: slice = slice(None),
    positions: slice = slice(None),
) -> Batch:
    """Return the batch of every member at ``step``: images of its own split, and the mask recomputed from the code.

    ``members`` and ``positions`` (in the batches) restrict the result to the images that this process needs.
    """
    index_KB = batch_indices(splits, config.seed, step, config.batch_size, members)[:, positions]
    return Batch(data.images[index_KB], splits.mask(index_KB, members), data.conditions_of(index_KB))


@contextlib.contextmanager
def made_ahead(make: Callable[[int], T], steps: Sequence[int]) -> Iterator[Iterator[T]]:
    """Yield an iterator over ``make(step)`` for each step, in order. A thread calls ``make`` ahead of the iteration.

    An error of ``make`` is raised where its result would be returned. The thread ends with the context, however that
    ends, after the call in progress.

    >>> with made_ahead(lambda step: step**2, range(4)) as squares:
    ...     next(squares), next(squares)
    (0, 1)
    """
    thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    def results() -> Iterator[T]:
        waiting: deque[concurrent.futures.Future[T]] = deque()
        for step in steps:
            waiting.append(thread.submit(make, step))
            if len(waiting) > BUFFERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        thread.shutdown(cancel_futures=True)


@contextlib.contextmanager
def host_steps(
    data: Dataset,
    splits: Splits,
    model: Denoiser,
    schedule: Schedule,
    config: TrainConfig,
    mesh: Mesh,
    steps: range,
    base: tuple[Params, ...] = (),
) -> Iterator[Callable[[TrainState, int, int], tuple[TrainState, StepMetrics]]]:
    """Yield a function that makes the given steps in order, one per call; see `ensdiff.training.stepper`.

    Each process makes and places only its own part of the batches. This needs no collective, so the thread cannot
    disturb the order of those in the steps.
    """
    shape_KB = splits.code.members, config.batch_size
    place = P("member", "data")
    mine = hosts.local_block(mesh, place, shape_KB)
    seed = seed_of(config)
    step_fn = make_train_step(model, schedule, config, mesh, data.space, data.condition_spec)

    def assembled(step: int) -> Batch:
        batch = make_batch(data, splits, config, step, *mine)
        return jax.tree.map(
            lambda part: hosts.assemble(np.asarray(part), mesh, place, shape_KB + part.shape[2:]), batch
        )

    with made_ahead(assembled, steps) as batches:

        def call(state: TrainState, step: int, _count: int) -> tuple[TrainState, StepMetrics]:
            state, metrics = step_fn(state, next(batches), np.int32(step), seed, *base)
            metrics = hosts.local(metrics)
            if mesh.shape["data"] > 1:  # then the step contains a collective
                pace(metrics, mesh)
            return state, metrics

        yield call
