"""Units on the command line: ids, or names as far as the run, its code or the training data have them.

`ensdiff.codes.choosing` describes how units are written.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from . import runs

HOW = (
    "ids or names separated by commas. A name that is also an id is written name:7, an id id:7; a name with a comma or "
    "a plus sign in double quotes."
)
"""How units are written, for the help of flags."""


class Removal(NamedTuple):
    """Units to remove together: their ids, and what the command line called them."""

    units: list[int]
    text: str


def names_of(params: Any, code: Any = None) -> Any:
    """Return the names of a code's units that the run has, or else a function that finds them in the training data.

    Args:
        params: the ensemble, or its description.
        code: the ensemble's code, or the code of its groups; by default the former.
    """
    found = params.names_of(code)
    if found is not None:
        return found
    own = code is None or code == params.code
    return names_in_data if own else None


def names_in_data() -> Any:
    """Return the names of the units in the training data of --run; None if there are none, or the data are not there.

    Older runs do not store the names of their units, so the names are read from the data.
    """
    from ensdiff.codes.unit_names import UnitNames

    try:
        data = runs.training_data(required=False)
    except (ValueError, OSError, ImportError) as error:
        print(f"warning: the names of units are not known: {error}")
        return None
    return None if data is None else UnitNames(data.unit_names)


@contextlib.contextmanager
def groups_named(params: Any, text: str, code: Any = None) -> Iterator[None]:
    """Say in an error about units of a text that it names a group of a hierarchical code, where it does.

    In an error about groups, say that the text names units, where it does.

    Args:
        params: the ensemble, or its description.
        text: what the user typed.
        code: the code whose units were looked up; by default the ensemble's.
    """
    from ensdiff.codes.choosing import choose

    try:
        yield
    except ValueError as error:
        if params.code.groups is None:
            raise
        of_units = code is None or code == params.code
        other = params.code.group_code() if of_units else params.code
        try:
            found = flat(choose(text, other.units, params.names_of(other), parts=True))
        except ValueError:
            raise error from None
        told, one = called(found, params.names_of(other)), len(found) == 1
        how = "add --groups" if of_units else "leave out --groups"
        if one:
            told += f" is a {'group of units' if of_units else 'unit'}: {how} to mean it"
        else:
            told += f" are {'groups of units' if of_units else 'units'}: {how} to mean them"
        raise ValueError(f"{error}. In this run {told}") from None


def removals(texts: Sequence[str], units: int, names: Any, what: str = "unit") -> list[Removal]:
    """Return the units of each text: ids or names separated by commas or plus signs, which are removed together.

    A name may be given in part, or in other letters (``ada`` for ``Ada Lovelace``), if only one unit fits.

    Args:
        texts: the texts, such as ``"3"``, ``"5,8"`` or ``"ada"``.
        units: number of units.
        names: what `names_of` returned.
        what: what messages call a unit, such as ``"group"``.

    Raises:
        ValueError: a text does not select units (`ensdiff.codes.choosing.choose`).

    >>> from ensdiff.codes.unit_names import UnitNames
    >>> removals(["3", "ada, 0"], 4, lambda: UnitNames(["bob", "Ada L.", "eve", "zed"]))
    [Removal(units=[3], text='3'), Removal(units=[1, 0], text='ada, 0')]
    """
    from ensdiff.codes.choosing import choose

    return [Removal(flat(choose(text, units, names, parts=True, what=what)), text) for text in texts]


def unit_sets(text: str, units: int, names: Any, what: str = "unit") -> list[Any]:
    """Return the units of a text: a list of ids if no entry is a set (``3+5``), else a list of lists.

    Raises:
        ValueError: as for `removals`.
    """
    from ensdiff.codes.choosing import choose

    entries = choose(text, units, names, parts=True, what=what)
    return [entry[0] for entry in entries] if all(len(entry) == 1 for entry in entries) else entries


def units_to_forget(text: str, groups: bool = False) -> list[int]:
    """Return the units of --run in a text, and print which pictures they are.

    A part of a name is not enough here. With ``groups`` the text selects groups of a hierarchical code, and all of
    their units are returned.

    Raises:
        ValueError: as for `removals`, or no member survives the removal.
    """
    from ensdiff.codes.choosing import choose
    from ensdiff.codes.unit_names import UnitNames
    from ensdiff.files.reading import printable
    from ensdiff.runs.checkpoints import run_description
    from ensdiff.runs.description import read_manifest

    run = runs.run_folder()
    description = run_description(run)
    params = described(run, description)
    names = names_of(params)
    if groups:
        return _units_of_groups(params, text)
    with groups_named(params, text):
        units = flat(choose(text, params.code.units, names))
    check_removals(params.code, [units], names)  # before all data are read for the names
    try:
        manifest = read_manifest(run, description)
        if callable(names) or manifest is None:
            data = runs.training_data()
            names, manifest = UnitNames(data.unit_names), data.manifest()
    except (ValueError, OSError, ImportError) as error:
        print(f"warning: cannot tell which pictures units {', '.join(map(str, units))} are: {printable(error)}")
        return units
    choose(text, params.code.units, names)  # an id may be the name of another unit, which was not known before
    for unit in units:
        count = int((manifest.unit_of_item == unit).sum())
        print(f"unit {unit} is {names.label(unit)}, {count} picture{'' if count == 1 else 's'}", flush=True)
    return units


def _units_of_groups(params: Any, text: str) -> list[int]:
    """Return the units of the groups in a text, and print how many they are.

    Raises:
        ValueError: there are no groups, or no such group.
        NoSurvivorError: no member survives the removal.
    """
    import numpy as np

    from ensdiff.codes.choosing import choose

    code = params.code.group_code()
    names = params.names_of(code)
    with groups_named(params, text, code):
        chosen = flat(choose(text, code.units, names, what="group"))
    check_removals(code, [chosen], names)
    units = np.flatnonzero(np.isin(params.code.group_of_unit(), chosen)).tolist()
    print(f"groups {', '.join(map(str, chosen))} ({called(chosen, names)}) are {len(units)} units", flush=True)
    return units


def check_removals(code: Any, entries: Iterable[Sequence[int]], names: Any) -> None:
    """Check that members survive the removal of each entry.

    Raises:
        NoSurvivorError: none survives; the message names the units, as far as their names are at hand.
    """
    from ensdiff.codes import NoSurvivorError

    for units in entries:
        try:
            code.ablate([units])
        except NoSurvivorError as error:
            told = called(units, names)
            if told == called(units, None) or f"units {told}" in str(error):
                raise
            raise NoSurvivorError(f"{told}: {error}") from None


def described(run: pathlib.Path, description: Mapping[str, Any]) -> Any:
    """Return the ensemble of a run without parameters, with the names of its units."""
    from ensdiff.runs.description import from_description
    from ensdiff.runs.unit_names import known_names

    params = from_description(description, None)
    return dataclasses.replace(params, unit_names=known_names(run, params))


def called(units: Iterable[int], names: Any) -> str:
    """Return units for a reader: their names if they are at hand, else their ids.

    >>> from ensdiff.codes.unit_names import UnitNames
    >>> called([0, 2], UnitNames(["ada", "bob", "eve"])), called([0, 2], None)
    ('ada, eve', '0, 2')
    """
    return ", ".join(str(unit) if names is None or callable(names) else names.label(unit) for unit in units)


def flat(entries: Iterable[Iterable[int]]) -> list[int]:
    """Return the units of all entries, each once."""
    return list(dict.fromkeys(unit for entry in entries for unit in entry))
