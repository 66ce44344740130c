"""How many removals a code tolerates.

When m distinct units are removed, member k survives if it saw none of them. If the words of these units are m distinct
random words out of all C(K, w),

(c1) ``E[survivors] = K * C(C(K-1, w), m) / C(C(K, w), m)``, about ``K (1 - w/K)^m``;
(c2) ``P(no survivor) = 1 - sum_{j=1}^K (-1)^(j+1) C(K, j) C(C(K-j, w), m) / C(C(K, w), m)``, by inclusion and
     exclusion over the sets of j members that all survive;
(c3) for any choice of units, at least ``max(0, K - m w)`` members survive.

In a stored matrix, member k sees n_k units: ``E = sum_k C(N - n_k, m) / C(N, m)`` over all sets of m of its units.
"""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class Capacity(NamedTuple):
    """The members left in an ensemble after m removals.

    Args:
        removals: m, the number of distinct units removed together.
        expected: mean number of surviving members over random sets of m units (c1).
        worst: number of members that survive for any choice of m units (c3); 0 means that some sets may leave none.
        failure: probability that a random set of m units leaves no member (c2); None for a stored matrix.
    """

    removals: int
    expected: float
    worst: int
    failure: float | None


def deletion_capacity(members: int, weight: int, removals: int) -> Capacity:
    """Return the exact capacity of balanced codes with K members and weight w, over random words.

    Args:
        members: K.
        weight: w, the number of members that see a unit; each member sees a share w / K of the units.
        removals: m, 0 .. C(K, w).

    Raises:
        ValueError: the weight or the number of removals is out of range.

    >>> deletion_capacity(4, 2, 1)
    Capacity(removals=1, expected=2.0, worst=2, failure=0.0)
    """
    K, w, m = members, weight, removals
    if not 1 <= w < K:
        raise ValueError(f"weight={w}: expected 1 .. {K - 1} for {K} members")
    total = math.comb(K, w)
    if not 0 <= m <= total:
        raise ValueError(f"{m} removals: expected 0 .. {total}, the number of code words")
    expected = K * _falling_ratio(math.comb(K - 1, w), total, m)
    alive = sum(
        (-1) ** (j + 1) * math.comb(K, j) * _falling_ratio(math.comb(K - j, w), total, m) for j in range(1, K + 1)
    )
    return Capacity(m, float(expected), max(0, K - m * w), float(1 - alive))


def shares_capacity(shares: Sequence[int], weights: Sequence[int], units: int, removals: int) -> Capacity:
    """Return the capacity of a stored matrix, from the number of units each member sees and the weights of the words.

    Raises:
        ValueError: there are more removals than units.
    """
    if not 0 <= removals <= units:
        raise ValueError(f"{removals} removals: expected 0 .. {units}, the number of units")
    expected = sum(_falling_ratio(units - int(share), units, removals) for share in shares)
    heaviest = sorted(map(int, weights), reverse=True)[:removals]
    return Capacity(removals, float(expected), max(0, len(shares) - sum(heaviest)), None)


class Remaining(NamedTuple):
    """How many more units can be removed from a code.

    Args:
        members: K, the number of members left.
        certain: largest number of units whose removal always leaves a survivor, for any choice of units.
        expected: largest number of random units whose removal leaves at least one survivor on average.
        lost: number of units that every member saw; these can no longer be removed.
    """

    members: int
    certain: int
    expected: int
    lost: int


def remaining_capacity(weights: Sequence[int], shares: Sequence[int]) -> Remaining:
    """Return the capacity left, from the weights of the remaining units' words and the number that each member sees.

    >>> remaining_capacity([2, 2, 2, 2, 2, 2], [3, 3, 3, 3])
    Remaining(members=4, certain=1, expected=1, lost=0)
    """
    K, N = len(shares), len(weights)
    heaviest = sorted(map(int, weights), reverse=True)
    certain = sum(seen < K for seen in itertools.accumulate(heaviest))
    expected = 0
    while expected < N and sum(_falling_ratio(N - int(n), N, expected + 1) for n in shares) >= 1:
        expected += 1
    return Remaining(K, certain, expected, sum(weight == K for weight in heaviest))


def _falling_ratio(part: int, whole: int, m: int) -> Fraction:
    """Return C(part, m) / C(whole, m), the probability that m distinct draws from the whole all lie in the part."""
    return Fraction(math.comb(part, m), math.comb(whole, m))
