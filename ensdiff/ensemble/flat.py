"""One array for all parameters of one member, so that an elementwise operation on all of them is one kernel, not 100.

The arrays are joined in the order of `jax.tree.leaves` (names in alphabetical order), each in row-major order, and
filled up with zeros to rows of `WIDTH` numbers. Rows match the tiles of a TPU's memory: a stack of vectors, one per
member, would take the memory of a multiple of 8 members there.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ensdiff.typing import Array, Params

WIDTH = 128
"""Numbers per row."""


def ravel(tree: Params) -> Float[Array, "R 128"]:
    """Join all arrays of one member into one array of rows.

    >>> rows = ravel({"b": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "a": jnp.array(0.0)})
    >>> rows.shape, rows[0, :6].tolist()
    ((1, 128), [0.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    """
    return in_rows(jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]))


def in_rows(vector_P: Float[Array, " P"]) -> Float[Array, "R 128"]:
    """Fill a vector up with zeros, and return it as rows."""
    return jnp.pad(vector_P, (0, -len(vector_P) % WIDTH)).reshape(-1, WIDTH)


def unravel(rows: Float[Array, "R 128"], like: Params) -> Params:
    """Split rows into arrays with the names and shapes of ``like``: the inverse of `ravel`."""
    vector = rows.reshape(-1)
    leaves, tree = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        size = math.prod(leaf.shape)
        parts.append(vector[start : start + size].reshape(leaf.shape))
        start += size
    return jax.tree.unflatten(tree, parts)
