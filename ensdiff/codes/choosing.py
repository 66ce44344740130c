"""Choosing units by ids or names: in a text, as on a command line, or in a list, as in Python.

In a text, entries are separated by commas, and units joined by ``+`` are one entry:

- ``3`` is unit 3, and ``ganson`` the unit of that name. Where a number is both an id and another unit's name, write
  ``id:3`` or ``name:3``.
- A name with a comma, a plus sign or a quote is put in double quotes, with quotes in it doubled: ``"Smith, John"``. A
  quoted text is always a name. Quotes may be left out if what is meant is clear without them.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from ensdiff.codes.unit_names import UnitNames, quoted
from ensdiff.files.reading import printable, whole_number

SHOWN = 10
"""Most units that a message lists."""
NEAR = 20_000
"""Most names among which a message looks for similar ones."""
Names = UnitNames | Callable[[], UnitNames | None] | None
"""The names of the units, or a function that finds them when a text is no id, or None if they have none."""


def choose(text: str, units: int, names: Names = None, *, parts: bool = False, what: str = "unit") -> list[list[int]]:
    """Return the units of each entry of a text.

    Args:
        text: such as ``"3"``, ``"3+5,8"`` or ``'ganson,"Smith, John"'``.
        units: number of units.
        names: their names.
        parts: also accept a part of a name that is in no other name, such as ``ada`` for ``Ada Lovelace``.
        what: what messages call a unit, such as ``"group"``.

    Raises:
        ValueError: an id or name does not exist (the message suggests similar names), a name belongs to several units
            (the message lists their ids), the text can be read in two ways, or a quote is not closed.

    >>> choose("3+5,8", 10)
    [[3, 5], [8]]
    >>> choose('bob,"Smith, John"+0', 3, UnitNames(["ada", "bob", "Smith, John"]))
    [[1], [2, 0]]
    """
    return _Reader(units, names, parts, what).entries(text)


def ids_of_names(units: Any, names: UnitNames | None) -> Any:
    """Return the argument ``units`` of a function of Python with every name replaced by the id.

    Ids, and what is neither a name nor a collection, are returned unchanged. A name is a str; it is never read as an
    id, or as several names.

    Args:
        units: a sequence of ids, names and collections of them.
        names: names of the units, or None.

    Raises:
        ValueError: a name does not exist or belongs to several units, or the units have no names.

    >>> ids_of_names(["ada", {"bob", 0}], UnitNames(["ada", "bob"]))
    [0, {0, 1}]
    """
    if isinstance(units, str):
        raise ValueError(f"units={units!r}: expected a list of unit ids or names, such as [{units!r}]")
    if not isinstance(units, list | tuple | set | frozenset) or not any(
        isinstance(unit, str | list | tuple | set | frozenset) for unit in units
    ):
        return units
    reader = _Reader(0 if names is None else len(names), names, parts=False)

    def one(unit: Any) -> Any:
        if isinstance(unit, str):
            return reader.named(str(unit))
        return ids_of_names(unit, names) if isinstance(unit, list | tuple | set | frozenset) else unit

    found = [one(unit) for unit in units]
    return found if isinstance(units, list) else type(units)(found)


class _Reader:
    def __init__(self, units: int, names: Names, parts: bool, what: str = "unit"):
        self.units, self._given, self.with_parts, self.what = units, names, parts, what

    @property
    def names(self) -> UnitNames | None:
        """The names, found when they are first needed."""
        if callable(self._given):
            self._given = self._given()
        return self._given

    def entries(self, text: str) -> list[list[int]]:
        return self._either(text, ",", lambda part, strict: self._set(part, strict))

    def _set(self, text: str, strict: bool) -> list[int]:
        found = self._either(text, "+", lambda part, strict: [self._term(part, strict)], strict)
        return list(dict.fromkeys(unit for part in found for unit in part))

    def _either(self, text: str, mark: str, read: Callable, strict: bool = False) -> list[list[int]]:
        """Read a text as parts between marks, or else as one name that holds the mark."""
        parts = split(text, mark)
        whole = self._name_with(text.strip()) if len(parts) > 1 else None
        if whole is None:
            return [read(part, strict) for part in parts]
        try:
            found = [read(part, True) for part in parts]
        except ValueError:
            return [[whole]]
        ids = ", ".join(f"id:{unit}" for part in found for unit in part)
        raise ValueError(
            f"{text.strip()!r} is the name of {self.what} {whole}, and also stands for the {self.what}s {ids}: write "
            f"{quoted(text.strip())} in quotes for the name, or the ids"
        )

    def _name_with(self, text: str) -> int | None:
        """Return the unit whose exact name is a text that holds a mark."""
        ids = [part.strip().removeprefix("id:") for part in text.replace("+", ",").split(",")]
        if callable(self._given) and all(whole_number(part) is not None for part in ids):
            return None  # ids need no names, which may be slow to find
        places = () if self.names is None else self.names.places(text)
        return places[0] if len(places) == 1 else None

    def _term(self, text: str, strict: bool) -> int:
        text = text.strip()
        kind, colon, rest = text.partition(":")
        number = whole_number(rest.strip() if kind == "id" and colon else text)
        if kind == "id" and colon and number is not None:
            return self._existing(number)
        if kind == "name" and colon:
            return self.named(unquoted(rest.strip()), exact=True)
        if number is not None:
            return self._number(number, text)
        if text.startswith('"'):
            return self.named(unquoted(text), exact=True)
        return self.named(text, exact=strict)

    def _number(self, number: int, text: str) -> int:
        known = None if callable(self._given) else self._given
        named = () if known is None else known.places(text)
        if named == (number,) or not named:
            return self._existing(number)
        if number >= self.units and len(named) == 1:
            return named[0]
        others = ", ".join(str(unit) for unit in [unit for unit in named if unit != number][:SHOWN])
        raise ValueError(
            f"{text} is the id of {self.what} {number} and the name of {self.what} {others}: write "
            f"id:{number}, or name:{text} for the name"
        )

    def _existing(self, number: int) -> int:
        if number >= self.units:
            raise ValueError(f"{self.what} {number} does not exist: ids are 0 .. {self.units - 1}")
        return number

    def named(self, text: str, exact: bool = False) -> int:
        """Return the unit of a name."""
        if not text.strip():
            raise ValueError(
                "an empty text between commas or plus signs: expected ids or names of units, such as 3 or 5,8"
            )
        names = self.names
        if names is None:
            raise ValueError(
                f"{self.what}s {text!r}: the {self.what}s of this run have no names; expected ids, such as 3 or 5,8"
            )
        found = names.places(text)
        if not found and self.with_parts and not exact:
            found = names.parts(text)
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"id:{unit} ({printable(names[unit])})" for unit in found[:SHOWN])
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            what, equal = f"{len(found)} {self.what}s", all(names[unit] == names[found[0]] for unit in found)
            raise ValueError(
                f"{text!r} is {'the name of' if equal else 'in the names of'} {what}: {listed}{more}; give "
                f"an id, such as id:{found[0]}" + ("" if equal else ", or more of the name")
            )
        raise ValueError(
            f"no {self.what} is called {text!r}{similar(text, names)}; expected a name or an id, 0 .. {len(names) - 1}"
        )


def similar(text: str, names: Sequence[str]) -> str:
    """Return the part of a message that suggests names near a text that is no name."""
    few: Sequence[str] = names
    if len(names) > NEAR:
        start = text[:2].casefold()
        few = [name for name in names if name[:2].casefold() == start][:NEAR]
    lower = {name.casefold(): name for name in few}
    near = [lower[name] for name in difflib.get_close_matches(text.casefold(), list(lower), n=3)]
    if not near:
        inside = [name for name in few if text.casefold() in name.casefold()]
        near = inside[:3]
    return f"; similar names are {', '.join(map(repr, near))}" if near else f"; a name is {names[0]!r}, for example"


def split(text: str, mark: str) -> list[str]:
    """Return the parts of a text between marks that are not in quotes. Only a quote that begins a name counts.

    >>> split('a,"b,c",d"e,name:"f,g"', ",")
    ['a', '"b,c"', 'd"e', 'name:"f,g"']
    """
    parts, start, term, place = [], 0, 0, 0
    while place < len(text):
        if text[place] == '"' and text[term:place].strip() in ("", "name:"):
            place = _closing(text, place)
        elif text[place] in ",+":
            term = place + 1
            if text[place] == mark:
                parts.append(text[start:place])
                start = place + 1
        place += 1
    return [*parts, text[start:]]


def _closing(text: str, place: int) -> int:
    """Return the place of the quote that closes the one at ``place``."""
    end = place + 1
    while end < len(text):
        if text[end] == '"':
            if text[end + 1 : end + 2] != '"':
                return end
            end += 1
        end += 1
    raise ValueError(f"{text}: a quote is not closed; write quotes inside of a name twice")


def unquoted(text: str) -> str:
    """Return the name in a text, which may be in quotes.

    Raises:
        ValueError: something follows the closing quote.
    """
    if not text.startswith('"'):
        return text
    end = _closing(text, 0)
    if text[end + 1 :].strip():
        raise ValueError(f"{text}: {text[end + 1 :]!r} follows the closing quote; separate units by , or +")
    return text[1:end].replace('""', '"')
