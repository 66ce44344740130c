"""Shapley and Banzhaf values of groups, from R or G, without new model calls.

In this game of n groups of units, ``v(U)`` is the effect of removing the groups U together, the score (6) or (7) of the
members that survive U; ``v({}) = 0``. The value of a group g is its mean marginal effect ``v(U + g) - v(U)`` over
coalitions U of other groups that are already removed:

(v1) Shapley: the size of U is uniform over 0 .. n - 1, and U is a random coalition of this size. The values sum to
     ``v(all groups)``.
(v2) Banzhaf with probability r: each other group is removed with probability r; r = 1/2 is the value of Banzhaf (1965).

If no member survives a coalition, the ensemble predicts nothing, ``w = 0``, whose score (``empty``) is also known. With
balanced codes of weight K/2, removing a few groups leaves no member: the values then mainly show which group removes
the last member. ``on_empty="skip"`` averages only over coalitions that leave a member, with and without the group.

Values of up to `EXACT_GROUPS` groups are computed from all 2^n coalitions; values of more groups, by sampling. The
standard error combines the error of sampling coalitions with the error of the draws behind R, whose blocks are valued
one by one.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.forms import evaluate, gram_forms, loss_forms
from ensdiff.attribution.loss import LossMatrix
from ensdiff.codes import Code
from ensdiff.ensemble.ensemble import member_weights
from ensdiff.metrics.arrays import table
from ensdiff.typing import ArrayLike

EXACT_GROUPS = 12


class GroupValues(NamedTuple):
    """Values of n groups for each sample, in the score's units.

    Args:
        value_BG: positive if removing the group moves the sample (6), or raises its loss (7), on average.
        standard_error_BG: standard errors of the values; 0 if all coalitions were used and nothing was drawn.
        kind: ``"shapley"`` or ``"banzhaf"``.
        exact: whether all coalitions were used.
        used_G: share of coalitions that were averaged; below 1 only with ``on_empty="skip"``.
    """

    value_BG: Float[np.ndarray, "B G"]
    standard_error_BG: Float[np.ndarray, "B G"]
    kind: str
    exact: bool
    used_G: Float[np.ndarray, " G"]


def group_values(
    estimate: LossMatrix | ArrayLike,
    code: Code,
    groups: Sequence[Any] | None = None,
    *,
    kind: Literal["shapley", "banzhaf"] = "shapley",
    removed: float | None = None,
    on_empty: Literal["baseline", "skip"] = "baseline",
    weights_K: ArrayLike | None = None,
    coalitions: int = 2000,
    seed: int = 0,
) -> GroupValues:
    """Return Shapley or Banzhaf values of groups of units.

    Args:
        estimate: R of images, from `loss_matrix`; or G of samples, from `gram`.
        code: the code whose units form the groups.
        groups: a list of unit ids, or of sets of ids, one for each group; by default every unit is a group. Values
            are in the order of this list.
        kind: ``"shapley"`` (v1) or ``"banzhaf"`` (v2).
        removed: r of (v2), by default 1/2; only for ``"banzhaf"``.
        on_empty: how to treat coalitions that leave no member. ``"baseline"``: the prediction is 0; ``"skip"``: leave
            these coalitions out.
        weights_K: the weights that the samples were generated with, for G; by default 1/K.
        coalitions: coalitions drawn per group (Banzhaf), or orders of all groups drawn (Shapley), if there are more
            than `EXACT_GROUPS` groups.
        seed: seed of these draws.

    Raises:
        ValueError: unknown options; a matrix that is not finite or does not fit the code; with ``"skip"``, a group
            whose removal alone leaves no member.

    >>> values = ensdiff.group_values(ensdiff.gram(params, samples), code, groups=[0, 1, {2, 3}])
    >>> values.value_BG.shape, values.exact
    ((2, 3), True)
    """
    if kind not in ("shapley", "banzhaf"):
        raise ValueError(f"kind={kind!r}: expected 'shapley' or 'banzhaf'")
    if on_empty not in ("baseline", "skip"):
        raise ValueError(f"on_empty={on_empty!r}: expected 'baseline' or 'skip'")
    if removed is not None and kind != "banzhaf":
        raise ValueError(f"removed={removed} is for kind='banzhaf', not {kind!r}: leave it out")
    removed = 0.5 if removed is None else removed
    if not 0 < removed < 1:
        raise ValueError(f"removed={removed}: expected a probability between 0 and 1")
    if coalitions < 2:
        raise ValueError(f"coalitions={coalitions}: expected at least 2, whose spread is the error bar")
    candidates = Candidates.of(code, groups)
    n = len(candidates)
    word_GK = candidates.words(np.arange(n)).astype(bool)
    game = _Game(estimate, code, weights_K, on_empty == "skip")
    exact = n <= EXACT_GROUPS
    draw = (_all_coalitions if exact else _sampled_coalitions)(n, kind, removed, coalitions, seed)
    sums_FG, squares_BG = np.zeros((game.forms, n)), np.zeros((game.samples, n))
    mass_G, count_G, square_mass_G = np.zeros(n), np.zeros(n), np.zeros(n)
    for group, coalition_CG, weight_C in draw:
        marginal_FC, valid_C = game.marginals(coalition_CG, group, word_GK)
        weight_C = weight_C * valid_C
        sums_FG[:, group] += marginal_FC @ weight_C
        squares_BG[:, group] += np.square(game.mean(marginal_FC)) @ weight_C
        mass_G[group] += weight_C.sum()
        square_mass_G[group] += np.square(weight_C).sum()
        count_G[group] += len(weight_C)
    total_G = np.ones(n) if exact else count_G
    if (mass_G == 0).any():
        raise ValueError(
            f"no coalition with group {int(np.flatnonzero(mass_G == 0)[0])} leaves a member: use a smaller weight, "
            "more members, a smaller `removed`, or on_empty='baseline'"
        )
    value_FG = sums_FG / mass_G
    value_BG = game.mean(value_FG)
    variance_BG = np.zeros_like(value_BG)
    if not exact:  # of a mean of draws of equal weight
        variance_BG = np.maximum(squares_BG / mass_G - np.square(value_BG), 0) * square_mass_G / np.square(mass_G)
    return GroupValues(value_BG, np.sqrt(variance_BG + game.draws_variance(value_FG)), kind, exact, mass_G / total_G)


class _Game:
    """The game v of every form: one form per sample or, if R was drawn, per block of draws and sample."""

    def __init__(self, estimate: Any, code: Code, weights_K: Any, skip: bool):
        K = code.members
        w = np.full(K, 1.0 / K) if weights_K is None else member_weights(weights_K, K, "weights_K")
        self.skip = skip
        if isinstance(estimate, LossMatrix):
            J, B = estimate.blocks_JBKK.shape[:2]
            blocks = table(estimate.blocks_JBKK, "the loss matrices", "JBKK").reshape(J * B, K, K)
            self.form = loss_forms(blocks, w)
            self.empty_F = estimate.empty_JB.reshape(-1) - np.einsum("k,fkl,l->f", w, blocks, w)
        else:
            grams = table(estimate, "the Gram matrices", "BKK")
            if grams.shape[1:] != (K, K):
                raise ValueError(f"the Gram matrices have shape {grams.shape}: expected (B, {K}, {K}) for this code")
            J, B = 1, len(grams)
            self.form = gram_forms(grams, w)
            self.empty_F = np.sqrt(np.maximum(np.einsum("k,fkl,l->f", w, grams, w), 0))
        self.blocks, self.samples, self.forms = J, B, J * B

    def mean(self, of_FX: np.ndarray) -> np.ndarray:
        """Return the (B, X) mean over the blocks."""
        return of_FX.reshape(self.blocks, self.samples, -1).mean(0)

    def draws_variance(self, value_FG: np.ndarray) -> np.ndarray:
        """Return the (B, G) variance of the mean over the blocks of draws; 0 with one block."""
        if self.blocks == 1:
            return np.zeros((self.samples, value_FG.shape[1]))
        return value_FG.reshape(self.blocks, self.samples, -1).var(0, ddof=1) / self.blocks

    def marginals(self, coalition_CG: np.ndarray, group: int, word_GK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ``v(U + g) - v(U)`` of each coalition, and whether the coalition is averaged."""
        dropped_CK = (coalition_CG.astype(np.float32) @ word_GK.astype(np.float32)) > 0
        more_CK = dropped_CK | word_GK[group]
        valid_C = ~more_CK.all(1) if self.skip else np.ones(len(more_CK), bool)
        return self._scores(more_CK) - self._scores(dropped_CK), valid_C

    def _scores(self, dropped_CK: Bool[np.ndarray, "C K"]) -> Float[np.ndarray, "F C"]:
        alive = ~dropped_CK.all(1)
        out = np.repeat(self.empty_F[:, None], len(dropped_CK), axis=1)
        words, place = np.unique(dropped_CK[alive], axis=0, return_inverse=True)  # few distinct words
        out[:, alive] = evaluate(self.form, words.astype(np.uint8))[:, place.reshape(-1)]
        return out


def _all_coalitions(n: int, kind: str, removed: float, _coalitions: int, _seed: int):
    """Yield for every group all coalitions of other groups, with their probabilities."""
    number = np.arange(2 ** (n - 1))
    others = ((number[:, None] >> np.arange(n - 1)) & 1).astype(bool)
    size = others.sum(1)
    if kind == "shapley":
        weight = np.array([1 / (n * math.comb(n - 1, s)) for s in range(n)])[size]
    else:
        weight = removed**size * (1 - removed) ** (n - 1 - size)
    for group in range(n):
        yield group, np.insert(others, group, False, axis=1), weight


def _sampled_coalitions(n: int, kind: str, removed: float, coalitions: int, seed: int):
    rng = np.random.default_rng(seed)
    if kind == "shapley":
        rank = np.argsort(np.argsort(rng.random((coalitions, n)), axis=1), axis=1)
        for group in range(n):
            yield group, rank < rank[:, group : group + 1], np.ones(coalitions)
        return
    for group in range(n):
        coalition = rng.random((coalitions, n)) < removed
        coalition[:, group] = False
        yield group, coalition, np.ones(coalitions)
