"""Axis letters and array aliases shared by the whole library.

K members, N training units, M ablations (weight rows), B samples or batch items, T training noise levels,
S sampling steps, H W C image axes. Array names carry their axes as a suffix: ``eps_KBHWC``.
"""

from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
"""A JAX array."""

ArrayLike: TypeAlias = jax.Array | np.ndarray
"""A JAX or NumPy array."""

Params: TypeAlias = Any
"""A pytree of arrays, as Flax linen returns it."""

Key: TypeAlias = Any
"""An int seed or a JAX key (typed or raw); `as_key` converts either to a typed key."""


def unmasked(values: Any, name: str) -> Any:
    """Return the given values unchanged, after checking that no array among them has masked entries.

    NumPy would silently drop the mask and use the values beneath it.

    Raises:
        ValueError: entries are masked; the message gives their number.

    >>> unmasked(np.ma.masked_array([1, 2], mask=[False, True]), "scores")
    Traceback (most recent call last):
    ValueError: scores: 1 of 2 entries are masked and have no value: leave them out, or fill them
    """
    parts = values if isinstance(values, list | tuple) else [values]
    masked = sum(int(np.ma.getmaskarray(part).sum()) for part in parts if np.ma.is_masked(part))
    if masked:
        count = sum(np.size(part) for part in parts)
        raise ValueError(
            f"{name}: {masked} of {count} entries are masked and have no value: leave them out, or fill them"
        )
    return values


def as_key(key: Key) -> Any:
    """Return a typed JAX key for an int seed, a raw ``uint32`` key or a typed key.

    Raises:
        ValueError: the key is of another kind, or the seed needs more than 64 bits.

    >>> as_key(3).shape
    ()
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        try:
            return jax.random.key(int(key))
        except OverflowError:
            raise ValueError(f"seed {key}: expected an integer of at most 64 bits") from None
    if isinstance(key, (jax.Array, np.ndarray)):
        if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
            return key
        if key.dtype == np.uint32 and key.ndim == 1:
            return jax.random.wrap_key_data(jax.numpy.asarray(key))
    raise ValueError(f"expected an int seed or one JAX key, got {key!r}; try jax.random.key(0)")
