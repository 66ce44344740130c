"""Several processes, each with its own devices: where arrays are held, and how all processes make the same decision.

Every process runs the same program. An array on a mesh of all processes' devices is *global*: each process holds only
the shards on its own devices, and all processes must start operations on it in the same order. With one process,
everything here reduces to `jax.device_put`, `numpy.asarray` and an ordinary function call.
"""

import contextlib
import contextvars
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from ensdiff.terminal import Bar

T = TypeVar("T")
Block = tuple[slice, ...]
"""The range of each axis that a shard covers."""
COMPILING = "compiling (once per configuration) and computing the first"
"""What takes long before a computation's first results (`progress_bar`)."""


def is_writer() -> bool:
    """Return whether this process writes files and prints, which only process 0 does."""
    return jax.process_index() == 0


def warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 1) -> None:
    """Call `warnings.warn`, but only in the process that prints."""
    if is_writer():
        warnings.warn(message, category, stacklevel=stacklevel + 1)


class Progress(NamedTuple):
    """Work that a computation has finished: ``done`` of ``total`` units (None if unknown) of ``what``."""

    what: str
    done: int
    total: int | None
    unit: str


_WATCHER: contextvars.ContextVar[Callable[[Progress], None] | None] = contextvars.ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(watcher: Callable[[Progress], None]) -> Iterator[None]:
    """Call ``watcher`` whenever a computation inside of the ``with`` statement has finished some of its work.

    It is called in the thread that computes: when a loop with a progress bar starts, after each of its chunks, and
    after each sampling step, for which it then waits. What it raises ends the computation there, so it can cancel one.

    >>> with watched(print), progress_bar(2, "work", "unit", shown=False) as bar:
    ...     _ = bar.update()
    Progress(what='work', done=0, total=2, unit='unit')
    Progress(what='work', done=1, total=2, unit='unit')
    """
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def report_progress(what: str, done: int, total: int | None, unit: str, result: Any = None) -> None:
    """Tell the watcher, if there is one, that work is finished; first wait for the work's ``result``."""
    watcher = _WATCHER.get()
    if watcher is not None:
        jax.block_until_ready(result)
        watcher(Progress(what, done, total, unit))


class _Bar(Bar):
    """A progress bar that tells the watcher of each update, whether or not it is shown."""

    def __init__(self, *, total: int | None, initial: int, desc: str, unit: str, **options: Any) -> None:
        super().__init__(total=total, initial=initial, desc=desc, unit=unit, **options)
        self.about, self.finished = (desc, total, unit), initial
        self.tell()

    def tell(self) -> None:
        what, total, unit = self.about
        report_progress(what, self.finished, total, unit)

    def update(self, n: float | None = 1) -> bool | None:
        self.finished += int(n or 0)
        shown = super().update(n)
        self.tell()
        return shown


def progress_bar(
    total: int | None,
    what: str,
    unit: str,
    *,
    shown: bool,
    done: int = 0,
    unit_scale: bool = False,
    first: str = "",
) -> Bar:
    """Return a progress bar. It is shown only in the process that prints, on a terminal or in a notebook.

    Args:
        total: number of units of work; None if unknown.
        what: the bar's label.
        unit: name of a unit of work, in the singular.
        shown: False for a bar that prints nothing.
        done: number of units of work that are already finished.
        unit_scale: whether large numbers are written as 1.2k or 3.4M.
        first: what takes time before the first unit of work, such as "compiling". Where no bar is drawn, it becomes a
            line if it takes long.

    >>> with progress_bar(2, "work", "unit", shown=False) as bar:
    ...     _ = bar.update()
    """
    shown = shown and is_writer()
    return _Bar(total=total, initial=done, desc=what, unit=unit, unit_scale=unit_scale, first=first, shown=shown)


def place(tree: Any, mesh: Mesh, spec: P) -> Any:
    """Place arrays on a mesh. Each process handles only the shards on its own devices.

    Args:
        tree: a pytree. For a host array, or one on this process's devices, every process must pass the same whole
            array. Global arrays are moved; no data cross processes if each process already holds the shards that it
            needs.
        mesh: the devices of all processes, or of this process alone.
        spec: how to split every array.

    Raises:
        ValueError: the mesh has no device of this process.
    """
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    if not sharding.addressable_devices:
        raise ValueError(
            f"the mesh has no device of process {jax.process_index()}: every process must take part; "
            "ensdiff.make_mesh() makes a mesh with devices of all processes"
        )
    return jax.tree.map(lambda leaf: _place(leaf, sharding), tree)


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if leaf.sharding.device_set == sharding.device_set:
            return _reshard(leaf, sharding)
        held = _shards_of_processes(leaf.sharding, leaf.shape)
        needed = _shards_of_processes(sharding, leaf.shape)
        if all(needed[process] <= held.get(process, set()) for process in needed):
            own = {_bounds(shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards}
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: own[_bounds(index, leaf.shape)])
        leaf = fetch(leaf)
    elif not jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index], dtype=leaf.dtype)


