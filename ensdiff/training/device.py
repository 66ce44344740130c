"""Batches made by the devices: the data set is in their memory, and one call of a program makes many steps.

The images are on every device. Lists of items and code words are on the devices of their members. The program computes
each step's indices from the seed and the step (`ensdiff.data.splits_jax`), so the host does nothing per step.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from ensdiff import hosts
from ensdiff.codes.permute_jax import LIMIT, Wide, wide
from ensdiff.data import Dataset, Splits
from ensdiff.data.splits_jax import Lists, batch_indices, lists_of, mask, most_steps, place_at
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.mesh import pace
from ensdiff.models.adapters import Adapted
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import Denoiser
from ensdiff.models.space import PIXELS, Space
from ensdiff.training.config import StepSettings, TrainConfig
from ensdiff.training.execution import Execution
from ensdiff.training.step import Batch, StepMetrics, TrainState, local_step
from ensdiff.typing import ArrayLike, Params

CAPACITY = 1024
"""Most steps of one call. The program has room for the metrics of this many steps, whatever number it makes, so one
program serves all numbers, with the same bits."""
SHARE = 4
"""The data may take one part in this many of a device's memory."""
UNKNOWN_MEMORY = 2 * 2**30
"""Bytes assumed for a device that does not tell the size of its memory, such as a CPU."""


class DeviceData(NamedTuple):
    """The data set in the devices' memory: all images and conditions, and what determines each member's batches."""

    images_NHWC: ArrayLike
    lists: Lists
    cond_N: Any = None


SPECS = DeviceData(P(), Lists(P("member"), P("member"), P("member"), P()), P())  # type: ignore[arg-type]
"""How `DeviceData` are split over the mesh."""


