"""The code words of units, stored or computed on demand, and the ensemble weights that remove units.

A balanced code stores no matrix. The word of unit i is the combination with the lexicographic number
``permute(i, C(K, w), key)``: a keyed permutation of all words, evaluated only for the requested ids.

(3) ablating a set U: ``w_k = 0`` for every member that saw a unit of U; the survivors have equal weights.
"""

import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    """The words of N units over K members. `ensdiff.Code` adds the functions that build and change codes.

    Args:
        members: K.
        units: N.
        weight: number of ones in each word; None for a matrix whose rows differ in weight.
        key: key of the permutation of words, for a balanced code.
        packed: the stored matrix, eight entries per byte; None for a balanced code.
        names: names of the units, compared with those of the data that a run is trained on.
        groups: groups of a hierarchical code.
    """

    members: int
    units: int
    weight: int | None
    key: int = 0
    packed: bytes | None = None
    names: tuple[str, ...] | None = dataclasses.field(default=None, hash=False)  # long, and hashed by every jit call
    groups: Groups | None = None

    def __repr__(self) -> str:
        kind = f"key {self.key:#018x}"
        if self.packed is not None:
            # `ensdiff.ensemble.digest` tells codes apart by this text, so it must differ between matrices
            inside = (self.groups.of_unit, self.groups.packed) if self.groups is not None else ()
            kind = "stored " + hashlib.sha256(b"".join((self.packed, *inside))).hexdigest()[:16]
        weight = "mixed weights" if self.weight is None else f"weight {self.weight}"
        return f"Code({self.members} members, {self.units} units, {weight}, {kind})"

    def rows(self, ids: Any) -> UInt8[np.ndarray, "M K"]:
        """Return the code words of the given units.

        Args:
            ids: unit ids, 0 .. N - 1; a single id gives one row.

        Raises:
            ValueError: an id is not an integer or out of range.
        """
        return self._words(self._check(ids))

    def matrix(self) -> UInt8[np.ndarray, "N K"]:
        """Return the whole ``code_NK``.

        Raises:
            ValueError: the matrix would take more than 8 GiB.
        """
        if self.units * self.members > 2**33:
            raise ValueError(
                f"the matrix would take {self.units} x {self.members} bytes, more than 8 GiB: use rows(ids) or chunks()"
            )
        return self._words(np.arange(self.units))

    def chunks(self, size: int = 2**18) -> Iterator[tuple[Int[np.ndarray, " M"], UInt8[np.ndarray, "M K"]]]:
        """Yield the ids and code words of all units, in chunks of ``size`` units."""
        for start in range(0, self.units, size):
            ids = np.arange(start, min(start + size, self.units))
            yield ids, self._words(ids)

    def shares(self, chunk: int = 2**18) -> Int[np.ndarray, " K"]:
        """Return the number of units each member sees. Words are computed ``chunk`` units at a time."""
        total = np.zeros(self.members, np.int64)
        for _, words in self.chunks(chunk):
            total += words.sum(0, dtype=np.int64)
        return total

    def factual(self) -> Float[np.ndarray, "1 K"]:
        """Return the weights of the whole ensemble as one row, 1/K per member (2)."""
        return np.full((1, self.members), 1.0 / self.members, np.float32)

    def survivors(self, units: Any) -> Bool[np.ndarray, " K"]:
        """Return which members saw none of the units (one id, or ids removed together)."""
        return self._words(self.ids_of(units)).sum(0) == 0

    def ablate(self, units: Any) -> Float[np.ndarray, "M K"]:
        """Return one row of ensemble weights (3) for each removed unit or set of units.

        Args:
            units: a sequence of M entries, each a unit id or a collection of ids that are removed together.

        Raises:
            NoSurvivorError: every member saw at least one unit of an entry.
            ValueError: an id is unknown, or the entries are a mapping or a set, which have no order.
        """
        entries = entries_of(units)
        if isinstance(entries, np.ndarray):
            keep_MK = 1 - self.rows(entries)
        else:  # one look-up for all entries is far faster than one per entry
            ids = [self.ids_of(entry) for entry in entries]
            starts = np.cumsum([0, *map(len, ids[:-1])])
            keep_MK = 1 - np.maximum.reduceat(self._words(np.concatenate(ids)), starts, axis=0)
        count_M = keep_MK.sum(1, keepdims=True)
        lost = np.flatnonzero(count_M[:, 0] == 0)
        if len(lost):
            raise NoSurvivorError(_no_survivor(self, self.ids_of(entries[lost[0]])))
        return (keep_MK / count_M).astype(np.float32)

    def group_of_unit(self) -> Int[np.ndarray, " N"]:
        """Return the group of every unit of a hierarchical code.

        Raises:
            ValueError: the code has no groups.
        """
        return np.frombuffer(self._groups().of_unit, "<i4").astype(np.int64)

    def _groups(self) -> Groups:
        if self.groups is None:
            raise ValueError("this code has no groups: build one with Code.hierarchical")
        return self.groups

    def ids_of(self, units: Any) -> Int[np.ndarray, " M"]:
        """Return the ids in one entry of `ablate`, which is an id or a collection of ids.

        Raises:
            ValueError: something that is no existing unit id, a mapping, or nothing.
        """
        if isinstance(units, Mapping):
            raise ValueError(f"units {units!r} are a mapping: expected a unit id, or a list or set of unit ids")
        units = sorted(units) if isinstance(units, set | frozenset) else units
        if isinstance(units, Sequence) and any(isinstance(unit, bool | np.bool_) for unit in units):
            raise ValueError(f"units {units!r} hold booleans: give unit ids, such as np.flatnonzero of a mask")
        ids = self._check(units)
        if not ids.size:
            raise ValueError("an empty set of units: expected at least one unit to remove")
        return ids

    def _check(self, ids: Any) -> Int[np.ndarray, " M"]:
        array = np.atleast_1d(np.asarray(unmasked(ids, "unit ids")))
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(f"unit ids {ids!r}: expected integers 0 .. {self.units - 1}")
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


def entries_of(units: Any) -> Any:
    """Return the entries of `Code.ablate`'s argument: an array of ids, or a list of ids and collections of ids.

    Raises:
        ValueError: the argument is a mapping or a set, which have no order, or has no entries.
    """
    if isinstance(units, set | frozenset | Mapping):
        raise ValueError(
            f"a {type(units).__name__} has no order of entries: give [{set(units)}] to remove these units together, or "
            "a list to remove each alone"
        )
    if isinstance(units, np.ndarray) and units.ndim == 1 and len(units):
        return units
    entries = list(units) if isinstance(units, Collection) and not isinstance(units, str) else [units]
    if not entries:
        raise ValueError("no units given: expected unit ids, or sets of ids to remove together")
    return entries


def _no_survivor(code: CodeWords, ids: np.ndarray) -> str:
    """Return the message of a `NoSurvivorError`: the units, and how many members survive if fewer are removed."""

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
