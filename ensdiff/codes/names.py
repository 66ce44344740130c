"""Names of units: whether a code's are those of the data, in the same order."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ensdiff.codes.errors import some


def as_names(names: Iterable[Any]) -> tuple[str, ...]:
    """Names as distinct strings; bytes are decoded.

    Raises:
        ValueError: one string instead of several, or a name that occurs twice.
    """
    if isinstance(names, str | bytes):
        raise ValueError(f"names={names!r}: expected one name a unit, in a list")
    out = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    twice = [name for name, count in Counter(out).items() if count > 1]
    if twice:
        raise ValueError(f"names of several units: {some(map(repr, twice))}; expected a name of its own for each unit")
    return out


def are_numbers(names: Iterable[Any]) -> bool:
    """Whether names say no more than the place of each unit: "3" or "item 3", "unit 3", "group 3" for unit 3."""
    return all(str(name) in (f"{i}", f"item {i}", f"unit {i}", f"group {i}") for i, name in enumerate(names))


def check_names(of_code: Sequence[str] | None, of_data: Sequence[Any]) -> None:
    """Compare the names of a code's units with those of the data's. Names that are only numbers are not compared.

    Raises:
        ValueError: they differ, or agree in another order; names the first differences and says what to do.

    >>> check_names(("ada", "bob"), ["ada", "bob"])
    >>> check_names(("ada", "bob"), ["item 0", "item 1"])
    """
    if of_code is None or are_numbers(of_code) or are_numbers(of_data):
        return
    different = [(i, c, str(d)) for i, (c, d) in enumerate(itertools.zip_longest(of_code, of_data)) if c != str(d)]
    if not different:
        return
    first = "; ".join(f"unit {i} is {c!r} in the code and {d!r} in the data" for i, c, d in different[:3])
    more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
    if Counter(of_code) == Counter(map(str, of_data)):
        fix = "the same names in another order: code.reordered(data.unit_names) has the rows in the data's order"
    else:
        fix = "give the code the names of the data's units, or no names where its rows are in the data's order"
    raise ValueError(f"the code and the data name other units: {first}{more}; {fix}")
