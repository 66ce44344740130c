"""Names of the distances by which influences are measured, and the words for them."""

from collections.abc import Callable

from ensdiff.attribution.request import name_of
from ensdiff.models.space import PIXELS, Pixels, Space

L2 = "l2"
"""L2 over pixels in [0, 1]."""
L2_LATENTS = "l2 over latents"
_WORDS = {L2: "L2 over pixels in [0, 1]", L2_LATENTS: "L2 over latents"}


def measure_name(features: Callable | None, distance: Callable | None, space: Space = PIXELS) -> str:
    """Return the name of a distance: `L2` or `L2_LATENTS`, by the members' space, or that of the caller's functions.

    >>> measure_name(None, None)
    'l2'
    """
    if features is None:
        plain = L2 if isinstance(space, Pixels) else L2_LATENTS
        return plain if distance is None else name_of(distance)
    return name_of(features) if distance is None else f"{name_of(distance)} of {name_of(features)}"


def distance_words(name: str) -> str:
    """Return words for the distance of an attribution.

    >>> distance_words("l2"), distance_words("my_features")
    ('L2 over pixels in [0, 1]', 'my_features distance')
    """
    return _WORDS.get(name, f"{name} distance")
