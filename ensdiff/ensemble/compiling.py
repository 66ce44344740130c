"""How functions over the mesh and functions that run once are compiled."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh


def per_device(
    function: Callable[..., Any],
    mesh: Mesh | AbstractMesh,
    in_specs: Any,
    out_specs: Any,
    *,
    donate: int | tuple[int, ...] = (),
    once: bool = False,
) -> Callable[..., Any]:
    """Compile a function that every device applies to its own shards of the arguments.

    Args:
        function: from the shards that lie on one device to that device's shards of the results. It may use collectives
            over the axes of the mesh.
        mesh: the devices.
        in_specs: one `PartitionSpec` (or a pytree prefix of them) for each argument.
        out_specs: the same for the results. A result that is not split must be equal on all devices: this is not
            checked.
        donate: numbers of the arguments whose memory the results may take over.
        once: compile as `jit_once` does, for a program that runs once; nothing can be donated then.
    """
    mapped: Any = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jit_once(mapped) if once else jax.jit(mapped, donate_argnums=donate)


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a program that runs once, such as draws of noise: on a CPU with little optimisation.

    That takes a quarter of the time, and the bits of the draws are the same. Inside of another program (or of
    `jax.eval_shape`) it is the function itself.
    """
    effort = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    compiled = jax.jit(function, compiler_options=effort)

    def call(*args):
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
        return function(*args) if traced else compiled(*args)

    return call
