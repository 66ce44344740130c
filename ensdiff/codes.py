"""The code: which member trains on which unit.

``code_NK[i, k] = 1`` means that unit i is in member k's training split. Code words of one weight w, all distinct,
form an antichain: with unit i removed, every other unit is still seen by some survivor.

A balanced code stores no matrix. Word of unit i = the combination whose lexicographic number is
``permute(i, C(K, w), key)``: a keyed permutation of all words, evaluated for the ids that are asked for.

(3) ablating a set U: ``w_k = 0`` for every member that saw some unit of U, uniform over the survivors.
"""

import base64
import dataclasses
import math
import operator
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ensdiff.combinations import unrank
from ensdiff.permute import derive_key, permute


class CodeWarning(UserWarning):
    """A code matrix can be used but will not say all that a code can say."""


class NoSurvivorError(ValueError):
    """Every member has seen some unit of the set that is to be removed."""


@dataclasses.dataclass(frozen=True)
class Code:
    """The code of N units over K members; made by `balanced` or `from_matrix`. Hashable and small.

    Args:
        members: K.
        units: N.
        weight: ones in each word; None for a matrix whose rows differ in weight.
        key: of the permutation of words, for a balanced code.
        packed: the matrix, eight entries a byte, for a stored one.
        names: of the units, for messages.

    >>> code = Code.balanced(members=4, units=6, seed=0)
    >>> sorted(map(bytes, code.rows(range(6)))) == sorted(set(map(bytes, code.matrix())))
    True
    """

    members: int
    units: int
    weight: int | None
    key: int = 0
    packed: bytes | None = None
    names: tuple[str, ...] | None = dataclasses.field(default=None, hash=False)  # long, and hashed at every jit call

    @classmethod
    def balanced(cls, members: int, units: int, weight: int | None = None, seed: int = 0) -> "Code":
        """Distinct code words of one weight, computed on demand.

        The word of unit i depends on K, w, the key and i alone. The key comes from the seed; for fewer than some
        hundred thousand units the best of several keys is taken, so that members see nearly the same number of units.

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
        if members < 2:
            raise ValueError(f"members={members}: an encoded ensemble needs at least 2 members")
        if not 1 <= weight < members:
            raise ValueError(f"weight={weight}: expected 1 .. {members - 1}, so that {members} members leave survivors")
        if units < 1:
            raise ValueError(f"units={units}: expected at least 1 unit")
        capacity = math.comb(members, weight)
        if units > capacity:
            raise ValueError(
                f"{units} units, but {members} members of weight {weight} have only {capacity} code words; "
                f"the smallest number of members that fits is {_smallest_members(units)}"
                + _fitting_weights(members, units)
            )
        draws = int(np.clip(2**18 // units, 1, 64))
        keys = [int(derive_key(seed, draw)) for draw in range(draws)]
        codes = [cls(members, units, weight, key) for key in keys]
        code = min(codes, key=_unevenness) if draws > 1 else codes[0]
        if units * weight < 64 * members:  # only then can a share be 0
            empty = np.flatnonzero(code.shares() == 0)
            if len(empty):
                raise ValueError(
                    f"members {_some(empty)} would see no unit: {units} units of weight {weight} are too few for "
                    f"{members} members; use fewer members, a larger weight, or items as units"
                )
        return code

    @classmethod
    def from_matrix(cls, code_NK: Any, names: Sequence[str] | None = None) -> "Code":
        """A code from any 0/1 matrix, 1 = trained on (the convention of both references).

        Args:
            code_NK: (N, K), bool, integer, or floats that are exactly 0 or 1.
            names: of the N units, for messages.

        Raises:
            ValueError: not a 0/1 matrix; a member without units; a unit that every member saw (it could never be
                removed).

        Warns:
            CodeWarning: units with the same word (they cannot be told apart), units that no member saw, members that
                saw every unit (they never survive).
        """
        matrix = np.asarray(code_NK)
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(f"the code has shape {matrix.shape}: expected (units, members), both at least 1")
        if matrix.dtype.kind not in "buif":
            raise ValueError(f"the code has dtype {matrix.dtype}: expected 0 and 1 as bool, integers or floats")
        wrong = np.argwhere((matrix != 0) & (matrix != 1))
        if len(wrong):
            i, k = wrong[0]
            raise ValueError(f"code[{i}, {k}] is {matrix[i, k]}: expected 0 or 1 ({len(wrong)} such entries)")
        matrix = matrix.astype(np.uint8)
        N, K = matrix.shape
        if K < 2:
            raise ValueError("the code has one member: an encoded ensemble needs at least 2")
        if names is not None and len(names) != N:
            raise ValueError(f"{len(names)} names for {N} units")
        label = (lambda ids: _some([names[i] for i in ids])) if names is not None else _some
        shares, weights = matrix.sum(0), matrix.sum(1)
        if (shares == 0).any():
            raise ValueError(
                f"members {_some(np.flatnonzero(shares == 0))} see no unit (columns of zeros): drop those columns"
            )
        if (weights == K).any():
            raise ValueError(
                f"units {label(np.flatnonzero(weights == K))} are seen by every member (rows of ones) and could never "
                "be removed: leave them out of the code, or train a member without them"
            )
        if (weights == 0).any():
            _warn(f"units {label(np.flatnonzero(weights == 0))} are seen by no member: removing them changes nothing")
        if (shares == N).any() and N > 1:
            _warn(f"members {_some(np.flatnonzero(shares == N))} see every unit: they survive no removal")
        packed_rows = np.packbits(matrix, axis=1)
        _, first = np.unique(packed_rows, axis=0, return_index=True)
        again = np.setdiff1d(np.arange(N), first)
        if len(again):
            _warn(
                f"units {label(again)} have the code word of an earlier unit: such units are removed together and "
                "cannot be told apart"
            )
        weight = int(weights[0]) if (weights == weights[0]).all() else None
        return cls(K, N, weight, 0, packed_rows.tobytes(), None if names is None else tuple(map(str, names)))

    @classmethod
    def undivided(cls, units: int) -> "Code":
        """One member that sees every unit: an ordinary model, for comparison. Nothing can be removed from it."""
        return cls(1, units, 1, 0, np.packbits(np.ones((units, 1), np.uint8), axis=1).tobytes())

    def __repr__(self) -> str:
        kind = "stored" if self.packed is not None else f"key {self.key:#018x}"
        weight = "mixed weights" if self.weight is None else f"weight {self.weight}"
        return f"Code({self.members} members, {self.units} units, {weight}, {kind})"

    @property
    def capacity(self) -> int | None:
        """C(K, w), the number of distinct words; None for a matrix of mixed weights."""
        return None if self.weight is None else math.comb(self.members, self.weight)

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
            ValueError: unknown ids; a set, which has no order, where the sequence of entries belongs.
        """
        entries: Any = units
        if isinstance(units, set | frozenset):
            raise ValueError(f"ablate got a set: give ablate([{units}]) to remove its units together, else a list")
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
            raise NoSurvivorError(self._no_survivor(_members_of(entries[lost[0]])))
        return (keep_MK / count_M).astype(np.float32)

    def unowned(self, n: int, seed: int = 0) -> UInt8[np.ndarray, "n K"]:
        """n distinct words of the code's weight that no unit owns: ablations of nothing, the null.

        Raises:
            ValueError: fewer than n words are unowned; says how many members would do.
        """
        if n < 0:
            raise ValueError(f"{n} unowned code words asked for: expected 0 or more")
        rng = np.random.default_rng(derive_key(seed, 1))
        if self.packed is None:
            free = math.comb(self.members, self.weight or 0) - self.units
            if n > free:
                raise ValueError(
                    f"{n} unowned code words asked for, but {self.units} units leave only {free} of "
                    f"C({self.members}, {self.weight}); {_smallest_members(self.units + n)} members would do"
                    + _fitting_weights(self.members, self.units + n)
                )
            places = _distinct(rng, free, n)
            # past 64 bits, and for a mix of int64 and uint64, NumPy by itself would choose floats
            dtype = np.int64 if self.units + free < 2**62 else object
            return self._words(np.array([self.units + place for place in places], dtype))
        owned = set(map(bytes, self.matrix()))
        weights = self.matrix().sum(1)
        found: dict[bytes, None] = {}
        for _ in range(100 * n + 1000):
            if len(found) == n:
                break
            word = np.zeros(self.members, np.uint8)
            word[rng.permutation(self.members)[: rng.choice(weights)]] = 1
            if word.tobytes() not in owned:
                found[word.tobytes()] = None
        if len(found) < n:
            raise ValueError(
                f"{n} unowned code words asked for, but only {len(found)} could be found beside the code's own "
                f"{self.units}; use more members"
            )
        return (
            np.stack([np.frombuffer(word, np.uint8) for word in found])
            if found
            else np.empty((0, self.members), np.uint8)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values from which `from_dict` makes an equal code."""
        values: dict[str, Any] = {"members": self.members, "units": self.units, "weight": self.weight}
        if self.packed is None:
            return {**values, "key": f"{self.key:#018x}"}
        values["matrix"] = base64.b64encode(self.packed).decode()
        return values if self.names is None else {**values, "names": list(self.names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Code":
        """A code from what `to_dict` gave.

        Raises:
            ValueError: something is missing or does not fit.
        """
        try:
            K, N, weight = operator.index(values["members"]), operator.index(values["units"]), values["weight"]
            if "matrix" not in values:
                if not (0 < operator.index(weight) < K and 0 < N <= math.comb(K, weight)):
                    raise ValueError(f"{K} members of weight {weight} cannot hold {N} units")
                return cls(K, N, weight, int(values["key"], 16))
            packed = base64.b64decode(values["matrix"], validate=True)
            if len(packed) != N * -(-K // 8):
                raise ValueError(f"the matrix has {len(packed)} bytes, expected {N * -(-K // 8)}")
            names = values.get("names")
            if names is not None and len(names) != N:
                raise ValueError(f"{len(names)} names for {N} units")
            code = cls(
                K,
                N,
                None if weight is None else operator.index(weight),
                0,
                packed,
                None if names is None else tuple(names),
            )
            if weight is not None and any((words.sum(1) != weight).any() for _, words in code.chunks()):
                raise ValueError(f"the matrix has rows that are not of weight {weight}")
            return code
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a code: {error!r}; expected what Code.to_dict gives") from error

    def _check(self, ids: Any) -> Int[np.ndarray, " M"]:
        array = np.atleast_1d(np.asarray(ids))
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

    def _no_survivor(self, ids: np.ndarray) -> str:
        def name(i: int) -> str:
            return self.names[i] if self.names else str(i)

        shown = list(dict.fromkeys(int(i) for i in np.atleast_1d(ids)))
        text = f"no member survives the removal of units {_some([name(i) for i in shown])}"
        if len(shown) > 1:
            more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
            left = [f"{name(i)}: {int(self.survivors([j for j in shown if j != i]).sum())}" for i in shown[:8]]
            alone = [f"{name(i)}: {int(self.survivors(i).sum())}" for i in shown[:8]]
            text += f"; survivors when one of them is kept: {', '.join(left)}{more}; when one alone is removed: "
            text += ", ".join(alone) + more
        return text + ". Remove fewer units together, or train with more members or a smaller weight"


def _members_of(units: Any) -> np.ndarray:
    """The ids of one entry of `Code.ablate`: an id, or a collection of ids."""
    if isinstance(units, (set, frozenset)):
        units = sorted(units)
    ids = np.atleast_1d(np.asarray(units))
    if not ids.size:
        raise ValueError("an empty set of units: expected at least one unit to remove")
    return ids


def _smallest_members(units: int) -> int:
    members = 2
    while math.comb(members, members // 2) < units:
        members += 1
    return members


def _fitting_weights(members: int, units: int) -> str:
    """What to add to an error when another weight of the same members has enough code words."""
    if math.comb(members, members // 2) < units:
        return ""
    lowest = next(w for w in range(1, members) if math.comb(members, w) >= units)
    return f"; with {members} members, a weight of {lowest} .. {members - lowest} fits"


def _unevenness(code: Code) -> tuple[int, int]:
    """Members without a unit first, then the difference between the largest and the smallest share."""
    shares = code.shares()
    return int((shares == 0).sum()), int(np.ptp(shares))


def _distinct(rng: np.random.Generator, size: int, n: int) -> list[int]:
    """n distinct integers of [0, size), which may be too large for NumPy."""
    if size <= 4 * n:
        return [int(i) for i in rng.permutation(size)[:n]]
    found: dict[int, None] = {}
    while len(found) < n:
        found[int.from_bytes(rng.bytes(-(-size.bit_length() // 8) + 8), "little") % size] = None
    return list(found)


def _some(things: Any) -> str:
    things = list(things)
    text = ", ".join(str(thing) for thing in things[:5])
    return text + (f" and {len(things) - 5} more" if len(things) > 5 else "")


def _warn(message: str) -> None:
    warnings.warn(message, CodeWarning, stacklevel=3)
