"""The environment of a run: where it was trained, as far as this determines the bits of its parameters.

The bits also depend on the settings, the data and the execution of the steps (`ensdiff.training.execution`).
"""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax
from jax.sharding import Mesh

from ensdiff.files.version import __version__

CONFIG = ("jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")
"""JAX settings that change numerical results."""


def environment(mesh: Mesh) -> dict[str, Any]:
    """Return devices, versions and settings as JSON-able values. Equal environments and executions train to
    identical bits.

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
    """Return the name of the processor. The code that XLA compiles depends on its instruction set."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
