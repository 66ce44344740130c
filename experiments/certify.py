"""Prove that members of a run never drew some training units, and check such a proof.

Commands:
  create   compute the certificate of --units from a run, and write it to RUN/certificate.json (or --certificate)
  verify   check a certificate against a run: its files, its members' parameters, and every draw of every step; if the
           certificate claims that the run holds no other member, also name every file that does not belong to a run

Examples:
  python -m experiments.certify create --run=runs/digits --units=3,7
  python -m experiments.certify create --run=runs/artists --units=ganson            # --no_names: without the name
  python -m experiments.certify verify --run=runs/digits
  python -m experiments.certify verify --run=runs/small --replay=500   # and repeat the last 500 steps
  python -m experiments.certify verify --run=runs/small --digest=5f1c...   # the digest that you kept

experiments.forget writes a run without the members that saw the units, with its certificate.
Exit codes: 0 if the certificate holds, 1 if it does not (or after an error).
"""

import pathlib
import shlex

from absl import flags

from . import common, naming, runs
from .certificates import describe_certificate
from .commands import command as called

runs.define_data_flag()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
UNITS = flags.DEFINE_string("units", None, f"The units: {naming.HOW}")
GROUPS = flags.DEFINE_bool("groups", False, "Let --units name groups of a hierarchical code, and mean all their units.")
NO_NAMES = flags.DEFINE_bool(
    "no_names", False, "Do not name the units in the certificate, for example because they are names of persons."
)
CERTIFICATE = flags.DEFINE_string("certificate", None, "The file of the certificate; by default RUN/certificate.json.")
REPLAY = flags.DEFINE_integer(
    "replay",
    0,
    "Repeat up to this many of the last training steps, from a checkpoint (or the initialisation), and compare bit for "
    "bit. This needs the training data, from which the units may have been deleted.",
)
DIGEST = flags.DEFINE_string("digest", None, "The digest that the certificate must have, as you recorded it.")


def main(command: str) -> None:
    """Create or verify."""
    import jax

    if jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes: certify runs in one process only; start it without others")
    path = pathlib.Path(CERTIFICATE.value) if CERTIFICATE.value else runs.run_folder() / "certificate.json"
    create(path) if command == "create" else verify(path)


def create(path: pathlib.Path) -> None:
    """Write a certificate."""
    import ensdiff

    if not UNITS.value:
        raise ValueError("no units given: pass --units=..., ids or names separated by commas")
    units = naming.units_to_forget(UNITS.value, GROUPS.value)
    certificate = ensdiff.certify(runs.run_folder(), units, names=not NO_NAMES.value)
    certificate.save(path)
    describe_certificate(certificate)
    others = sorted(set(certificate.values["members"]["held"]) - set(certificate.survivors))
    if others:
        print(
            f"the run still holds members {', '.join(map(str, others))}, which saw some of the units: "
            "python -m experiments.forget writes a run without them"
        )
    print(f"wrote {path}\ncheck it: {called('certify')} verify {shlex.quote(f'--run={runs.run_folder()}')}")


def verify(path: pathlib.Path) -> None:
    """Check a certificate; every difference is printed."""
    from ensdiff.certificate import Certificate

    certificate = Certificate.load(path)
    if DIGEST.value is not None and certificate.values.get("digest") != DIGEST.value:
        raise ValueError(
            f"{path} has the digest {certificate.values.get('digest')}, not {DIGEST.value}: it is another certificate"
        )
    data = None
    if REPLAY.value or flags.FLAGS.data:
        data = runs.all_data(certificate.units)
    result = certificate.verify(runs.run_folder(), data=data, replay=REPLAY.value)
    for failure in result.failures:
        print(f"differs: {failure}")
    if not result.ok:
        raise ValueError(
            f"{path} does not hold for {runs.run_folder()}: {len(result.failures)} differences, listed above"
        )
    for line in result.checked:
        print(f"checked: {line}")
    describe_certificate(certificate)
    print("the certificate holds")


if __name__ == "__main__":
    common.run(main, __doc__, commands=("create", "verify"))
