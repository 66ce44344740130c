"""The null of gradient scores: uniform p-values in exchangeable worlds with real kernels; planted effects are found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ensdiff.attribution.calibration import Calibration
from ensdiff.attribution.conformal import (
    comparable_part,
    group_factors,
    held_out_null,
    in_out_difference,
    random_groups,
    random_groups_null,
    random_words,
    unseen_scores,
)
from ensdiff.attribution.gradients.member_kernel import MemberKernel
from ensdiff.attribution.gradients.targets import _random_sets
from ensdiff.codes import Code

SEEDS = st.integers(0, 10_000)


def words(rng, N, K):
    return (np.argsort(rng.random((N, K)), axis=1) < K // 2).astype(np.uint8)


def kernel_scores(phi_KnD, other_KmD, query_KBD, code_NK, ridge=0.01):
    """Return the scores of items and of held-out items under each member, with the kernels of the library."""
    kernels = [MemberKernel(phi, code_NK[:, k] > 0) for k, phi in enumerate(phi_KnD)]
    items = [kernel.scores(query, ridge) for kernel, query in zip(kernels, query_KBD, strict=True)]
    others = [
        kernel.scores_of(query, other, ridge)
        for kernel, query, other in zip(kernels, query_KBD, other_KmD, strict=True)
    ]
    return np.stack(items), np.stack(others)


def world(rng, K=6, N=24, m=39, B=2, D=6, planted=None):
    """Return scores of units and held-out items, whose gradients are alike, and the code.

    Members see the items differently, and those that saw an item see it differently still. ``planted`` is a unit that
    the first query is a copy of.
    """
    code, sizes = words(rng, N, K), np.exp(rng.normal(size=(K, 1, 1)))
    item, base = rng.normal(size=(N + m, D)), rng.normal(size=(B, D))
    if planted is not None:
        base[0] = 3 * item[planted]
    phi = item + 0.3 * rng.normal(size=(K, N + m, D))
    phi[:, :N] *= 1 - 0.5 * code.T[:, :, None]  # smaller once it was learned
    query = sizes * (base + 0.3 * rng.normal(size=(K, B, D)))
    return *kernel_scores(phi[:, :N], phi[:, N:], query, code), code


def p_values(scores_BN, null, kind_N=None):
    kind_BN = None if kind_N is None else np.broadcast_to(kind_N, scores_BN.shape)
    return Calibration(*null).p_values(scores_BN, kind_BN)


@given(SEEDS, st.integers(2, 5), st.integers(1, 3), st.integers(1, 6))
def test_unseen_scores_and_differences_against_a_loop(seed, K, B, N):
    rng = np.random.default_rng(seed)
    scores, code = rng.normal(size=(K, B, N)), rng.integers(0, 2, (N, K))
    code[:, 0] = 0
    unseen, found = unseen_scores(scores, code), in_out_difference(scores, code)
    for b in range(B):
        for i in range(N):
            inside, outside = ([scores[k, b, i] for k in range(K) if code[i, k] == kind] for kind in (1, 0))
            assert unseen[b, i] == pytest.approx(np.mean(outside))
            if inside:
                assert found.difference_BN[b, i] == pytest.approx(np.mean(inside) - np.mean(outside))
            else:
                assert np.isnan(found.difference_BN[b, i])
            if min(len(inside), len(outside)) > 1:
                error = np.sqrt(np.var(inside, ddof=1) / len(inside) + np.var(outside, ddof=1) / len(outside))
                assert found.error_BN[b, i] == pytest.approx(error)
                assert found.t_BN[b, i] == pytest.approx(found.difference_BN[b, i] / error)
            else:
                assert np.isnan(found.error_BN[b, i])


@pytest.mark.slow
def test_p_values_are_uniform_if_queries_depend_on_no_unit():
    """One unit and query of each of 120 worlds, with the library's kernels; by all members they are not uniform."""
    rng, unseen, naive = np.random.default_rng(0), [], []
    for _ in range(120):
        items, others, code = world(rng, B=1)
        null = held_out_null(others, code, seed=int(rng.integers(10**6)))
        unseen.append(p_values(unseen_scores(items, code), null)[0, 0])
        naive.append(p_values(np.abs(items.mean(0)), (np.abs(others.mean(0)), np.zeros(39, int)))[0, 0])
    assert stats.kstest(unseen, "uniform").pvalue > 0.02
    assert stats.kstest(naive, "uniform").pvalue < 1e-3


