"""The pictures that a reader could not read and left out of a run's data, as a file of the run.

It is for reading only: the data are what `data.manifest` says. Paths are relative to the folder that was read.
"""

import pathlib
from typing import Any

from ensdiff.files.checksums import read_sealed, write_sealed

NAME = "skipped.json"
"""Name of the file in a run directory."""


def write_skipped(run: pathlib.Path, data: Any) -> None:
    """Write the pictures left out of the data (``data.skipped``); without any, remove the file."""
    if data is None or not data.skipped:
        (run / NAME).unlink(missing_ok=True)
    else:
        write_sealed(run / NAME, {"count": len(data.skipped), "pictures": dict(data.skipped)})


def read_skipped(run: pathlib.Path) -> dict[str, str]:
    """Return the reason for each picture that was left out of a run's data, by path.

    Raises:
        DamagedError: the file was changed.
    """
    return dict(read_sealed(run / NAME)["pictures"]) if (run / NAME).exists() else {}
