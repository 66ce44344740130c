"""The units of images, and their names."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ensdiff.data.categories import categories


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
