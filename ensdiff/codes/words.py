"""The code words of units, stored or computed for the ids that are asked for, and the weights without some units.

A balanced code stores no matrix. Word of unit i = the combination whose lexicographic number is
``permute(i, C(K, w), key)``: a keyed permutation of all words, evaluated for the ids that are asked for.

(3) ablating a set U: ``w_k = 0`` for every member that saw some unit of U, uniform over the survivors.
"""

import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ensdiff.codes.combinations import unrank
from ensdiff.codes.errors import NoSurvivorError, some
from ensdiff.codes.hierarchy import Groups
from ensdiff.codes.permute import permute
from ensdiff.typing import unmasked


@dataclasses.dataclass(frozen=True)
class CodeWords:
    """The words of N units over K members. `ensdiff.Code` adds the ways to make and to change them.

    Args:
        members: K.
        units: N.
        weight: ones in each word; None for a matrix whose rows differ in weight.
        key: of the permutation of words, for a balanced code.
        packed: the matrix, eight entries per byte, for a stored one.
        names: of the units, compared with those of the data that a run is trained on.
        groups: of a hierarchical code.
    """

    members: int
    units: int
    weight: int | None
    key: int = 0
    packed: bytes | None = None
    names: tuple[str, ...] | None = dataclasses.field(default=None, hash=False)  # long, and hashed at every jit call
    groups: Groups | None = None

    def __repr__(self) -> str:
        kind = f"key {self.key:#018x}"
        if self.packed is not None:
            # `ensdiff.ensemble.digest` tells codes apart by this text: two matrices must not have the same
            inside = (self.groups.of_unit, self.groups.packed) if self.groups is not None else ()
            kind = "stored " + hashlib.sha256(b"".join((self.packed, *inside))).hexdigest()[:16]
        weight = "mixed weights" if self.weight is None else f"weight {self.weight}"
        return f"Code({self.members} members, {self.units} units, {weight}, {kind})"

    def rows(self, ids: Any) -> UInt8[np.ndarray, "M K"]:
        """Code words of the given units.

        Args:
            ids: unit ids, 0 .. N - 1; one id gives one row.

        Raises:
            ValueError: an id is not an integer or out of range.
        """
        return self._words(self._check(ids))

    def matrix(self) -> UInt8[np.ndarray, "N K"]:
        """The whole ``code_NK``; refuses more than 8 GiB."""
        if self.units * self.members > 2**33:
            raise ValueError(f"{self.units} x {self.members} bytes is too much to hold: use rows(ids), in chunks")
        return self._words(np.arange(self.units))

    def chunks(self, size: int = 2**18) -> Iterator[tuple[Int[np.ndarray, " M"], UInt8[np.ndarray, "M K"]]]:
        """Ids and code words of all units, a chunk at a time."""
        for start in range(0, self.units, size):
            ids = np.arange(start, min(start + size, self.units))
            yield ids, self._words(ids)

    def shares(self, chunk: int = 2**18) -> Int[np.ndarray, " K"]:
        """How many units each member sees, counted ``chunk`` units at a time."""
        total = np.zeros(self.members, np.int64)
        for _, words in self.chunks(chunk):
            total += words.sum(0, dtype=np.int64)
        return total

    def factual(self) -> Float[np.ndarray, "1 K"]:
        """The weights of the whole ensemble, 1/K each, as one row (2)."""
        return np.full((1, self.members), 1.0 / self.members, np.float32)

    def survivors(self, units: Any) -> Bool[np.ndarray, " K"]:
        """Members that saw none of the units (one id, or ids removed together)."""
        return self.rows(_members_of(units)).sum(0) == 0

    def ablate(self, units: Any) -> Float[np.ndarray, "M K"]:
        """Weight rows (3) without each unit, or set of units.

        Args:
            units: M entries, each a unit id or a collection of ids that are removed together.

        Raises:
            NoSurvivorError: every member saw some unit of a set.
            ValueError: unknown ids; a mapping; a set, which has no order, where the sequence of entries belongs.
        """
        entries: Any = units
        if isinstance(units, set | frozenset | Mapping):
            kind = "a mapping" if isinstance(units, Mapping) else "a set"
            together = set(units) if isinstance(units, Mapping) else units
            raise ValueError(
                f"ablate got {kind}, which has no order of entries: give ablate([{together}]) to remove these units "
                "together, else a list"
            )
        if not (isinstance(units, np.ndarray) and units.ndim == 1):
            entries = list(units) if isinstance(units, Collection) and not isinstance(units, str) else [units]
        if not len(entries):
            raise ValueError("no units given: expected unit ids, or sets of ids removed together")
        if isinstance(entries, np.ndarray):
            keep_MK = 1 - self.rows(entries)
        else:  # one look-up for all entries: far faster than one for each
            ids = [self._check(_members_of(entry)) for entry in entries]
            starts = np.cumsum([0, *map(len, ids[:-1])])
            keep_MK = 1 - np.maximum.reduceat(self._words(np.concatenate(ids)), starts, axis=0)
        count_M = keep_MK.sum(1, keepdims=True)
        lost = np.flatnonzero(count_M[:, 0] == 0)
        if len(lost):
            raise NoSurvivorError(_no_survivor(self, _members_of(entries[lost[0]])))
        return (keep_MK / count_M).astype(np.float32)

    def group_of_unit(self) -> Int[np.ndarray, " N"]:
        """The group of every unit of a hierarchical code.

        Raises:
            ValueError: the code has no groups.
        """
        return np.frombuffer(self._groups().of_unit, "<i4").astype(np.int64)

    def _groups(self) -> Groups:
        if self.groups is None:
            raise ValueError("this code has no groups: make one by Code.hierarchical")
        return self.groups

    def _check(self, ids: Any) -> Int[np.ndarray, " M"]:
        array = np.atleast_1d(np.asarray(unmasked(ids, "unit ids")))
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(f"unit ids {ids!r}: expected integers, 0 .. {self.units - 1}")
        outside = array[(array < 0) | (array >= self.units)]
        if len(outside):
            raise ValueError(f"unit {outside[0]} does not exist: ids are 0 .. {self.units - 1}")
        return array.astype(np.int64)

    def _words(self, ids: np.ndarray) -> UInt8[np.ndarray, "M K"]:
        if self.packed is not None:
            bits = np.frombuffer(self.packed, np.uint8).reshape(self.units, -1)
            return np.unpackbits(bits[ids], axis=1, count=self.members)
        assert self.weight is not None
        numbers = permute(ids, math.comb(self.members, self.weight), self.key)
        return unrank(numbers, self.members, self.weight)


