"""The machine: versions, the device, its peak, and what is missing on it."""

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Callable, Iterable

import jax

import ensdiff

from .journal import Row

# Dense products of bfloat16 accumulated in float32, in TFLOP/s, without sparsity: NVIDIA's data sheets of H100, H200
# and GH200 (SXM, and the PCIe card of the H100), B200, A100, A10, L4, L40S, RTX 4090; Google's pages of TPU versions.
PEAKS = (
    ("H100 PCIe", 756),
    ("H100|H200|GH200", 989),
    ("B200", 2250),
    ("A100", 312),
    ("A10G|A10", 125),
    ("L40S", 362),
    ("L4", 121),
    ("RTX 4090", 165),
    ("TPU v4", 275),
    ("TPU v5 lite|TPU v5e", 197),
    ("TPU v5", 459),
    ("TPU v6", 918),
)
OPTIONAL = {
    "torch": "the comparison with PyTorch",
    "diffusers": "the comparison with PyTorch",
    "sklearn": "the Frechet distance and the classes of samples",
    "PIL": "the grid of samples",
}
"""Packages without which a part is left out. Their absence stops nothing else."""


def peak(kind: str | None = None) -> float | None:
    """Return the bfloat16 peak of a device kind in FLOP/s, by default of the first device; None if it is not known.

    >>> peak("NVIDIA H100 80GB HBM3"), peak("cpu")
    (989000000000000.0, None)
    """
    kind = jax.devices()[0].device_kind if kind is None else kind
    return next((1e12 * rate for pattern, rate in PEAKS if re.search(rf"\b({pattern})\b", kind)), None)


def peak_gib() -> float | None:
    """Return the most memory of JAX that the first device ever held, in GiB; None where this is not counted."""
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if used is None else used / 2**30


def versions(left: Callable[[], float]) -> Iterable[Row]:
    """Yield versions, the devices and what is missing."""
    device = jax.devices()[0]
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "torch", "diffusers")
    found = {"ensdiff": ensdiff.__version__, "Python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    limit = (device.memory_stats() or {}).get("bytes_limit")
    known = peak()
    about = {
        **found,
        "devices": f"{len(jax.devices())} x {device.device_kind} ({device.platform})",
        "driver": _driver(),
        "device memory GiB": None if limit is None else limit / 2**30,
        "bfloat16 peak TFLOP/s": "not known" if known is None else known / 1e12,
        "CPU cores": len(os.sched_getaffinity(0)),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "programs in the compilation cache": _cached(),
    }
    for name, value in about.items():
        yield {"what": name, "value": value}
    lost = sorted({f"{OPTIONAL[name]} ({name})" for name in OPTIONAL if importlib.util.find_spec(name) is None})
    yield {
        "finding": f"{about['devices']}, jax {found['jax']}, Python {found['Python']}."
        + (f" Missing, so left out: {'; '.join(lost)}." if lost else "")
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none found"


def _cached() -> int:
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return len(list(pathlib.Path(folder).glob("*"))) if folder and pathlib.Path(folder).is_dir() else 0
