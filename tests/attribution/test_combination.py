"""Combination: against dense Gaussian algebra and loops, and in linear Gaussian worlds whose effects are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from ensdiff.attribution import combination, likelihood
from ensdiff.attribution.combination import Combination, combine, cosine_of_members, fit_combination
from ensdiff.attribution.judging import judge_scores
from ensdiff.attribution.likelihood import Profile

SEEDS = st.integers(0, 10_000)


def words(rng, N, K):
    return (np.argsort(rng.random((N, K)), axis=1) < K // 2).astype(np.uint8)


def world(rng, K, N, B, prior=0.6, data=0.7, common=0.3, spread=0.5):
    """Return effects, priors, outputs and the code of a linear Gaussian world.

    ``prior`` is the correlation of effects and priors, ``data`` the share of the losses' variance that is due to the
    data, ``common`` the share of the noise that all queries have in common, ``spread`` that of the queries' sizes.
    """
    size_B1 = np.exp(spread * rng.normal(size=(B, 1)))
    effect, code = rng.normal(size=(B, N)), words(rng, N, K)
    score = prior * effect + np.sqrt(1 - prior**2) * rng.normal(size=(B, N))
    noise = np.sqrt(1 - common) * rng.normal(size=(B, K)) + np.sqrt(common) * rng.normal(size=K)
    outputs = effect @ code + np.sqrt(N / 4 * (1 - data) / data) * noise
    return size_B1 * effect, 3 * size_B1 * score, 100 + size_B1 * outputs, code


def without_mean(K):
    return np.eye(K) - np.ones((K, K)) / K


def dense(fit: Combination, prior, residual, rows, covariance, sizes):
    """Return the posterior (c2) of effects whose covariances with the losses are ``tau^2 rows``, by plain algebra."""
    K = rows.shape[1]
    M = fit.ratio * covariance + np.eye(K)
    inverse = np.linalg.inv(M)
    one = np.ones(K)
    P = inverse - np.outer(inverse @ one, one @ inverse) / (one @ inverse @ one)
    q = np.einsum("bk,kl,bl->b", residual, P, residual)
    variance = q[:, None] / (K - 1) * fit.ratio * (sizes - fit.ratio * np.einsum("mk,kl,ml->m", rows, P, rows))
    mean = fit.beta * prior + fit.ratio * residual @ P @ rows.T
    return mean, np.sqrt((K - 1) / (K - 3) * variance)


def at(fit: Combination, ratio):
    """Return the fit with another rho, for means and errors."""
    freedom = len(fit.eigen_R)
    sigma_B = np.sqrt((fit.residual_BR**2 / (1 + ratio * fit.eigen_R)).sum(1) / freedom)
    return fit._replace(ratio=ratio, limit=ratio, sigma_B=sigma_B)


def near(a, b, size):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7 * np.max(size))


@given(SEEDS, st.integers(4, 7), st.integers(1, 4), st.integers(2, 9), st.sampled_from([0.01, 1.0, 30.0]))
def test_posterior_is_that_of_plain_algebra(seed, K, B, N, ratio):
    """Of units, of sets of units, and of units that are not in the code."""
    rng = np.random.default_rng(seed)
    _, score, outputs, code = world(rng, K, N, B)
    code[:2] = [np.arange(K) < 2, np.arange(K) > 1]  # never constant
    fit = at(combine(score, None, outputs, code).fit, ratio)
    rows = code.astype(float)
    residual, covariance = outputs - fit.beta * score @ rows, rows.T @ rows
    size = np.abs(outputs - outputs[:, :1]).max() + np.abs(fit.beta * score).max()
    sets = rng.integers(0, 2, (3, N))
    for prior, of, sizes in ((score, rows, np.ones(N)), (score @ sets.T, sets @ rows, sets.sum(1))):
        mean, error = dense(fit, prior, residual, of, covariance, sizes)
        ours = fit.posterior(prior, of, sizes)
        near(ours.mean_BN, mean, size)
        np.testing.assert_allclose(ours.error_BN**2, error**2, rtol=1e-6, atol=1e-9 * N * fit.tau_B.max() ** 2)

    extra = words(rng, 2, K).astype(float)
    outside = fit.posterior(np.zeros((B, 2)), extra, owned=False)
    H = without_mean(K)
    inverse = np.linalg.inv(ratio * H @ covariance @ H + np.eye(K))
    for m, row in enumerate(extra):
        mean, _ = dense(fit, np.zeros((B, 1)), residual, row[None], covariance + np.outer(row, row), np.ones(1))
        near(outside.mean_BN[:, m], mean[:, 0], size)
        variance = fit.tau_B**2 / (1 + ratio * row @ H @ inverse @ H @ row)
        np.testing.assert_allclose(outside.error_BN[:, m], np.sqrt((K - 1) / (K - 3) * variance), rtol=1e-6)


def test_the_likelihood_is_the_integral_over_the_noise(rng):
    """Differences of (c3) are those of the Gaussian density, integrated over sigma under the prior 1 / sigma^2."""
    z, p, eigen = rng.normal(size=(1, 5)), rng.normal(size=(1, 5)), np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    profile = Profile(z, p, eigen)

    def integral(ratio, beta):
        scale = np.sqrt(1 + ratio * eigen)

        def density(log_variance):
            return np.prod(stats.norm.pdf((z - beta * p)[0], scale=np.exp(log_variance / 2) * scale))

        return np.log(integrate.quad(density, -20, 20)[0])

    ratios = (0.0, 0.3, 2.0, 50.0)
    ours = [profile.at(ratio) for ratio in ratios]
    theirs = [integral(ratio, beta) for ratio, (_, beta) in zip(ratios, ours, strict=True)]
    np.testing.assert_allclose(np.diff([value for value, _ in ours]), np.diff(theirs), rtol=1e-4, atol=1e-5)


def test_the_fit_has_the_highest_likelihood(rng):
    _, score, outputs, code = world(rng, 12, 20, 10)
    fit = combine(score, None, outputs, code, level=1.0).fit
    z, p = outputs @ fit.basis_KR, (score @ code) @ fit.basis_KR

    def value(beta, ratio):
        variance = 1 + ratio * fit.eigen_R
        return -5 * np.log(variance).sum() - 5.5 * np.log(((z - beta * p) ** 2 / variance).sum(1)).sum()

    best = value(fit.beta, fit.ratio)
    assert best == pytest.approx(Profile(z, p, fit.eigen_R).at(fit.ratio).value)
    factors = (0.5, 0.9, 1, 1.1, 2)
    assert max(value(fit.beta * b, fit.ratio * r) for b in factors for r in factors) < best + 1e-9
    assert fit.gain == pytest.approx(best - Profile(z, p, fit.eigen_R).at(0.0).value)


def test_effects_are_covered():
    """In worlds of the model, 95 % intervals contain 95 % of the effects, and beta, tau and sigma are found.

    Queries differ in size, and 30 % of the noise is common to all of them.
    """
    rng = np.random.default_rng(0)
    covered, betas, taus, sigmas = [], [], [], []
    for _ in range(30):
        effect, score, outputs, code = world(rng, 16, 12, 20)
        found = combine(score, None, outputs, code)
        covered.append(np.mean(np.abs(found.mean_BN - effect) < 1.96 * found.error_BN))
        betas.append(found.fit.beta)
        size_B = np.sqrt(np.square(score).mean(1)) / 3
        taus.append(np.mean(found.fit.tau_B / size_B))
        sigmas.append(np.mean(found.fit.sigma_B / size_B))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    assert np.mean(betas) == pytest.approx(0.2, rel=0.05)  # scores are 3 times too large, their correlation is 0.6
    assert np.mean(taus) == pytest.approx(0.8, rel=0.1)
    assert np.mean(sigmas) == pytest.approx(np.sqrt(12 / 4 * 3 / 7), rel=0.1)


def correlation(a, b):
    return np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])


def test_members_improve_groups_and_leave_single_images_to_the_prior():
    rng = np.random.default_rng(1)
    effect, score, outputs, code = world(rng, 16, 10, 24, common=0)
    found = combine(score, None, outputs, code)
    assert found.fit.p_value <= 0.05
    assert correlation(found.mean_BN, effect) > correlation(score, effect) + 0.15

    effect, score, outputs, code = world(rng, 16, 400, 24, data=0.3, common=0)
    found = combine(score, None, outputs, code)
    assert found.fit.ratio == 0
    np.testing.assert_allclose(found.mean_BN, found.fit.beta * score)
    assert np.mean(np.abs(found.mean_BN - effect) < 1.96 * found.error_BN) > 0.95  # bounds
    always = combine(score, None, outputs, code, level=1.0)
    assert correlation(always.mean_BN, effect) < correlation(score, effect) + 0.02  # nothing was given up


def test_the_prior_is_left_as_the_noise_grows():
    weight = []
    for data in (0.99, 0.5, 0.01):
        _, score, outputs, code = world(np.random.default_rng(2), 16, 10, 24, data=data)
        weight.append(combine(score, None, outputs, code).fit.ratio)
    assert weight[0] > weight[1] > weight[2] == 0


def test_noise_that_queries_share_is_no_evidence():
    """If the prior holds the effects themselves, p-values are uniform, though the queries' noise is 90 % common."""
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(80):
        effect, _, outputs, code = world(rng, 8, 10, 8, common=0.9, data=0.5)
        p_values.append(fit_combination(effect @ code, outputs, code).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) < 0.12


