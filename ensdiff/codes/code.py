"""The code: which member trains on which unit.

``code_NK[i, k] = 1`` means that unit i is in member k's training split. Distinct code words of one weight w form an
antichain: after unit i is removed, at least one survivor still sees each of the other units. `ensdiff.codes.words`
computes the words; this module builds codes and derives codes from other codes.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ensdiff.codes.capacity import Capacity, deletion_capacity, shares_capacity
from ensdiff.codes.combinations import EXACT
from ensdiff.codes.errors import fitting_weights, smallest_members, some
from ensdiff.codes.hierarchy import Groups, check_groups, item_words
from ensdiff.codes.matrix import check_matrix
from ensdiff.codes.names import as_names
from ensdiff.codes.permute import derive_key
from ensdiff.codes.serial import MAX_MEMBERS, from_dict, to_dict
from ensdiff.codes.unowned import unowned_words
from ensdiff.codes.words import CodeWords


@dataclasses.dataclass(frozen=True, repr=False)
class Code(CodeWords):
    """The code of N units over K members, hashable. Build one with `balanced`, `hierarchical` or `from_matrix`.

    Args:
        members: K.
        units: N.
        weight: number of ones in each word; None for a matrix whose rows differ in weight.
        key: key of the permutation of words, for a balanced code.
        packed: the stored matrix, eight entries per byte; None for a balanced code.
        names: names of the units, compared with those of the data that a run is trained on.
        groups: groups of a hierarchical code.

    >>> code = Code.balanced(members=4, units=6, seed=0)
    >>> sorted(map(bytes, code.rows(range(6)))) == sorted(set(map(bytes, code.matrix())))
    True
    """

    @classmethod
    def balanced(cls, members: int, units: int, weight: int | None = None, seed: int = 0) -> "Code":
        """Build a code of distinct words of one weight, which are computed on demand.

        The word of unit i depends only on K, w, the key and i. The key is derived from the seed. For up to about a
        hundred thousand units (a few thousand if there are 2^62 words or more), the best of several keys is chosen, so
        that all members see nearly the same number of units.

        Args:
            members: K, at least 2.
            units: N, at most C(K, w).
            weight: w, the number of ones in each word: the members that see a unit; by default K // 2.
            seed: any integer.

        Raises:
            ValueError: an argument is out of range; there are more units than C(K, w) words (the message gives the
                smallest K that fits); or a member would see no unit.
        """
        members, units = operator.index(members), operator.index(units)
        weight = members // 2 if weight is None else operator.index(weight)
        if not 2 <= members <= MAX_MEMBERS:
            raise ValueError(
                f"members={members}: an encoded ensemble needs at least 2 members, and codes have at most {MAX_MEMBERS}"
            )
        if not 1 <= weight < members:
            raise ValueError(f"weight={weight}: expected 1 .. {members - 1}, so that {members} members leave survivors")
        if units < 1:
            raise ValueError(f"units={units}: expected at least 1 unit")
        capacity = math.comb(members, weight)
        if units > capacity:
            raise ValueError(
                f"{units} units, but {members} members of weight {weight} have only {capacity} code words; "
                f"the smallest number of members that fits is {smallest_members(units)}"
                + fitting_weights(members, units)
            )
        draws = int(np.clip((2**18 if capacity < EXACT else 2**13) // units, 1, 64))  # Python's integers are slow
        keys = [int(derive_key(seed, draw)) for draw in range(draws)]
        codes = [cls(members, units, weight, key) for key in keys]
        code = min(codes, key=_unevenness) if draws > 1 else codes[0]
        if units * weight < 64 * members:  # only then can a share be 0
            empty = np.flatnonzero(code.shares() == 0)
            if len(empty):
                raise ValueError(
                    f"members {some(empty)} would see no unit: {units} units of weight {weight} are too few for "
                    f"{members} members; use fewer members, a larger weight, or items as units"
                )
        return code

    @classmethod
    def from_matrix(cls, code_NK: Any, names: Sequence[str] | None = None) -> "Code":
        """Build a code from any 0/1 matrix, where 1 means "trained on".

        Args:
            code_NK: (N, K) bools, integers, or floats that are exactly 0 or 1.
            names: names of the N units, in the order of the rows. Training compares them with the names of the data's
                units.

        Raises:
            ValueError: the matrix has entries other than 0 and 1; a member sees no unit; a unit is seen by every member
                (it could never be removed); or there is not exactly one distinct name per unit.

        Warns:
            CodeWarning: units share a word (they cannot be told apart), no member sees a unit, or a member sees every
                unit (it never survives).
        """
        names = None if names is None else as_names(names)
        matrix = check_matrix(code_NK, names)
        N, K = matrix.shape
        weights = matrix.sum(1)
        weight = int(weights[0]) if (weights == weights[0]).all() else None
        return cls(K, N, weight, 0, np.packbits(matrix, axis=1).tobytes(), names)

    @classmethod
    def hierarchical(
        cls,
        members: int,
        groups: Any,
        group_weight: int | None = None,
        weight: int | None = None,
        seed: int = 0,
        group_names: Sequence[str] | None = None,
    ) -> "Code":
        """Build a code of items inside groups, from which both single items and whole groups can be removed exactly.

        Args:
            members: K.
            groups: (N,) group of each unit, 0 .. G - 1.
            group_weight: number of members that see a group; by default 3/4 of all, so that a quarter survives the
                removal of a group.
            weight: number of members that see an item, chosen from those that see its group; by default half of
                ``group_weight``.
            seed: any integer.
            group_names: names of the G groups, which become the names of the units of `group_code`.

        Raises:
            ValueError: an argument is out of range; there is not exactly one distinct name per group; or there are too
                few words for the groups or for the items of a group.

        >>> code = Code.hierarchical(8, np.arange(30) // 10, group_weight=6)
        >>> bool((code.rows(range(10)) <= code.group_code().rows(0)).all())
        True
        """
        names = None if group_names is None else as_names(group_names, "groups")
        group_of_unit = check_groups(groups, names)
        count = int(group_of_unit.max()) + 1
        group_weight = max(1, 3 * members // 4) if group_weight is None else operator.index(group_weight)
        weight = max(1, group_weight // 2) if weight is None else operator.index(weight)
        if not 1 <= weight < group_weight < members:
            raise ValueError(
                f"weight={weight}, group_weight={group_weight}: expected 1 <= weight < group_weight < {members} members"
            )
        group_GK = cls.balanced(members, count, group_weight, seed).matrix()
        matrix = item_words(group_GK, group_of_unit, weight, seed)
        empty = np.flatnonzero(matrix.sum(0) == 0)
        if len(empty):
            raise ValueError(f"members {some(empty)} would see no unit: use fewer members or larger weights")
        return cls(
            members,
            len(matrix),
            weight,
            packed=np.packbits(matrix, axis=1).tobytes(),
            groups=Groups(
                count,
                group_weight,
                group_of_unit.astype("<i4").tobytes(),
                np.packbits(group_GK, axis=1).tobytes(),
                names,
            ),
        )

    @classmethod
    def undivided(cls, units: int) -> "Code":
        """Build the code of one member that sees every unit: an ordinary model, from which no unit can be removed."""
        return cls(1, units, 1, 0, np.packbits(np.ones((units, 1), np.uint8), axis=1).tobytes())

    def only(self, members: Sequence[int]) -> "Code":
        """Return the code restricted to the given members, in the given order, as after the other members are deleted.

        The words are stored and their weights may differ. A word of zeros belongs to a unit that none of these members
        saw. A word of ones belongs to a unit that can no longer be removed. Several units may share a word.

        Raises:
            ValueError: the list is empty, names an unknown member, or names a member twice.

        >>> Code.balanced(members=4, units=6).only([1, 3]).members
        2
        """
        chosen = np.asarray(members)
        if chosen.ndim == 1 and any(isinstance(k, bool | np.bool_) for k in members):
            raise ValueError(f"members {members!r} are booleans: pass member numbers, for a mask np.flatnonzero(mask)")
        distinct = chosen.ndim == 1 and chosen.dtype.kind in "iu" and len(np.unique(chosen)) == len(chosen) > 0
        if not distinct or not 0 <= chosen.min() <= chosen.max() < self.members:
            raise ValueError(f"members={members!r}: expected distinct member numbers, 0 .. {self.members - 1}")
        parts = [words[:, chosen] for _, words in self.chunks()]
        weights = {int(weight) for words in parts for weight in np.unique(words.sum(1))}
        groups = self.groups
        if groups is not None:
            of_groups = self.group_code().only(members)
            assert of_groups.packed is not None
            groups = dataclasses.replace(groups, weight=of_groups.weight, packed=of_groups.packed)
        packed = b"".join(np.packbits(words, axis=1).tobytes() for words in parts)
        weight = weights.pop() if len(weights) == 1 else None
        return Code(len(chosen), self.units, weight, 0, packed, self.names, groups)

    def reordered(self, names: Sequence[str]) -> "Code":
        """Return the code with its units in the order of these names. Each unit keeps its word and its group.

        Args:
            names: the names of the code's units, each once, in the wanted order, such as ``data.unit_names``.

        Raises:
            ValueError: the code has no names, or its names differ from these.

        >>> code = Code.from_matrix([[1, 0], [0, 1]], names=["zed", "ada"])
        >>> code.reordered(["ada", "zed"]).matrix().tolist()
        [[0, 1], [1, 0]]
        """
        if self.names is None:
            raise ValueError(
                "this code has no names to order its units by: pass them to Code.from_matrix(..., names=...)"
            )
        wanted, place = as_names(names), {name: i for i, name in enumerate(as_names(self.names))}
        unknown, left = [name for name in wanted if name not in place], sorted(set(place) - set(wanted))
        if unknown or left:
            differences = [(unknown, "are not in the code"), (left, "of the code are missing")]
            text = "; ".join(f"{some(map(repr, which))} {what}" for which, what in differences if which)
            raise ValueError(f"{len(wanted)} names for a code of {self.units} units: {text}")
        order = np.array([place[name] for name in wanted])
        groups = self.groups
        if groups is not None:
            groups = dataclasses.replace(groups, of_unit=np.frombuffer(groups.of_unit, "<i4")[order].tobytes())
        packed = np.packbits(self.rows(order), axis=1).tobytes()
        return dataclasses.replace(self, key=0, packed=packed, names=wanted, groups=groups)

    def capacity(self, removals: int) -> Capacity:
        """Return how many members survive when ``removals`` distinct units are removed together.

        The result has the mean number of survivors, the number in the worst case, and the chance that none survives.
        For a balanced code, mean and chance are over a random choice of distinct words. For a stored matrix, the mean
        is over all sets of that many units, and the chance is None.

        Raises:
            ValueError: there are more removals than units.

        >>> Code.balanced(members=16, units=1000).capacity(2).expected.__round__(2)
        4.0
        """
        if not 0 <= removals <= self.units:
            raise ValueError(f"{removals} removals: expected 0 .. {self.units}, the number of units")
        if self.packed is None:
            assert self.weight is not None
            return deletion_capacity(self.members, self.weight, removals)
        return shares_capacity(list(self.shares()), list(self.matrix().sum(1)), self.units, removals)

    def group_code(self) -> "Code":
        """Return the code whose units are this code's groups. With it, groups are ablated and attributed like units.

        Raises:
            ValueError: the code has no groups.
        """
        groups = self._groups()
        return Code(self.members, groups.count, groups.weight, 0, groups.packed, groups.names)

    def unowned(self, n: int | None = None, seed: int = 0, weight: int | None = None) -> UInt8[np.ndarray, "n K"]:
        """Return distinct words of the code's weight that no unit owns. Ablations by them give the null.

        Args:
            n: number of words; None returns all of them, in random order.
            seed: seed of the choice.
            weight: weight of the words, for a matrix whose rows differ in weight; by default the words have weights in
                the same proportions as the rows.

        Raises:
            ValueError: fewer than n words are unowned (the message gives a sufficient number of members), or n is None
                and there are too many words to list.
        """
        return unowned_words(self, n, seed, weight)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values from which `from_dict` builds an equal code."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Code":
        """Build a code from the result of `to_dict`.

        Raises:
            ValueError: a value is missing or inconsistent with the others.
        """
        return from_dict(cls, values)


def _unevenness(code: Code) -> tuple[int, int]:
    """Return the number of members without a unit, then the difference between the largest and the smallest share."""
    shares = code.shares()
    return int((shares == 0).sum()), int(np.ptp(shares))
