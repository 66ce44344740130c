"""The names of units: searched by text, written for a reader, and written so that they can be typed again.

A term that selects one unit is its id (``3`` or ``id:3``) or its name (``ganson``, ``name:ganson`` or ``"ganson"``).
`ensdiff.codes.choosing` reads such terms, and `UnitNames.typed` writes them.
"""

import functools
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ensdiff.codes.names import are_numbers
from ensdiff.files.reading import printable, whole_number

SPECIAL = ',+"{}'
"""Characters for which a name is put in quotes."""


class UnitNames(Sequence[str]):
    """The name of each unit, in the order of the ids. It is hashable, and equal to another with the same names.

    Args:
        names: one name per unit.

    >>> names = UnitNames(["ganson", "calder", "Smith, John"])
    >>> names[1], names.places("calder"), names.label(2)
    ('calder', (1,), '"Smith, John"')
    """

    def __init__(self, names: Iterable[Any]):
        self._names = tuple(map(str, names))

    @classmethod
    def of(cls, names: Sequence[Any] | None) -> "UnitNames | None":
        """Return names that say more than the ids; None if there are none, or if they only number the units.

        >>> UnitNames.of(["item 0", "item 1"]) is None, UnitNames.of(["ada", "bob"])
        (True, UnitNames(2))
        """
        if names is None or isinstance(names, UnitNames):
            return names
        return None if are_numbers(names) else cls(names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._names[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)})"  # short, and the same for all names, for keys of saved results

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnitNames) and (self is other or self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the names, as hexadecimal digits."""
        return hashlib.sha256(json.dumps(self._names).encode()).hexdigest()

    @functools.cached_property
    def _exact(self) -> "_Index":
        return _Index(self._names)

    @functools.cached_property
    def _folded(self) -> "_Index":
        return _Index(map(folded, self._names))

    def places(self, name: str) -> tuple[int, ...]:
        """Return the units with exactly this name; without any, those whose name differs only in letter case or blanks.

        >>> UnitNames(["Ada", "ada", "Bob"]).places("ada"), UnitNames(["Ada", "ada", "Bob"]).places("BOB ")
        ((1,), (2,))
        """
        return self._exact.places(name) or self._folded.places(folded(name))

    def parts(self, text: str) -> tuple[int, ...]:
        """Return the units whose names contain a text, in any letter case."""
        wanted = folded(text)
        return tuple(unit for unit, name in enumerate(self._names) if wanted in folded(name)) if wanted else ()

    def label(self, unit: Any) -> str:
        """Return a unit's name for a reader, with its id if other units have that name or it looks like another id.

        >>> [UnitNames(["ada", "ada", "1998", ""]).label(unit) for unit in range(4)]
        ['ada (id:0)', 'ada (id:1)', '1998 (id:2)', 'unit 3']
        """
        return label_of(int(unit), self._names[int(unit)], self._exact.is_shared(self._names[int(unit)]))

    def typed(self, unit: int) -> str:
        """Return a text that selects this unit and no other on a command line, by its name if that is possible.

        >>> [UnitNames(["ada", "ada", "bob", "7", "a, b"]).typed(unit) for unit in (0, 2, 3, 4)]
        ['id:0', 'bob', 'name:7', '"a, b"']
        """
        name = self._names[unit]
        if self.places(name) != (unit,) or not name.strip() or printable(name) != name:
            return f"id:{unit}"
        if whole_number(name) is not None:
            return f"name:{name}"
        return quoted(name)

    def some(self, units: Iterable[int]) -> dict[int, str]:
        """Return the names of some units, and of all units with the same names, by their ids.

        What is returned tells which of the names are shared, so that `labels` can show the ids of these units.
        """
        wanted = {self._names[int(unit)] for unit in units}
        return {unit: name for unit, name in enumerate(self._names) if name in wanted}


def labels(names: Mapping[int, str]) -> dict[int, str]:
    """Return `UnitNames.label` of each unit in a mapping as `UnitNames.some` returns it.

    >>> labels({3: "ada", 5: "bob", 8: "bob"})
    {3: 'ada', 5: 'bob (id:5)', 8: 'bob (id:8)'}
    """
    index = _Index(names.values())
    return {unit: label_of(unit, name, index.is_shared(name)) for unit, name in names.items()}


def label_of(unit: int, name: str, shared: bool) -> str:
    """Return a unit's name for a reader, safe to print; with the id if units share the name or it looks like one."""
    if not name.strip():
        return f"unit {unit}"
    number = whole_number(name)
    text = quoted(printable(name))
    return f"{text} (id:{unit})" if shared or (number is not None and number != unit) else text


def quoted(name: str) -> str:
    """Return a name as it is typed: in quotes, with quotes in it doubled, if it would be read as something else."""
    plain = name == name.strip() and not any(c in name for c in SPECIAL) and not name.startswith(("id:", "name:"))
    doubled = name.replace('"', '""')
    return name if plain else f'"{doubled}"'


def folded(name: str) -> str:
    """Return a name without what `UnitNames.places` ignores."""
    return unicodedata.normalize("NFC", name).strip().casefold()


class _Index:
    """The places of each text; there is no container per text, because a run may have a million of them."""

    def __init__(self, texts: Iterable[str]):
        self._first: dict[str, int] = {}
        self._shared: dict[str, list[int]] = {}
        for place, text in enumerate(texts):
            first = self._first.setdefault(text, place)
            if first != place:
                self._shared.setdefault(text, [first]).append(place)

    def places(self, text: str) -> tuple[int, ...]:
        if text in self._shared:
            return tuple(self._shared[text])
        return (self._first[text],) if text in self._first else ()

    def is_shared(self, text: str) -> bool:
        return text in self._shared