def test_without_a_prior_the_members_are_all_there_is(rng):
    effect, score, outputs, code = world(rng, 16, 10, 24)
    for nothing in (0 * score, -score, rng.normal(size=score.shape) * (code.sum() < 0)):
        found = combine(nothing, None, outputs, code)
        assert found.fit.beta == 0
        assert correlation(found.mean_BN, effect) > 0.6
    many = combine(np.zeros((2, 300)), None, outputs[:2], words(rng, 300, 16))
    assert (np.ptp(many.mean_BN, axis=1) > 0).all()


def held_out_by_loop(fit, predicted, outputs, code):
    """Return (c4) by fitting each posterior without a member: (C theta)_k, C centred, theta of the other members."""
    K = outputs.shape[1]
    rows = code.astype(float)
    centred = rows - rows.mean(1, keepdims=True)
    out = fit.beta * (predicted - predicted.mean(1, keepdims=True))
    for k in range(K):
        others = np.delete(np.arange(K), k)
        part, one = rows[:, others], np.ones(K - 1)
        inverse = np.linalg.inv(fit.ratio * part.T @ part + np.eye(K - 1))
        P = inverse - np.outer(inverse @ one, one @ inverse) / (one @ inverse @ one)
        residual = (outputs - fit.beta * predicted)[:, others]
        out[:, k] += fit.ratio * residual @ P @ part.T @ centred[:, k]
    return out