def _members_of(units: Any) -> np.ndarray:
    """The ids of one entry of `Code.ablate`: an id, or a collection of ids."""
    if isinstance(units, Mapping):
        raise ValueError(f"units {units!r} are a mapping: expected a unit id, or a list or set of unit ids")
    if isinstance(units, (set, frozenset)):
        units = sorted(units)
    ids = np.atleast_1d(np.asarray(unmasked(units, "unit ids")))
    if not ids.size:
        raise ValueError("an empty set of units: expected at least one unit to remove")
    return ids


def _no_survivor(code: CodeWords, ids: np.ndarray) -> str:
    """The message of a `NoSurvivorError`: the units, and how many members would survive without some of them."""

    def name(i: int) -> str:
        return code.names[i] if code.names else str(i)

    shown = list(dict.fromkeys(int(i) for i in np.atleast_1d(ids)))
    text = f"no member survives the removal of units {some([name(i) for i in shown])}"
    if len(shown) > 1:
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        left = [f"{name(i)}: {int(code.survivors([j for j in shown if j != i]).sum())}" for i in shown[:8]]
        alone = [f"{name(i)}: {int(code.survivors(i).sum())}" for i in shown[:8]]
        text += f"; survivors when one of them is kept: {', '.join(left)}{more}; when one alone is removed: "
        text += ", ".join(alone) + more
    return text + ". Remove fewer units together, or train with more members or a smaller weight"
