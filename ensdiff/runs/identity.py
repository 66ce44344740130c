"""Checking that data are those an ensemble was trained on, and selecting these from a larger set.

A unit is identified by the content of its items, never by the path or name of a file: unit 11 is the picture that was
unit 11 in training. A run stores a hash of every item (`ensdiff.data.manifest`), an ensemble their digest.
"""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ensdiff import hosts
from ensdiff.codes import check_names
from ensdiff.codes.unit_names import UnitNames
from ensdiff.data import Dataset, DataWarning
from ensdiff.data.manifest import Manifest
from ensdiff.data.matching import unit_differences
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.reading import printable
from ensdiff.runs.checkpoints import run_description
from ensdiff.runs.description import from_description, read_manifest
from ensdiff.runs.unit_names import known_names


class Found(NamedTuple):
    """The result of `find_training_data`.

    Args:
        data: the training data, in the run's order and with its units.
        others: number of given items that the run was not trained on.
        copies: names of those of these items that equal training items in every byte.
        differences: a line for each item whose unit holds other items than in the run.
        compared: whether the run stores anything that tells its data from others with the same number of units.
    """

    data: Dataset
    others: int = 0
    copies: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    compared: bool = True


def training_data(run: str | os.PathLike, data: Dataset, *, held_out: int = 0) -> Dataset:
    """Return the training data of a run, selected from ``data`` by content, in the run's order and with its units.

    Items of units that the run has forgotten may be missing; black images replace them (see `Dataset.absent`). Items
    that the run never saw are left out.

    Args:
        run: the run directory.
        data: the same pictures in any order and under any names, and optionally others.
        held_out: number of items of ``data`` that were held out of training and cause no warning.

    Returns:
        Data that every function accepts as the training data of the run's ensemble. Units have the names that they have
        in the run (`ensdiff.Ensemble.names_of`), or else their names in ``data``.

    Raises:
        FileNotFoundError: the run does not exist.
        DamagedError: the run's record of its data is damaged.
        ValueError: items are missing (the message names the first of them). If the run stores no hashes of its items,
            the data have another digest, other names or another number of units.

    Warns:
        DataWarning: more than ``held_out`` items are not training items, or some items are further copies of training
            items; items of one unit here belonged to several units in training, or the reverse; or the run stores
            nothing to compare the content with.

    >>> digits = ensdiff.data.digits().subset(range(40))
    >>> found = ensdiff.training_data("runs/tiny", digits.subset(range(40)[::-1]))
    >>> bool((found.images == digits.images).all())
    True
    """
    found = find_training_data(run, data)
    if not found.compared:
        hosts.warn(
            f"{run} stores no hashes of its training data, so only the number of units ({data.units}) was compared",
            DataWarning,
            stacklevel=2,
        )
    say_what_was_left_out(found, run, data.items, held_out)
    if found.differences:
        hosts.warn(
            f"units of the data differ from those in the training of {run}, whose units are used: "
            + "; ".join(found.differences),
            DataWarning,
            stacklevel=2,
        )
    return found.data


def other_items(run: str | os.PathLike, data: Dataset) -> Dataset | None:
    """Return the items of ``data`` that a run was not trained on, or None if there are none.

    Items that equal a training item in every byte count as trained on, also with another condition.

    Args:
        run: the run directory.
        data: the run's training data and others, in any order.

    Raises:
        FileNotFoundError, DamagedError: as for `training_data`.
        ValueError: the run stores no hashes of its items, by which they could be told apart; or training items are
            missing.

    >>> len(ensdiff.runs.identity.other_items("runs/tiny", ensdiff.data.digits().subset(range(50))).images)
    10
    """
    path = pathlib.Path(run)
    text, manifest = _record(path)
    if manifest is None:
        raise ValueError(f"{path} stores no hashes of its training data, so other items cannot be told from them")
    origin = text.get("origin")
    places = data.places(manifest, absent=[*(origin["forgotten"] if isinstance(origin, Mapping) else ())])
    seen = np.zeros(data.items, bool)
    seen[places[places >= 0]] = True
    seen |= np.isin(data.manifest().contents, manifest.contents)
    return None if seen.all() else data.subset(~seen)


