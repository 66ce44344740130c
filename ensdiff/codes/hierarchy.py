"""Hierarchical codes: items inside groups, so that both single items and whole groups can be removed exactly.

A group's word selects w_g of the K members. An item's word selects w_i of its group's members. A member that did not
see the group saw none of its items, so dropping the group's members removes the group exactly. Dropping an item's
members removes the item and keeps the other items of the group, because some of the group's members survive.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ensdiff.codes.combinations import unrank
from ensdiff.codes.errors import some
from ensdiff.codes.permute import derive_key, permute
from ensdiff.typing import unmasked


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of a hierarchical code, built by `Code.hierarchical`.

    Args:
        count: G.
        weight: number of ones in each group's word; None if the words differ in weight.
        of_unit: the group of each unit, as the bytes of little-endian int32.
        packed: the groups' words, eight entries per byte.
        names: names of the groups; None if the groups only have numbers.
    """

    count: int
    weight: int | None
    of_unit: bytes
    packed: bytes
    names: tuple[str, ...] | None = dataclasses.field(default=None, hash=False)


def item_words(
    group_GK: UInt8[np.ndarray, "G K"], group_of_unit: Any, weight: int, seed: int
) -> UInt8[np.ndarray, "N K"]:
    """Return distinct words of the items, each with ``weight`` of the members in its group's word.

    Raises:
        ValueError: a group has more items than there are words inside it that no item of another group has.
    """
    K = group_GK.shape[1]
    out = np.zeros((len(group_of_unit), K), np.uint8)
    used: set[bytes] = set()
    order = np.argsort(group_of_unit, kind="stable")
    sizes = np.bincount(group_of_unit, minlength=len(group_GK))
    for group, ids in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        inside = np.flatnonzero(group_GK[group])
        total = math.comb(len(inside), weight)
        key, place, found = derive_key(seed, group), 0, 0
        while found < len(ids):
            number = np.arange(place, min(place + 2 * len(ids) + 64, total))
            if not len(number):
                raise ValueError(
                    f"group {group} has {len(ids)} items, but C({len(inside)}, {weight}) = {total} words hold only "
                    f"{found} that no other item has; use a larger group weight, or an item weight nearer to half of it"
                )
            place += len(number)
            words = np.zeros((len(number), K), np.uint8)
            words[:, inside] = unrank(permute(number, total, key), len(inside), weight)
            for word in words:
                if found < len(ids) and word.tobytes() not in used:
                    used.add(word.tobytes())
                    out[ids[found]] = word
                    found += 1
    return out


def check_groups(group_of_unit: Any, names: Sequence[str] | None = None) -> np.ndarray:
    """Return the group numbers 0 .. G - 1 of the units as int32, after checking that every number is used.

    Raises:
        ValueError: the numbers are not integers, there are fewer than two groups, a group has no units, or there is not
            one name per group.
    """
    groups = np.asarray(unmasked(group_of_unit, "groups"))
    if groups.ndim != 1 or not len(groups) or groups.dtype.kind not in "iu":
        raise ValueError(f"groups have shape {groups.shape}, dtype {groups.dtype}: expected one integer per unit")
    if groups.min() < 0:
        raise ValueError(f"group {groups.min()}: expected group numbers 0 or larger")
    empty = np.flatnonzero(np.bincount(groups) == 0)
    if len(empty):
        raise ValueError(f"groups {some(empty)} have no unit: number groups 0 .. G - 1, each with one unit or more")
    if groups.max() < 1:
        raise ValueError("all units are in one group: expected at least two groups")
    if names is not None and len(names) != groups.max() + 1:
        raise ValueError(f"{len(names)} names for {groups.max() + 1} groups: expected one per group")
    return groups.astype(np.int32)
