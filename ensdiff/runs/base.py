"""The parameters that all members started from, as a file of the run (`ensdiff.Ensemble.base`).

The file holds one array per parameter, named by its path. Arrays of bfloat16, which NumPy's format does not know, are
stored as 16-bit integers of the same bits, and their names end in ``:bfloat16``. The description of the run holds the
digest of the parameters, with which the file is compared.
"""

import io
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from ensdiff import hosts
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.checksums import DamagedError
from ensdiff.files.npy import read_npz
from ensdiff.files.writing import write_atomically
from ensdiff.models.parameters import check_names, digest_of, named, nested
from ensdiff.typing import Params

NAME = "base.npz"
"""Name of the file in a run directory."""
_BFLOAT16 = ":bfloat16"


def write_base(run: pathlib.Path, params: Ensemble) -> None:
    """Write the start of an ensemble's members into its run; without one, do nothing.

    Raises:
        ValueError: a parameter's name holds ``/``, so that the file would not say how it is nested.
    """
    if params.base is None:
        return
    check_names(params.base)
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in named(params.base).items():
        array = hosts.fetch(leaf)
        if array.dtype == jnp.bfloat16:
            arrays[path + _BFLOAT16] = array.view(np.uint16)
        else:
            arrays[path] = array
    content = io.BytesIO()
    kinds: Any = arrays
    np.savez(content, **kinds)
    write_atomically(run / NAME, content.getvalue())


def holds_base(run: pathlib.Path, params: Ensemble) -> bool:
    """Return whether a run has the start of an ensemble's members, undamaged."""
    try:
        return read_base(run, params.base_digest) is not None
    except DamagedError:
        return False


def read_base(run: pathlib.Path, digest: str | None) -> Params | None:
    """Return the start of the members of a run on the host, compared with its digest; None if it has none.

    Raises:
        DamagedError: the file is missing, cannot be read, or is not what the run describes.
    """
    if digest is None:
        return None
    file = run / NAME
    if not file.is_file():
        raise DamagedError(f"{file} is missing: it holds the parameters that all members of the run started from")
    try:
        stored = read_npz(file)
    except ValueError as error:
        raise DamagedError(f"{file} is damaged: {error}") from error
    flat = {
        path.removesuffix(_BFLOAT16): array.view(jnp.bfloat16) if path.endswith(_BFLOAT16) else array
        for path, array in stored.items()
    }
    found = digest_of(flat)
    if found != digest:
        raise DamagedError(
            f"{file} is damaged: its parameters have digest {found[:12]}, the run describes {digest[:12]}"
        )
    return nested(flat)