def say_what_was_left_out(found: Found, run: str | os.PathLike, items: int, held_out: int = 0) -> None:
    """Warn about items that a run was not trained on, beyond the number that was held out of training.

    Args:
        found: what `find_training_data` returned.
        run: the run directory.
        items: number of items that were given.
        held_out: number of items that were held out.

    Warns:
        DataWarning: there are more than ``held_out``, or some of them are further copies of training items.
    """
    parts = []
    if found.others > held_out:
        known = f", where {held_out} were held out," if held_out else ""
        parts.append(f"{found.others} of the {items} items given{known} were not used to train {run} and are left out")
    if found.copies:
        parts.append(
            f"{len(found.copies)} of the {items} items given are further copies of training items of {run} (such as "
            f"{found.copies[0]}): nothing tells which copy was trained on, so a unit has the names of all of them"
        )
    if parts:
        hosts.warn(printable("; ".join(parts)), DataWarning, stacklevel=3)


def find_training_data(run: str | os.PathLike, data: Dataset, absent: Collection[int] = ()) -> Found:
    """Find the data that `training_data` returns, with everything that it warns about.

    Args:
        run: the run directory.
        data: the data to search.
        absent: units whose items may be missing, in addition to those that the run has forgotten.

    Raises:
        FileNotFoundError, DamagedError, ValueError: as for `training_data`.
    """
    path = pathlib.Path(run)
    text, manifest = _record(path)
    params = from_description(text, None)
    params = dataclasses.replace(params, unit_names=known_names(path, params))
    names = params.names_of()
    origin = text.get("origin")
    gone = [*absent, *(origin["forgotten"] if isinstance(origin, Mapping) else ())]
    try:
        if manifest is None:
            check_data(params, data)
            if names is not None and UnitNames.of(data.unit_names) is None:
                data = dataclasses.replace(data, unit_names=list(names))
            return Found(data, compared=params.data_digest is not None)
        places = data.places(manifest, absent=gone)
        out = data.align(manifest, absent=gone, names=None if names is None else list(names), found=places)
    except ValueError as error:
        raise ValueError(f"these are not the data of {path}: {error}") from error
    others = data.items - int((places >= 0).sum())
    copies = tuple(str(data.unit_names[unit]) for unit in data.unit_of_item[data.spare_copies(manifest, places)])
    return Found(out, others, copies, tuple(unit_differences(manifest, places, data.unit_of_item, data.unit_names)))


def _record(run: pathlib.Path) -> tuple[Mapping[str, Any], Manifest | None]:
    """Return a run's description, and its manifest if it has one."""

    def read() -> Any:
        text = run_description(run)
        return text, read_manifest(run, text)

    return hosts.decide(read)


def check_data(params: Ensemble, data: Dataset) -> None:
    """Check that data are what an ensemble was trained on, as far as the ensemble records it.

    Raises:
        ValueError: the images, the units or their number differ. If the ensemble does not record the digest of its
            training data, the names of the units differ. The message states how to find the right data.

    >>> ensdiff.check_data(params, data)
    >>> ensdiff.check_data(params, data.subset(range(40)[::-1]))
    Traceback (most recent call last):
    ValueError: the data have the digest ...: they are other images, conditions or units, ...
    """
    if data.units != params.code.units or data.shape != tuple(params.image_shape):
        raise ValueError(
            f"the data have {data.units} units of {data.shape}, the ensemble {params.code.units} of "
            f"{tuple(params.image_shape)}: expected what it was trained on"
        )
    if params.data_digest is None:
        check_names(params.code.names, data.unit_names)
    elif data.digest() != params.data_digest:
        raise ValueError(_another_digest(data, "the ensemble was trained on", params.data_digest))


def check_attributed(att: Any, data: Dataset) -> None:
    """Check that an attribution's units are those of the data, as far as the attribution records them.

    Raises:
        ValueError: the number, the names or the order of the units differ, or the data are not those that the ensemble
            was trained on.
    """
    units, digest = att.settings.get("units", data.units), att.settings.get("data")
    if data.units != units:
        raise ValueError(
            f"the data have {data.units} units, the attribution is to {units}: pass the training data; for groups of a "
            "hierarchical code, pass data.regroup(code.group_of_unit())"
        )
    check_names(att.settings.get("names"), data.unit_names)
    if digest is not None and data.digest() != digest:
        raise ValueError(_another_digest(data, "the attribution is to units of", digest))


def _another_digest(data: Dataset, of: str, digest: str) -> str:
    return (
        f"the data have the digest {data.digest()[:12]}..., {of} {digest[:12]}...: they are other images, "
        "conditions or units, or in another order. ensdiff.training_data(run, data) selects a run's training data from "
        "them by content"
    )
