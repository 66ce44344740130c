"""Layouts of older checkpoints: formats 1 and 2 keep the moments of Adam as trees like the parameters.

Since format 3, each moment is one vector per member (`ensdiff.ensemble.flat`). Parameters and their average are named
trees in every format.
"""

import math
from typing import Any

import jax

from ensdiff.ensemble.flat import ravel

FLAT = 3
"""The first format whose optimiser state holds vectors."""


def stored_layout(tree: dict[str, Any], format: int) -> dict[str, Any]:
    """Return the shapes of the arrays of a training state as a checkpoint of a given format holds them.

    Args:
        tree: the shapes (`jax.ShapeDtypeStruct`, with or without shardings) in the current layout: ``params``,
            ``opt_state`` and optionally ``ema``.
        format: the format of the checkpoint's description.
    """
    if format >= FLAT:
        return tree
    params = tree["params"]
    size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(params))
    opt_state = jax.tree.map(lambda leaf: params if leaf.shape[1:] == (size,) else leaf, tree["opt_state"])
    return {**tree, "opt_state": opt_state}


def current_layout(found: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Return arrays read in the `stored_layout` in the current layout, with the shardings of ``tree``."""
    return {**found, "opt_state": jax.tree.map(_vectors, tree["opt_state"], found["opt_state"])}


def _vectors(shape: jax.ShapeDtypeStruct, arrays: Any) -> jax.Array:
    """Return one array of the optimiser state: the array that was read, or the vectors of the tree that was read."""
    if isinstance(arrays, jax.Array):
        return arrays
    return jax.jit(jax.vmap(ravel), out_shardings=shape.sharding)(arrays)
