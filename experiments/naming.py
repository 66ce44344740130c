"""Units on the command line: ids, or names as far as the code or the training data have them."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

SHOWN = 10
"""Most units that a message lists."""


class Removal(NamedTuple):
    """Units to remove together: their ids, and what the command line called them."""

    units: list[int]
    text: str


def unit_names(code: Any, groups: bool = False) -> Sequence[str] | None:
    """Return the names of a code's units; for items without names in the code, those in the training data.

    Returns None if there are none, or the data are not there.
    """
    if code.names is not None or groups:
        return code.names
    from .runs import training_data

    try:
        data = training_data(required=False)
    except (ValueError, OSError, ImportError) as error:
        print(f"warning: the names of units are not known: {error}")
        return None
    return None if data is None else data.unit_names


def removals(texts: Sequence[str], names: Callable[[], Sequence[str] | None]) -> list[Removal]:
    """Return the units of each text: ids or names separated by commas, or one name that may contain commas.

    A whole number is always an id. A name may be given in part, or in other letters (``ada`` for ``Ada Lovelace``), if
    only one unit fits.

    Args:
        texts: the texts, such as ``"3"``, ``"5,8"`` or ``"ada"``.
        names: returns the names of all units, or None if there are none; called only if a text is no id.

    Raises:
        ValueError: a name fits no unit, or several, whose ids the message lists; or there are no names.

    >>> removals(["3", "ada, 0"], lambda: ["bob", "Ada L.", "eve"])
    [Removal(units=[3], text='3'), Removal(units=[1, 0], text='ada, 0')]
    """
    known: list[Any] = []

    def all_names() -> Sequence[str] | None:
        if not known:
            known.append(names())
        return known[0]

    return [Removal(_units(text, all_names), text) for text in texts]


def _units(text: str, names: Callable[[], Sequence[str] | None]) -> list[int]:
    from ensdiff.files.reading import whole_number

    parts = [part.strip(" ") for part in text.split(",")]
    ids = [whole_number(part) for part in parts]
    found = [unit for unit in ids if unit is not None]
    if len(found) == len(ids):
        return found
    known = names()
    if known is None:
        raise ValueError(f"units {text!r}: the units of this run have no names; expected ids, such as 3 or 5,8")
    whole = matching(text.strip(" "), known)
    if len(parts) == 1 or len(whole) == 1:
        return [_only(text, whole, known)]
    return [_only(part, matching(part, known), known) if unit is None else unit
            for part, unit in zip(parts, ids, strict=True)]  # fmt: skip


def matching(text: str, names: Sequence[str]) -> list[int]:
    """Return the units whose name is a text; without any, those with it in other letters; or those that contain it.

    >>> matching("a", ["A", "ab", "b"]), matching("b", ["A", "ab", "b"]), matching("", ["A"])
    ([0], [2], [])
    """
    if not text:
        return []
    lower = text.casefold()
    tests: list[Callable[[str], bool]] = [
        lambda name: name == text,
        lambda name: name.casefold() == lower,
        lambda name: lower in name.casefold(),
    ]
    for fits in tests:
        found = [unit for unit, name in enumerate(names) if fits(str(name))]
        if found:
            return found
    return []


def _only(text: str, found: list[int], names: Sequence[str]) -> int:
    if len(found) == 1:
        return found[0]
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        listed = ", ".join(f"{unit} ({names[unit]})" for unit in found[:SHOWN])
        raise ValueError(
            f"{text!r} is in the names of {len(found)} units: {listed}{more}; give the id of one, or more of its name"
        )
    near = difflib.get_close_matches(text, list(map(str, names)), n=3)
    hint = f"; similar names are {', '.join(map(repr, near))}" if near else f", such as {str(names[0])!r}"
    raise ValueError(f"no unit is called {text!r}{hint}; expected a name or an id, 0 .. {len(names) - 1}")
