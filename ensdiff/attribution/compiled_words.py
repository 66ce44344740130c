"""Code words of a balanced code as 64-bit integers, compiled: `ensdiff.codes.permute` and `combinations.unrank` in JAX.

Member 0 is the highest of the K bits. A word is written in digits of at most 16 members each, the highest first. The
word with lexicographic number n among the words of one weight is found digit by digit. The words are sorted, so a
binary search in the cumulative counts of the 2^q values of the first digit finds this digit. The remainder of n numbers
the words of the remaining digits, and the last digit takes one table look-up.

These functions must be traced and called under ``jax.enable_x64(True)``.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensdiff.codes import Code
from ensdiff.codes.permute import feistel_sides, rounds
from ensdiff.typing import Array

DIGIT = 16
"""Most members per digit: tables have 2^16 entries."""
MAX_WORDS = 2**62
MAX_MEMBERS = 64


def compilable(code: Code) -> bool:
    """Return whether `word_fn` supports this code."""
    return (
        code.packed is None
        and code.weight is not None
        and code.members <= MAX_MEMBERS
        and math.comb(code.members, code.weight) < MAX_WORDS
    )


def word_fn(code: Code) -> Callable[[Array], Array]:
    """Return a traceable function from unit ids (uint64) to words (uint64).

    Raises:
        ValueError: the code is not `compilable`.
    """
    members, weight = code.members, code.weight
    if weight is None or not compilable(code):
        raise ValueError(f"{code}: words of a stored matrix, or of more than {MAX_MEMBERS} members, are not compiled")
    size = math.comb(members, weight)
    unrank = _unrank_fn(members, weight)
    return lambda ids: unrank(_permute(ids, size, np.uint64(code.key % 2**64)))


def _permute(index: Array, size: int, key: np.uint64) -> Array:
    a, b = (np.uint64(side) for side in feistel_sides(size))
    n = np.uint64(size)

    def walk(x: Array) -> Array:  # few are out of range, about 2 / sqrt(n) of them
        i = jnp.argmax(x >= n)
        return x.at[i].set(rounds(x[i], a, b, key))

    return jax.lax.while_loop(lambda x: jnp.any(x >= n), walk, rounds(index, a, b, key))


class _Digit(NamedTuple):
    """The tables of one digit.

    Args:
        members: q, the number of members in the digit.
        table: cumulative counts of words by (ones left, value); for the last digit, the values sorted by their number
            of ones.
        ones: the number of ones in each value; for the last digit, where in the table each number of ones begins.
    """

    members: int
    table: np.ndarray
    ones: np.ndarray


@functools.lru_cache(maxsize=8)
def _digits(members: int, weight: int) -> tuple[_Digit, ...]:
    """Return the tables of all digits of a word, the highest first."""
    count = -(-members // DIGIT)
    sizes = [members // count + (i < members % count) for i in range(count)]
    out: list[_Digit] = []
    rest = members
    for i, q in enumerate(sizes):
        ones_V = np.bitwise_count(np.arange(2**q, dtype=np.uint32)).astype(np.int64)
        rest -= q
        if i == count - 1:
            order = np.argsort(ones_V, kind="stable")
            base = np.concatenate([[0], np.cumsum(np.bincount(ones_V, minlength=q + 1))[:-1]])
            out.append(_Digit(q, order.astype(np.uint64), base))
            break
        needed = range(weight, weight + 1) if i == 0 else range(weight + 1)
        tables = []
        for ones in needed:
            words_V = np.array([math.comb(rest, ones - one) if one <= ones else 0 for one in range(q + 1)], np.uint64)
            tables.append(np.concatenate([[np.uint64(0)], np.cumsum(words_V[ones_V])[:-1]]))
        out.append(_Digit(q, np.concatenate(tables), ones_V))
    return tuple(out)


def look(table: Array, index: Array) -> Array:
    """Return ``table[index]`` for indices that are in range."""
    return table.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _unrank_fn(members: int, weight: int) -> Callable[[Array], Array]:
    digits = _digits(members, weight)

    def unrank(number: Array) -> Array:
        word = jnp.zeros(number.shape, jnp.uint64)
        ones = jnp.full(number.shape, weight, jnp.int32)
        for i, (q, table, ones_in) in enumerate(digits):
            if i == len(digits) - 1:
                place = look(jnp.asarray(ones_in, jnp.int32), ones) + number.astype(jnp.int32)
                value = look(jnp.asarray(table), place)
            else:
                starts = jnp.asarray(table)
                first = (ones << q) if i else jnp.zeros_like(ones)
                place = first
                for step in range(q - 1, -1, -1):
                    further = place + (1 << step)
                    place = jnp.where(look(starts, further) <= number, further, place)
                # values without words start where the next value with words starts; the search ends at the latter
                number = number - look(starts, place)
                value = (place - first).astype(jnp.uint64)
                ones = ones - look(jnp.asarray(ones_in, jnp.int32), place - first)
            word = (word << np.uint64(q)) | value
        return word

    return unrank
