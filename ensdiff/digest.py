"""SHA-256 of arrays and settings: whether two things that a program is given are the same."""

import hashlib
from typing import Any

import jax
import numpy as np

from ensdiff import hosts


def digest(*trees: Any) -> str:
    """SHA-256, as hexadecimal digits, of pytrees: their structure with its static fields, and every array's bytes.

    >>> digest({"a": np.arange(3)}) == digest({"a": np.arange(3)})
    True
    >>> digest({"a": np.arange(3)}) == digest({"a": np.arange(3.0)})
    False
    """
    state = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(hosts.fetch(leaf))
        state.update(f"{array.shape} {array.dtype.str} ".encode())
        state.update(array.tobytes() if array.dtype.kind in "OUS" else array.data.cast("B") if array.size else b"")
    state.update(repr(jax.tree.structure(trees)).encode())
    return state.hexdigest()
