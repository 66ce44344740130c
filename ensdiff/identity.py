"""Whether given data are those that an ensemble was trained on, and finding these among others.

A unit is known by the content of its items, never by the place or the name of a file: unit 11 is the picture that was
unit 11 in training. A run keeps the content hash of every item (`ensdiff.data.manifest`), an ensemble their digest.
"""

import hashlib
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensdiff import hosts
from ensdiff.codes import check_names
from ensdiff.data import Dataset, DataWarning, Manifest
from ensdiff.data.manifest import NAME
from ensdiff.ensemble import Ensemble
from ensdiff.integrity import DamagedError, read_sealed
from ensdiff.stored import folder_of, from_description, read_description, steps_of


def training_data(run: str | os.PathLike, data: Dataset, *, held_out: int = 0) -> Dataset:
    """The training data of a run, found among ``data`` by their content: in the run's order and with its units.

    Of units that the run has forgotten, items may be missing: they are black images, see `Dataset.absent`. Items that
    the run never saw are left out.

    Args:
        run: the run directory.
        data: the same pictures in any order and under any names, and perhaps others.
        held_out: how many others there are because training left them out.

    Returns:
        Data with which everything that takes an ensemble and its training data agrees. Units have the names that the
        code gives them, else those that they have in ``data``.

    Raises:
        FileNotFoundError: no such run.
        DamagedError: what the run says of its data is damaged.
        ValueError: items are missing (names the first of them), or, of a run that keeps no hashes of its items, the
            data have another digest, other names or another number of units.

    Warns:
        DataWarning: there are more other items than ``held_out``; pictures of different units are one unit now; or the
            run keeps nothing that their content could be compared with.

    >>> digits = ensdiff.data.digits().subset(range(40))
    >>> found = ensdiff.training_data("runs/tiny", digits.subset(range(40)[::-1]))
    >>> bool((found.images == digits.images).all())
    True
    """
    path = pathlib.Path(run)
    text, manifest = hosts.decide(lambda: _read(path))
    params = from_description(text, None)
    origin = text.get("origin")
    forgotten = origin["forgotten"] if isinstance(origin, Mapping) else []
    try:
        if manifest is None:
            check_data(params, data)
            if params.data_digest is None:
                _warn(
                    f"{path} keeps no hashes of its training data: that the {data.units} units given are those that "
                    "it was trained on could not be compared, but by their number"
                )
            return data
        out = data.align(manifest, absent=forgotten, names=params.code.names)
    except ValueError as error:
        raise ValueError(f"these are not the data of {path}: {error}") from error
    found = data.places(manifest, absent=forgotten)
    used = found[found >= 0]
    other = data.items - len(used)
    if other > held_out:
        known = f", where {held_out} were held out," if held_out else ""
        _warn(f"{other} of the {data.items} items given{known} are none that {path} was trained on: they are left out")
    pairs = np.unique(np.stack([data.unit_of_item[used], manifest.unit_of_item[found >= 0]], 1), axis=0)
    units, counts = np.unique(pairs[:, 0], return_counts=True)
    if (counts > 1).any():
        unit = units[counts > 1][0]
        theirs = ", ".join(map(str, pairs[pairs[:, 0] == unit, 1][:5]))
        _warn(
            f"{data.unit_names[int(unit)]} holds pictures that were different units in the training of {path} "
            f"({theirs}): units are those of the training"
        )
    return out


def check_data(params: Ensemble, data: Dataset) -> None:
    """Check that data are what an ensemble was trained on, as far as it knows.

    Raises:
        ValueError: other images or units, another number of them, or, where the ensemble does not know the digest of
            its training data, units of other names; says how to find the right ones.

    >>> ensdiff.check_data(params, data)
    >>> ensdiff.check_data(params, data.subset(range(40)[::-1]))
    Traceback (most recent call last):
    ValueError: the data have the digest ...: they are other images or units, or in another order. ...
    """
    if data.units != params.code.units or data.shape != tuple(params.image_shape):
        raise ValueError(
            f"the data have {data.units} units of {data.shape}, the ensemble {params.code.units} of "
            f"{tuple(params.image_shape)}: expected what it was trained on"
        )
    if params.data_digest is None:
        check_names(params.code.names, data.unit_names)
    elif data.digest() != params.data_digest:
        raise ValueError(
            f"the data have the digest {data.digest()[:12]}..., the ensemble was trained on {params.data_digest[:12]}"
            "...: they are other images or units, or in another order. ensdiff.training_data(run, data) finds the "
            "training data of a run among them, by content"
        )


def _read(path: pathlib.Path) -> tuple[dict[str, Any], Manifest | None]:
    """A run's description, and its manifest if it has one."""
    file = path / "run.json"
    if file.is_file():
        text = read_sealed(file)
    else:
        steps = steps_of(path)
        if not steps:
            raise FileNotFoundError(f"{path} holds no run: expected run.json or a finished checkpoint")
        text = read_description(folder_of(path, steps[-1]))
    manifest = path / NAME
    if not manifest.is_file():
        return text, None
    content = manifest.read_bytes()
    said = text["data"].get("digest") if isinstance(text.get("data"), Mapping) else None
    if hashlib.sha256(content).hexdigest() != said:
        raise DamagedError(f"{manifest} is damaged: its SHA-256 is not the digest of the data in the run's description")
    return text, Manifest.from_bytes(content)


def _warn(message: str) -> None:
    if hosts.is_writer():
        warnings.warn(message, DataWarning, stacklevel=3)
