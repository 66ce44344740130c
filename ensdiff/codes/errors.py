"""Errors and warnings about codes, and parts of their messages."""

import math
import warnings
from typing import Any


class CodeWarning(UserWarning):
    """A code matrix is usable, but supports fewer questions.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     shared_word = ensdiff.Code.from_matrix([[1, 0], [1, 0], [0, 1]])
    >>> caught[0].category.__name__
    'CodeWarning'
    """


class NoSurvivorError(ValueError):
    """Every member has seen at least one unit of the set to be removed.

    >>> code = ensdiff.Code.from_matrix([[1, 0], [0, 1]])
    >>> code.ablate([{0, 1}])
    Traceback (most recent call last):
    ensdiff.codes.errors.NoSurvivorError: no member survives the removal of units 0, 1; ...
    """


def smallest_members(units: int) -> int:
    """Return the smallest K with at least ``units`` words of weight K // 2."""
    members = 2
    while math.comb(members, members // 2) < units:
        members += 1
    return members


def fitting_weights(members: int, units: int) -> str:
    """Return a hint for an error message if another weight of the same members has enough words, else an empty text."""
    if math.comb(members, members // 2) < units:
        return ""
    lowest = next(w for w in range(1, members) if math.comb(members, w) >= units)
    return f"; with {members} members, a weight of {lowest} .. {members - lowest} fits"


def some(things: Any) -> str:
    """Return the first five things as text, with the number of the rest."""
    things = list(things)
    text = ", ".join(str(thing) for thing in things[:5])
    return text + (f" and {len(things) - 5} more" if len(things) > 5 else "")


def warn(message: str) -> None:
    """Issue a `CodeWarning` that points at the caller of the public function."""
    warnings.warn(message, CodeWarning, stacklevel=4)
