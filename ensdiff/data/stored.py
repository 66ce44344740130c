"""Files of latents and conditions: the names of their arrays, and a reader that maps them into memory.

A file of latents has the arrays ``latents`` (N, H, W, C), ``mean`` and ``scale`` (one number, or one per channel) and
the text ``encoder``. It may have ``condition`` or ``condition/<path>``, ``class_names``, and ``labels``, ``groups`` and
``names``, one per item. `experiments.encode` writes such files, with the ``deviation`` of each latent if it is known,
and with ``decoder``, the path of the decoder from the folder of the file.

A condition that a text encoder made also has ``condition_null`` (or ``condition_null/<path>``), the row of no
condition; ``condition_encoder``, the text that identifies the encoder; and ``condition_rows``, the row of each item,
because equal captions share one. `experiments.encode` also writes the ``captions`` of the items, and ``text``, the path
of the encoder.
"""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ensdiff.data.checked import from_images
from ensdiff.data.dataset import Dataset
from ensdiff.files.npy import map_npy, map_npz, npz_names, read_npz
from ensdiff.models.condition import unflatten
from ensdiff.models.space import Latents


def latents(
    path: str | os.PathLike,
    *,
    groups: str | None = None,
    labels: str | None = None,
    condition: str | None = None,
    mean: float | None = None,
    scale: float | None = None,
) -> Dataset:
    """Read a file of latents as a memory map, so that it may be larger than memory.

    Items have the names in the array ``names`` if there is one and each item is a unit.

    Args:
        path: an uncompressed ``.npz`` file with an array ``latents`` (and others, see `ensdiff.data.stored`), or an
            ``.npy`` file of latents, (N, H, W, C) float16 or float32.
        groups: name of the array of groups, one value per item; None for one unit per item.
        labels: name of the array of classes; by default ``"labels"``, if there is one.
        condition: name of the array of conditions, or of arrays ``name/path``; by default ``"condition"``, if there is
            one.
        mean: what is subtracted from latents for the model; by default the file's, or 0.
        scale: what they are multiplied by then; by default the file's, or 1.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or compressed, or lacks an array; or `from_images` refuses one.

    >>> np.savez("z.npz", latents=np.zeros((4, 2, 2, 4), np.float16), scale=0.18215, labels=["cat", "dog"] * 2)
    >>> latents("z.npz", groups="labels")
    Dataset(z: 4 latents of 2x2x4 in 2 units)
    """
    path = pathlib.Path(path)
    if path.suffix == ".npy":
        named = [name for name in (groups, labels, condition) if name is not None]
        if named:
            raise ValueError(f"{path} is one array, without {named[0]!r}: write an .npz file, with numpy.savez")
        file: dict[str, np.ndarray] = {}
        there: list[str] = []
        values: np.ndarray = map_npy(path)
    else:
        there = npz_names(path)
        labels = "labels" if labels is None and "labels" in there else labels
        about = [name for name in ("mean", "scale", "encoder", "names") if name in there]
        if "groups" in (groups, labels) and "groups" not in there:
            raise ValueError(
                f"{path}: it holds no array 'groups'; experiments.encode writes it with --groups=COLUMN of "
                "metadata.jsonl, or for pictures in subfolders"
            )
        file = read_npz(path, [name for name in (groups, labels, *about) if name is not None])
        values = map_npz(path, "latents")
    given = {name: np.array(value) for name, value in (("mean", mean), ("scale", scale)) if value is not None}
    return from_images(
        values,
        file[groups] if groups is not None else None,
        name=path.stem,
        labels=file[labels] if labels is not None else None,
        names=file["names"].tolist() if "names" in file and groups is None else None,
        space=latents_space({**file, **given}),
        **read_condition(path, there, condition, mapped=True),
    )


