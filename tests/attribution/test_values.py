"""Shapley and Banzhaf values against explicit implementations of their definitions."""

import functools
import itertools
import math

import numpy as np
import pytest

from ensdiff.attribution.loss import LossMatrix
from ensdiff.attribution.values import group_values
from ensdiff.codes import Code

CODE = Code.balanced(8, 5, 2, seed=4)


def estimate_of(rng, blocks=3, samples=2, members=8):
    errors = rng.normal(size=(blocks, samples, members, 20))
    return LossMatrix(
        np.einsum("jbkf,jblf->jbkl", errors, errors).astype(np.float32), rng.random((blocks, samples)) * 50, 96
    )


def value_of(R, empty, code, groups, members=8):
    """Return v of a coalition of removed groups, from the definition."""

    @functools.cache
    def score(coalition):
        units = [i for g in coalition for i in np.atleast_1d(groups[g])]
        kept = [k for k in range(members) if not any(code.rows(i)[0, k] for i in units)]
        w = np.full(members, 1 / members)
        if not kept:
            return empty - w @ R @ w
        row = np.array([1 / len(kept) if k in kept else 0.0 for k in range(members)])
        return row @ R @ row - w @ R @ w

    return lambda coalition: score(frozenset(coalition))


def shapley_by_orders(v, n):
    out = np.zeros(n)
    for order in itertools.permutations(range(n)):
        for place, group in enumerate(order):
            out[group] += v(order[: place + 1]) - v(order[:place])
    return out / math.factorial(n)


def banzhaf_by_subsets(v, n, removed):
    out = np.zeros(n)
    for group in range(n):
        others = [g for g in range(n) if g != group]
        for size in range(n):
            for subset in itertools.combinations(others, size):
                weight = removed**size * (1 - removed) ** (n - 1 - size)
                out[group] += weight * (v((*subset, group)) - v(subset))
    return out


@pytest.mark.parametrize("groups", [None, [0, {1, 2}, 3, 4]])
def test_exact_values_against_their_definitions(rng, groups):
    estimate = estimate_of(rng)
    entries = list(range(5)) if groups is None else [0, [1, 2], 3, 4]
    n = len(entries)
    shapley = group_values(estimate, CODE, groups)
    banzhaf = group_values(estimate, CODE, groups, kind="banzhaf", removed=0.3)
    assert shapley.exact
    for b in range(2):
        v = value_of(estimate.mean_BKK[b], estimate.empty_JB[:, b].mean(), CODE, entries)
        np.testing.assert_allclose(shapley.value_BG[b], shapley_by_orders(v, n), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(banzhaf.value_BG[b], banzhaf_by_subsets(v, n, 0.3), rtol=1e-5, atol=1e-6)
        assert shapley.value_BG[b].sum() == pytest.approx(v(range(n)), rel=1e-5)  # the efficiency of Shapley values


def test_values_are_in_the_order_of_the_groups(rng):
    gram = estimate_of(rng).mean_BKK
    given = group_values(gram, CODE, [4, 0, 3])
    np.testing.assert_array_equal(given.value_BG, group_values(gram, CODE, [{4}, {0}, {3}]).value_BG)
    in_order = group_values(gram, CODE, [0, 3, 4])
    np.testing.assert_allclose(given.value_BG, in_order.value_BG[:, [2, 0, 1]], rtol=1e-9)
    assert (np.diff(np.sort(given.value_BG)) != 0).all()  # all values differ, so that their order can be checked


def test_error_is_that_of_the_blocks_where_all_coalitions_are_used(rng):
    estimate = estimate_of(rng)
    single = [
        group_values(LossMatrix(estimate.blocks_JBKK[j : j + 1], estimate.empty_JB[j : j + 1], 32), CODE).value_BG
        for j in range(3)
    ]
    whole = group_values(estimate, CODE)
    np.testing.assert_allclose(whole.value_BG, np.mean(single, 0), rtol=1e-6)
    np.testing.assert_allclose(whole.standard_error_BG, np.std(single, 0, ddof=1) / np.sqrt(3), rtol=1e-5)


@pytest.mark.parametrize("kind", ["shapley", "banzhaf"])
def test_sampled_values_agree_within_their_errors(rng, monkeypatch, kind):
    tangent = rng.normal(size=(2, 8, 30))
    gram = tangent @ tangent.transpose(0, 2, 1)
    exact = group_values(gram, CODE, kind=kind, on_empty="skip")
    assert (exact.standard_error_BG == 0).all()
    monkeypatch.setattr("ensdiff.attribution.values.EXACT_GROUPS", 0)
    sampled = group_values(gram, CODE, kind=kind, on_empty="skip", coalitions=4000)
    assert not sampled.exact
    distance = np.abs(sampled.value_BG - exact.value_BG) / sampled.standard_error_BG
    assert distance.max() < 4.5
    assert distance.mean() > 0.1  # the standard errors are not just too large
    np.testing.assert_allclose(sampled.used_G, exact.used_G, atol=0.05)


def test_a_group_that_does_nothing_has_no_value(rng):
    """If all members are alike in R, groups of equal size get equal values."""
    code = Code.from_matrix([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    R = np.eye(4)[None] + 1.0  # all members are alike
    values = group_values(R, code, on_empty="skip")
    np.testing.assert_allclose(values.value_BG[0], values.value_BG[0, 0])
    nothing = group_values(np.ones((1, 4, 4)), code, on_empty="skip")
    np.testing.assert_allclose(nothing.value_BG, 0, atol=1e-7)


@pytest.mark.parametrize(("options", "message"), [
    (dict(kind="owen"), "'shapley' or 'banzhaf'"),
    (dict(on_empty="zero"), "'baseline' or 'skip'"),
    (dict(removed=1.0, kind="banzhaf"), "between 0 and 1"),
    (dict(removed=0.5), "for kind='banzhaf', not 'shapley'"),
    (dict(coalitions=1), "at least 2"),
    (dict(groups=[0, 0, 1]), "unit 0 is given 2 times"),
    (dict(groups=[{0, 1}, [1, 0]]), "is given 2 times"),
    (dict(groups={0: [1, 2], 1: [3, 4]}), "a dict has no order of entries"),
    (dict(groups={0, 3}), "a set has no order of entries"),
    (dict(groups=[{0: 1}, 3]), "are a mapping"),
    (dict(weights_K=np.ones(8)), "weights_K sum to 8"),
])  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        group_values(np.eye(8)[None], CODE, **options)


def test_matrices_that_are_refused(rng):
    for value, message in ((np.nan, r"Gram matrices holds NaN or infinity at \(1, 3, 4\)"), (np.ma.masked, "1 of 128")):
        gram = np.ma.array(rng.normal(size=(2, 8, 8)))
        gram[1, 3, 4] = value
        with pytest.raises(ValueError, match=message):
            group_values(gram, CODE)
    with pytest.raises(ValueError, match=r"\(2, 4, 4\): expected \(B, 8, 8\)"):
        group_values(np.zeros((2, 4, 4)), CODE)