def _reshard(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Split an array differently over the same devices. On CPUs, wait for this collective to finish (see `pace`)."""
    leaf = jax.device_put(leaf, sharding)
    return leaf.block_until_ready() if sharding.mesh.devices.flat[0].platform == "cpu" else leaf


def _bounds(index: Block | None, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return a shard's place in a form that can be compared: its start and stop on each axis."""
    return tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))


def _shards_of_processes(sharding: Sharding, shape: tuple[int, ...]) -> dict[int, set]:
    shards: dict[int, set] = {}
    device: Any
    for device, index in sharding.devices_indices_map(shape).items():
        shards.setdefault(device.process_index, set()).add(_bounds(index, shape))
    return shards


def local(tree: Any) -> Any:
    """Return global arrays whole, on one device of every process, and other leaves unchanged.

    It does not wait for accelerators.
    """

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if not leaf.is_fully_replicated:
            assert isinstance(leaf.sharding, NamedSharding)
            leaf = _reshard(leaf, NamedSharding(leaf.sharding.mesh, P()))
        return leaf.addressable_data(0)

    return jax.tree.map(gather, tree)


def fetch(tree: Any) -> Any:
    """Return arrays as whole NumPy arrays, on every process."""
    return jax.tree.map(np.asarray, local(tree))


def local_block(mesh: Mesh, spec: P, shape: tuple[int, ...]) -> Block:
    """Return the smallest block of an array that contains every shard on this process's devices.

    >>> mesh = jax.make_mesh((1,), ("member",))
    >>> local_block(mesh, P("member"), (4, 3))
    (slice(0, 4, None), slice(0, 3, None))
    """
    indices = NamedSharding(mesh, spec).addressable_devices_indices_map(shape).values()
    bounds = np.array([_bounds(index, shape) for index in indices])
    return tuple(
        slice(int(first), int(last)) for first, last in zip(bounds.min(0)[:, 0], bounds.max(0)[:, 1], strict=True)
    )


def local_members(mesh: Mesh, members: int) -> slice:
    """Return which of K members, split over the mesh's axis ``'member'``, this process holds."""
    return local_block(mesh, P("member"), (members,))[0]


def assemble(part: np.ndarray, mesh: Mesh, spec: P, shape: tuple[int, ...]) -> jax.Array:
    """Build a global array from the `local_block` that each process passes.

    Args:
        part: this process's block.
        mesh: the devices of all processes.
        spec: how the array is split.
        shape: shape of the whole array.

    Raises:
        ValueError: the part does not have the shape of this process's block.
    """
    if jax.process_count() == 1:
        return jax.device_put(part, NamedSharding(mesh, spec))
    block = local_block(mesh, spec, shape)
    expected = tuple(one.stop - one.start for one in block)
    if part.shape != expected:
        raise ValueError(f"the part has shape {part.shape}: expected {expected}, the rows {block} of {shape}")

    def shard(index: Block | None) -> np.ndarray:
        pairs = zip(_bounds(index, shape), block, strict=True)
        return part[tuple(slice(first - one.start, last - one.start) for (first, last), one in pairs)]

    return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), shard)


def exchange(value: Any) -> list[Any]:
    """Return the values of all processes, in process order, on every process. All processes must call it.

    >>> exchange("mine")  # the only process
    ['mine']
    """
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = _rows(np.array([len(content)], np.int32))[:, 0]
    room = 1 << int(sizes.max() - 1).bit_length()  # few distinct sizes, so few compilations
    rows = _rows(np.pad(content, (0, room - len(content))))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _rows(row: np.ndarray) -> np.ndarray:
    """Stack one row from every process."""
    first = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([first[process] for process in sorted(first)], dtype=object), ("process",))
    shape = (len(first), *row.shape)
    return fetch(jax.make_array_from_callback(shape, NamedSharding(mesh, P("process")), lambda _: row[None]))


def decide(choose: Callable[[], T]) -> T:
    """Call ``choose`` on process 0 only and return its result on every process.

    Use it for questions that depend on files, so that all processes get the same answer. An exception that ``choose``
    raises on process 0 is raised on every process.
    """
    return _settle(choose, deciding=(0,))[0]


def together(act: Callable[[], T]) -> T:
    """Call ``act`` on every process and return this process's result.

    If calls fail, every process raises the error of the first process that failed, in process order.
    """
    return _settle(act, deciding=range(jax.process_count()))[jax.process_index()]


def _settle(act: Callable[[], Any], deciding: Any) -> list[Any]:
    if jax.process_count() == 1:
        return [act()]
    mine: tuple[Any, Exception | None] = (None, None)
    if jax.process_index() in deciding:
        try:
            mine = act(), None
        except Exception as error:
            mine = None, error
    outcomes = exchange(mine)
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [value for value, _ in outcomes]


def member_blocks(leaf: Any) -> dict[int, np.ndarray]:
    """Return the distinct blocks of members of a stacked array that this process holds, keyed by their first member.

    On a CPU each block is a view of the device's memory, so no copy of the whole array is made.

    Args:
        leaf: an array of which only the leading axis is split over devices.
    """
    if not isinstance(leaf, jax.Array):
        return {0: np.asarray(leaf)}
    shards = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}  # one of each set of replicas
    return {first: np.asarray(data) for first, data in shards.items()}
