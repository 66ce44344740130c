"""Combinations of K members w at a time, numbered in lexicographic order."""

import functools
import math

import numpy as np
from jaxtyping import UInt8

EXACT = 2**62
"""If there are this many words or more, their lexicographic numbers need Python's integers."""


def unrank(numbers: np.ndarray, members: int, weight: int) -> UInt8[np.ndarray, "M K"]:
    """Return the words with these lexicographic numbers, 0 .. C(K, w) - 1; the word 0...01...1 has number 0.

    >>> unrank(np.arange(3), 3, 2).tolist()
    [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    """
    table = _binomials(members, weight)
    rest = numbers.astype(table.dtype)
    out = np.zeros((members, len(rest)), np.uint8)  # member first: each pass writes one run of memory
    ones = np.full(len(rest), weight, np.int64)
    for k in range(members):
        below = table[members - k - 1].take(ones)  # words with a 0 here
        take = rest >= below
        out[k] = take
        rest -= np.where(take, below, table.dtype.type(0) if table.dtype != object else 0)
        ones -= take
    return np.ascontiguousarray(out.T)


@functools.cache
def _binomials(members: int, weight: int) -> np.ndarray:
    dtype = np.uint64 if math.comb(members, weight) < EXACT else object
    rows = [[math.comb(n, w) for w in range(weight + 1)] for n in range(members)]
    return np.array(rows, dtype=dtype)
