"""Rows about the units of a run, and how experiments.units prints them."""

import csv
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def describe(
    params: Any, manifest: Any, units: Sequence[int], names: Any, *, groups: bool = False, origin: Any = None
) -> list[dict[str, Any]]:
    """Return a row for each of some units or groups.

    Args:
        params: the ensemble; its parameters are not used.
        manifest: the manifest of the training data, or None.
        units: the ids of the units, or of the groups of a hierarchical code.
        names: names of all of them, or None.
        groups: whether they are groups.
        origin: the origin in the description of a run that has forgotten units.

    Returns:
        JSON-able values: ``id``, ``name``, ``write`` (how to write the unit on a command line), ``units`` (of a group)
        or ``group`` and ``group_name``, ``forgotten``, ``items`` (their number) and ``members`` (that saw the unit).
        What does not apply is left out; what is not known is None.
    """
    code = params.code
    of_unit: Any = None if code.groups is None else code.group_of_unit()
    group_names = params.names_of(code.group_code()) if code.groups is not None else None
    items = None if manifest is None else np.bincount(manifest.unit_of_item, minlength=code.units)
    sizes: Any = None
    if groups:
        items = None if items is None else np.bincount(of_unit, items).astype(int)
        sizes, of_unit, code = np.bincount(of_unit), None, code.group_code()
    rows = []
    for unit, word in zip(units, code.rows(np.asarray(units, np.int64)), strict=True):
        row: dict[str, Any] = {"id": int(unit), "name": None if names is None else names[unit]}
        row["write"] = str(unit) if names is None else names.typed(unit)
        if groups:
            row["units"] = int(sizes[unit])
        if of_unit is not None:
            row["group"] = int(of_unit[unit])
            row["group_name"] = None if group_names is None else group_names[row["group"]]
        if origin is not None:
            inside = np.flatnonzero(params.code.group_of_unit() == unit) if groups else [unit]
            row["forgotten"] = bool(np.isin(inside, origin["forgotten"]).all())
        row["items"] = None if items is None else int(items[unit])
        row["members"] = np.flatnonzero(word).tolist()
        rows.append(row)
    return rows


def write_csv(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as CSV; lists are separated by blanks."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(rows[0] if rows else ["id", "name"])
    for row in rows:
        out.writerow([" ".join(map(str, value)) if isinstance(value, list) else value for value in row.values()])


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table, without columns of which nothing is known."""
    from tabulate import tabulate

    from ensdiff.files.reading import printable

    if not rows:
        return
    needed = {name for name in rows[0] if any(row[name] is not None for row in rows)}
    if all(row["write"] in (row["name"], str(row["id"])) for row in rows):
        needed.discard("write")  # names are written as they are
    shown = [name for name in rows[0] if name in needed]
    cells = [[_cell(row[name], printable) for name in shown] for row in rows]
    print(tabulate(cells, headers=[name.replace("_", " ") for name in shown], disable_numparse=True))


def _cell(value: Any, printable: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return printable(" ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value)
