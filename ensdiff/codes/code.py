"""The code: which member trains on which unit.

``code_NK[i, k] = 1`` means that unit i is in member k's training split. Code words of one weight w, all distinct,
form an antichain: with unit i removed, every other unit is still seen by some survivor.
`ensdiff.codes.words` has the words themselves; here are the ways to make a code, and to make one from another.
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
from ensdiff.codes.part import only, reordered
from ensdiff.codes.permute import derive_key
from ensdiff.codes.serial import MAX_MEMBERS, from_dict, to_dict
from ensdiff.codes.unowned import unowned_words
from ensdiff.codes.words import CodeWords


@dataclasses.dataclass(frozen=True, repr=False)
class Code(CodeWords):
    """The code of N units over K members; made by `balanced`, `hierarchical` or `from_matrix`. Hashable.

    Args:
        members: K.
        units: N.
        weight: ones in each word; None for a matrix whose rows differ in weight.
        key: of the permutation of words, for a balanced code.
        packed: the matrix, eight entries a byte, for a stored one.
        names: of the units, compared with those of the data that a run is trained on.
        groups: of a hierarchical code.

    >>> code = Code.balanced(members=4, units=6, seed=0)
    >>> sorted(map(bytes, code.rows(range(6)))) == sorted(set(map(bytes, code.matrix())))
    True
    """

    @classmethod
    def balanced(cls, members: int, units: int, weight: int | None = None, seed: int = 0) -> "Code":
        """Distinct code words of one weight, computed on demand.

        The word of unit i depends on K, w, the key and i alone. The key comes from the seed; for fewer than some
        hundred thousand units (some thousands, where there are 2^62 words or more) the best of several keys is taken,
        so that members see nearly the same number of units.

        Args:
            members: K, at least 2.
            units: N, at most C(K, w).
            weight: w, ones in each word: the members that see a unit; by default K // 2.
            seed: any integer.

        Raises:
            ValueError: out of range; too many units for C(K, w) (says the smallest K that fits); or a member would
                see no unit.
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
        """A code from any 0/1 matrix, 1 = trained on (the convention of both references).

        Args:
            code_NK: (N, K), bool, integer, or floats that are exactly 0 or 1.
            names: of the N units, in the order of the rows. Training compares them with the names of the data's units.

        Raises:
            ValueError: not a 0/1 matrix; a member without units; a unit that every member saw (it could never be
                removed); names that are not one for each unit, all distinct.

        Warns:
            CodeWarning: units with the same word (they cannot be told apart), units that no member saw, members that
                saw every unit (they never survive).
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
        """A code of items inside groups, from which items and whole groups can both be removed exactly.

        Args:
            members: K.
            groups: (N,) group of each unit, 0 .. G - 1.
            group_weight: members that see a group; by default 3/4 of them, so that a quarter survives its removal.
            weight: members that see an item, all of its group's; by default half of ``group_weight``.
            seed: any integer.
            group_names: of the G groups, the names of `group_code`'s units.

        Raises:
            ValueError: out of range, not one name per group, all distinct, or too few words for the groups or for a
                group's items.

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
        """One member that sees every unit: an ordinary model, for comparison. Nothing can be removed from it."""
        return cls(1, units, 1, 0, np.packbits(np.ones((units, 1), np.uint8), axis=1).tobytes())

    def only(self, members: Sequence[int]) -> "Code":
        """The code of some of the members, in the given order: what is left when the others are gone.

        Its words are stored, of mixed weights. Words of zeros belong to units that none of these members saw, words of
        ones to units that can no longer be removed, and units may share a word.

        Raises:
            ValueError: no members, an unknown one, or one twice.

        >>> Code.balanced(members=4, units=6).only([1, 3]).members
        2
        """
        return only(self, members)

    def reordered(self, names: Sequence[str]) -> "Code":
        """The code with its units in the order of these names: each keeps its word (and its group).

        Args:
            names: those of the code, each once, in the wanted order; such as ``data.unit_names``.

        Raises:
            ValueError: the code has no names, or other ones.

        >>> code = Code.from_matrix([[1, 0], [0, 1]], names=["zed", "ada"])
        >>> code.reordered(["ada", "zed"]).matrix().tolist()
        [[0, 1], [1, 0]]
        """
        return reordered(self, names)

    def capacity(self, removals: int) -> Capacity:
        """Expected and worst-case survivors after ``removals`` distinct units are removed together.

        For a balanced code over random words; for a stored matrix over its own sets of units.

        Raises:
            ValueError: more removals than units.

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
        """The code whose units are this code's groups: with it, groups are ablated and attributed like units.

        Raises:
            ValueError: the code has no groups.
        """
        groups = self._groups()
        return Code(self.members, groups.count, groups.weight, 0, groups.packed, groups.names)

    def unowned(self, n: int | None = None, seed: int = 0, weight: int | None = None) -> UInt8[np.ndarray, "n K"]:
        """Distinct words of the code's weight that no unit owns: ablations of nothing, the null.

        Args:
            n: how many; None is all of them, in random order.
            seed: which ones.
            weight: of the words, for a matrix of mixed weights; by default they are mixed in the code's proportions.

        Raises:
            ValueError: fewer than n words are unowned (says how many members would do), or too many for None.
        """
        return unowned_words(self, n, seed, weight)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values from which `from_dict` makes an equal code."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Code":
        """A code from what `to_dict` gave.

        Raises:
            ValueError: something is missing or does not fit.
        """
        return from_dict(cls, values)


def _unevenness(code: Code) -> tuple[int, int]:
    """Members without a unit first, then the difference between the largest and the smallest share."""
    shares = code.shares()
    return int((shares == 0).sum()), int(np.ptp(shares))
