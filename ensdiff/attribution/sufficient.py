"""How large a null a verdict needs, and whether there is one: known before anything is computed.

With L null values of its kind, the smallest p-value (n1) is ``1 / (1 + L)``. If one of M candidates has it and no other
has a small one, its q-value (n2) is ``M / (1 + L)``. So a verdict at a level a needs

(s1) ``L >= M / a - 1``.
"""

import fractions
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.request import Request
from ensdiff.attribution.scoring import GRADIENT_METHODS
from ensdiff.codes import Code
from ensdiff.codes.errors import smallest_members
from ensdiff.ensemble.ensemble import Ensemble

COARSE = 99
"""Null values of a call that cannot give verdicts: enough for p-values of 1 %."""
REGENERATED = 999
"""Most null ablations per sample that "auto" regenerates; each of them costs as much as a sample."""
LISTED = 2**17
"""Most unowned words that "auto" takes if a verdict needs more than there are."""


class NullWarning(UserWarning):
    """No verdict is possible with any null, or with one of a reasonable size."""


class NullPlan(NamedTuple):
    """The null of a call, and what it can show.

    Args:
        null: the number of null values of each kind.
        needed: the number (s1) with which one candidate alone can reach the level.
        available: the number that there are of the rarest kind; None if there are more than anyone needs.
        problem: why no candidate alone can reach the level, and what would change that; None if one can.
    """

    null: int
    needed: int
    available: int | None
    problem: str | None


def null_needed(candidates: int, level: float) -> int:
    """Return the smallest null with which one of some candidates alone reaches a q-value of ``level`` (s1).

    >>> null_needed(10, 0.1), null_needed(1400, 0.1)
    (99, 13999)
    """
    return max(0, math.ceil(candidates / fractions.Fraction(str(level))) - 1)


def plan_null(candidates: Candidates, method: str, level: float, held_out: int | None = None) -> NullPlan:
    """Return the null of a call with ``null="auto"``: as large as a verdict needs, or if that is impossible, why.

    Args:
        candidates: the candidates.
        method: the method's name; any name that is not one of the library's is a method of the caller.
        level: largest q-value of a verdict.
        held_out: for a gradient method that compares with held-out items, their number; None for every other null.

    >>> plan = plan_null(Candidates.of(Code.balanced(16, 1400), None), "differential", 0.1)
    >>> print(plan.problem)
    no verdict is possible: for q <= 0.1, one of 1,400 candidates needs 13,999 null ablations, and the code leaves \
11,470. Train with at least 17 members, choose at most 1,147 candidates (such as groups), or allow a level of 0.123
    """
    M = len(candidates)
    needed = null_needed(M, level)
    gradients = method in GRADIENT_METHODS
    available = held_out if gradients else unowned_words_of(candidates)
    regenerates = method in ("exact", "screen")
    limit = REGENERATED if regenerates else None
    if available is not None and available < needed:
        null = min(available, COARSE if regenerates else LISTED)
        return NullPlan(null, needed, available, _too_few(candidates, gradients, level, needed, available))
    if limit is not None and needed > limit:
        cheap = "method='differential' or 'loss', whose null costs almost nothing"
        return NullPlan(
            COARSE,
            needed,
            available,
            f"no verdict is possible with {COARSE} null ablations: for q <= {level:g}, one of {M:,} candidates needs "
            f"{needed:,}, each of which regenerates every sample. Choose {cheap}, at most "
            f"{_most(limit, level):,} candidates (such as groups), or null={needed}",
        )
    return NullPlan(needed, needed, available, None)


def count_candidates(params: Ensemble, units: Sequence[Any] | None = None, code: Code | None = None) -> int:
    """Return the number of candidates of a call of `ensdiff.attribute` with these arguments.

    >>> count_candidates(params), count_candidates(params, [3, {4, 7}])
    (40, 2)
    """
    return len(Candidates.of(params.candidate_code(code), units))


def with_null(request: Request, candidates: Candidates, method: str, held_out: int | None = None) -> Request:
    """Return the request with the planned null if it asks for one, after a warning if no verdict is possible."""
    if not request.plans:
        return request
    plan = plan_null(candidates, method, request.level, held_out)
    if plan.problem is not None:
        warnings.warn(plan.problem, NullWarning, stacklevel=3)
    return request._replace(null=plan.null)


def unowned_words_of(candidates: Candidates) -> int | None:
    """Return how many null ablations there are of the rarest kind of candidate; None if they are too many to count."""
    code, kind_N = candidates.code, candidates.kind_N
    if candidates.sets is not None:
        return None if code.groups is None else 0
    if code.groups is not None and code.weight is not None:
        words_NK, group_GK = code.matrix(), code.group_code().matrix()
        counts = []
        for group in np.unique(code.group_of_unit() if kind_N is None else kind_N):
            inside = group_GK[group]
            owned = int((words_NK <= inside).all(1).sum())
            counts.append(math.comb(int(inside.sum()), code.weight) - owned)
        return min(counts)
    if code.packed is None:
        assert code.weight is not None
        return math.comb(code.members, code.weight) - code.units
    words_NK = np.unique(code.matrix(), axis=0)
    weight_N = words_NK.sum(1, dtype=int)
    kinds = [code.weight or 0] if kind_N is None else np.unique(kind_N).tolist()
    return min(math.comb(code.members, weight) - int((weight_N == weight).sum()) for weight in kinds)


def _too_few(candidates: Candidates, gradients: bool, level: float, needed: int, available: int) -> str:
    """Return why there are too few null values for a verdict, and what would change that."""
    M, code = len(candidates), candidates.code
    begin = f"no verdict is possible: for q <= {level:g}, one of {M:,} candidates needs {needed:,} "
    if candidates.sets is not None:
        return (
            "no verdict is possible: sets of units of a hierarchical code have no null. Remove whole groups "
            "(code=code.group_code(), --groups)"
        )
    most = _most(available, level)
    fewer = f"choose at most {most:,} candidates (such as groups)" if most else ""
    higher = math.ceil(1000 * M / (1 + available)) / 1000
    other = f"allow a level of {higher:g}" if higher < 1 else ""
    if gradients:
        parts = ["Hold out more data", fewer, other]
        return f"{begin}held-out items, and there are {available:,}. {_joined(parts)}"
    train = f"Train with {_larger(code, needed)}"
    where = " in the smallest group" if code.groups is not None else ""
    return f"{begin}null ablations, and the code leaves {available:,}{where}. {_joined([train, fewer, other])}"


def _larger(code: Code, needed: int) -> str:
    """Return with what code there would be enough null ablations."""
    if code.groups is not None:
        return "more members, or a larger group weight"
    K, weight, wanted = code.members, code.weight, code.units + needed
    members = smallest_members(wanted)
    if members > K or weight is None:
        return f"at least {members} members"
    weights = [w for w in range(1, K) if math.comb(K, w) >= wanted]  # the members suffice, their words are too few
    nearest = min(weights, key=lambda w: abs(w - weight))
    return f"a weight of {nearest} instead of {weight}, or more members"


def _most(null: int, level: float) -> int:
    """Return the largest number of candidates for which a null suffices (s1)."""
    return math.floor((1 + null) * fractions.Fraction(str(level)))


def _joined(parts: list[str]) -> str:
    kept = [part for part in parts if part]
    return kept[0] if len(kept) == 1 else f"{', '.join(kept[:-1])}, or {kept[-1]}"
