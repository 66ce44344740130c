"""List the training units of a run: their ids and names, their items, and the members that saw them.

Programs take units by these ids or names (--units, --remove). Nothing is loaded but the description of the run.

Examples:
  python -m experiments.units --run=runs/digits
  python -m experiments.units --run=runs/artists --find=john
  python -m experiments.units --run=runs/nested --groups                   (the groups of a hierarchical code)
  python -m experiments.units --run=runs/artists --format=csv > units.csv
"""

import csv
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from . import common, naming, runs

runs.define_data_flag()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
FIND = flags.DEFINE_string("find", None, "Only units with this text in their names, in any letter case.")
GROUPS = flags.DEFINE_bool("groups", False, "List the groups of a hierarchical code instead of its units.")
FORMAT = flags.DEFINE_enum("format", "table", ["table", "json", "csv"], "What to print.")
MOST = flags.DEFINE_integer("most", 100, "Most rows of the table.", 1)


def main() -> None:
    """Print the units."""
    from ensdiff.codes.unit_names import UnitNames
    from ensdiff.runs.checkpoints import run_description
    from ensdiff.runs.description import read_manifest

    run = runs.run_folder()
    description = run_description(run)
    params, manifest = naming.described(run, description), read_manifest(run, description)
    code = params.code.group_code() if GROUPS.value else params.code
    names = naming.names_of(params, code)
    names = names() if callable(names) else names
    what = "group" if GROUPS.value else "unit"
    chosen: Sequence[int] = range(code.units)
    if FIND.value is not None:
        searched = UnitNames(f"{what} {i}" for i in chosen) if names is None else names
        chosen = searched.parts(FIND.value)
    found = len(chosen)
    if FORMAT.value == "table":
        told = f"{code.units} {what}s" if FIND.value is None else f"{found} of {code.units} {what}s"
        print(f"{told}, {code.members} members", flush=True)
        chosen = chosen[: MOST.value]
    rows = describe(params, manifest, chosen, names, groups=GROUPS.value, origin=description.get("origin"))
    groups = params.code.group_code() if params.code.groups is not None and not GROUPS.value else None
    if FORMAT.value == "json":
        print(json.dumps(rows, indent=1))
    elif FORMAT.value == "csv":
        _write_csv(rows)
    else:
        _print_table(rows)
        if len(rows) < found:
            print(f"the first {len(rows)}; --most=... shows more, --find=TEXT those with a text in their names")
        if groups is not None:
            group_names = params.names_of(groups)
            inside = [] if FIND.value is None or group_names is None else group_names.parts(FIND.value)
            told = f" ({len(inside)} of them with {FIND.value!r} in their names)" if len(inside) else ""
            print(f"the units are in {groups.units} groups{told}, which --groups lists")


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
        if origin is not None and not groups:
            row["forgotten"] = unit in origin["forgotten"]
        row["items"] = None if items is None else int(items[unit])
        row["members"] = np.flatnonzero(word).tolist()
        rows.append(row)
    return rows


def _write_csv(rows: Sequence[dict[str, Any]]) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(rows[0] if rows else ["id", "name"])
    for row in rows:
        out.writerow([" ".join(map(str, value)) if isinstance(value, list) else value for value in row.values()])


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
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


if __name__ == "__main__":
    common.run(main, __doc__)
