"""The names of a run's units, as a file of the run (`ensdiff.Ensemble.unit_names`).

The file exists if the training data name their units and the code does not. It is for reading only: units are
identified by their ids and the content of their items (`ensdiff.runs.identity`). The file also holds the digest of the
training data, so that it cannot name the units of another run. Runs of older versions have no such file.
"""

import pathlib
from typing import Any

from ensdiff.codes.unit_names import UnitNames
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.checksums import DamagedError, read_sealed, warn, write_sealed

NAME = "unit_names.json"
"""Name of the file in a run directory."""


def write_names(run: pathlib.Path, params: Ensemble, *, keep: bool) -> None:
    """Write the names of an ensemble's units into its run.

    Args:
        run: the run directory.
        params: the ensemble.
        keep: whether names that the run already has stay if the ensemble has none.
    """
    names = params.unit_names
    if names is None or (params.code.names is not None and names == UnitNames(params.code.names)):
        if not keep:
            (run / NAME).unlink(missing_ok=True)
        return
    write_sealed(run / NAME, {"data": params.data_digest, "names": list(names)})


def read_names(run: pathlib.Path, params: Ensemble) -> UnitNames | None:
    """Return the names in the file of a run; None if it has no such file.

    Args:
        run: the run directory.
        params: the run's ensemble, or its description without parameters.

    Raises:
        DamagedError: the file was changed, or is of other units.
    """
    if not (run / NAME).exists():
        return None
    values = read_sealed(run / NAME)
    names: Any = values.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DamagedError(f"{run / NAME} is damaged: it has no list of names")
    if len(names) != params.code.units or values.get("data") != params.data_digest:
        raise DamagedError(
            f"{run / NAME} does not belong to this run: it names {len(names)} units of other data than the run's "
            f"{params.code.units} units. Remove it, or restore the run's own from a copy"
        )
    return UnitNames(names)


def known_names(run: pathlib.Path, params: Ensemble) -> UnitNames | None:
    """Return what `read_names` returns; if the file is damaged, warn and return None, because nothing depends on names.

    Warns:
        DamageWarning: the file is damaged or of other units.
    """
    try:
        return read_names(run, params)
    except DamagedError as error:
        warn(f"{error}; the names of units are not known")
        return None
