"""Describe in words how given data differ from a manifest, and name a manifest's units by the given data."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ensdiff.data.manifest import Manifest
from ensdiff.data.units import ItemNames


def incomparable(manifest: Manifest, given: Manifest) -> str | None:
    """Return why no item of the given data can be an item of a manifest, and what to do; None if some can.

    Only sizes, dtypes and kinds of conditions are compared, not the hashes of ``given``.

    >>> pixels = Manifest((1, 1, 1), np.array([0, 1]), np.array([b"a", b"b"], "S64"))
    >>> incomparable(pixels, pixels._replace(dtype="float16"))
    "the data are float16 latents, the run's are pixels of 8 bits: give the data that the run was trained on"
    """

    def kind(dtype: str) -> str:
        return "pixels of 8 bits" if dtype == "uint8" else f"{dtype} latents"

    fix = "give the data that the run was trained on"
    if manifest.shape != given.shape:
        return f"the data are images of {given.shape}, the manifest's of {manifest.shape}: {fix}, in the same size"
    if manifest.dtype != given.dtype:
        return f"the data are {kind(given.dtype)}, the run's are {kind(manifest.dtype)}: {fix}"
    if manifest.condition is None and given.condition is not None:
        return "the data have a condition, but the run was trained without one: drop it, with data.with_condition(None)"
    if given.condition is None and manifest.condition is not None:
        return (
            "the data have no condition, but the run was trained with one: add the same, for example the classes with "
            "data.with_condition(data.labels)"
        )
    if manifest.condition != given.condition:
        return (
            "the data have another kind of condition than those that the run was trained on: expected the same arrays, "
            "number of classes, names of classes, null rows and encoder"
        )
    return None


def spare_copies(manifest: Manifest, given: Manifest, found: Int[np.ndarray, " N"]) -> Int[np.ndarray, " n"]:
    """Return the given items that equal items of a manifest in every byte but were not matched to any."""
    other = np.setdiff1d(np.arange(given.items), found)
    return other[np.isin(given.sha256[other], manifest.sha256)]


def describe_missing(
    manifest: Manifest,
    given: Manifest,
    found: Int[np.ndarray, " N"],
    lost: Int[np.ndarray, " n"],
    unit_names: Sequence[str],
    names: Sequence[str] | None,
) -> str:
    """Return which items of a manifest are missing in the given data, and which given items are not in the manifest.

    Args:
        manifest: the manifest.
        given: the manifest of the given data.
        found: for each item of the manifest the index of the given item, or -1.
        lost: the items that must not be missing, but are.
        unit_names: names of the given units.
        names: names of the manifest's units, if known.
    """

    def unit_name(item: int) -> str:
        unit = int(manifest.unit_of_item[item])
        return f"item {item} of unit {unit}" + ("" if names is None else f" ({names[unit]})")

    text = f"{len(lost)} of {manifest.items} training items are not among the data: "
    text += ", ".join(unit_name(int(item)) for item in lost[:5]) + (", ..." if len(lost) > 5 else "")
    if given.condition is not None:
        alike = int(np.isin(manifest.contents[lost], given.contents).sum())
        text += f" ({alike} of them are there, but with another condition)" if alike else ""
    copies = spare_copies(manifest, given, found)
    other = np.setdiff1d(np.arange(given.items), [*found, *copies])
    for which, what in ((other, "are not training items"), (copies, "are further copies of training items")):
        if len(which):
            kept = dict.fromkeys(str(unit_names[int(unit)]) for unit in given.unit_of_item[which[:1000]])
            text += f"; {len(which)} of the {given.items} items given {what}, such as {', '.join(list(kept)[:5])}"
    return text


def name_units(
    manifest: Manifest, given: Manifest, found: Int[np.ndarray, " N"], unit_names: Sequence[str]
) -> Sequence[str]:
    """Return names of a manifest's units: those of the given units that contain their items.

    If spare copies of a unit's items are in other given units, either name may be right, and the name says so.
    """
    units = int(manifest.unit_of_item.max()) + 1
    if isinstance(unit_names, ItemNames):
        return ItemNames(units, "item" if units == manifest.items else "unit")
    here: list[dict[int, None]] = [{} for _ in range(units)]
    there = found >= 0
    pairs = zip(manifest.unit_of_item[there].tolist(), given.unit_of_item[found[there]].tolist(), strict=True)
    for unit, ours in pairs:
        here[unit][ours] = None
    names = [_joined([unit_names[i] for i in ours]) if ours else f"unit {u}" for u, ours in enumerate(here)]
    for unit, more in _alternatives(manifest, given, found, unit_names).items():
        alternatives = [name for name in more if name != names[unit]]
        if alternatives:
            names[unit] = f"{names[unit]} or {_joined(alternatives)}"
    return names


def _alternatives(
    manifest: Manifest, given: Manifest, found: np.ndarray, unit_names: Sequence[str]
) -> dict[int, dict[str, None]]:
    """Return the names of the given units that hold spare copies of items of each unit of the manifest."""
    copies = spare_copies(manifest, given, found)
    holders: dict[bytes, set[int]] = {}
    if len(copies):
        for unit, content in zip(manifest.unit_of_item.tolist(), manifest.sha256.tolist(), strict=True):
            holders.setdefault(content, set()).add(unit)
    others: dict[int, dict[str, None]] = {}
    for item in copies.tolist():
        for unit in holders[given.sha256[item]]:
            others.setdefault(unit, {})[str(unit_names[int(given.unit_of_item[item])])] = None
    return others


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
