"""How many images one device computes at once, from the memory budget, the size of activations and the CPU cache."""

import dataclasses
import numbers

import jax
from jax.sharding import AbstractMesh, Mesh

from ensdiff import hosts
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.members import group_size
from ensdiff.ensemble.mesh import platform
from ensdiff.ensemble.tracing import activation_bytes
from ensdiff.models.adapters import network_of
from ensdiff.models.conv import one_by_one
from ensdiff.models.denoiser import Denoiser
from ensdiff.models.unet import UNetConfig


@dataclasses.dataclass(frozen=True)
class Resources:
    """The memory that a computation may use, and whether it shows its progress.

    Args:
        chunk: number of images, states or ablations computed at a time; None means as many as the memory budget allows.
        memory_budget: bytes of activations that a device may hold; None means half of an accelerator's memory, or 1 GiB
            on a CPU.
        progress: whether progress bars are shown.

    Raises:
        ValueError: the chunk or the budget is not a positive integer.

    >>> Resources(chunk=0)
    Traceback (most recent call last):
    ValueError: chunk=0: expected at least 1 at a time, an integer; leave it out for as many as fit in memory
    """

    chunk: int | None = None
    memory_budget: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name, smallest, instead in (
            ("chunk", "1 at a time, an integer", "as many as fit in memory"),
            ("memory_budget", "1 byte, an integer", "half of an accelerator's memory, or 1 GiB on a CPU"),
        ):
            value = getattr(self, name)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                raise ValueError(f"{name}={value!r}: expected at least {smallest}; leave it out for {instead}")

    def budget(self) -> int:
        """Return the memory budget in bytes, equal on all processes. All processes must call this method."""
        if self.memory_budget is not None:
            return self.memory_budget
        stats = jax.local_devices()[0].memory_stats() or {}
        # the minimum over processes, because their chunks must be equal
        return min(hosts.exchange(stats.get("bytes_limit", 2 * 2**30) // 2))


CACHED = {"cpu": 2**18}
"""Most bytes of one full-resolution activation of the images whose gradient is computed at once. On a CPU the
activations of a few images stay in the cache, which makes all passes over them faster."""


def count_micro_batches(
    model: Denoiser, image_shape: tuple[int, int, int], batch: int, mesh: Mesh | AbstractMesh
) -> int:
    """Return into how many equal micro-batches to split one member's batch, so that activations stay in the cache.

    It is 1 on accelerators, and where ``model`` stacks members, whose activations do not stay in the cache anyway. Only
    the size of the U-Net's activations is known; other networks are not split.

    >>> mesh = ensdiff.make_mesh(1, devices=jax.devices("cpu")[:1])
    >>> count_micro_batches(UNetConfig(channels=32), (28, 28, 1), 16, mesh)
    8
    """
    held, network = CACHED.get(platform(mesh)), network_of(model)
    if held is None or not isinstance(network, UNetConfig):
        return 1
    if model.stack != 1 and not (network is model and one_by_one(network.conv)):
        return 1
    image = image_shape[0] * image_shape[1] * network.channels * network.dtype.itemsize
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (n == batch or batch // n * image <= held))


IMAGES_AT_ONCE = {"cpu": 16}
"""Most images per application of a member, on platforms where more images are not faster: on a CPU, larger batches do
not fit in the cache (`experiments.benchmark`, table "batch")."""


def images_at_once(params: Ensemble, mesh: Mesh | AbstractMesh, budget: int) -> int:
    """Return how many images each member of a group may take at once on a device; 0 if not even one fits the budget.

    Args:
        params: the ensemble; a device computes `ensdiff.ensemble.members.group_size` of its members together.
        mesh: the devices.
        budget: bytes of activations.
    """
    limit = budget // least_bytes(params, mesh)
    return min(limit, IMAGES_AT_ONCE.get(platform(mesh), limit))


def least_bytes(params: Ensemble, mesh: Mesh | AbstractMesh) -> int:
    """Return the bytes of activations of one image in the members that one device computes together."""
    together = group_size(params.model, params.members // mesh.shape["member"])
    return together * activation_bytes(params.model, tuple(params.image_shape), params.condition)