def read_condition(
    path: str | os.PathLike, names: Collection[str], condition: str | None = None, *, mapped: bool = False
) -> dict[str, Any]:
    """Return what an ``.npz`` file knows about the conditions of its items, as arguments of `from_images`.

    Args:
        path: the file.
        names: names of all arrays in the file.
        condition: the name of the array of conditions, as in `condition_arrays`.
        mapped: map the conditions into memory.

    Raises:
        ValueError: an array is missing, or ``condition_rows`` are no rows of the conditions.
    """
    paths = condition_arrays(names, condition)
    if not paths:
        return {}
    stem = "condition" if condition is None else condition
    nulls = {name: name.removeprefix(f"{stem}_null").removeprefix("/") for name in names
             if name == f"{stem}_null" or name.startswith(f"{stem}_null/")}  # fmt: skip
    known = [name for name in (f"{stem}_rows", f"{stem}_encoder", "class_names") if name in names]
    file = read_npz(path, [*nulls, *known, *(() if mapped else paths)])
    arrays = {place: map_npz(path, name) if mapped else file[name] for name, place in paths.items()}
    if f"{stem}_rows" in file:
        rows = file[f"{stem}_rows"]
        arrays = {place: _expanded(array, rows, stem) for place, array in arrays.items()}
    found: dict[str, Any] = {"condition": unflatten(arrays)}
    if nulls:
        found["null"] = unflatten({place: file[name] for name, place in nulls.items()})
    if f"{stem}_encoder" in file:
        found["condition_encoder"] = str(file[f"{stem}_encoder"])
    if "class_names" in file:
        found["class_names"] = file["class_names"].tolist()
    return found


def _expanded(array: np.ndarray, rows: np.ndarray, stem: str) -> np.ndarray:
    """Return the rows of items, of which equal ones are stored once."""
    if rows.dtype.kind not in "iu" or rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= len(array):
        raise ValueError(f"{stem}_rows has dtype {rows.dtype} and shape {rows.shape}: expected rows of {len(array)}")
    return array[rows]


def condition_arrays(names: Collection[str], condition: str | None = None) -> dict[str, str]:
    """Return the names of the arrays of a condition tree in a file, with their paths in the tree.

    Args:
        names: names of all arrays in the file.
        condition: the name of the array, or of the arrays ``name/path``. None for ``"condition"``, which may be
            missing.

    Raises:
        ValueError: both an array ``name`` and an array ``name/path`` exist.

    >>> condition_arrays(["latents", "condition/text", "condition/mask"])
    {'condition/text': 'text', 'condition/mask': 'mask'}
    """
    stem = "condition" if condition is None else condition
    inside = {name: name.removeprefix(f"{stem}/") for name in names if name.startswith(f"{stem}/")}
    if stem in names and inside:
        raise ValueError(f"the file has the arrays {stem!r} and {next(iter(inside))!r}: expected one array or a tree")
    return inside or ({stem: ""} if stem in names or condition is not None else {})


def latents_space(file: Mapping[str, np.ndarray]) -> Latents:
    """Return the space of the latents in a file, from its arrays ``mean``, ``scale`` and ``encoder``.

    Raises:
        ValueError: an array holds something other than numbers, or text for the encoder; or a scale is not positive.

    >>> latents_space({"scale": np.array(0.5)})
    Latents(mean=(0.0,), scale=(0.5,), encoder=None)
    """
    numbers = {}
    for name, default in (("mean", 0.0), ("scale", 1.0)):
        array = np.asarray(file.get(name, default))
        if array.dtype.kind not in "iuf" or array.ndim > 1 or not np.isfinite(array).all():
            raise ValueError(f"{name} has dtype {array.dtype} and shape {array.shape}: expected one number per channel")
        numbers[name] = tuple(float(number) for number in array.reshape(-1))
    encoder = file.get("encoder")
    if encoder is not None and (encoder.dtype.kind != "U" or encoder.shape != ()):
        raise ValueError(f"encoder has dtype {encoder.dtype} and shape {encoder.shape}: expected a text")
    return Latents(numbers["mean"], numbers["scale"], None if encoder is None else str(encoder))
