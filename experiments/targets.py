"""Machines that are not there, for which programs are compiled or lowered: TPU slices and GPUs.

Compiling for TPUs needs libtpu (the extra ``aot``). Compiling for GPUs needs JAX's CUDA plugin and the libraries that
it links with (the extra ``cuda12`` or ``cuda13``), but no GPU and no driver: the compiler is told what the card has. It
cannot time the algorithms of cuDNN and cuBLAS then, and takes their default ones: the memory of their workspaces is not
in its figures, and kernels may differ from those on the card.
"""

import importlib.util
import math
import os
import re
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

KIB, MIB, GIB = 2**10, 2**20, 2**30
TPUS = {"v4": (32, "v4-8"), "v5e": (16, "v5litepod-8"), "v5p": (95, "v5p-8"), "v6e": (32, "v6e-8")}
"""GiB of memory per chip, and libtpu's name for a host with such chips."""


class Card(NamedTuple):
    """What the compiler for GPUs asks about a card, as its driver or data sheet says.

    Args:
        name: what the driver calls it.
        capability: compute capability.
        memory: bytes.
        bandwidth: bytes of memory per second.
        processors: streaming multiprocessors.
        lanes: float32 units of a multiprocessor.
        cache: bytes of the second-level cache.
        shared: bytes of shared memory of a multiprocessor; a block may have 1 KiB less.
        clock: GHz.
    """

    name: str
    capability: tuple[int, int]
    memory: int
    bandwidth: int
    processors: int
    lanes: int
    cache: int
    shared: int
    clock: float

    def described(self) -> str:
        """Return the description that the compiler reads, a text protocol buffer (XLA's ``GpuTargetConfigProto``)."""
        major, minor = self.capability
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * KIB,
            "shared_memory_per_core": self.shared,
            "shared_memory_per_block_optin": self.shared - KIB,
            "threads_per_core_limit": 2048,
            "core_count": self.processors,
            "fpus_per_core": self.lanes,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": self.bandwidth,
            "l2_cache_size": self.cache,
            "clock_rate_ghz": self.clock,
            "device_memory_size": self.memory,
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
        }
        fields = "\n".join(f"  {name}: {value}" for name, value in info.items())
        return (
            f"gpu_device_info {{\n{fields}\n  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
            'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 8 }\nruntime_version { major: 12 minor: 9 }\n'
            f'device_description_str: "{self.name}"\n'
        )


CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 85_167_767_552, 2_039 * 10**9, 108, 64, 40 * MIB, 164 * KIB, 1.41),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 84_929_347_584, 3_352 * 10**9, 132, 128, 50 * MIB, 228 * KIB, 1.98),
    "h200": Card("NVIDIA H200", (9, 0), 150_121_545_728, 4_800 * 10**9, 132, 128, 50 * MIB, 228 * KIB, 1.98),
}
"""Cards that programs can be compiled for."""


class Target(NamedTuple):
    """Machines to compile for.

    Args:
        platform: ``"tpu"`` or ``"gpu"``.
        devices: their devices; only their number if programs are lowered but not compiled.
        capacity: bytes of memory of a device; None if programs are only lowered.
    """

    platform: str
    devices: list | int
    capacity: int | None

    @property
    def total(self) -> int:
        """Return the number of devices."""
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    def mesh(self, member: int, data: int) -> Any:
        """Return the mesh of axes ('member', 'data') over the first devices; an abstract one where none are known."""
        kinds = (AxisType.Auto, AxisType.Auto)
        if isinstance(self.devices, int):
            return AbstractMesh((member, data), ("member", "data"), axis_types=kinds)
        used = np.asarray(self.devices[: member * data], dtype=object).reshape(member, data)
        return Mesh(used, ("member", "data"), axis_types=kinds)


def target(text: str, flag: str) -> Target:
    """Return the target that a flag names: ``"v5e:2x4"``, ``"h100:8"``, or ``"cuda:8"`` to lower only.

    Raises:
        ValueError: the chips are unknown.
        ImportError: what compiles for them is not installed.
    """
    match = re.fullmatch(r"(?P<chip>\w+?)(?::(?P<size>[1-9]\d*(?:x[1-9]\d*){0,2}))?", text)
    chip, size = (match["chip"], match["size"] or "1") if match else ("", "")
    number = size.isdigit()
    if not ((chip in TPUS and "x" in size) or (chip in {"cuda", *CARDS} and number)):
        raise ValueError(
            f"--{flag}={text}: expected GPUs and their number such as h100:8 (known are {', '.join(CARDS)}; cuda:8 "
            "only lowers), or TPU chips and their arrangement such as v5e:2x4 or v4:2x2x2 (known chips are "
            f"{', '.join(TPUS)})"
        )
    if chip == "cuda":
        return Target("gpu", int(size), None)
    if chip in CARDS:
        return Target("gpu", gpu_devices(CARDS[chip], int(size)), CARDS[chip].memory)
    devices = tpu_devices(chip, text)
    per_chip = len(devices) // math.prod(int(n) for n in size.split("x"))  # a v4 chip is two devices
    return Target("tpu", devices, TPUS[chip][0] * GIB // per_chip)


def gpu_devices(card: Card, count: int) -> list:
    """Return the devices of a machine with GPUs.

    Raises:
        ImportError: JAX's CUDA plugin is missing.
    """
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise ImportError("compiling for GPUs needs JAX's CUDA plugin, but no GPU: pip install -e '.[cuda12]'")
    from jax.experimental import topologies

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU here
        found = topologies.get_topology_desc(platform="cuda", target_config=card.described(), topology=f"1x1x{count}")
    return list(found.devices)


def tpu_devices(chip: str, topology: str) -> list:
    """Return the devices of a TPU topology such as ``"v5e:2x4"``.

    Raises:
        ImportError: libtpu is missing.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError("compiling for TPUs needs libtpu: pip install -e '.[aot]'")
    from jax.experimental import topologies

    settings = {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
        "TPU_ACCELERATOR_TYPE": TPUS[chip][1],
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is opened, so another process's lock is harmless
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def nothing_runs_here() -> None:
    """Set up JAX to compile only: no device is looked for, and the seconds are the compiler's own."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
