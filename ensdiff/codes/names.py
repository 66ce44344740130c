"""Names of units: check that a code and the data have the same names in the same order."""

import itertools
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


def as_names(names: Iterable[Any], what: str = "units") -> tuple[str, ...]:
    """Return the names as distinct strings; bytes are decoded.

    Args:
        names: names of units or groups.
        what: plural noun for the named things, used in messages.

    Raises:
        ValueError: the names are one string instead of a list, or `check_distinct` refuses two of them.
    """
    if isinstance(names, str | bytes):
        raise ValueError(f"names={names!r}: expected a list with one name per {what.removesuffix('s')}")
    out = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    check_distinct(out, what)
    return out


def check_distinct(names: Any, what: str) -> None:
    """Check that no two names are equal or look equal.

    Args:
        names: names of units.
        what: plural noun for the named things, used in the message.

    Raises:
        ValueError: two names are equal, or differ only in surrounding blanks or in the Unicode encoding of a letter.
    """
    seen: dict[str, str] = {}
    for name in names:
        shown = unicodedata.normalize("NFC", name).strip(" \t\r\n\0")
        if shown in seen:
            raise ValueError(
                f"two {what} have names that look the same, {reprlib.repr(seen[shown])} and {reprlib.repr(name)}: give "
                "them different names, or merge them if they are the same"
            )
        seen[shown] = name


def are_numbers(names: Iterable[Any]) -> bool:
    """Return whether every name only states its unit's position: "3", "item 3", "unit 3" or "group 3" for unit 3."""
    return all(str(name) in (f"{i}", f"item {i}", f"unit {i}", f"group {i}") for i, name in enumerate(names))


def check_names(of_code: Sequence[str] | None, of_data: Sequence[Any]) -> None:
    """Check that a code's units have the names of the data's units, in the same order.

    The same names in another order are always refused. Different names are accepted if the names on one side only
    number its units, as in "item 3" for unit 3, because such names cannot be compared.

    Raises:
        ValueError: the names differ, or are the same in another order; the message lists the first differences and the
            fix.

    >>> check_names(("ada", "bob"), ["ada", "bob"])
    >>> check_names(("ada", "bob"), ["item 0", "item 1"])
    >>> check_names(("1", "0"), ["0", "1"])
    Traceback (most recent call last):
    ValueError: the code and the data name different units: unit 0 is '1' in the code and '0' in the data; ...
    """
    if of_code is None:
        return
    different = [(i, c, str(d)) for i, (c, d) in enumerate(itertools.zip_longest(of_code, of_data)) if c != str(d)]
    if not different:
        return
    same = Counter(of_code) == Counter(map(str, of_data))
    if not same and (are_numbers(of_code) or are_numbers(of_data)):
        return
    first = "; ".join(f"unit {i} is {c!r} in the code and {d!r} in the data" for i, c, d in different[:3])
    more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
    if same:
        fix = "the same names in another order: use code.reordered(data.unit_names), whose rows are in the data's order"
    else:
        fix = "give the code the names of the data's units, or no names if its rows are in the data's order"
    raise ValueError(f"the code and the data name different units: {first}{more}; {fix}")
