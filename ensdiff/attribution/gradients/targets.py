"""What gradient scores are computed for: the candidates of an attribution, and the null that they are compared with.

The score of a target is the sum of the scores of its items. What p-values compare are scores of items under members
that did not see them: to these members, an item and one that was held out are alike. Three kinds of null:

- candidates that are units of one item each: held-out items, which no member saw. Each is given the word of a random
  unit, so that its score is averaged over members as that of a unit is (`ensdiff.attribution.conformal`);
- units of several items: random groups of as many items, each with a code word that no unit owns;
- sets of units, or groups of a hierarchical code: random sets of units that together have about as many items. A set of
  three prolific artists is not compared with any three artists, because the spread of a sum grows with its number of
  items; if all units have as many items, it is the same.

The last two compare sums over items that were scored by different members, so that the scores of different members are
made comparable first (p3).
"""

import contextlib
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.conformal import group_factors, random_groups, random_words
from ensdiff.codes import Code
from ensdiff.codes.permute import derive_key
from ensdiff.data import Dataset

Kind = Literal["held-out", "groups", "sets"]

NEAR = 1.05
"""Sets whose numbers of items differ by less than this factor are compared with the same random sets, if there are more
than `MOST` different numbers."""
MOST = 20


class Targets(NamedTuple):
    """M candidates and L null targets, as sums over n training items and m held-out items.

    Args:
        of_items_nT: how often each training item counts in each of the T = M + L targets, candidates first.
        of_held_mT: the same for held-out items; None without any.
        words_mK: the words of held-out items, by which they count as seen or unseen; None without any.
        column_KT: how many of the units of a target each member saw. A null target that stands for a unit has a word
            that no unit owns, if there is one.
        units_T: number of units of each target; 1 for a null target that stands for a unit.
        candidates: M.
        kind: the kind of null; None without a null.
        kind_T: which targets are comparable: the number of items of each.
        factor_T: f of (p3), by which the unseen scores of each target are multiplied.
    """

    of_items_nT: Any  # scipy.sparse.csr_array
    of_held_mT: Any
    words_mK: UInt8[np.ndarray, "m K"] | None
    column_KT: Int[np.ndarray, "K T"]
    units_T: Int[np.ndarray, " T"]
    candidates: int
    kind: Kind | None
    kind_T: Int[np.ndarray, " T"]
    factor_T: Float[np.ndarray, " T"]

    @property
    def null(self) -> int:
        """Return L, the number of null targets."""
        return self.of_items_nT.shape[1] - self.candidates


