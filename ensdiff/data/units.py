"""The units of images, and their names."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ensdiff.data.categories import categories
from ensdiff.typing import unmasked


class ItemNames(Sequence[str]):
    """The names ``"item 0"``, ``"item 1"``, ..., without storing them."""

    def __init__(self, count: int, prefix: str = "item"):
        self.size, self.prefix = count, prefix

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"unit {index} does not exist: there are {self.size} units")
        return f"{self.prefix} {index % self.size}"


class Units(NamedTuple):
    """The unit of each item, and the name of each unit."""

    unit_of_item: Int[np.ndarray, " N"]
    names: Sequence[str]


def units_of(items: int, groups: Any) -> Units:
    """Return one unit per item if ``groups`` is None, or else one per distinct value of ``groups``, in sorted order.

    Raises:
        ValueError: all images are in one group, or `categories` refuses the groups.
    """
    if groups is None:
        return Units(np.arange(items), ItemNames(items))
    values, unit_of_item = np.unique(categories(groups, items), return_inverse=True)
    if len(values) < 2:
        raise ValueError(f"all images are in one group ({values[0]!s}): expected at least two groups")
    return Units(unit_of_item.reshape(-1), [str(value) for value in values])


def indices_of(items: Any, count: int) -> Int[np.ndarray, " n"]:
    """Return some of ``count`` items as indices, from indices or from a mask of booleans.

    Raises:
        ValueError: there are no items, an index is not an integer or out of range, or a mask has the wrong length.
    """
    given = np.asarray(unmasked(items, "items"))
    if given.dtype == np.bool_ and given.ndim == 1:
        if len(given) != count:
            raise ValueError(f"a mask of {len(given)} booleans: expected {count}, one per image")
        given = np.flatnonzero(given)
    if given.ndim != 1 or not len(given):
        raise ValueError(f"items of shape {given.shape}, of {count} images: expected a list of at least one index")
    if given.dtype.kind not in "iu":
        raise ValueError(f"items of dtype {given.dtype}: expected integers, 0 .. {count - 1}")
    outside = given[(given < 0) | (given >= count)]
    if len(outside):
        raise ValueError(f"item {outside[0]} does not exist: indices are 0 .. {count - 1}")
    return given
