"""Data sets: images in memory, each belonging to one training unit."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from ensdiff.data.manifest import Manifest, hash_item
from ensdiff.data.matching import match_items
from ensdiff.data.units import ItemNames, units_of
from ensdiff.files.reading import printable
from ensdiff.typing import unmasked


class DataWarning(UserWarning):
    """Data were read, but some were left out or differ from what was expected. The message gives the details.

    For example, files of a folder were left out, or a run's training data could not be compared or came with other
    items.

    >>> import pathlib, warnings
    >>> from PIL import Image
    >>> pathlib.Path("sketches").mkdir()
    >>> for name in ("0.png", "1.png"):
    ...     Image.new("L", (8, 8)).save(f"sketches/{name}")
    >>> _ = pathlib.Path("sketches", "2.heic").write_bytes(b"...")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     data = ensdiff.data.folder("sketches")
    >>> print(caught[0].category.__name__, caught[0].message)
    DataWarning sketches: left out 1 file: 1 .heic (such as 2.heic). ...
    """


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training images and the units that they belong to.

    Args:
        images: (N_items, H, W, C) uint8, 0 .. 255, possibly a memory map. Hashes are computed only once, so do not
            change images in place: make another data set.
        unit_of_item: (N_items,) unit id of each item, 0 .. units - 1; every unit has at least one item.
        unit_names: the name of each unit.
        name: name of the data set.
        labels: (N_items,) class of each item, integers or strings, or None if unknown. Only evaluation and the groups
            of a hierarchical code use it; training does not.

    >>> digits = ensdiff.data.digits()
    >>> digits
    Dataset(digits: 1797 images of 8x8x1 in 1797 units)
    >>> digits.regroup(digits.labels).items_of(7)[:4].tolist()  # one unit per class
    [7, 17, 27, 43]
    >>> digits.subset(range(100)).units
    100
    """

    images: UInt8[np.ndarray, "N H W C"]
    unit_of_item: Int[np.ndarray, " N"]
    unit_names: Sequence[str]
    name: str = "arrays"
    labels: Shaped[np.ndarray, " N"] | None = None

    @property
    def items(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def units(self) -> int:
        """N, the number of training units."""
        return len(self.unit_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        H, W, C = self.images.shape[1:]
        return (H, W, C)

    @functools.cached_property
    def _by_unit(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.unit_of_item, kind="stable")
        return order, np.searchsorted(self.unit_of_item[order], np.arange(self.units + 1))

    def items_of(self, unit: int) -> Int[np.ndarray, " n"]:
        """Return the indices of the images of one unit.

        Raises:
            ValueError: the unit does not exist.
        """
        if not 0 <= unit < self.units:
            raise ValueError(f"unit {unit} does not exist: ids are 0 .. {self.units - 1}")
        order, starts = self._by_unit
        return order[starts[unit] : starts[unit + 1]]

    def regroup(self, groups: Sequence[Any] | np.ndarray | None, names: Sequence[str] | None = None) -> "Dataset":
        """Return the same images with different units: one per item, or one per value of ``groups``.

        Args:
            groups: one value per item as in `from_images`, or None for one unit per item.
            names: names of the new units, in the sorted order of their values; by default the values.

        Raises:
            ValueError: `from_images` would refuse the groups, or the number of names is wrong.
        """
        unit_of_item, own = units_of(self.items, groups)
        names = own if names is None else names
        if len(names) != len(own):
            raise ValueError(f"{len(names)} names for {len(own)} units: expected one per unit")
        return self._hand_on(dataclasses.replace(self, unit_of_item=unit_of_item, unit_names=names), slice(None))

    def subset(self, items: Any) -> "Dataset":
        """Return some of the images as a data set. Units without images are dropped and the rest renumbered, in order.

        Args:
            items: indices of the images, or a mask of booleans, one per image.

        Raises:
            ValueError: there are no images, an index is not an integer or out of range, or a mask has the wrong length.
        """
        items = self._indices(items)
        kept, unit_of_item = np.unique(self.unit_of_item[items], return_inverse=True)
        whole = isinstance(self.unit_names, ItemNames)
        names = ItemNames(len(kept)) if whole else [self.unit_names[int(i)] for i in kept]
        labels = None if self.labels is None else self.labels[items]
        part = Dataset(self.images[items], unit_of_item.reshape(-1), names, self.name, labels)
        return self._hand_on(part, items)

    @functools.cached_property
    def _sha256(self) -> np.ndarray:
        """The content hash of every item. For an item that `align` did not find, it is the hash in the manifest."""
        return np.array([hash_item(image) for image in self.images], "S64")

    @functools.cached_property
    def _is_absent(self) -> np.ndarray:
        return np.zeros(self.items, bool)

    @property
    def absent(self) -> Int[np.ndarray, " n"]:
        """Indices of the items that `align` did not find and replaced by black images."""
        return np.flatnonzero(self._is_absent)

    @property
    def absent_units(self) -> Int[np.ndarray, " n"]:
        """Ids of the units with absent items."""
        return np.unique(self.unit_of_item[self.absent])

    def pictures_of(self, unit: int) -> UInt8[np.ndarray, "n H W C"]:
        """Return the images of one unit except absent ones; a deleted unit has none."""
        items = self.items_of(unit)
        return self.images[items[~self._is_absent[items]]]

    def check_present(self, use: str, fix: str = "give data with these items") -> None:
        """Check that no item is absent, so that black images are not mistaken for data.

        Args:
            use: what needs all items, for the message.
            fix: what to do, for the message.

        Raises:
            ValueError: items are absent; the message gives their number and the unit of the first.
        """
        if len(self.absent):
            unit = int(self.unit_of_item[self.absent[0]])
            raise ValueError(
                f"{len(self.absent)} items of the data are absent, the first of unit {unit}, and replaced by black "
                f"images: {use} needs the pictures; {fix}"
            )

    def _hand_on(self, other: "Dataset", items: Any) -> "Dataset":
        """Copy what has been computed for some items to the data set of these items, and return that data set."""
        for name in ("_sha256", "_is_absent"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name][items]
        return other

    def _indices(self, items: Any) -> np.ndarray:
        """Return the argument of `subset` as indices."""
        given = np.asarray(unmasked(items, "items"))
        if given.dtype == np.bool_ and given.ndim == 1:
            if len(given) != self.items:
                raise ValueError(f"a mask of {len(given)} booleans: expected {self.items}, one per image")
            given = np.flatnonzero(given)
        if given.ndim != 1 or not len(given):
            raise ValueError(
                f"items of shape {given.shape}, of {self.items} images: expected a list of at least one index"
            )
        if given.dtype.kind not in "iu":
            raise ValueError(f"items of dtype {given.dtype}: expected integers, 0 .. {self.items - 1}")
        outside = given[(given < 0) | (given >= self.items)]
        if len(outside):
            raise ValueError(f"item {outside[0]} does not exist: indices are 0 .. {self.items - 1}")
        return given

    def manifest(self) -> Manifest:
        """Return the content hash and the unit of every item. After `align`, this is the manifest that it was given."""
        return Manifest(self.shape, self.unit_of_item.astype(np.int64), self._sha256)

    @functools.cached_property
    def _digest(self) -> str:
        return self.manifest().digest()

    def digest(self) -> str:
        """Return the SHA-256 of the manifest, and so of images and units, in hexadecimal digits. Computed once."""
        return self._digest

    def align(
        self,
        manifest: Manifest,
        absent: Collection[int] = (),
        names: Sequence[str] | None = None,
        *,
        found: Int[np.ndarray, " n"] | None = None,
    ) -> "Dataset":
        """Find a manifest's items in this data set by their content, and return them in the manifest's order.

        The order and names of items in this data set do not matter. Among items that are equal in every byte, a unit of
        the manifest gets items of one unit of this data set if possible; otherwise the k-th copy in the manifest is
        matched to the k-th copy here. If there are fewer copies here than in the manifest, the copies of the units in
        ``absent`` count as the missing ones.

        Args:
            manifest: manifest of the data that a run was trained on.
            absent: units whose items may be missing because they were deleted; these items become black images.
            names: names of the manifest's units, if known; by default the names of the units that their items have in
                this data set.
            found: the result of `places` for the same manifest and ``absent``, if already computed.

        Returns:
            A data set with the manifest's items and units, so that its manifest is the given one. It shares the images
            of this data set, without a copy, if all items are already in order. Labels are kept; missing items have the
            label -1 or an empty string. If the items of a unit are in several units here, its name is that of the first
            and "and n more".

        Raises:
            ValueError: items of units that are not in ``absent`` are missing (the message names some), or the sizes of
                the images differ.
        """
        found = self.places(manifest, absent) if found is None else found
        lost = np.flatnonzero((found < 0) & ~np.isin(manifest.unit_of_item, list(absent)))
        if len(lost):
            raise ValueError(
                f"{self._lacking(manifest, found, lost, names)}: give the data that the run was trained on"
            )
        if np.array_equal(found, np.arange(self.items)):
            images = self.images
        else:
            images = self.images[found]
            images[found < 0] = 0
        labels = None
        if self.labels is not None:
            unknown = np.array("" if self.labels.dtype.kind == "U" else -1)
            labels = np.where(found >= 0, self.labels[found], unknown)
        if names is None:
            names = self._names_of(manifest, found)
        out = Dataset(images, manifest.unit_of_item, names, self.name, labels)
        out.__dict__.update(_sha256=manifest.sha256, _is_absent=found < 0)
        return out

    def places(self, manifest: Manifest, absent: Collection[int] = ()) -> Int[np.ndarray, " n"]:
        """Return the index here of each of a manifest's items, as `align` matches them; -1 for missing items.

        Raises:
            ValueError: the sizes of the images differ.
        """
        if self.shape != manifest.shape:
            raise ValueError(
                f"the data are images of {self.shape}, the manifest's of {manifest.shape}: give the data that the run "
                "was trained on, in the same size"
            )
        return match_items(manifest, self.unit_of_item, self._sha256, absent)

    def _lacking(self, manifest: Manifest, found: np.ndarray, lost: np.ndarray, names: Sequence[str] | None) -> str:
        """Describe which items of a manifest are missing here, and which items here are not in the manifest."""

        def unit_name(item: int) -> str:
            unit = int(manifest.unit_of_item[item])
            return f"item {item} of unit {unit}" + ("" if names is None else f" ({names[unit]})")

        text = f"{len(lost)} of {manifest.items} training items are not among the data: "
        text += ", ".join(unit_name(int(item)) for item in lost[:5]) + (", ..." if len(lost) > 5 else "")
        copies = self.spare_copies(manifest, found)
        other = np.setdiff1d(np.arange(self.items), [*found, *copies])
        for which, what in ((other, "are not training items"), (copies, "are further copies of training items")):
            if len(which):
                kept = dict.fromkeys(str(self.unit_names[int(unit)]) for unit in self.unit_of_item[which[:1000]])
                text += f"; {len(which)} of the {self.items} items given {what}, such as {', '.join(list(kept)[:5])}"
        return text

    def spare_copies(self, manifest: Manifest, found: Int[np.ndarray, " N"]) -> Int[np.ndarray, " n"]:
        """Return the items here that equal items of a manifest in every byte but were not matched to any.

        Args:
            manifest: manifest of the data that a run was trained on.
            found: the result of `places`.
        """
        other = np.setdiff1d(np.arange(self.items), found)
        return other[np.isin(self._sha256[other], manifest.sha256)]

    def _names_of(self, manifest: Manifest, found: np.ndarray) -> Sequence[str]:
        """Return names of a manifest's units: those of the units here that contain their items."""
        units = int(manifest.unit_of_item.max()) + 1
        if isinstance(self.unit_names, ItemNames):
            return ItemNames(units, "item" if units == manifest.items else "unit")
        here: list[dict[int, None]] = [{} for _ in range(units)]
        there = found >= 0
        pairs = zip(manifest.unit_of_item[there].tolist(), self.unit_of_item[found[there]].tolist(), strict=True)
        for unit, ours in pairs:
            here[unit][ours] = None
        names = [_joined([self.unit_names[i] for i in ours]) if ours else f"unit {u}" for u, ours in enumerate(here)]
        return self._with_alternatives(names, manifest, found)

    def _with_alternatives(self, names: list[str], manifest: Manifest, found: np.ndarray) -> list[str]:
        """Add "or ..." to the names of units whose items have spare copies in other units, as either may be right."""
        holders: dict[bytes, set[int]] = {}
        copies = self.spare_copies(manifest, found)
        if len(copies):
            for unit, content in zip(manifest.unit_of_item.tolist(), manifest.sha256.tolist(), strict=True):
                holders.setdefault(content, set()).add(unit)
        others: dict[int, dict[str, None]] = {}
        for item in copies.tolist():
            for unit in holders[self._sha256[item]]:
                others.setdefault(unit, {})[str(self.unit_names[int(self.unit_of_item[item])])] = None
        for unit, more in others.items():
            alternatives = [name for name in more if name != names[unit]]
            if alternatives:
                names[unit] = f"{names[unit]} or {_joined(alternatives)}"
        return names

    def __repr__(self) -> str:
        H, W, C = self.shape
        return f"Dataset({printable(self.name)}: {self.items} images of {H}x{W}x{C} in {self.units} units)"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
