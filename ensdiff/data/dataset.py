"""Data sets: images or latents, each belonging to one training unit."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int, Shaped, UInt8

from ensdiff.data.conditions import conditions, describe_spec
from ensdiff.data.describing import describe_missing, incomparable, name_units, spare_copies
from ensdiff.data.manifest import Manifest, hash_item, spec_digest
from ensdiff.data.matching import match_items
from ensdiff.data.units import ItemNames, indices_of, units_of
from ensdiff.files.reading import printable
from ensdiff.models.condition import ConditionSpec, flatten, unflatten
from ensdiff.models.space import Pixels, Space

Items = UInt8[np.ndarray, "N H W C"] | Float16[np.ndarray, "N H W C"] | Float32[np.ndarray, "N H W C"]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training images, what a model is told about them, and the units that they belong to.

    Args:
        images: (N_items, H, W, C) pixels, uint8, 0 .. 255; or latents, float16 or float32. Possibly a memory map.
            Hashes are computed only once, so do not change images in place: make another data set.
        unit_of_item: (N_items,) unit id of each item, 0 .. units - 1; every unit has at least one item.
        unit_names: the name of each unit.
        name: name of the data set.
        labels: (N_items,) class of each item, or None. Only evaluation and the groups of hierarchical codes use it.
        condition: what a model is told about each item: a condition tree (`ensdiff.models.condition`) with one row per
            item, such as an array of class ids; None for an unconditional model. See `with_condition`.
        condition_spec: the specification of the condition.
        space: `Pixels`, or `Latents` with the numbers that scale them for the model.
        skipped: why each picture that `folder` left out with ``skip_bad`` cannot be read, by path.

    >>> (digits := ensdiff.data.digits())
    Dataset(digits: 1797 images of 8x8x1 in 1797 units)
    >>> digits.regroup(digits.labels).items_of(7)[:4].tolist()  # one unit per class
    [7, 17, 27, 43]
    >>> digits.subset(range(100)).units
    100
    """

    images: Items
    unit_of_item: Int[np.ndarray, " N"]
    unit_names: Sequence[str]
    name: str = "arrays"
    labels: Shaped[np.ndarray, " N"] | None = None
    condition: Any = None
    condition_spec: ConditionSpec | None = None
    space: Space = Pixels()  # noqa: RUF009 (frozen)
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.condition is None) != (self.condition_spec is None):
            raise ValueError("a condition without its specification, or the reverse: use data.with_condition")
        if (self.images.dtype == np.uint8) != isinstance(self.space, Pixels):
            raise ValueError(
                f"images of dtype {self.images.dtype} in the space {self.space}: expected uint8 for Pixels, and "
                "float16 or float32 for Latents"
            )

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
        """Return the same items with different units: one per item, or one per value of ``groups``.

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
        items = indices_of(items, self.items)
        kept, unit_of_item = np.unique(self.unit_of_item[items], return_inverse=True)
        whole = isinstance(self.unit_names, ItemNames)
        names = ItemNames(len(kept)) if whole else [self.unit_names[int(i)] for i in kept]
        if np.array_equal(items, np.arange(items[0], items[0] + len(items))):
            items = slice(items[0], items[0] + len(items))  # shares the images, without a copy
        part = dataclasses.replace(
            self, images=self.images[items], unit_of_item=unit_of_item.reshape(-1), unit_names=names,
            labels=None if self.labels is None else self.labels[items], condition=self.conditions_of(items),
        )  # fmt: skip
        return self._hand_on(part, items)

    def conditions_of(self, items: Any) -> Any:
        """Return the conditions of some items as a condition tree; None if the data have no condition.

        Args:
            items: indices of the items, in an array of any shape, or a slice.

        >>> digits = ensdiff.data.digits()
        >>> digits.with_condition(digits.labels).conditions_of([3, 0]).tolist()
        [3, 0]
        """
        if self.condition is None:
            return None
        return unflatten({path: array[items] for path, array in flatten(self.condition).items()})

    def with_condition(
        self,
        condition: Any,
        classes: int | None = None,
        names: Sequence[str] | None = None,
        *,
        null: Any = None,
        encoder: str | None = None,
    ) -> "Dataset":
        """Return the same items with another condition.

        Args:
            condition: what a model is told about each item: an array with one row per item, a (nested) dict, list or
                tuple of such arrays, or None for no condition. Integers of shape (N,) are class ids. Text, such as the
                labels, are the names of classes, whose ids follow their sorted order.
            classes: number of classes; by default the number of names, or the largest id plus 1.
            names: names of the classes, in the order of their ids.
            null: what stands for no condition, for vectors and tokens: one row, such as the embedding of the empty
                prompt, in a tree like that of the condition. By default zeros.
            encoder: what made the rows and ``null``, such as a text encoder and its digest.

        Raises:
            ValueError: an array has the wrong number of rows, an id is outside of the classes, a text is missing or no
                name of a class, a number is not finite, or a null row does not fit.

        >>> data = ensdiff.data.arrays(np.zeros((3, 8, 8), np.uint8)).with_condition(["cat", "dog", "cat"])
        >>> data.condition.tolist(), data.condition_spec.leaves[0].names
        ([0, 1, 0], ('cat', 'dog'))
        """
        tree, spec = conditions(condition, self.items, classes, names, null, encoder)
        other = dataclasses.replace(self, condition=tree, condition_spec=spec)
        for name in ("_sha256_alone", "_is_absent"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    @functools.cached_property
    def _sha256(self) -> np.ndarray:
        """The hash of every item and its condition. For an item that `align` did not find, it is the manifest's."""
        if self.condition is None:
            return self._sha256_alone
        arrays = flatten(self.condition)
        rows = ({path: array[i] for path, array in arrays.items()} for i in range(self.items))
        return np.array([hash_item(image, row) for image, row in zip(self.images, rows, strict=True)], "S64")

    @functools.cached_property
    def _sha256_alone(self) -> np.ndarray:
        """The hash of every item without its condition."""
        return np.array([hash_item(image) for image in self.images], "S64")

    @functools.cached_property
    def _is_absent(self) -> np.ndarray:
        return np.zeros(self.items, bool)

    @property
    def absent(self) -> Int[np.ndarray, " n"]:
        """Indices of the items that `align` did not find and replaced by zeros (black images)."""
        return np.flatnonzero(self._is_absent)

    @property
    def absent_units(self) -> Int[np.ndarray, " n"]:
        """Ids of the units with absent items."""
        return np.unique(self.unit_of_item[self.absent])

    def pictures_of(self, unit: int) -> Items:
        """Return the images of one unit except absent ones; a deleted unit has none."""
        return self.images[self.present_items_of(unit)]

    def present_items_of(self, unit: int) -> Int[np.ndarray, " n"]:
        """Return the indices of the images of one unit except absent ones."""
        items = self.items_of(unit)
        return items[~self._is_absent[items]]

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
        for name in ("_sha256", "_sha256_alone", "_is_absent"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name][items]
        return other

    def manifest(self) -> Manifest:
        """Return the content hash and the unit of every item. After `align`, this is the manifest that it was given."""
        return self._manifest(self._sha256, None if self.condition is None else self._sha256_alone)

    def _manifest(self, sha256: np.ndarray, alone: np.ndarray | None) -> Manifest:
        condition, units = spec_digest(self.condition_spec), self.unit_of_item.astype(np.int64)
        return Manifest(self.shape, units, sha256, self.images.dtype.name, condition, alone)

    @functools.cached_property
    def _digest(self) -> str:
        return self.manifest().digest()

    def digest(self) -> str:
        """Return the SHA-256 of the manifest, and so of images, conditions and units, in hexadecimal digits."""
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
            of this data set, without a copy, if all items are already in order. Labels and conditions are kept; missing
            items have the label -1 or an empty string, and no condition. If the items of a unit are in several units
            here, its name is that of the first and "and n more".

        Raises:
            ValueError: items of units that are not in ``absent`` are missing (the message names some), or the sizes of
                the images, their dtypes or the kinds of their conditions differ.
        """
        found = self.places(manifest, absent) if found is None else found
        lost = np.flatnonzero((found < 0) & ~np.isin(manifest.unit_of_item, list(absent)))
        if len(lost):
            text = describe_missing(manifest, self.manifest(), found, lost, self.unit_names, names)
            raise ValueError(f"{text}: give the data that the run was trained on")
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
            names = name_units(manifest, self.manifest(), found, self.unit_names)
        out = dataclasses.replace(
            self, images=images, unit_of_item=manifest.unit_of_item, unit_names=names, labels=labels,
            condition=self._aligned_condition(found),
        )  # fmt: skip
        out.__dict__.update(_sha256=manifest.sha256, _sha256_alone=manifest.contents, _is_absent=found < 0)
        return out

    def _aligned_condition(self, found: np.ndarray) -> Any:
        """Return the conditions of some items, and no condition for the missing ones, whose index is -1."""
        if self.condition_spec is None or np.array_equal(found, np.arange(self.items)):
            return self.condition
        arrays = {path: array[found] for path, array in flatten(self.condition).items()}
        for leaf in self.condition_spec.leaves:
            arrays[leaf.path][found < 0] = leaf.null
        return unflatten(arrays)

    def places(self, manifest: Manifest, absent: Collection[int] = ()) -> Int[np.ndarray, " n"]:
        """Return the index here of each of a manifest's items, as `align` matches them; -1 for missing items.

        Raises:
            ValueError: the sizes of the images, their dtypes or the kinds of their conditions differ.
        """
        if (reason := incomparable(manifest, self._manifest(np.empty(0, "S64"), None))) is not None:
            raise ValueError(reason)
        return match_items(manifest, self.unit_of_item, self._sha256, absent)

    def spare_copies(self, manifest: Manifest, found: Int[np.ndarray, " N"]) -> Int[np.ndarray, " n"]:
        """Return the items here that equal items of a manifest in every byte but were not matched to any.

        Args:
            manifest: manifest of the data that a run was trained on.
            found: the result of `places`.
        """
        return spare_copies(manifest, self.manifest(), found)

    def __repr__(self) -> str:
        H, W, C = self.shape
        what = "images" if isinstance(self.space, Pixels) else "latents"
        given = "" if self.condition_spec is None else f", conditioned on {describe_spec(self.condition_spec)}"
        return f"Dataset({printable(self.name)}: {self.items} {what} of {H}x{W}x{C} in {self.units} units{given})"
