"""The items that each member trains on, and their order, as pure functions.

The batch of member k at step s depends only on (seed, k, s) and on the member's own items. So the step number is enough
to resume the data pipeline, and members cannot influence each other.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int, UInt8

from ensdiff.codes import Code, check_names
from ensdiff.codes.permute import derive_key, permute
from ensdiff.data.dataset import Dataset

KEPT_BYTES = 2**28
"""A code matrix of at most this size is computed once for masks; for larger ones, each batch computes its own rows."""


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """The items of each member, made by `build`.

    Args:
        code: the code.
        unit_of_item: (N_items,) unit of each item.
        items_of_member: K sorted arrays of item indices; empty for members that another process holds.

    >>> data = ensdiff.data.digits().subset(range(40))
    >>> splits = Splits.build(data, Code.balanced(members=8, units=40))
    >>> len(splits.items_of_member), sum(map(len, splits.items_of_member))  # every unit is in 4 of 8 members
    (8, 160)
    """

    code: Code
    unit_of_item: Int[np.ndarray, " N"]
    items_of_member: tuple[np.ndarray, ...]

    @classmethod
    def build(cls, data: Dataset, code: Code, members: slice = slice(None)) -> "Splits":
        """Derive the splits of the given members, by default all, from the code.

        Raises:
            ValueError: the code has a different number of units or different names, or a member has no item.
        """
        if data.units != code.units:
            raise ValueError(f"the code is for {code.units} units, the data set has {data.units}; make a code for it")
        check_names(code.names, data.unit_names)
        held = range(code.members)[members]
        lists: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in range(code.members)]
        sizes_K = np.zeros(code.members, np.int64)
        for start in range(0, data.items, 2**18):
            items = np.arange(start, min(start + 2**18, data.items))
            words = code.rows(data.unit_of_item[items])
            sizes_K += words.sum(0, dtype=np.int64)
            for k in held:
                lists[k].append(items[words[:, k] == 1])
        splits = tuple(np.concatenate(parts) for parts in lists)
        empty = np.flatnonzero(sizes_K == 0).tolist()  # for all members, so that every process finds the same
        if empty:
            raise ValueError(f"members {empty} have no training image; use fewer members or a larger weight")
        return cls(code, data.unit_of_item, splits)

    @functools.cached_property
    def _flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sizes_K = np.array([len(items) for items in self.items_of_member])
        return np.concatenate(self.items_of_member), np.cumsum(sizes_K) - sizes_K, sizes_K

    def mask(self, index_KB: Int[np.ndarray, "K B"], members: slice = slice(None)) -> Float[np.ndarray, "K B"]:
        """Return 1 where member k may see the unit of item ``index_KB[k, b]``, and 0 elsewhere.

        It is computed from the code, independently of ``items_of_member``.
        """
        units_KB = self.unit_of_item[index_KB]
        member_K = np.arange(self.code.members)[members]
        if self._words is not None:
            return self._words[units_KB, member_K[:, None]].astype(np.float32)
        words = self.code.rows(units_KB.reshape(-1)).reshape(*units_KB.shape, -1)
        return words[np.arange(len(member_K)), :, member_K].astype(np.float32)

    @functools.cached_property
    def _words(self) -> UInt8[np.ndarray, "N K"] | None:
        """The code matrix if it is small enough to keep: with many members, computing words is slow."""
        return self.code.matrix() if self.code.units * self.code.members <= KEPT_BYTES else None


def batch_indices(
    splits: Splits, seed: int, step: int, batch: int, members: slice = slice(None)
) -> Int[np.ndarray, "K B"]:
    """Return the items of every member's batch at one step, drawn without replacement within the member's epochs.

    Position p = step * batch + j of member k is item ``permute(p mod n_k)`` of its split, with the key derived from
    (seed, k, p div n_k).

    Args:
        splits: from `Splits.build`.
        seed: any integer.
        step: 0, 1, ...
        batch: B.
        members: only these members, for a process that does not hold all of them.

    >>> data = ensdiff.data.digits().subset(range(40))
    >>> splits = Splits.build(data, Code.balanced(members=8, units=40))
    >>> index_KB = batch_indices(splits, seed=0, step=3, batch=5)
    >>> index_KB.shape, bool((splits.mask(index_KB) == 1).all())
    ((8, 5), True)
    """
    items, start_K, size_K = splits._flat
    member_K = np.arange(splits.code.members)[members]
    size_K1, start_K1 = size_K[members][:, None], start_K[members][:, None]
    position_KB = step * batch + np.arange(batch)[None, :] + 0 * size_K1
    keys_KB = derive_key(seed, member_K[:, None], position_KB // size_K1)
    return items[start_K1 + permute(position_KB % size_K1, size_K1, keys_KB).astype(np.int64)]
