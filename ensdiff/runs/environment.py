"""What a run was trained on: all that decides the bits of its parameters besides its settings and its data."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax
from jax.sharding import Mesh

from ensdiff.files.version import __version__

CONFIG = ("jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")
"""JAX settings that change numbers."""


def environment(mesh: Mesh) -> dict[str, Any]:
    """Devices, versions and settings, as JSON-able values; two equal ones train bit-identical parameters.

    >>> sorted(environment(jax.make_mesh((1,), ("member",))))[:3]
    ['cpu', 'device', 'ensdiff']
    """
    device = mesh.devices.flat[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "mesh": {str(axis): int(size) for axis, size in mesh.shape.items()},
        "processes": jax.process_count(),
        "cpu": _cpu(),
        "ensdiff": __version__,
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **{name: getattr(jax.config, name) for name in CONFIG},
    }


def _cpu() -> str:
    """The processor's name: XLA compiles for what the processor can do."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
