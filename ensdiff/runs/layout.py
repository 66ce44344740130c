"""Layouts of older checkpoints, in which the moments of Adam had another shape.

- Formats 1 and 2: each moment is a tree like the parameters.
- Format 3: each moment is one vector per member.
- Since format 4: each moment is one array of rows per member (`ensdiff.ensemble.flat`).

Parameters and their average are named trees in every format.
"""

import math
from typing import Any

import jax

from ensdiff.ensemble.flat import WIDTH, in_rows, ravel

VECTORS = 3
"""The format whose optimiser state holds vectors."""
ROWS = 4
"""The first format whose optimiser state holds rows."""


def stored_layout(tree: dict[str, Any], format: int) -> dict[str, Any]:
    """Return the array shapes that a checkpoint of the given format holds for a training state.

    Args:
        tree: the shapes (`jax.ShapeDtypeStruct`, with or without shardings) in the current layout: ``params``,
            ``opt_state`` and optionally ``ema``.
        format: the format of the checkpoint's description.
    """
    if format >= ROWS:
        return tree
    params = tree["params"]
    size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(params))
    rows = -(-size // WIDTH), WIDTH

    def stored(leaf: Any) -> Any:
        if leaf.shape[1:] != rows:
            return leaf
        return leaf.update(shape=(leaf.shape[0], size)) if format == VECTORS else params

    return {**tree, "opt_state": jax.tree.map(stored, tree["opt_state"])}


def current_layout(found: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Convert arrays from the `stored_layout` to the current layout, with the shardings of ``tree``."""
    return {**found, "opt_state": jax.tree.map(_rows, tree["opt_state"], found["opt_state"])}


def _rows(shape: jax.ShapeDtypeStruct, arrays: Any) -> jax.Array:
    """Return one array of the optimiser state in the current layout: as it was read, or made from vectors or a tree."""
    if not isinstance(arrays, jax.Array):
        return jax.jit(jax.vmap(ravel), out_shardings=shape.sharding)(arrays)
    if arrays.shape != shape.shape:
        return jax.jit(jax.vmap(in_rows), out_shardings=shape.sharding)(arrays)
    return arrays
