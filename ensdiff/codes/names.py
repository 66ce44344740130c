"""Names of units: whether a code's are those of the data, in the same order."""

import itertools
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


def as_names(names: Iterable[Any], what: str = "units") -> tuple[str, ...]:
    """Names as distinct strings; bytes are decoded.

    Args:
        names: of units or groups.
        what: plural of what they name, for messages.

    Raises:
        ValueError: one string instead of several, or two names that `check_distinct` refuses.
    """
    if isinstance(names, str | bytes):
        raise ValueError(f"names={names!r}: expected a list with one name per {what.removesuffix('s')}")
    out = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    check_distinct(out, what)
    return out


def check_distinct(names: Any, what: str) -> None:
    """Refuse names of which two are equal, or look equal.

    Args:
        names: of units.
        what: plural of what they name, for the message.

    Raises:
        ValueError: two names are the same, or differ only in surrounding blanks or in how Unicode writes a letter.
    """
    seen: dict[str, str] = {}
    for name in names:
        shown = unicodedata.normalize("NFC", name).strip(" \t\r\n\0")
        if shown in seen:
            raise ValueError(
                f"two {what} are shown alike, {reprlib.repr(seen[shown])} and {reprlib.repr(name)}: give them "
                "different names, or the same one if they are the same"
            )
        seen[shown] = name


def are_numbers(names: Iterable[Any]) -> bool:
    """Whether names say no more than the place of each unit: "3" or "item 3", "unit 3", "group 3" for unit 3."""
    return all(str(name) in (f"{i}", f"item {i}", f"unit {i}", f"group {i}") for i, name in enumerate(names))


def check_names(of_code: Sequence[str] | None, of_data: Sequence[Any]) -> None:
    """Check that a code's units have the names of the data's units, in the same order.

    The same names in another order are always refused. Names that differ are accepted where those of one side only
    number its units, as in "item 3" for unit 3: they say nothing that could be compared.

    Raises:
        ValueError: they differ, or agree in another order; names the first differences and says what to do.

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
        fix = "the same names in another order: code.reordered(data.unit_names) has the rows in the data's order"
    else:
        fix = "give the code the names of the data's units, or no names where its rows are in the data's order"
    raise ValueError(f"the code and the data name different units: {first}{more}; {fix}")