def test_held_out_against_a_loop(rng):
    _, score, outputs, code = world(rng, 10, 8, 5, data=0.9)
    fit = combine(score, None, outputs, code, level=1.0).fit
    assert fit.ratio > 0
    expected = held_out_by_loop(fit, score @ code, outputs, code)
    np.testing.assert_allclose(fit.held_out(), expected, atol=1e-8 * np.abs(expected).max())


def test_held_out_is_no_trick():
    """With noise for losses, predictions without a member are as often right as wrong about it."""
    rng, found = np.random.default_rng(4), []
    for _ in range(40):
        code = words(rng, 10, 8)
        outputs = rng.normal(size=(6, 8))
        fit = combine(np.zeros((6, 10)), None, outputs, code, level=1.0).fit
        fit = fit._replace(ratio=0.3)
        predicted = fit.held_out()
        found.append(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted, outputs, strict=True)]))
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_members_judge_the_combination_above_its_prior(rng):
    _, score, outputs, code = world(rng, 24, 10, 20)
    fit = combine(score, None, outputs, code).fit
    x, y = fit.held_out(), outputs
    combined = np.mean([stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert combined > judge_scores(score, outputs, code, resamples=0).lds.value + 0.05


@given(SEEDS, st.floats(1e-6, 1e6))
def test_units_and_levels_of_losses_and_scores(seed, scale):
    rng = np.random.default_rng(seed)
    _, score, outputs, code = world(rng, 6, 5, 4)
    first = combine(score, None, outputs, code, level=1.0)
    second = combine(score / scale, None, scale * (outputs - outputs[:, :1]) + 7 * scale, code, level=1.0)
    assert second.fit.p_value == pytest.approx(first.fit.p_value, abs=0.02)
    if (second.fit.ratio > 0) == (first.fit.ratio > 0):
        size = scale * np.abs(first.mean_BN).max()
        np.testing.assert_allclose(second.mean_BN, scale * first.mean_BN, atol=1e-3 * size)


@pytest.mark.parametrize(("K", "N", "share"), [(16, 8, 1.0), (16, 30, 0.5), (16, 256, 1.0), (64, 300, 0.3)])
def test_k_losses_cannot_order_n_units(rng, K, N, share):
    """The contrast has a cosine of sqrt(K / (K + N / r)) with the effects, and the posterior mean is little better."""
    contrast, posterior = [], []
    for _ in range(10):
        effect, _, outputs, code = world(rng, K, N, 20, data=share, common=0, spread=0)
        rows = code - code.mean(1, keepdims=True)
        mean = combine(0 * effect, None, outputs, code).mean_BN
        lengths = np.linalg.norm(effect, axis=1)
        for found, cosines in ((outputs @ rows.T, contrast), (mean, posterior)):
            cosines.append(np.mean((found * effect).sum(1) / lengths / np.linalg.norm(found, axis=1)))
    law = cosine_of_members(K, N, share)
    assert np.mean(contrast) == pytest.approx(law, abs=0.04)
    bound = 1.0 if K > N else np.sqrt((K - 1) / N)
    assert law - 0.04 < np.mean(posterior) < bound + 0.02
    if share == 1:
        assert np.mean(posterior) == pytest.approx(bound, abs=0.03)


def test_codes_and_permutations_are_read_in_chunks(rng, monkeypatch):
    _, score, outputs, code = world(rng, 6, 11, 3)
    whole = combine(score, None, outputs, code)
    monkeypatch.setattr(combination, "CHUNK", 4)
    monkeypatch.setattr(likelihood, "PERMUTED", 1)
    parts = combine(score, None, outputs, code)
    np.testing.assert_array_equal(parts.mean_BN, whole.mean_BN)
    assert parts.fit.p_value == whole.fit.p_value


def test_degenerate_worlds(rng):
    _, score, outputs, code = world(rng, 8, 6, 4)
    constant = outputs.copy()
    constant[1] = 0.1  # a query that all members find equally likely
    found, three = combine(score, None, constant, code), combine(score[[0, 2, 3]], None, constant[[0, 2, 3]], code)
    assert np.isfinite(found.mean_BN).all()
    assert found.fit.beta == three.fit.beta
    np.testing.assert_allclose(found.mean_BN[[0, 2, 3]], three.mean_BN)
    with np.errstate(all="raise"):
        exact = combine(score, None, score @ code, code)
    np.testing.assert_allclose(exact.mean_BN, score, rtol=1e-5)
    assert exact.error_BN.max() < 1e-5 * np.abs(score).max()
    twins = np.repeat(code, 2, axis=0)  # units with equal words have equal effects, except for their priors
    equal = combine(np.repeat(score, 2, axis=1), None, outputs, twins, level=1.0)
    np.testing.assert_allclose(equal.mean_BN[:, ::2], equal.mean_BN[:, 1::2])
    for a, b in zip(*(combine(score, None, outputs, code, seed=1).fit for _ in range(2)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_refused(rng):
    _, score, outputs, code = world(rng, 6, 5, 2)
    with pytest.raises(ValueError, match="3 members: combining scores with their losses takes at least 4"):
        combine(score, None, outputs[:, :3], code[:, :3])
    with pytest.raises(ValueError, match="outputs_BK do not vary among members"):
        combine(score, None, np.full((2, 6), 0.1), code)
    with pytest.raises(ValueError, match="code_NK does not vary among members"):
        combine(score, None, outputs, np.ones((5, 6)))
    with pytest.raises(ValueError, match="outputs_BK holds NaN"):
        combine(score, None, outputs + np.nan, code)
    with pytest.raises(ValueError, match=r"prior \(2, 4\) and code \(5, 6\)"):
        combine(score[:, :4], None, outputs, code)
    with pytest.raises(ValueError, match=r"predicted_BK has shape \(2, 5\): expected \(2, 6\)"):
        combine(score, outputs[:, :5], outputs, code)
    with pytest.raises(ValueError, match=r"code_NK has shape \(6, 5\): expected \(N, 6\)"):
        combine(score, outputs, outputs, code.T)
    with pytest.raises(ValueError, match=r"rows \(1, 6\), sizes \(2,\): expected \(2, M\), \(M, 6\), \(M,\)"):
        combine(score, None, outputs, code).fit.posterior(score[:, :1], code[:1], [1, 1])