def targets_of(
    code: Code, data: Dataset, candidates: Candidates, null: int | Literal["all"], seed: int, held_out: int
) -> Targets:
    """Return the targets of an attribution.

    Args:
        code: the ensemble's own code, whose units are those of the data.
        data: the training data.
        candidates: the candidates; their code is the ensemble's, or the code of its groups.
        null: number of null targets (of each kind of candidate), ``"all"`` held-out items, or 0.
        seed: seed of the null.
        held_out: number of held-out items.

    Raises:
        ValueError: the candidates belong to another code; a null of held-out items without enough of them; or ``"all"``
            for a null of random groups or sets.
        NoSurvivorError: there is a null, and every member saw a candidate.
    """
    from scipy import sparse  # takes a second to import

    unit_sets = _unit_sets(code, candidates)
    of_units_NT = _columns(unit_sets, code.units)
    items_nN = sparse.csr_array(
        (np.ones(data.items), (np.arange(data.items), data.unit_of_item)), shape=(data.items, data.units)
    )
    code_KN = code.matrix().T.astype(np.int64)
    column_KM = (sparse.csr_array(of_units_NT.T) @ code_KN.T).T.astype(np.int64)
    of_items_nM = sparse.csr_array(items_nN @ of_units_NT)
    sizes_M = np.array([len(units) for units in unit_sets])
    items_M = np.asarray(of_items_nM.sum(0)).reshape(-1).astype(int)
    M = len(unit_sets)
    if not null:
        return Targets(of_items_nM, None, None, column_KM, sizes_M, M, None, np.zeros(M, int), np.ones(M))
    possible_N = np.flatnonzero((code_KN == 0).any(0))  # the null, like a candidate, has members that did not see it
    if candidates.sets is None:
        candidates.words(np.arange(M))  # raises NoSurvivorError
    rng = np.random.default_rng(derive_key(seed, 11))
    kind = null_kind(code, data, candidates)
    if kind == "sets":
        size_N = np.bincount(data.unit_of_item, minlength=data.units)
        kind_M = _near(items_M)
        chosen = [units for items in np.unique(kind_M).tolist()
                  for units in _random_sets(rng, items, _number(null), possible_N, size_N)]  # fmt: skip
        of_units_NL = _columns(chosen, code.units)
        column_KL = (sparse.csr_array(of_units_NL.T) @ code_KN.T).T.astype(np.int64)
        of_items_nT = sparse.hstack([of_items_nM, items_nN @ of_units_NL], format="csr")
        units_T = np.concatenate([sizes_M, [len(units) for units in chosen]])
        kind_T = np.concatenate([kind_M, np.repeat(np.unique(kind_M), _number(null))])
        column_KT, one_T = np.hstack([column_KM, column_KL]), np.ones(len(kind_T))
        return Targets(of_items_nT, None, None, column_KT, units_T, M, "sets", kind_T, one_T)
    if kind == "groups":
        possible_n = np.flatnonzero(np.isin(data.unit_of_item, possible_N))
        chosen = random_groups(rng, np.unique(items_M), _number(null), possible_n)
        L = len(chosen)
        of_items_nT = sparse.hstack([of_items_nM, _columns(chosen, data.items)], format="csr")
        words_LK = _words(code, L, seed)
        kind_T = np.concatenate([items_M, [len(items) for items in chosen]])
        column_KT = np.hstack([column_KM, words_LK.T])
        unseen_KM = (column_KM == 0) * (code_KN[:, data.unit_of_item] == 0).sum(1, keepdims=True)
        unseen_M = unseen_KM.sum(0) / np.maximum((column_KM == 0).sum(0), 1)
        factor_T = np.concatenate([group_factors(items_M, unseen_M, len(possible_n)), np.ones(L)])
        return Targets(of_items_nT, None, None, column_KT, np.ones(M + L, int), M, "groups", kind_T, factor_T)
    L = held_out if null == "all" else int(null)
    if not 0 < L <= held_out:
        raise ValueError(
            f"null={null}: gradient scores of single items are compared with held-out items, which no member saw, and "
            f"{held_out} are given; pass held_out= with at least that many, or null=0"
        )
    which = np.sort(rng.permutation(held_out)[:L])
    of_held_mL = sparse.csr_array((np.ones(L), (which, np.arange(L))), shape=(held_out, L))
    of_items_nT = sparse.hstack([of_items_nM, sparse.csr_array((data.items, L))], format="csr")
    of_held_mT = sparse.hstack([sparse.csr_array((held_out, M)), of_held_mL], format="csr")
    words_mK = np.zeros((held_out, code.members), np.uint8)
    words_mK[which] = random_words(code.matrix(), L, seed)
    one_T, column_KT = np.ones(M + L, int), np.hstack([column_KM, _words(code, L, seed).T])
    return Targets(of_items_nT, of_held_mT, words_mK, column_KT, one_T, M, "held-out", one_T, np.ones(M + L))


def null_kind(code: Code, data: Dataset, candidates: Candidates) -> Kind:
    """Return with what candidates are compared, see `targets_of`."""
    sets = candidates.sets is not None and any(len(units) > 1 for units in candidates.sets)
    if sets or candidates.code != code:
        return "sets"
    return "groups" if data.items > data.units else "held-out"


