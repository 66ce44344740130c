"""List the training units of a run: their ids and names, their items, and the members that saw them.

Programs take units by these ids or names (--units, --remove). Nothing is loaded but the description of the run.

Examples:
  python -m experiments.units --run=runs/digits
  python -m experiments.units --run=runs/artists --find=john
  python -m experiments.units --run=runs/nested --groups                   (the groups of a hierarchical code)
  python -m experiments.units --run=runs/artists --format=csv > units.csv
"""

import json
from collections.abc import Sequence

from absl import flags

from . import common, naming, runs
from .listing import describe, print_table, write_csv

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
        write_csv(rows)
    else:
        print_table(rows)
        if len(rows) < found:
            print(f"the first {len(rows)}; --most=... shows more, --find=TEXT those with a text in their names")
        if groups is not None:
            group_names = params.names_of(groups)
            inside = [] if FIND.value is None or group_names is None else group_names.parts(FIND.value)
            told = f" ({len(inside)} of them with {FIND.value!r} in their names)" if len(inside) else ""
            print(f"the units are in {groups.units} groups{told}, which --groups lists")


if __name__ == "__main__":
    common.run(main, __doc__)
