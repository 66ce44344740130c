"""Significance of scores that are no function of the surviving members, such as those of gradients (11).

The null of `ensdiff.attribution.calibration` are code words that no unit owns. It fits scores of weight rows, but not
gradient scores, which compare a query with the units' items themselves. Their null are scores of items:

(p1) A unit is scored by the members that did not see it: ``s_bi = mean_{k: code_ik = 0} g_kbi``.
(p2) Single items are compared with held-out items, which no member saw. Each is given the word of a random unit, so
     that it is averaged over as many members as a unit: ``s_bj = mean_{k: word_jk = 0} g_kbj``. To these members unit i
     and item j are alike: they saw neither. So if the query does not depend on unit i, and i and j are drawn from the
     same distribution, then s_bi is exchangeable with the s_bj.
(p3) Groups are compared with random groups of as many of the same items. The null hypothesis is that which items form a
     group does not matter. Groups of items that are alike often refute it. All items of a group are scored by the same
     members, but those of a random group by different ones, so whatever a member adds to all its scores would add up
     in a group and average out in a random group. Hence each member's scores are first made comparable: with the mean
     ``a_kb`` and the standard deviation ``d_kb`` of ``g_kbj`` over the items j that member k did not see,
     ``z_kbi = (g_kbi - a_kb) / d_kb``, and the score of a group is
     ``T_b = f mean_k(d_kb) sum_{i in group} mean_{k: code_ik = 0} z_kbi``. It has the unit of g. For a member, the
     items that it did not see are alike, and a group is a sample of m of them without replacement, whose sum has a
     variance in proportion to ``m (n_k - m) / (n_k - 1)`` with n_k items that it did not see. A random group is a
     sample of all n items. So ``f^2 = (n - m) (n_k - 1) / ((n - 1) (n_k - m))``, which differs from 1 only for groups
     that are a large share of the data.
     This makes the mean and the variance equal, not the whole distribution: where members differ so much that the
     scores of each follow a direction of its own, small p-values are still too frequent (tests simulate this).
(p4) ``p = (1 + #{null >= s}) / (1 + #null)``: `Calibration` of either null. The smallest p-value is 1 / (1 + #null), so
     the q-value of one unit among N can only be below a level with at least N / level scores in the null.

(p5) Memorization is another question: ``d_bi = mean_{k: code_ik = 1} g_kbi - mean_{k: code_ik = 0} g_kbi``, what
     training on the unit changes in its score. The null are the differences of held-out items under random units'
     words, which have only noise. The scores must treat an item alike whether a member saw it or not, as plain kernels
     do (``GradientConfig(members=False)``); scores as removals and as additions differ by themselves.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ensdiff.attribution.moments import mean_difference
from ensdiff.codes.permute import derive_key
from ensdiff.metrics.arrays import table
from ensdiff.typing import ArrayLike, unmasked

ROUNDING = 1e-6
"""Scores of float32 that differ by less than this share of the largest are equal."""


class ScoreNull(NamedTuple):
    """Scores of the null, the arguments of `Calibration`.

    Args:
        null_BL: the scores; larger means that a query depends more on the item or group.
        kind_L: the kinds of candidates with which they are compared.
    """

    null_BL: Float[np.ndarray, "B L"]
    kind_L: Int[np.ndarray, " L"]


class InOutDifference(NamedTuple):
    """The differences (p5) between members that saw a unit and members that did not.

    Args:
        difference_BN: positive if training on the unit raises its score.
        error_BN: standard errors, from the spread of the members of each kind; NaN with fewer than two members of one.
    """

    difference_BN: Float[np.ndarray, "B N"]
    error_BN: Float[np.ndarray, "B N"]

    @property
    def t_BN(self) -> Float[np.ndarray, "B N"]:
        """Return the differences in standard errors; 0 where neither has a size."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.difference_BN == 0, 0.0, self.difference_BN / self.error_BN)


def unseen_scores(scores_KBN: ArrayLike, words_NK: ArrayLike, *, comparable: bool = False) -> Float[np.ndarray, "B N"]:
    """Return (p1), or (p2) for held-out items with `random_words`.

    Args:
        scores_KBN: (K, B, N) score of each unit, or item, under each member.
        words_NK: (N, K) 1 where the member saw the unit, or counts as a member that saw the held-out item.
        comparable: make the scores of different members comparable first. The result is then that of one item in (p3),
            ``mean_k(d_kb) mean_{k: code_ik = 0} z_kbi``, to be summed over the items of groups.

    Raises:
        ValueError: a unit that every member saw; shapes that do not fit together; NaN.

    >>> unseen_scores([[[1.0, 5.0]], [[3.0, 7.0]]], [[1, 0], [0, 0]]).tolist()
    [[3.0, 6.0]]
    """
    words = _checked(scores_KBN, words_NK)
    share_NK = shares_unseen(words)
    if not share_NK.any(1).all():
        raise ValueError(
            f"every member saw unit {int(np.flatnonzero(~share_NK.any(1))[0])}: none is left to score it unseen"
        )
    total_BN, size_B = np.zeros(np.shape(scores_KBN)[1:]), np.zeros(np.shape(scores_KBN)[1])
    for k, score_BN in enumerate(np.asarray(scores_KBN)):
        part = MemberPart(table(score_BN, f"scores of member {k}", "BN"), np.ones(len(score_BN)))
        if comparable:
            part = comparable_part(part.scores_BN, ~words[:, k])
        total_BN += part.scores_BN * share_NK[:, k]
        size_B += part.size_B / len(words[0])
    return total_BN * size_B[:, None] if comparable else total_BN


