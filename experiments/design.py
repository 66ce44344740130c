"""Show how many members survive removals, to choose the number of members K and the weight w before training.

Examples:
  python -m experiments.design --members=16,32 --removals=1,2,4,8 --out=design
  python -m experiments.design --members=64 --weights=4,8,16,32 --units=100000
"""

import math
import pathlib

from absl import flags

from . import common

flags.adopt_module_key_flags(common)
MEMBERS = flags.DEFINE_list("members", ["16", "32", "64"], "Numbers of members K.")
WEIGHTS = flags.DEFINE_list("weights", [], "Weights w; by default 1/8, 1/4, 1/2 and 3/4 of the members.")
REMOVALS = flags.DEFINE_list("removals", ["1", "2", "4", "8", "16"], "Numbers m of units removed together.")
UNITS = flags.DEFINE_integer("units", 0, "Leave out codes with fewer words than this number of units.")
OUT = flags.DEFINE_string("out", None, "Folder to write capacity.svg to; by default there is no plot.")


def main() -> None:
    """Print the table, and draw expected survivors against the share of the data that a member sees."""
    from ensdiff.codes import deletion_capacity

    members, removals = [int(k) for k in MEMBERS.value], [int(m) for m in REMOVALS.value]
    rows = []
    for K in members:
        weights = [int(w) for w in WEIGHTS.value] or sorted({max(1, K // 8), K // 4, K // 2, 3 * K // 4} - {0})
        for w in weights:
            if w < K and math.comb(K, w) >= max(UNITS.value, *removals):
                rows.append((K, w, [deletion_capacity(K, w, m) for m in removals]))
    if not rows:
        raise ValueError("no such code has enough words: use more members, or weights nearer to half of the members")
    print("Members that survive the removal of m random units: expected / at least (chance that none survives)")
    print(f"{'K':>4}{'w':>4}{'share seen':>12}{'words':>12}" + "".join(f"{f'm={m}':>22}" for m in removals))
    for K, w, capacities in rows:
        cells = "".join(f"{f'{c.expected:.1f} / {c.worst} ({c.failure:.1%})':>22}" for c in capacities)
        print(f"{K:>4}{w:>4}{w / K:>12.1%}{math.comb(K, w):>12.3g}{cells}")
    if OUT.value:
        from ensdiff.report import capacity_figure

        path = pathlib.Path(OUT.value) / "capacity.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(capacity_figure(members, removals))
        print(f"plot: {path}")


if __name__ == "__main__":
    common.run(main, __doc__)