def _unit_sets(code: Code, candidates: Candidates) -> list[Any]:
    """Return the units of the ensemble's own code that each candidate holds."""
    own = candidates.code
    entries = [[i] for i in candidates.units(np.arange(len(candidates))).tolist()]
    if candidates.sets is not None:
        entries = [list(units) for units in candidates.sets]
    if own == code:
        return entries
    if code.groups is not None and own == code.group_code():
        group_N = code.group_of_unit()
        members_of = [np.flatnonzero(group_N == g) for g in range(own.units)]
        return [np.concatenate([members_of[g] for g in groups]) for groups in entries]
    raise ValueError(
        "code: gradient scores belong to the units that the ensemble was trained on; leave code out, or pass "
        "params.code.group_code() of a hierarchical code"
    )


def _columns(sets: list[Any], rows: int) -> Any:
    """Return a (rows, len(sets)) matrix with a 1 for each element of each set."""
    from scipy import sparse

    index = np.concatenate([np.asarray(entry, int) for entry in sets]) if sets else np.empty(0, int)
    column = np.repeat(np.arange(len(sets)), [len(entry) for entry in sets])
    return sparse.csr_array((np.ones(len(index)), (index, column)), shape=(rows, len(sets)))


def _number(null: int | str) -> int:
    if null == "all":
        raise ValueError(
            "null='all': units of several items and sets of units are compared with random groups or sets of the same "
            "size, too many to list; give a number"
        )
    return int(null)


def _near(items_M: Int[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
    """Return the numbers of items of candidates, or with many different ones, the first of each range of `NEAR`."""
    sizes = np.unique(items_M)
    if len(sizes) <= MOST:
        return items_M
    first = [int(sizes[0])]
    for size in sizes.tolist():
        if size >= NEAR * first[-1]:
            first.append(size)
    return np.array(first)[np.searchsorted(first, items_M, side="right") - 1]


def _random_sets(
    rng: np.random.Generator, items: int, draws: int, among: Int[np.ndarray, " n"], size_N: Int[np.ndarray, " N"]
) -> list[Int[np.ndarray, " m"]]:
    """Return random sets of the given units, each with about ``items`` items in all.

    The units are gone through in a random order, and each that still fits is taken. One more is taken if that brings
    the number nearer.

    Args:
        rng: random numbers.
        items: the number of items.
        draws: number of sets.
        among: the units.
        size_N: number of items of each unit of the code.
    """
    size_n = size_N[among]
    least = int(size_n.min())
    if least == size_n.max():
        units = min(max(round(items / max(least, 1)), 1), len(among))
        return random_groups(rng, np.array([units]), draws, among)
    return [np.sort(among[_filled(rng.permutation(len(among)), size_n, items, least)]) for _ in range(draws)]


def _filled(order_n: np.ndarray, size_n: np.ndarray, items: int, least: int) -> list[int]:
    """Return units, in the given order, that have about ``items`` items in all; ``least`` is the smallest unit."""
    total_n = size_n[order_n].cumsum()
    start = int(np.searchsorted(total_n, items, side="right"))
    chosen, left = order_n[:start].tolist(), items - (int(total_n[start - 1]) if start else 0)
    for unit in order_n[start:].tolist():
        if left < least:
            break
        if size_n[unit] <= left:
            chosen.append(unit)
            left -= int(size_n[unit])
    rest = order_n[~np.isin(order_n, chosen)]
    gap = np.abs(size_n[rest] - left)
    if len(rest) and (gap.min() < left or not chosen):
        chosen.append(int(rest[gap.argmin()]))
    return chosen


def _words(code: Code, n: int, seed: int) -> UInt8[np.ndarray, "n K"]:
    """Return n words that no unit owns, repeated where there are fewer than n; random words of units if there are none.

    Only ``"combined"`` uses these words: what the members' losses say about a unit with this word. With a unit's own
    word this is evidence for that unit, which no null should hold.
    """
    for count in (n, None):
        with contextlib.suppress(ValueError):  # there are fewer than n, or too many to list
            words = code.unowned(count, seed)
            if len(words):
                return words[np.arange(n) % len(words)]
    return random_words(code.matrix(), n, seed)


def sums_of(scores_Bn: Float[np.ndarray, "B n"], matrix_nT: Any) -> Float[np.ndarray, "B T"]:
    """Return the scores of targets: sums over their items."""
    return np.asarray((matrix_nT.T @ np.asarray(scores_Bn, np.float64).T).T)
