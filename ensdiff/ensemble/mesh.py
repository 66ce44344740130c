"""The device mesh: which devices share the members and their batches, and how arrays are placed on it."""

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from ensdiff import hosts
from ensdiff.typing import Params


def make_mesh(members: int, batch: int | None = None, devices: list | None = None) -> Mesh:
    """Return a ('member', 'data') mesh over as many devices as can share the work equally.

    The size of the member axis divides ``members``, and the size of the data axis divides ``batch`` (if given). As many
    devices as this allows are used. Among choices with equally many devices, the one with the most member shards wins.

    With several processes, every process contributes equally many devices, to within one, and neighbouring members are
    in one process. If the work cannot be divided over all processes, a leading axis ``'copy'`` repeats it.

    Raises:
        ValueError: there is no member or no device.

    >>> dict(make_mesh(16, devices=jax.devices()[:1]).shape)
    {'member': 1, 'data': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    if members < 1 or not devices:
        raise ValueError(f"members={members}, {len(devices)} devices: expected at least one of each")
    own: dict[int, list] = {}
    for device in devices:
        own.setdefault(device.process_index, []).append(device)
    m, d = mesh_shape(members, batch, len(devices), len(own))
    copies = max(1, len(own) // (m * d))
    # take devices from each process in turn, so that each takes part; then put a process's devices side by side
    in_turn = sorted((rank, process) for process, some in own.items() for rank in range(len(some)))
    used = sorted((process, rank) for rank, process in in_turn[: copies * m * d])
    grid = np.array([own[process][rank] for process, rank in used], dtype=object).reshape(copies, m, d)
    if copies > 1:
        return Mesh(grid, ("copy", "member", "data"), axis_types=(AxisType.Auto,) * 3)
    return Mesh(grid[0], ("member", "data"), axis_types=(AxisType.Auto,) * 2)


def mesh_shape(members: int, batch: int | None, devices: int, processes: int = 1) -> tuple[int, int]:
    """Return the numbers of member and data shards that use the most devices; ties go to the most member shards.

    The shards cover all processes, or a number of processes that divides the total.

    >>> mesh_shape(20, 128, 8)  # five member shards would leave three devices idle
    (4, 2)
    """
    choices = [
        (m, d)
        for m in range(1, min(members, devices) + 1)
        for d in range(1, devices // m + 1)
        if members % m == 0 and (batch is None or batch % d == 0) and (m * d >= processes or processes % (m * d) == 0)
    ]
    return max(choices, key=lambda shape: (shape[0] * shape[1], shape[0]))


def platform(mesh: Mesh | AbstractMesh) -> str:
    """Return ``"cpu"``, ``"gpu"`` or ``"tpu"``; ``""`` for an abstract mesh."""
    return mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else ""


def on_mesh(tree: Params, mesh: Mesh, spec: P | None = None) -> Params:
    """Place every array on the mesh, by default with its leading axis split over the axis ``'member'``."""
    return hosts.place(tree, mesh, P("member") if spec is None else spec)


def pace(tree: Params, mesh: Mesh) -> Params:
    """Wait for a step's results if queueing steps is not safe, and return them.

    XLA's CPU backend can deadlock in an all-reduce when many executions with collectives are in flight on several
    devices (seen with jax 0.10.2 after some hundred queued sampling steps). Accelerators run their queue in order.
    """
    if mesh.size > 1 and platform(mesh) == "cpu":
        jax.block_until_ready(tree)
    return tree