def fits(data: Dataset, splits: Splits, batch: int, mesh: Mesh) -> bool:
    """Return whether the data fit in a quarter of a device's memory (`SHARE`). All processes must call it.

    Counted are the images and units of all items, and the lists and code words of one device's members. The size of
    the memory is what JAX reports for the process's first device (``bytes_limit``), by default `UNKNOWN_MEMORY`; every
    process must have room. More than 2^31 items, or batches so large that `CAPACITY` of them are, do not fit either.
    """
    members = splits.code.members // mesh.shape["member"]
    stored = data.images.nbytes + sum(np.asarray(rows).nbytes for rows in jax.tree.leaves(data.condition))
    need = stored + 4 * data.items + members * (4 * _longest(splits) + splits.code.units)
    stats = mesh.local_devices[0].memory_stats() or {}
    room = min(hosts.exchange(stats.get("bytes_limit", UNKNOWN_MEMORY) // SHARE))
    return need <= room and not _too_many(data, batch)


def _longest(splits: Splits) -> int:
    """Return the number of items of the member with the most, of all processes' members."""
    return max(hosts.exchange(max(map(len, splits.items_of_member))))


def _too_many(data: Dataset, batch: int) -> bool:
    return data.items >= LIMIT or most_steps(batch) < CAPACITY


def place_data(data: Dataset, splits: Splits, batch: int, mesh: Mesh) -> DeviceData:
    """Copy the data to the devices of a mesh. All processes must call it; each needs all images.

    Raises:
        ValueError: there are 2^31 items or more, or the batches are too large.
    """
    if _too_many(data, batch):
        raise ValueError(
            f"pipeline='device' with {data.items} items and batches of {batch}: expected fewer than 2^31 items, and "
            f"batches of at most {LIMIT // (CAPACITY + 2)}; use pipeline='host'"
        )
    K, width = splits.code.members, _longest(splits)
    lists = lists_of(splits, hosts.local_members(mesh, K), width)

    def placed(part: Any, spec: P) -> jax.Array:
        return hosts.assemble(part, mesh, spec, part.shape if spec == P() else (K, *part.shape[1:]))

    cond_N = jax.tree.map(lambda rows: placed(np.asarray(rows), P()), data.condition)
    images = placed(np.asarray(data.images), P())
    return DeviceData(images, Lists(*map(placed, lists, SPECS.lists)), cond_N)  # type: ignore[arg-type]


def make_device_steps(
    model: Denoiser,
    schedule: Schedule,
    config: TrainConfig,
    mesh: Mesh | AbstractMesh,
    space: Space = PIXELS,
    condition: ConditionSpec | None = None,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Return the compiled program of many steps: ``(state, data, first, count, seed) -> (state, metrics)``.

    The state is donated; ``data`` are from `place_data`, ``first`` and ``count`` are integers (int32), and ``seed`` is
    ``wide(config.seed)``. Adapted networks take one more argument, the parameters of their base. The metrics have a
    leading axis of `CAPACITY` steps, of which the first ``count`` are written. Each step's batches are those of
    `ensdiff.training.host.make_batch`.

    There is no collective unless the mesh's data axis has more than one shard.
    """
    model = Execution.of(model).apply_to(model)
    return _device_steps(model, schedule, StepSettings.of(config), config.batch_size, mesh, space, condition)


@functools.lru_cache(maxsize=16)
def _device_steps(
    model: Denoiser,
    schedule: Schedule,
    settings: StepSettings,
    batch: int,
    mesh: Mesh | AbstractMesh,
    space: Space,
    condition: ConditionSpec | None,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    step_fn = local_step(model, schedule, settings, mesh, space, condition)
    share = batch // mesh.shape["data"]

    def local_steps(state_K: TrainState, data: DeviceData, first, count, seed: Wide, *base):
        lists = data.lists
        members = len(lists.size_K)
        member_K = jax.lax.axis_index("member") * members + jnp.arange(members)
        position_B = jax.lax.axis_index("data") * share + jnp.arange(share)
        place = place_at(first, batch, jnp.asarray(lists.size_K))

        def one(i, carry):
            state_K, metrics_SK = carry
            index_KB = batch_indices(lists, seed, place, i, batch, member_K, position_B)
            cond_KB = jax.tree.map(lambda rows: jnp.asarray(rows)[index_KB], data.cond_N)
            batch_K = Batch(jnp.asarray(data.images_NHWC)[index_KB], mask(lists, index_KB), cond_KB)
            state_K, new = step_fn(state_K, batch_K, first + i, seed.low, *base)
            return state_K, jax.tree.map(lambda all_SK, now_K: all_SK.at[i].set(now_K), metrics_SK, new)

        none_SK = jnp.zeros((CAPACITY, members))
        return jax.lax.fori_loop(0, count, one, (state_K, StepMetrics(none_SK, none_SK)))

    in_specs = P("member"), SPECS, P(), P(), P(), *([P()] if isinstance(model, Adapted) else [])
    return per_device(local_steps, mesh, in_specs, (P("member"), P(None, "member")), donate=0)


@contextlib.contextmanager
def device_steps(
    data: Dataset,
    splits: Splits,
    model: Denoiser,
    schedule: Schedule,
    config: TrainConfig,
    mesh: Mesh,
    base: tuple[Params, ...] = (),
) -> Iterator[Callable[[TrainState, int, int], tuple[TrainState, StepMetrics]]]:
    """Yield a function that makes up to `CAPACITY` steps per call; see `ensdiff.training.stepper`."""
    placed = place_data(data, splits, config.batch_size, mesh)
    steps_fn = make_device_steps(model, schedule, config, mesh, data.space, data.condition_spec)
    seed = wide(config.seed)

    def call(state: TrainState, step: int, count: int) -> tuple[TrainState, StepMetrics]:
        state, metrics_SK = steps_fn(state, placed, np.int32(step), np.int32(count), seed, *base)
        metrics_SK = hosts.local(metrics_SK)
        if mesh.shape["data"] > 1:  # then the steps contain a collective
            pace(metrics_SK, mesh)
        return state, metrics_SK

    yield call
