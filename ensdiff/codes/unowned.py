"""Words that no unit owns: they ablate nothing and give the null that influences are compared with."""

import math

import numpy as np
from jaxtyping import UInt8

from ensdiff.codes.combinations import unrank
from ensdiff.codes.errors import fitting_weights, smallest_members
from ensdiff.codes.permute import derive_key
from ensdiff.codes.words import CodeWords

ENUMERATED = 2**21
"""Up to this number of possible words, all are listed and those of a stored matrix left out; above it, random words
are drawn and compared with the matrix."""


def unowned_words(code: CodeWords, n: int | None, seed: int, weight: int | None) -> UInt8[np.ndarray, "n K"]:
    """Implement `Code.unowned`."""
    if n is not None and n < 0:
        raise ValueError(f"{n} unowned code words asked for: expected 0 or more")
    rng = np.random.default_rng(derive_key(seed, 1))
    if weight is not None and not 0 <= weight < code.members:
        raise ValueError(f"weight={weight}: expected 0 .. {code.members - 1}")
    if code.packed is not None:
        return _beside_a_matrix(code, n, rng, code.weight if weight is None else weight)
    if weight not in (None, code.weight):
        raise ValueError(f"weight={weight}: all words of this code have weight {code.weight}")
    free = math.comb(code.members, code.weight or 0) - code.units
    n = _count(code, n, free, code.units, code.weight)
    places = _distinct(rng, free, n)
    # beyond 64 bits, and for a mix of int64 and uint64, NumPy's default would be floats
    dtype = np.int64 if code.units + free < 2**62 else object
    return code._words(np.array([code.units + place for place in places], dtype))


def within(
    word_K: UInt8[np.ndarray, " K"], owned_NK: UInt8[np.ndarray, "N K"], weight: int, n: int | None, seed: int
) -> UInt8[np.ndarray, "n K"]:
    """Return unowned words of one weight among the members of ``word_K`` only: the null of items inside a group.

    Raises:
        ValueError: there are fewer than n such words, or too many to list.
    """
    inside = np.flatnonzero(word_K)
    total = math.comb(len(inside), weight)
    if total > ENUMERATED:
        raise ValueError(f"C({len(inside)}, {weight}) = {total} words inside a group are too many to enumerate")
    words = np.zeros((total, len(word_K)), np.uint8)
    words[:, inside] = unrank(np.arange(total), len(inside), weight)
    words = _without(words, owned_NK)
    if n is not None and n > len(words):
        raise ValueError(
            f"{n} unowned code words asked for, but the items of a group leave only {len(words)} of "
            f"C({len(inside)}, {weight}); use a larger group weight"
        )
    order = np.random.default_rng(derive_key(seed, 2)).permutation(len(words))
    return words[order[:n]]


def _beside_a_matrix(code: CodeWords, n: int | None, rng: np.random.Generator, weight: int | None) -> np.ndarray:
    owned_NK = code.matrix()
    if weight is not None and math.comb(code.members, weight) <= ENUMERATED:
        words = unrank(np.arange(math.comb(code.members, weight)), code.members, weight)
        words = _without(words, owned_NK)
        n = _count(code, n, len(words), int((owned_NK.sum(1) == weight).sum()), weight)
        return words[rng.permutation(len(words))[:n]]
    if n is None:
        raise ValueError("this code has too many unowned words to list them all: pass the number n of words")
    owned, weights = set(map(bytes, owned_NK)), owned_NK.sum(1)
    found: dict[bytes, None] = {}
    for _ in range(100 * n + 1000):
        if len(found) == n:
            break
        word = np.zeros(code.members, np.uint8)
        word[rng.permutation(code.members)[: rng.choice(weights) if weight is None else weight]] = 1
        if word.tobytes() not in owned:
            found[word.tobytes()] = None
    if len(found) < n:
        raise ValueError(
            f"{n} unowned code words asked for, but only {len(found)} were found besides the {code.units} words of the "
            "code; use more members"
        )
    return np.array([np.frombuffer(word, np.uint8) for word in found], np.uint8).reshape(n, code.members)


def _count(code: CodeWords, n: int | None, free: int, owned: int, weight: int | None) -> int:
    if n is None:
        if free > 2**24:
            raise ValueError(f"{free} words are unowned, too many to list: pass the number n of words")
        return free
    if n > free:
        raise ValueError(
            f"{n} unowned code words asked for, but {owned} units leave only {free} of "
            f"C({code.members}, {weight}); {smallest_members(owned + n)} members would do"
            + fitting_weights(code.members, owned + n)
            + (f". To use these {free}, pass null='all' (--null=all)" if free else "")
            + ". For an attribution without p-values, pass null=0"
        )
    return n


def _without(words: np.ndarray, owned: np.ndarray) -> np.ndarray:
    """Return the words that are not owned."""
    packed, mine = (np.packbits(a, axis=1) for a in (words, owned))
    kind = np.dtype((np.void, packed.shape[1]))
    return words[~np.isin(packed.view(kind)[:, 0], np.ascontiguousarray(mine).view(kind)[:, 0])]


def _distinct(rng: np.random.Generator, size: int, n: int) -> list[int]:
    """Draw n distinct integers from [0, size), where ``size`` may be too large for NumPy."""
    if size <= 4 * n:
        return [int(i) for i in rng.permutation(size)[:n]]
    found: dict[int, None] = {}
    while len(found) < n:
        found[int.from_bytes(rng.bytes(-(-size.bit_length() // 8) + 8), "little") % size] = None
    return list(found)
