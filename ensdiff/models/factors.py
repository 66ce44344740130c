"""The factors of adapters as trees of arrays, see `ensdiff.models.adapters`."""

import jax.numpy as jnp

from ensdiff.models.parameters import named
from ensdiff.typing import Array, Params


def factors_of(params: Params) -> dict[str, dict[str, Array]]:
    """Return a member's factors by the path of the parameter that they change.

    >>> sorted(factors_of({"head": {"kernel": {"down": 1, "up": 2}}})["head/kernel"])
    ['down', 'up']
    """
    flat: dict[str, dict[str, Array]] = {}
    for path, leaf in named(params).items():
        above, _, part = path.rpartition("/")
        flat.setdefault(above, {})[part] = leaf
    return flat


def change(parts: dict[str, Array], scale: float) -> Array:
    """Return what one parameter's factors add to it (a1), float32."""
    if "delta" in parts:
        return parts["delta"]
    return scale * jnp.einsum("...r,rd->...d", parts["down"], parts["up"], precision="highest")