def shares_unseen(words_NK: ArrayLike) -> Float[np.ndarray, "N K"]:
    """Return the share of each member in the mean over the members that did not see an item; zeros if all saw it.

    >>> shares_unseen([[1, 0, 0], [1, 1, 1]]).tolist()
    [[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]
    """
    unseen_NK = np.asarray(words_NK) == 0
    return unseen_NK / np.maximum(unseen_NK.sum(1, keepdims=True), 1)


class MemberPart(NamedTuple):
    """Scores of one member, and their size.

    Args:
        scores_BN: the scores; where they were made comparable, z of (p3).
        size_B: d of (p3), the size of one unit of ``scores_BN``.
    """

    scores_BN: Float[np.ndarray, "B N"]
    size_B: Float[np.ndarray, " B"]


def comparable_part(scores_BN: Float[np.ndarray, "B N"], unseen_N: Bool[np.ndarray, " N"]) -> MemberPart:
    """Return z and d of (p3) of one member; zeros where all items that it did not see have equal scores.

    Args:
        scores_BN: the member's scores.
        unseen_N: the items that it did not see.

    >>> comparable_part(np.array([[1.0, 3.0, 9.0]]), np.array([True, True, False])).scores_BN.tolist()
    [[-1.0, 1.0, 7.0]]
    """
    scores_BN = np.asarray(scores_BN, np.float64)
    inside_BU = scores_BN[:, unseen_N]
    if not inside_BU.shape[1]:
        return MemberPart(np.zeros_like(scores_BN), np.zeros(len(scores_BN)))
    size_B = inside_BU.std(1)
    varies_B = size_B > ROUNDING * np.abs(inside_BU).max(1)
    size_B = np.where(varies_B, size_B, 0.0)
    centred_BN = scores_BN - inside_BU.mean(1, keepdims=True)
    zero_BN = np.zeros_like(scores_BN)
    return MemberPart(np.divide(centred_BN, size_B[:, None], out=zero_BN, where=varies_B[:, None]), size_B)


def group_factors(sizes: ArrayLike, unseen: ArrayLike, items: int) -> Float[np.ndarray, " G"]:
    """Return f of (p3) of groups, 1 where the members that did not see a group saw all else.

    Args:
        sizes: numbers m of items of the groups.
        unseen: n_k of each group, the mean over the members that did not see it.
        items: number n of all items.

    >>> group_factors([1, 10, 10], [50, 50, 10], 100).round(3).tolist()
    [1.0, 1.055, 1.0]
    """
    m, n_k = np.asarray(sizes, np.float64), np.asarray(unseen, np.float64)
    rest = np.maximum(n_k - m, 0.0)
    known = rest > 0
    ratio = np.divide((items - m) * (n_k - 1), (items - 1) * rest, out=np.ones_like(m), where=known)
    return np.sqrt(ratio)


