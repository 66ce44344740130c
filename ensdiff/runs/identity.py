"""Whether given data are those that an ensemble was trained on, and finding these among others.

A unit is known by the content of its items, never by the place or the name of a file: unit 11 is the picture that was
unit 11 in training. A run keeps the content hash of every item (`ensdiff.data.manifest`), an ensemble their digest.
"""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ensdiff import hosts
from ensdiff.codes import check_names
from ensdiff.data import Dataset, DataWarning
from ensdiff.data.matching import unit_differences
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.reading import printable
from ensdiff.runs.checkpoints import run_description
from ensdiff.runs.description import from_description, read_manifest


class Found(NamedTuple):
    """What `find_training_data` found.

    Args:
        data: the training data, in the run's order and with its units.
        others: number of items given that the run was not trained on.
        copies: of these, the names of those that equal training items in every byte.
        differences: a line for each item whose unit holds other items than in the run.
        compared: whether the run keeps anything that tells its data from others of the same number of units.
    """

    data: Dataset
    others: int = 0
    copies: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    compared: bool = True


def training_data(run: str | os.PathLike, data: Dataset, *, held_out: int = 0) -> Dataset:
    """Return the training data of a run, found among ``data`` by content, in the run's order and with its units.

    Of units that the run has forgotten, items may be missing: they are black images, see `Dataset.absent`. Items that
    the run never saw are left out.

    Args:
        run: the run directory.
        data: the same pictures in any order and under any names, and perhaps others.
        held_out: number of items of ``data`` that were held out of training; they cause no warning.

    Returns:
        Data with which everything that takes an ensemble and its training data agrees. Units have the names that the
        code gives them, else those that they have in ``data``.

    Raises:
        FileNotFoundError: no such run.
        DamagedError: what the run says of its data is damaged.
        ValueError: items are missing (names the first of them), or, of a run that keeps no hashes of its items, the
            data have another digest, other names or another number of units.

    Warns:
        DataWarning: there are more other items than ``held_out``, or further copies of training items; items that are
            one unit here were several in training, or the other way round; or the run keeps nothing that their content
            could be compared with.

    >>> digits = ensdiff.data.digits().subset(range(40))
    >>> found = ensdiff.training_data("runs/tiny", digits.subset(range(40)[::-1]))
    >>> bool((found.images == digits.images).all())
    True
    """
    found = find_training_data(run, data)
    if not found.compared:
        hosts.warn(
            f"{run} keeps no hashes of its training data, so only the number of units ({data.units}) could be compared",
            DataWarning,
            stacklevel=2,
        )
    say_what_was_left_out(found, run, data.items, held_out)
    if found.differences:
        hosts.warn(
            f"units of the data are other than in the training of {run}, whose units are taken: "
            + "; ".join(found.differences),
            DataWarning,
            stacklevel=2,
        )
    return found.data


def say_what_was_left_out(found: Found, run: str | os.PathLike, items: int, held_out: int = 0) -> None:
    """Warn of items that a run was not trained on, unless they are the number that was held out of training.

    Args:
        found: what `find_training_data` returned.
        run: the run directory.
        items: number of items that were given.
        held_out: number of items that were held out.

    Warns:
        DataWarning: there are more, or some of them are further copies of training items.
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
    """Find what `training_data` returns, with all that it warns of.

    Args:
        run: the run directory.
        data: where to look.
        absent: units whose items may be missing, beside those that the run has forgotten.

    Raises:
        FileNotFoundError, DamagedError, ValueError: as `training_data`.
    """
    path = pathlib.Path(run)

    def read() -> Any:
        text = run_description(path)
        return text, read_manifest(path, text)

    text, manifest = hosts.decide(read)
    params = from_description(text, None)
    origin = text.get("origin")
    gone = [*absent, *(origin["forgotten"] if isinstance(origin, Mapping) else ())]
    try:
        if manifest is None:
            check_data(params, data)
            return Found(data, compared=params.data_digest is not None)
        places = data.places(manifest, absent=gone)
        out = data.align(manifest, absent=gone, names=params.code.names, found=places)
    except ValueError as error:
        raise ValueError(f"these are not the data of {path}: {error}") from error
    others = data.items - int((places >= 0).sum())
    copies = tuple(str(data.unit_names[unit]) for unit in data.unit_of_item[data.spare_copies(manifest, places)])
    return Found(out, others, copies, tuple(unit_differences(manifest, places, data.unit_of_item, data.unit_names)))


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
        raise ValueError(_another_digest(data, "the ensemble was trained on", params.data_digest))


def check_attributed(att: Any, data: Dataset) -> None:
    """Check that an attribution's units are those of data, as far as it says which they are.

    Raises:
        ValueError: another number of units, units of other names or in another order, or the data are not those that
            the ensemble was trained on.
    """
    units, digest = att.settings.get("units", data.units), att.settings.get("data")
    if data.units != units:
        raise ValueError(
            f"the data have {data.units} units, the attribution is to {units}: give the training data; for groups of a "
            "hierarchical code, data.regroup(code.group_of_unit())"
        )
    check_names(att.settings.get("names"), data.unit_names)
    if digest is not None and data.digest() != digest:
        raise ValueError(_another_digest(data, "the attribution is to units of", digest))


def _another_digest(data: Dataset, of: str, digest: str) -> str:
    return (
        f"the data have the digest {data.digest()[:12]}..., {of} {digest[:12]}...: they are other images or units, or "
        "in another order. ensdiff.training_data(run, data) finds the training data of a run among them, by content"
    )
