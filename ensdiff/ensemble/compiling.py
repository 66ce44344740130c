"""Compilation of functions over the mesh and of functions that run once."""

import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

_LEVEL = "xla_backend_optimization_level"
"""The option of XLA for how much LLVM optimises."""


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
        function: maps the shards on one device to that device's shards of the results. It may use collectives over the
            axes of the mesh.
        mesh: the devices.
        in_specs: one `PartitionSpec` (or a pytree prefix of them) for each argument.
        out_specs: the same for the results. A result that is not split must be equal on all devices; this is not
            checked.
        donate: indices of the arguments whose memory the results may reuse.
        once: compile as `jit_once` does, for a program that runs once; nothing is donated then.
    """
    mapped: Any = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jit_once(mapped) if once else jax.jit(mapped, donate_argnums=donate)


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a program that runs once, such as one that draws noise. On a CPU it is compiled with little optimisation.

    This takes a quarter of the compile time. Noise keeps the bits of full optimisation; initial parameters keep them
    up to JAX 0.10 and may differ in the last bit of float32 from 0.12 on. Another ``--xla_backend_optimization_level``
    in ``XLA_FLAGS`` takes precedence. Inside another traced function (or `jax.eval_shape`), the result simply calls
    ``function``.
    """
    chosen = _LEVEL in os.environ.get("XLA_FLAGS", "")
    effort = {_LEVEL: 1} if jax.default_backend() == "cpu" and not chosen else None
    compiled = jax.jit(function, compiler_options=effort)

    def call(*args):
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
        return function(*args) if traced else compiled(*args)

    return call
