"""Candidates of an attribution: units of a code, or sets of units, whose code words are computed when needed."""

import collections
import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from ensdiff.codes import Code, NoSurvivorError
from ensdiff.codes.words import entries_of


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """N candidates, numbered 0 .. N - 1; `of` creates them.

    Args:
        code: the code whose units are the candidates.
        ids: the units, in the order of the candidates; None stands for all units of the code, in order.
        sets: instead of ``ids``, sets of units that are removed together.
    """

    code: Code
    ids: Int[np.ndarray, " N"] | None = None
    sets: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def of(cls, code: Code, units: Sequence[Any] | None) -> "Candidates":
        """Return the candidates for a user's ``units``: None, a list of unit ids, or a list that contains sets of ids.

        None stands for all units whose removal is defined and has an effect: after some members were taken from a
        code, units that all or none of the remaining members saw are left out. Candidates keep the order of the list
        (see `by_id`).

        Raises:
            ValueError: entries that are no unit ids, a set or a mapping instead of a list, or a duplicate candidate,
                which would count twice.
            NoSurvivorError: every member saw some unit of a candidate.
        """
        if units is None:
            if code.packed is None:
                return cls(code)
            seen_N = np.concatenate([words.sum(1, dtype=np.int64) for _, words in code.chunks()])
            possible = np.flatnonzero((seen_N > 0) & (seen_N < code.members))
            if not len(possible):
                raise NoSurvivorError(f"no unit can be removed from {code}: each was seen by all members, or by none")
            return cls(code) if len(possible) == code.units else cls(code, possible)
        entries = list(entries_of(units))
        if any(isinstance(entry, Collection) and not isinstance(entry, str) for entry in entries):
            sets = tuple(tuple(np.unique(code.ids_of(entry)).tolist()) for entry in entries)
            _check_distinct(sets, "set")
            code.ablate(sets)
            return cls(code, sets=sets)
        ids = code.ids_of(entries)
        _check_distinct(ids.tolist(), "unit")
        return cls(code, ids)

    def by_id(self) -> "Candidates":
        """Return the same candidates sorted by unit id; sets keep their order."""
        return self if self.ids is None else dataclasses.replace(self, ids=np.sort(self.ids))

    def __len__(self) -> int:
        if self.sets is not None:
            return len(self.sets)
        return self.code.units if self.ids is None else len(self.ids)

    def words(self, index: Int[np.ndarray, " M"]) -> UInt8[np.ndarray, "M K"]:
        """Return the members that each candidate drops, 1 = dropped.

        Raises:
            NoSurvivorError: a candidate drops all members.
        """
        if self.sets is not None:
            return (self.code.ablate([self.sets[i] for i in index]) == 0).astype(np.uint8)
        units = index if self.ids is None else self.ids[index]
        words = self.code.rows(units)
        lost = np.flatnonzero(words.all(1))
        if len(lost):
            self.code.ablate(units[lost[:1]])
        return words

    def weights(self, index: Int[np.ndarray, " M"]) -> Float[np.ndarray, "M K"]:
        """Return the weight rows (3) of candidates."""
        return uniform(self.words(index))

    def units(self, index: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Return the unit ids of candidates; for sets, their positions in the user's list."""
        return index if self.ids is None else self.ids[index]

    @functools.cached_property
    def kind_N(self) -> Int[np.ndarray, " N"] | None:
        """Return the kind of each candidate: candidates of one kind can be compared with the same null, see `Null`.

        The kind is the size of a set, the group of a unit of a hierarchical code, or the weight of a word in a matrix
        of mixed weights; None if all candidates are of one kind.
        """
        if self.sets is not None:
            return np.array([len(entry) for entry in self.sets])
        if self.code.groups is not None:
            return self.code.group_of_unit()[self._all()]
        if self.code.weight is None:
            return self.code.rows(self._all()).sum(1).astype(np.int64)
        return None

    def kinds_of(self, index: slice | Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."] | None:
        """Return the kinds of some candidates; None if all candidates are of one kind."""
        return None if self.kind_N is None else self.kind_N[index]

    def _all(self) -> np.ndarray:
        return self.units(np.arange(len(self)))


def uniform(word_MK: UInt8[np.ndarray, "M K"]) -> Float[np.ndarray, "M K"]:
    """Return weight rows with equal weights for the members that each word does not drop."""
    keep_MK = 1 - word_MK
    return (keep_MK / keep_MK.sum(1, keepdims=True)).astype(np.float32)


def _check_distinct(entries: Sequence[Any], what: str) -> None:
    twice = [entry for entry, count in collections.Counter(entries).items() if count > 1]
    if twice:
        name = f"{twice[0]}" if what == "unit" else "{" + ", ".join(map(str, twice[0])) + "}"
        raise ValueError(f"{what} {name} is given {entries.count(twice[0])} times: give each candidate once")
