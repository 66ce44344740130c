"""Write a smaller run without the members that saw some training units.

Examples:
  python -m experiments.forget --run=runs/digits --units=3 --out=runs/digits_without_3
  python -m experiments.forget --run=runs/digits_without_3 --units=5,8 --out=runs/digits_without_3_5_8
  python -m experiments.forget --run=runs/artists --units='ganson,"Smith, John"' --out=runs/without_two
  python -m experiments.certify verify --run=runs/digits_without_3
  python -m experiments.forget --run=runs/adapters --units=3 --out=runs/without_3 --lora=without_3.safetensors

--lora also writes the average of the adapters that are left as one file for other programs (diffusers and those that
read its adapter files), if the base is a U-Net of diffusers.

The new run loads, samples and attributes like any other, and holds its deletion certificate. Send the output of other
programs elsewhere (--out=FOLDER): verification fails if the new run holds any other file.
"""

from absl import flags

from . import common, lora, naming, runs
from .certificates import describe_certificate

runs.define_data_flag()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
UNITS = flags.DEFINE_string("units", None, f"The units, which are forgotten together: {naming.HOW}")
GROUPS = flags.DEFINE_bool(
    "groups", False, "Let --units name groups of a hierarchical code, of which all units are forgotten."
)
NO_NAMES = flags.DEFINE_bool(
    "no_names",
    False,
    "Do not name the forgotten units in the certificate and in the new run, for example because they are names of "
    "persons.",
)
OUT = flags.DEFINE_string("out", None, "The new run directory.")
LORA = flags.DEFINE_string(
    "lora",
    None,
    "Also write the average of the adapters that are left, as this file .safetensors of diffusers' format.",
)
RANK = flags.DEFINE_integer(
    "rank", None, "Rank of --lora; by default the sum of the ranks of the adapters, which is exact.", 1
)


def capacity_line(members: int, certain: int, expected: int, lost: int) -> str:
    """Return a sentence about how many more units can be removed, from the fields of `ensdiff.codes.Remaining`.

    >>> capacity_line(4, 1, 2, 0)
    '4 members are left: any one more unit can be removed, or on average 2 random ones'
    >>> capacity_line(2, 0, 1, 3)
    '2 members are left: 3 units were seen by all of them and can no longer be removed; on average 1 random one can'
    """
    left = f"{members} member{'' if members == 1 else 's'} {'is' if members == 1 else 'are'} left: "
    random = f"on average {expected} random one{'' if expected == 1 else 's'}"
    if lost:
        seen = f"{lost} unit{' was' if lost == 1 else 's were'} seen by all of them and can no longer be removed"
        return f"{left}{seen}; {random} can"
    return f"{left}any {'one more unit' if certain == 1 else f'{certain} more units'} can be removed, or {random}"


def main() -> None:
    """Write the smaller run, and print how many removals it still allows."""
    import ensdiff

    run = runs.run_folder()
    if not UNITS.value or not OUT.value:
        raise ValueError("pass --units=... (ids or names to forget, separated by commas) and --out=... (the new run)")
    if RANK.value is not None and not LORA.value:
        raise ValueError(f"--rank={RANK.value} is for --lora: leave it out")
    if LORA.value:
        lora.check(run, LORA.value, OUT.value)  # before anything is written
    units = naming.units_to_forget(UNITS.value, GROUPS.value)
    certificate = ensdiff.forget(run, units, OUT.value, names=not NO_NAMES.value)
    describe_certificate(certificate)
    left = certificate.values["capacity"]
    print(capacity_line(**left))
    print(f"wrote {OUT.value}, with its certificate.json. {run} still holds all members: delete it when it has served")
    if LORA.value:
        print(lora.write(OUT.value, LORA.value, RANK.value))


if __name__ == "__main__":
    common.run(main, __doc__)
