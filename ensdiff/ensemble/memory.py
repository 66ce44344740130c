"""How many images one device computes at once, from the memory budget, the size of activations and the CPU cache."""

import dataclasses
import functools
import numbers

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from ensdiff import hosts
from ensdiff.ensemble.members import group_size
from ensdiff.ensemble.mesh import platform
from ensdiff.models.conv import one_by_one
from ensdiff.models.unet import UNet, UNetConfig


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
    model: UNetConfig, image_shape: tuple[int, int, int], batch: int, mesh: Mesh | AbstractMesh
) -> int:
    """Return into how many equal micro-batches to split one member's batch, so that activations stay in the cache.

    It is 1 on accelerators, and where ``model`` stacks members, whose activations do not stay in the cache anyway.

    >>> mesh = ensdiff.make_mesh(1, devices=jax.devices("cpu")[:1])
    >>> count_micro_batches(UNetConfig(channels=32), (28, 28, 1), 16, mesh)
    8
    """
    held = CACHED.get(platform(mesh))
    if held is None or not (one_by_one(model.conv) or model.stack == 1):
        return 1
    image = image_shape[0] * image_shape[1] * model.channels * model.dtype.itemsize
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (n == batch or batch // n * image <= held))


IMAGES_AT_ONCE = {"cpu": 16}
"""Most images per application of a member, on platforms where more images are not faster: on a CPU, larger batches do
not fit in the cache (`experiments.benchmark`, table "batch")."""


def images_at_once(
    model: UNetConfig, image_shape: tuple[int, int, int], mesh: Mesh | AbstractMesh, members: int, budget: int
) -> int:
    """Return how many images each member of a group may take at once on a device; 0 if not even one fits the budget.

    Args:
        model: the U-Net.
        image_shape: (H, W, C).
        mesh: the devices.
        members: K; the device computes `ensdiff.ensemble.members.group_size` of its members together.
        budget: bytes of activations.
    """
    limit = budget // least_bytes(model, image_shape, mesh, members)
    return min(limit, IMAGES_AT_ONCE.get(platform(mesh), limit))


def least_bytes(model: UNetConfig, image_shape: tuple[int, int, int], mesh: Mesh | AbstractMesh, members: int) -> int:
    """Return the bytes of activations of one image in the members that one device computes together."""
    return group_size(model, members // mesh.shape["member"]) * activation_bytes(model, image_shape)


@functools.lru_cache(maxsize=64)
def activation_bytes(model: UNetConfig, image_shape: tuple[int, int, int]) -> int:
    """Return an upper bound on the bytes of activations that one image needs in one member's forward pass.

    It is the sum over the outputs of all layers, from shapes alone; a compiler that reuses buffers needs less.
    """
    H, W, C = image_shape
    x = jax.ShapeDtypeStruct((1, H, W, C), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    net = UNet(model)

    def run(x, t):
        variables = net.init(jax.random.key(0), x, t)
        return net.apply({"params": variables["params"]}, x, t, capture_intermediates=True, mutable=["intermediates"])

    _, outputs = jax.eval_shape(run, x, t)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(outputs))