def random_words(code_NK: ArrayLike, n: int, seed: int = 0) -> UInt8[np.ndarray, "n K"]:
    """Return the words of n random units, for held-out items: no member saw these items, so any word fits them.

    Each unit's word is drawn about equally often, so that the words have weights like those of the units.

    >>> random_words([[1, 0]], 2).tolist()
    [[1, 0], [1, 0]]
    """
    code = table(code_NK, "code_NK", "NK").astype(np.uint8)
    rng = np.random.default_rng(derive_key(seed, 5))
    rounds = [rng.permutation(len(code)) for _ in range(-(-n // len(code)))]
    return code[np.concatenate([*rounds, np.empty(0, int)])[:n]]


def held_out_null(
    extra_KBm: ArrayLike,
    code_NK: ArrayLike,
    kind_N: ArrayLike | None = None,
    *,
    group_m: ArrayLike | None = None,
    seed: int = 0,
) -> ScoreNull:
    """Return the null (p2) of single items.

    Args:
        extra_KBm: (K, B, m) scores of m held-out items under each member, as additions.
        code_NK: (N, K) words of the candidates.
        kind_N: (N,) kinds of the candidates, `Candidates.kind_N`: units of different weights, or of different groups
            of a hierarchical code. Every kind is compared with all held-out items under words of this kind.
        group_m: (m,) groups of the held-out items, if the kinds are groups: units of a group are then only compared
            with its own held-out items, which is right if groups differ in what their items look like.
        seed: seed of the words.

    Raises:
        ValueError: as `unseen_scores`; a group without held-out items.
    """
    code = table(code_NK, "code_NK", "NK")
    scores = np.asarray(extra_KBm)
    kinds = np.zeros(len(code), int) if kind_N is None else np.asarray(kind_N)
    groups = None if group_m is None else np.asarray(group_m)
    if kinds.shape != (len(code),) or scores.ndim != 3 or (groups is not None and groups.shape != scores.shape[2:]):
        raise ValueError(
            f"extra_KBm {scores.shape}, {len(code)} words, kinds {kinds.shape}, groups of held-out items "
            f"{None if groups is None else groups.shape}: expected (K, B, m), a kind for each word, a group for each "
            "of the m items"
        )
    parts, kind_L = [], []
    for number, kind in enumerate(np.unique(kinds)):
        of_kind = np.arange(scores.shape[2]) if groups is None else np.flatnonzero(groups == kind)
        if not len(of_kind):
            raise ValueError(f"no held-out item for kind {kind}: hold out items of every group, or leave out group_m")
        words = random_words(code[kinds == kind], len(of_kind), int(derive_key(seed, number)) % 2**31)
        parts.append(unseen_scores(scores[:, :, of_kind], words))
        kind_L.append(np.full(len(of_kind), kind))
    return ScoreNull(np.concatenate(parts, axis=1), np.concatenate(kind_L))


def random_groups_null(item_scores_Bn: ArrayLike, sizes: ArrayLike, draws: int = 999, *, seed: int = 0) -> ScoreNull:
    """Return the null (p3) of groups; the kind of a group is its number of items.

    Args:
        item_scores_Bn: (B, n) scores of all items, each by the members that did not see its own unit: `unseen_scores`
            with ``comparable=True``. The scores of the groups are sums of these, times `group_factors`.
        sizes: numbers of items of the groups; a size may occur several times.
        draws: random groups of each size.
        seed: seed of the random groups.

    Raises:
        ValueError: sizes outside of 1 .. n; fewer than 1 draw; NaN.
    """
    scores = table(item_scores_Bn, "item_scores_Bn", "Bn")
    n, size_S = scores.shape[1], np.unique(np.asarray(sizes))
    if not len(size_S) or size_S.dtype.kind not in "iu" or size_S[0] < 1 or size_S[-1] > n:
        raise ValueError(f"sizes={np.asarray(sizes).tolist()}: expected numbers of items, each in 1 .. {n}")
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least 1 random group of each size")
    groups = random_groups(np.random.default_rng(derive_key(seed, 6)), size_S, draws, np.arange(n))
    null_BL = np.stack([scores[:, items].sum(1) for items in groups], axis=1)
    return ScoreNull(null_BL, np.repeat(size_S.astype(np.int64), draws))


def random_groups(
    rng: np.random.Generator, sizes: ArrayLike, draws: int, among: Int[np.ndarray, " n"]
) -> list[Int[np.ndarray, " m"]]:
    """Return ``draws`` random groups, in order, of the given elements for each size; time and memory are their sizes'.

    >>> [len(group) for group in random_groups(np.random.default_rng(0), [2, 3], 2, np.arange(10**9, 10**9 + 5))]
    [2, 2, 3, 3]
    """
    return [
        np.sort(among[rng.choice(len(among), int(size), replace=False, shuffle=False)])
        for size in np.asarray(sizes).tolist()
        for _ in range(draws)
    ]


def in_out_difference(scores_KBN: ArrayLike, words_NK: ArrayLike) -> InOutDifference:
    """Return (p5) of units, or of held-out items with `random_words`; arguments and errors as in `unseen_scores`.

    Where all or none of the members saw a unit, its difference is NaN.

    >>> scores = np.array([[[1.0]], [[3.0]], [[7.0]], [[9.0]]])
    >>> found = in_out_difference(scores, [[0, 0, 1, 1]])
    >>> found.difference_BN.tolist(), found.error_BN.round(3).tolist()
    ([[6.0]], [[1.414]])
    """
    words = _checked(scores_KBN, words_NK)
    scores = np.asarray(scores_KBN)
    found = [
        mean_difference(table(scores[:, b], f"scores of query {b}", "KN").T, words, ~words)
        for b in range(scores.shape[1])
    ]
    return InOutDifference(np.stack([one.value_N for one in found]), np.stack([one.error_N for one in found]))


def _checked(scores_KBN: ArrayLike, words_NK: ArrayLike) -> np.ndarray:
    """Return the words as booleans, after checking that they fit the scores."""
    words = table(words_NK, "words_NK", "NK")
    N, K = words.shape
    shape = np.shape(unmasked(scores_KBN, "scores"))
    if len(shape) != 3 or (shape[0], shape[2]) != (K, N):
        raise ValueError(f"scores have shape {shape}: expected ({K}, B, {N}), for words of {N} units and {K} members")
    return words > 0
