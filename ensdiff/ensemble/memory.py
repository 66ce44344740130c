"""How many images are computed at once on one device: what may be used, what the activations take, what is cached."""

import dataclasses
import functools
import numbers

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from ensdiff import hosts
from ensdiff.ensemble.mesh import platform
from ensdiff.models.conv import one_by_one
from ensdiff.models.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a computation may use, and whether it shows its progress.

    Args:
        chunk: images, states or ablations at a time; None is as many as the memory budget allows.
        memory_budget: bytes of activations a device may hold; None is half of an accelerator's memory, and 1 GiB on a
            CPU.
        progress: whether progress bars are shown.

    Raises:
        ValueError: a chunk or a budget that is no positive integer.

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
        """The memory budget in bytes, the same on all processes, which must all call this."""
        if self.memory_budget is not None:
            return self.memory_budget
        stats = jax.local_devices()[0].memory_stats() or {}
        # the least of all processes: their chunks must be the same
        return min(hosts.exchange(stats.get("bytes_limit", 2 * 2**30) // 2))


CACHED = {"cpu": 2**18}
"""Bytes of one activation, at full resolution, of the images whose gradient is computed at once: on a CPU the
activations of a few images stay in the cache, and all passes over them are then faster."""


def count_micro_batches(
    model: UNetConfig, image_shape: tuple[int, int, int], batch: int, mesh: Mesh | AbstractMesh
) -> int:
    """Equal micro-batches of one member's batch whose activations stay in the cache of one device; 1 on accelerators.

    >>> count_micro_batches(UNetConfig(channels=32), (28, 28, 1), 16, make_mesh(1, devices=jax.devices("cpu")[:1]))
    8
    """
    held = CACHED.get(platform(mesh))
    if held is None or not one_by_one(model.conv):
        return 1
    image = image_shape[0] * image_shape[1] * model.channels * model.dtype.itemsize
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (n == batch or batch // n * image <= held))


IMAGES_AT_ONCE = {"cpu": 16}
"""Most images of one application of a member, where more do not make it faster: on a CPU, larger batches leave the
cache (`experiments.benchmark`, table "batch")."""


def images_at_once(
    model: UNetConfig, image_shape: tuple[int, int, int], mesh: Mesh | AbstractMesh, members: int, budget: int
) -> int:
    """Images that one application of members may be given on one device; 0 where the budget does not hold one.

    Args:
        model: the U-Net.
        image_shape: (H, W, C).
        mesh: the devices.
        members: K; all that lie on one device are alive together, unless they are computed one after another.
        budget: bytes of activations.
    """
    limit = budget // least_bytes(model, image_shape, mesh, members)
    return min(limit, IMAGES_AT_ONCE.get(platform(mesh), limit))


def least_bytes(model: UNetConfig, image_shape: tuple[int, int, int], mesh: Mesh | AbstractMesh, members: int) -> int:
    """Bytes of activations of one image in as many members as are computed together on one device."""
    alive = 1 if one_by_one(model.conv) else members // mesh.shape["member"]
    return alive * activation_bytes(model, image_shape)


@functools.lru_cache(maxsize=64)
def activation_bytes(model: UNetConfig, image_shape: tuple[int, int, int]) -> int:
    """An upper bound on the bytes of activations that one image needs in one member's forward pass.

    The sum over the outputs of all layers, from shapes alone; a compiler that reuses buffers needs less.
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
