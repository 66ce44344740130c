"""One vector for all arrays of one member, so that an elementwise operation on all parameters is one kernel, not 100.

The arrays are joined in the order of `jax.tree.leaves` (names in alphabetical order), each in row-major order.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ensdiff.typing import Array, Params


def ravel(tree: Params) -> Float[Array, " P"]:
    """Join all arrays of one member into one vector.

    >>> ravel({"b": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "a": jnp.array(0.0)}).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def unravel(vector_P: Float[Array, " P"], like: Params) -> Params:
    """Split a vector into arrays with the names and shapes of ``like``: the inverse of `ravel`."""
    leaves, tree = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        size = math.prod(leaf.shape)
        parts.append(vector_P[start : start + size].reshape(leaf.shape))
        start += size
    return jax.tree.unflatten(tree, parts)