def test_planted_copies_are_found():
    rng, found, others_found = np.random.default_rng(1), [], []
    for _ in range(20):
        items, others, code = world(rng, m=99, D=12, planted=5)
        p = p_values(unseen_scores(items, code), held_out_null(others, code))
        found.append(p[0, 5])
        others_found.append(p[1, 5])
    assert np.mean(found) < 0.06
    assert np.mean(others_found) > 0.3  # the second query is no copy


def test_the_words_of_held_out_items_are_like_those_of_units(rng):
    code = Code.from_matrix([[1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]]).matrix()
    drawn = random_words(code, 300, seed=3)
    counts = [(drawn == word).all(1).sum() for word in code]
    assert counts == [100, 100, 100]
    assert random_words(code, 2).shape == (2, 4)
    assert random_words(code, 0).shape == (0, 4)
    assert (random_words(code, 5, seed=1) == random_words(code, 5, seed=1)).all()


def test_kinds_have_nulls_of_their_own(rng):
    """Units of a hierarchical code are compared with held-out items under words of their group."""
    code = Code.hierarchical(8, np.arange(30) // 10, group_weight=6)
    groups, extra = code.group_of_unit(), rng.normal(size=(8, 2, 12))
    null = held_out_null(extra, code.matrix(), groups)
    np.testing.assert_array_equal(null.kind_L, np.repeat([0, 1, 2], 12))
    # members that saw nothing of the group score every held-out item
    extra[:] = np.arange(8)[:, None, None]
    null = held_out_null(extra, code.matrix(), groups, group_m=np.arange(12) % 3)
    assert null.null_BL.shape == (2, 12)
    for kind in range(3):
        words = code.rows(np.flatnonzero(groups == kind))
        possible = {np.mean(np.flatnonzero(word == 0)).round(9) for word in words}
        assert set(null.null_BL[:, null.kind_L == kind].ravel().round(9)) <= possible
        assert (null.kind_L == kind).sum() == 4
    with pytest.raises(ValueError, match="no held-out item for kind 2"):
        held_out_null(extra, code.matrix(), groups, group_m=np.arange(12) % 2)
    p = p_values(rng.normal(size=(2, 30)), null, groups)
    assert p.min() >= 1 / 5


@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_groups_are_compared_with_random_groups(effect):
    rng, p, q = np.random.default_rng(2), [], []
    group_of_item = np.repeat([0, 1, 2, 3], [4, 8, 8, 12])
    for _ in range(60):
        scores = rng.normal(size=(1, 32)) + effect * (group_of_item == 1)
        sums = np.stack([scores[:, group_of_item == g].sum(1) for g in range(4)], axis=1)
        null = random_groups_null(scores, [4, 8, 8, 12], 99, seed=int(rng.integers(10**6)))
        found = p_values(sums, null, np.array([4, 8, 8, 12]))[0]
        p.append(found[1])
        q.append(found[0])
    if effect:
        assert np.mean(np.array(p) <= 0.05) > 0.95
    else:
        assert stats.kstest(p, "uniform").pvalue > 0.02
        assert stats.kstest(q, "uniform").pvalue > 0.02


def grouped_world(rng, K, units, m):
    """Return scores (K, 1, n) of items that matter to no query, and the words of items: m of each unit.

    Members differ in the level and the size of their scores, agree on a part of each item's score, and each has two
    directions of its own.
    """
    n = units * m
    own_Kn = 0.7 * rng.normal(size=(K, 2)) @ rng.normal(size=(2, n)) + rng.normal(size=(K, n))
    scores_Kn = np.exp(0.5 * rng.normal(size=(K, 1))) * (2 * rng.normal(size=(K, 1)) + rng.normal(size=n) + own_Kn)
    return scores_Kn[:, None], np.repeat(words(rng, units, K), m, axis=0)


def group_p_values(rng, scores, word_nK, m, comparable, effect=0.0):
    """Return the p-values of groups of m items, the first of which has an effect (in standard deviations of items)."""
    n = len(word_nK)
    scores = scores.copy()
    scores[:, :, :m] += effect * scores.std(-1, keepdims=True)
    item_Bn = unseen_scores(scores, word_nK, comparable=comparable)
    sums_BG = item_Bn.reshape(1, -1, m).sum(-1)
    if comparable:
        unseen_G = [np.mean((word_nK == 0).sum(0)[word == 0]) for word in word_nK[::m]]
        sums_BG = sums_BG * group_factors(np.full(n // m, m), unseen_G, n)
    return p_values(sums_BG, random_groups_null(item_Bn, [m], 199, seed=int(rng.integers(10**6))))[0]


@pytest.mark.parametrize(("K", "units", "m"), [(8, 120, 1), (8, 20, 10), (16, 10, 50), (16, 20, 50)])
def test_p_values_of_groups_are_uniform(K, units, m):
    """P(p <= .01) and the distribution, within the errors of 1,200 p-values; without (p3) they are far too small."""
    rng, comparable, plain = np.random.default_rng(m + K), [], []
    for _ in range(1200 // units):
        world_ = grouped_world(rng, K, units, m)
        comparable.append(group_p_values(rng, *world_, m, True))
        plain.append(group_p_values(rng, *world_, m, False))
    p, error = np.concatenate(comparable), np.sqrt(0.01 * 0.99 / 1200)
    assert (p <= 0.01).mean() < 0.01 + 2.5 * error
    if m > 1:  # each item is one of those that it is compared with, so p <= .01 needs some 100 items
        assert (p <= 0.01).mean() > 0.01 - 2.5 * error
        assert (np.concatenate(plain) <= 0.01).mean() > 0.03
    assert stats.kstest(p, "uniform").statistic < 0.05


@pytest.mark.parametrize(("m", "effect"), [(10, 1.5), (50, 1.0)])
def test_groups_with_an_effect_are_found(m, effect):
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        found.append(group_p_values(rng, *grouped_world(rng, 16, 20, m), m, True, effect)[0])
    assert np.mean(np.array(found) <= 0.01) > 0.9


def test_scores_that_a_member_gives_to_all_items_do_not_count(rng):
    """Neither a member's level nor its size changes the p-values of groups."""
    scores, word_nK = grouped_world(rng, 8, 12, 5)
    changed = (scores + rng.normal(size=(8, 1, 1))) * np.exp(rng.normal(size=(8, 1, 1)))
    one, other = (group_p_values(np.random.default_rng(0), found, word_nK, 5, True) for found in (scores, changed))
    np.testing.assert_array_equal(one, other)


def test_comparable_scores_against_a_loop(rng):
    scores, code = rng.normal(size=(4, 2, 6)), words(rng, 6, 4)
    expected = np.zeros((2, 6))
    for b in range(2):
        inside = [scores[k, b, code[:, k] == 0] for k in range(4)]
        for i in range(6):
            z = [(scores[k, b, i] - inside[k].mean()) / inside[k].std() for k in range(4) if not code[i, k]]
            expected[b, i] = np.mean(z) * np.mean([of_member.std() for of_member in inside])
    np.testing.assert_allclose(unseen_scores(scores, code, comparable=True), expected)
    equal = comparable_part(np.full((1, 3), 0.1), np.array([True, True, False]))
    assert not equal.scores_BN.any()
    assert not equal.size_B.any()
    assert not comparable_part(np.ones((1, 3)), np.zeros(3, bool)).scores_BN.any()


def test_the_factor_of_groups(rng):
    """The variance of sums over m of the items that a member did not see, against that over m of all items."""
    z_n, item_n = (rng.normal(size=n) for n in (40, 100))
    z_n, item_n = ((z - z.mean()) / z.std() for z in (z_n, item_n))
    own, of_all = (
        np.std([z[items].sum() for items in random_groups(rng, [15], 4000, np.arange(len(z)))]) for z in (z_n, item_n)
    )
    assert group_factors([15], [40], 100)[0] * own == pytest.approx(of_all, rel=0.04)


@pytest.mark.parametrize("by", ["items", "units"])
def test_sets_of_large_units_need_sets_of_as_many_items(by):
    """Sets of the three largest of 40 units, of 1 to 30 items, against random sets of as many items or units."""
    rng, p, K = np.random.default_rng(4), [], 16
    size_N = np.sort(np.r_[rng.integers(1, 6, 30), rng.integers(10, 31, 10)])
    for _ in range(150):
        word_NK = words(rng, 40, K)
        scores, _ = grouped_world(rng, K, int(size_N.sum()), 1)
        item_n = unseen_scores(scores, np.repeat(word_NK, size_N, axis=0), comparable=True)[0]
        unit_N = np.bincount(np.repeat(np.arange(40), size_N), item_n)
        if by == "items":
            sets = _random_sets(rng, int(size_N[-3:].sum()), 99, np.arange(40), size_N)
        else:
            sets = random_groups(rng, [3], 99, np.arange(40))
        null = np.array([[unit_N[units].sum() for units in sets]])
        p.append(p_values(unit_N[None, -3:].sum(1, keepdims=True), (null, np.zeros(99, int)))[0, 0])
    share = (np.array(p) <= 0.05).mean()
    assert share > 0.1 if by == "units" else 0.005 < share < 0.095  # within 2.5 standard errors of 0.05


def test_random_groups_against_a_loop(rng):
    scores = rng.normal(size=(2, 9))
    null = random_groups_null(scores, np.array([3, 1, 9, 3]), 5, seed=4)
    np.testing.assert_array_equal(null.kind_L, np.repeat([1, 3, 9], 5))
    assert np.isin(null.null_BL[:, :5].round(12), scores.round(12)).all()
    assert len(np.unique(null.null_BL[0, :10].round(9))) > 7
    np.testing.assert_allclose(null.null_BL[:, 10:], np.repeat(scores.sum(1, keepdims=True), 5, axis=1))
    sums = {round(scores[0, [a, b, c]].sum(), 9) for a in range(9) for b in range(a) for c in range(b)}
    assert set(null.null_BL[0, 5:10].round(9)) <= sums


def test_memorization_is_a_difference_between_members():
    """Without it, p-values of |t| are uniform; a unit whose score training changes is found."""
    rng, without, found = np.random.default_rng(3), [], []
    for _ in range(150):
        code, base = words(rng, 12, 8), 3 * rng.normal(size=(1, 12 + 40))
        scores = base + rng.normal(size=(8, 1, 12 + 40))
        scores[:, 0, 1] += 6 * code[1]
        null = in_out_difference(scores[..., 12:], random_words(code, 40, seed=int(rng.integers(10**6))))
        units = in_out_difference(scores[..., :12], code)
        p = p_values(np.abs(units.t_BN), (np.abs(null.t_BN), np.zeros(40, int)))
        without.append(p[0, 0])
        found.append(p[0, 1])
    assert stats.kstest(without, "uniform").pvalue > 0.02
    assert np.mean(np.array(found) <= 0.05) > 0.8


def test_degenerate_scores(rng):
    code = words(rng, 5, 4)
    zeros = np.zeros((4, 2, 5))
    assert (p_values(unseen_scores(zeros, code), held_out_null(np.zeros((4, 2, 7)), code)) == 1).all()
    assert (in_out_difference(zeros, code).t_BN == 0).all()


def test_refused(rng):
    scores, code = rng.normal(size=(4, 2, 5)), words(rng, 5, 4)
    with pytest.raises(ValueError, match="every member saw unit 3"):
        unseen_scores(scores, np.where(np.arange(5)[:, None] == 3, 1, code))
    with pytest.raises(ValueError, match=r"scores have shape \(4, 2, 5\): expected \(5, B, 4\)"):
        unseen_scores(scores, code.T)
    with pytest.raises(ValueError, match="scores of member 0 holds NaN"):
        unseen_scores(scores + np.nan, code)
    with pytest.raises(ValueError, match="scores of query 0 holds NaN"):
        in_out_difference(scores + np.nan, code)
    with pytest.raises(ValueError, match="masked"):
        unseen_scores(np.ma.masked_less(scores, 0), code)
    with pytest.raises(ValueError, match=r"kinds \(4,\)"):
        held_out_null(scores, code, np.zeros(4, int))
    for sizes in ([0, 1], [6], [1.5], []):
        with pytest.raises(ValueError, match=r"expected numbers of items, each in 1 \.\. 5"):
            random_groups_null(scores[0], np.array(sizes))
    with pytest.raises(ValueError, match="draws=0"):
        random_groups_null(scores[0], [1], 0)
