"""Metrics of evidence against small calculations by hand, SciPy, for-loops, and limits."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from ensdiff import metrics
from ensdiff.metrics.arrays import correlate, precision, rankable, resampled_spearman, spearman
from ensdiff.metrics.bootstrap import bootstrap, bootstrap_counts, mean, proportion

SEEDS = st.integers(0, 10_000)


def problem(seed, B=5, N=12, M=9):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(B, N)), rng.integers(0, 2, (N, M))


# the bootstrap


def test_bootstrap_covers_a_mean():
    """About 95 % of the intervals from 200 samples of a normal distribution contain its mean."""
    rng = np.random.default_rng(0)
    found = [mean(rng.normal(size=60), resamples=200) for _ in range(200)]
    covered = sum(estimate.low < 0 < estimate.high for estimate in found)
    assert 178 <= covered <= 198
    width = np.mean([estimate.high - estimate.low for estimate in found])
    assert width == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.1)


def test_bootstrap_resamples_every_size():
    seen = []
    bootstrap(lambda a, b: seen.append((len(a), len(b), a.max(), b.max())) or 0.0, 3, 7, resamples=20)
    assert len(seen) == 21
    assert {entry[:2] for entry in seen} == {(3, 7)}
    assert max(entry[2] for entry in seen) <= 2
    assert max(entry[3] for entry in seen) <= 6
    assert np.isnan(bootstrap(lambda a: 1.0, 3, resamples=0).low)
    with pytest.raises(ValueError, match="at least one size"):
        bootstrap(lambda a: 0.0, 0)


def test_proportion_is_clopper_pearson():
    found = proportion(3, 20)
    assert found.value == 0.15
    assert found.low == pytest.approx(stats.beta.ppf(0.025, 3, 18))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, 4, 17))
    assert (proportion(0, 5).low, proportion(5, 5).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="4 of 3"):
        proportion(4, 3)


@given(SEEDS)
def test_correlations_are_scipys(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, (3, 8)).astype(float), rng.normal(size=(3, 8))
    a[0, 0] = 9.0
    for row in range(3):
        if np.ptp(a[row]):
            assert spearman(a, b)[row] == pytest.approx(stats.spearmanr(a[row], b[row]).statistic)
            assert correlate(a, b)[row] == pytest.approx(stats.pearsonr(a[row], b[row]).statistic)
    assert (spearman(np.ones((3, 8)), b) == 0).all()


@given(SEEDS, st.integers(3, 9))
def test_resampled_correlations_are_those_of_resampled_values(seed, M):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, (3, M)).astype(float), rng.normal(size=(3, M))
    columns_RM = rng.integers(M, size=(20, M))
    counts_RM = np.stack([np.bincount(columns, minlength=M) for columns in columns_RM])
    expected = [spearman(a[:, columns], b[:, columns]) for columns in columns_RM]
    np.testing.assert_allclose(resampled_spearman(a, b, counts_RM), expected, atol=1e-12)


def test_the_interval_of_lds_is_that_of_a_loop_over_resamples():
    rng, scores, subsets = problem(3)
    outputs = scores @ subsets + rng.normal(size=(5, 9))

    def statistic(rows, columns):
        pick = np.ix_(rows, columns)
        return float(spearman((scores @ subsets)[pick], outputs[pick]).mean())

    np.testing.assert_allclose(metrics.lds(scores, subsets, outputs), bootstrap(statistic, 5, 9), atol=1e-12)


def test_counts_come_in_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=7)
    whole = mean(values, resamples=50)
    monkeypatch.setattr(
        sys.modules["ensdiff.metrics.bootstrap"], "BLOCK", 3 * 7
    )  # the package also has a function of this name
    np.testing.assert_allclose(mean(values, resamples=50), whole, rtol=1e-12)


def test_bootstrap_of_counts_refuses_nothing():
    with pytest.raises(ValueError, match="at least one size"):
        bootstrap_counts(lambda counts: counts.sum(1), 0)


# the linear datamodeling score


@given(SEEDS)
@example(seed=785)  # two equal subsets, whose sums a matrix product may round differently
def test_lds_against_a_loop(seed):
    rng, scores, subsets = problem(seed)
    outputs = rng.normal(size=(5, 9))
    expected = np.mean([
        np.nan_to_num(stats.spearmanr([scores[b][subsets[:, m] == 1].sum() for m in range(9)], outputs[b]).statistic)
        for b in range(5)
    ])  # fmt: skip
    assert metrics.lds(scores, subsets, outputs, resamples=0).value == pytest.approx(expected)


@given(SEEDS)
def test_lds_of_like_subsets_does_not_hang_on_rounding(seed):
    rng, scores, subsets = problem(seed)
    subsets[:, 1::2] = subsets[:, :-1:2]
    outputs = rng.normal(size=(5, 9))
    rounded = scores + 1e-16 * np.abs(scores).max() * rng.normal(size=scores.shape)
    ranks = [stats.rankdata([scores[b][s == 1].sum() for s in subsets.T]) for b in range(5)]
    expected = np.mean([spearman(ranks[b], outputs[b]) for b in range(5)])
    assert metrics.lds(scores, subsets, outputs, resamples=0).value == pytest.approx(expected)
    order = rng.permutation(12)  # sums with their terms in another order
    assert metrics.lds(rounded[:, order], subsets[order], outputs, resamples=0).value == pytest.approx(expected)


@given(SEEDS)
def test_lds_limits(seed):
    rng, scores, subsets = problem(seed)
    # any increasing function; one sum per subset, so that equal subsets give identical bits
    outputs = np.exp(np.stack([(scores * s).sum(1) for s in subsets.T], axis=1))
    assert metrics.lds(scores, subsets, outputs, resamples=0).value == pytest.approx(1)
    assert metrics.lds(scores, subsets, -outputs, resamples=0).value == pytest.approx(-1)
    assert metrics.lds(scores, subsets, -outputs, sign=-1, resamples=0).value == pytest.approx(1)
    order, columns, rows = rng.permutation(12), rng.permutation(9), rng.permutation(5)
    noisy = outputs + rng.normal(size=outputs.shape)
    assert metrics.lds(
        scores[rows][:, order], subsets[order][:, columns], noisy[rows][:, columns], resamples=0
    ).value == (pytest.approx(metrics.lds(scores, subsets, noisy, resamples=0).value))
    seeds = np.stack([outputs + 1, outputs - 1], axis=2)
    assert metrics.lds(scores, subsets, seeds, resamples=0).value == pytest.approx(1)


def test_lds_of_a_constant_is_zero():
    """Subsets of equal size make the sums of a constant equal, up to rounding."""
    rng = np.random.default_rng(0)
    subsets = np.array([rng.permutation(np.repeat([0, 1], 6)) for _ in range(9)]).T
    assert metrics.lds(np.full((5, 12), 0.1), subsets, rng.normal(size=(5, 9)), resamples=0).value == 0


def test_squared_scores_game_lds():
    """If the outputs are sums of squares, the control is perfect and the scores are not."""
    _, scores, subsets = problem(1, N=30, M=40)
    outputs = np.square(scores) @ subsets
    assert metrics.lds(scores**2, subsets, outputs, resamples=0).value == pytest.approx(1)
    assert abs(metrics.lds(scores, subsets, outputs, resamples=0).value) < 0.5


@pytest.mark.parametrize("rho", [0.3, -0.8])
def test_correction_for_few_columns(rho, rng):
    """Over n normal columns a rank correlation is too near to 0; corrected, it is that over many."""
    x, noise = rng.normal(size=(2, 4000, 6))
    y = rho * x + np.sqrt(1 - rho**2) * noise
    few = spearman(x, y).mean()
    many = 6 / np.pi * np.arcsin(rho / 2)
    assert abs(few) < abs(many) - 0.03
    assert metrics.of_many(few, 6) == pytest.approx(many, abs=0.02)
    for perfect in (1.0, np.nextafter(1, 2)):
        assert metrics.of_many(perfect, 6) == -metrics.of_many(-perfect, 6) == pytest.approx(1.0)


@pytest.mark.parametrize(("value", "columns"), [(1.1, 8), (0.5, 2), (np.nan, 8)])
def test_what_is_no_rank_correlation_is_not_corrected(value, columns):
    with pytest.raises(ValueError, match="expected a correlation"):
        metrics.of_many(value, columns)


def test_ceiling_predicts_what_a_perfect_method_gets():
    rng = np.random.default_rng(0)
    scores, subsets = rng.normal(size=(40, 50)), rng.integers(0, 2, (50, 200))
    clean = scores @ subsets
    for noise in (0.5, 1, 1.5):
        for R in (2, 4, 5):
            outputs = clean[..., None] + noise * clean.std() * rng.normal(size=(40, 200, R))
            got = metrics.lds(scores, subsets, outputs, resamples=0).value
            assert metrics.lds_ceiling(outputs, resamples=0).value == pytest.approx(got, abs=0.05)
    nothing = metrics.lds_ceiling(rng.normal(size=(40, 200, 2)), resamples=100)
    assert nothing.value < 0.25


def test_interval_of_lds_holds_its_value_and_shrinks():
    rng, scores, subsets = problem(0, B=20, N=30, M=100)
    outputs = scores @ subsets + 3 * rng.normal(size=(20, 100))
    few, many = metrics.lds(scores[:, :], subsets[:, :10], outputs[:, :10]), metrics.lds(scores, subsets, outputs)
    for found in (few, many):
        assert found.low < found.value < found.high
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(("scores", "subsets", "outputs", "options", "message"), [
    (np.zeros((2, 3)), np.zeros((4, 5)), np.zeros((2, 5)), {}, "expected .B, N., .N, M., .B, M."),
    (np.zeros((2, 3)), np.zeros((3, 2)), np.zeros((2, 2)), {}, "at least 3"),
    (np.zeros((2, 3)), np.full((3, 5), 0.5), np.zeros((2, 5)), {}, "zeros and ones"),
    (np.zeros((2, 3)), np.zeros((3, 5)), np.zeros((2, 5)), {"sign": 2}, "sign=2"),
    (np.full((2, 3), np.nan), np.zeros((3, 5)), np.zeros((2, 5)), {}, "scores_BN holds NaN"),
    (np.zeros(3), np.zeros((3, 5)), np.zeros((2, 5)), {}, "scores_BN has shape .3,."),
    (np.array([["a"]]), np.zeros((3, 5)), np.zeros((2, 5)), {}, "dtype"),
])  # fmt: skip
def test_bad_lds(scores, subsets, outputs, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.lds(scores, subsets, outputs, **options)


def test_loo():
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(6, 20))
    assert metrics.loo(effects**3, effects).value == pytest.approx(1)
    assert metrics.loo(-effects, effects).value == pytest.approx(-1)
    assert metrics.loo(2 * effects + 1, effects, kind="pearson").value == pytest.approx(1)
    assert metrics.loo(effects**3, effects, kind="pearson").value < 1
    assert metrics.loo(np.ones((6, 20)), effects).value == 0
    with pytest.raises(ValueError, match="spearman"):
        metrics.loo(effects, effects, kind="kendall")
    with pytest.raises(ValueError, match="expected .6, 20."):
        metrics.loo(effects[:, :5], effects)


# retrieval


def test_group_retrieval_by_hand():
    effects = np.array([[3.0, 1.0, 0.0, 2.0]])
    scores = np.array([[1.0, 9.0, 0.0, 5.0]])  # order: 1, 3, 0, 2
    found = metrics.group_retrieval(scores, effects, resamples=0)
    gain = 1 / np.log2(2) + 2 / np.log2(3) + 3 / np.log2(4)
    best = 3 / np.log2(2) + 2 / np.log2(3) + 1 / np.log2(4)
    assert found.top_1.value == 0
    assert found.ndcg.value == pytest.approx(gain / best)
    assert found.mrr.value == pytest.approx(1 / 3)
    assert found.correlation.value == pytest.approx(stats.spearmanr(scores[0], effects[0]).statistic)


@given(SEEDS)
def test_group_retrieval_limits(seed):
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(4, 6))
    perfect = metrics.group_retrieval(effects, effects, resamples=0)
    assert [part.value for part in perfect] == pytest.approx([1, 1, 1, 1])
    constant = metrics.group_retrieval(np.ones((4, 6)), effects, resamples=0)
    assert constant.top_1.value == pytest.approx(1 / 6)
    assert constant.mrr.value == pytest.approx(np.mean(1 / np.arange(1, 7)))
    assert constant.correlation.value == 0
    order = rng.permutation(6)
    scores = rng.normal(size=(4, 6))
    a, b = (
        metrics.group_retrieval(s, e, resamples=0)
        for s, e in ((scores, effects), (scores[:, order], effects[:, order]))
    )
    assert [part.value for part in a] == pytest.approx([part.value for part in b])


def by_all_orders(scores_G, effects_G):
    """Return top-1, NDCG of three and reciprocal rank, averaged over every order of tied scores and of tied effects."""
    G, found = len(scores_G), []
    discount = [1 / np.log2(rank + 2) if rank < 3 else 0 for rank in range(G)]
    gain = effects_G - effects_G.min()
    ideal = sorted(gain, reverse=True) @ np.array(discount)
    orders = list(itertools.permutations(range(G)))
    for first in orders:
        ranking = sorted(first, key=lambda g: -scores_G[g])  # stable: ties stay in the order of `first`
        ndcg = sum(gain[g] * discount[rank] for rank, g in enumerate(ranking)) / ideal if ideal else 0
        for second in orders:
            best = max(second, key=lambda g: effects_G[g])
            found.append((ranking[0] == best, ndcg, 1 / (1 + ranking.index(best))))
    return np.mean(found, axis=0)


@given(SEEDS, st.integers(2, 4))
def test_group_retrieval_is_the_mean_over_all_orders_of_ties(seed, G):
    rng = np.random.default_rng(seed)
    scores, effects = rng.integers(0, 3, (2, 2, G))
    found = metrics.group_retrieval(scores, effects, resamples=0)
    expected = np.mean([by_all_orders(*row) for row in zip(scores, effects, strict=True)], axis=0)
    assert [found.top_1.value, found.ndcg.value, found.mrr.value] == pytest.approx(expected)
    order = rng.permutation(G)
    again = metrics.group_retrieval(scores[:, order], effects[:, order], resamples=0)
    assert [part.value for part in again] == pytest.approx([part.value for part in found])


def test_constant_effects_get_what_chance_gets():
    for scores in ([[1, 1, 1]], [[3, 2, 1]], [[1, 2, 3]]):
        found = metrics.group_retrieval(scores, [[1, 1, 1]], resamples=0)
        assert found.top_1.value == pytest.approx(1 / 3)
        assert found.mrr.value == pytest.approx(11 / 18)
        assert (found.ndcg.value, found.correlation.value) == (0, 0)


# ties up to rounding

ALMOST = {
    "float64": np.array([[0.3, 0.1 + 0.2, 0.7]]),
    "float32": np.array([[0.7, np.float32(0.1) + np.float32(0.6), 0.9]], np.float32),
    "a difference": np.array([[0.0, 0.1 + 0.2 - 0.3, 1.0]]),
}


@pytest.mark.parametrize("values", ALMOST.values(), ids=ALMOST)
def test_values_that_differ_by_rounding_are_ties_in_every_metric(values):
    """Each metric gives the value for unrounded numbers, and does not depend on the order that rounding creates."""
    exact = np.array([[1.0, 1.0, 2.0]])
    assert values[0, 0] != values[0, 1]
    other = np.array([[1.0, 2.0, 5.0]])
    for kind in ("spearman", "pearson") if values[0, 0] else ():  # for zeros, no difference is small
        found = [metrics.loo(v[:, :2], other[:, :2], kind=kind, resamples=0).value for v in (values, -values)]
        assert found == [0, 0]
        assert metrics.loo(other[:, :2], values[:, :2], kind=kind, resamples=0).value == 0
    assert metrics.loo(values, other, resamples=0) == metrics.loo(exact, other, resamples=0)
    for v, e in ((values, exact), (-values, -exact)):
        assert metrics.planted(v, [1], resamples=0) == metrics.planted(e, [1], resamples=0)
        found, expected = metrics.group_retrieval(v, v, resamples=0), metrics.group_retrieval(e, e, resamples=0)
        assert found.top_1 == expected.top_1
        assert found.mrr == expected.mrr
        assert found.correlation == expected.correlation
        assert found.ndcg.value == pytest.approx(expected.ndcg.value, abs=1e-6)
    scores, subsets = np.array([[1.0, 2.0, 4.0]]), np.eye(3)
    assert metrics.lds(scores, subsets, values, resamples=0) == metrics.lds(scores, subsets, exact, resamples=0)
    seeds = [np.stack([v, v[:, ::-1]], axis=2) for v in (values, exact)]
    assert metrics.lds_ceiling(seeds[0], resamples=0) == metrics.lds_ceiling(seeds[1], resamples=0)


def test_merging_moves_no_value_by_more_than_the_tolerance(rng):
    """This holds for dense values: half precision has a thousand values between 1 and 2, all a rounding apart."""
    dense = np.sort(1 + rng.random((1, 4000))).astype(np.float16)
    found = rankable(dense, "scores", "BN")
    assert np.abs(found - dense).max() <= 2 * precision(dense)
    assert len(np.unique(found)) > 100
    assert metrics.loo(dense, np.arange(4000)[None], resamples=0).value > 0.9999
    large = 2**53 - np.arange(5)[None]
    np.testing.assert_array_equal(rankable(large, "scores", "BN"), large)  # integers are exact
    few = rng.random((3, 50))
    np.testing.assert_array_equal(rankable(few, "scores", "BN"), few)


def test_correlation_of_constants_and_of_the_very_small(rng):
    a, b = rng.random((2, 3, 7))
    np.testing.assert_allclose(correlate(1e-200 * a, b), correlate(a, b))
    assert (correlate(np.full((3, 7), 0.1), b) == 0).all()


def test_a_q_value_that_is_the_level_is_found():
    assert metrics.unattributable([[0.1 * 3 - 0.2]], 0.1).value == 0  # 0.10000000000000003
    assert metrics.unattributable(np.array([[0.1]], np.float32), 0.1).value == 0
    assert metrics.unattributable([[0.1001]], 0.1).value == 1


def test_planted_by_hand():
    scores = np.zeros((3, 20))
    scores[0, 4] = 1.0  # ranked first
    scores[1, :12] = 1.0 + np.arange(12)  # unit 0 is ranked twelfth
    found = metrics.planted(scores, [4, 0, 7], resamples=0)  # the third is tied with all units
    assert found.recall_1.value == pytest.approx((1 + 0 + 1 / 20) / 3)
    assert found.recall_10.value == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert found.mrr.value == pytest.approx((1 + 1 / 12 + np.mean(1 / np.arange(1, 21))) / 3)
    assert found.gain is None
    twin = metrics.planted(scores, [4, 0, 7], scores, resamples=0)
    assert twin.twin_mrr.value == found.mrr.value
    assert twin.gain.value == 0


def test_ties_are_what_random_breaks_average_to(rng):
    scores = np.array([[2.0, 1.0, 1.0, 1.0, 0.0]])
    broken = [metrics.planted(scores + 1e-6 * rng.random((1, 5)), [2], resamples=0) for _ in range(4000)]
    found = metrics.planted(scores, [2], resamples=0)
    assert np.mean([one.mrr.value for one in broken]) == pytest.approx(found.mrr.value, abs=0.01)


def test_bad_retrieval():
    with pytest.raises(ValueError, match="units 5 .. 5: expected 0 .. 4"):
        metrics.planted(np.zeros((1, 5)), [5])
    with pytest.raises(ValueError, match="integers"):
        metrics.planted(np.zeros((1, 5)), [0.5])
    with pytest.raises(ValueError, match="at least two"):
        metrics.group_retrieval(np.zeros((3, 1)), np.zeros((3, 1)))


# counterfactuals


def test_radius_and_its_published_unit(rng):
    distances = rng.random((6, 9))
    found = metrics.radius(distances)
    assert found.value == pytest.approx(distances.max(1).mean())
    np.testing.assert_array_equal(found.radius_B, distances.max(1))
    assert found.low < found.value < found.high
    # enlarge 8x8x1 images by repeating pixels and channels
    a, b = rng.random((2, 8, 8, 1))
    large = [np.repeat(np.repeat(np.repeat(x, 32, 0), 32, 1), 3, 2) for x in (a, b)]
    assert metrics.published_scale((8, 8, 1)) * np.linalg.norm(a - b) == pytest.approx(
        np.linalg.norm(large[0] - large[1])
    )
    assert metrics.radius(distances, 2.0, resamples=0).value == pytest.approx(2 * found.value)
    with pytest.raises(ValueError, match="at least 0"):
        metrics.radius(-distances)
    with pytest.raises(ValueError, match="H, W, C"):
        metrics.published_scale((8, 8))


@given(SEEDS, st.floats(-2, 2))
def test_power_law_recovers_a_slope(seed, slope):
    sizes = np.array([16, 64, 256, 1024])
    rng = np.random.default_rng(seed)
    values = 3 * sizes[:, None] ** slope * np.exp(0.01 * rng.normal(size=(4, 30)))
    found = metrics.power_law(sizes, values, resamples=50)
    assert found.slope.value == pytest.approx(slope, abs=0.01)
    assert found.scale == pytest.approx(3, rel=0.05)
    expected = stats.linregress(np.log(sizes), np.log(values.mean(1)))
    assert found.slope.value == pytest.approx(expected.slope)
    assert found.slope.low <= found.slope.value <= found.slope.high


def test_published_radii_as_a_power_law():
    """The two ends of the published MNIST radii give a slope of -0.14."""
    found = metrics.power_law([256, 8192], [[107.9], [66.0]], resamples=0)
    assert found.slope.value == pytest.approx(np.log(66.0 / 107.9) / np.log(32))


def test_removal_by_hand(rng):
    images, top, random = rng.random((3, 8)), rng.random((3, 8)), rng.random((4, 3, 8))
    found = metrics.removal(images, top, random, resamples=0)
    assert found.l2.value == pytest.approx(np.mean([np.linalg.norm(images[b] - top[b]) for b in range(3)]))
    expected = np.mean([np.linalg.norm(images[b] - random[r, b]) for b in range(3) for r in range(4)])
    assert found.l2_random.value == pytest.approx(expected)
    assert found.l2_gain.value == pytest.approx(found.l2.value - expected)
    cosine = [images[b] @ top[b] / np.linalg.norm(images[b]) / np.linalg.norm(top[b]) for b in range(3)]
    assert found.cosine.value == pytest.approx(np.mean(cosine))
    same = metrics.removal(images, images, images[None], resamples=0)
    assert (same.l2.value, same.cosine_gain.value) == (0, pytest.approx(0))
    features = metrics.removal(images, top, random, (images**2, top**2, random**2), resamples=0)
    assert features.l2 == found.l2
    assert features.cosine.value != found.cosine.value
    pictures = metrics.removal(images.reshape(3, 2, 4), top.reshape(3, 2, 4), random.reshape(4, 3, 2, 4), resamples=0)
    assert pictures.l2 == found.l2
    assert pictures.cosine_random.value == pytest.approx(found.cosine_random.value)
    with pytest.raises(ValueError, match="expected .B, ...., .B, ...., .R, B, ...."):
        metrics.removal(images, top, random[0])
    with pytest.raises(ValueError, match="2 arrays of features"):
        metrics.removal(images, top, random, (images, top))


def test_unattributable():
    found = metrics.unattributable([[0.05, 0.9], [0.2, 0.2], [0.1, 1.0]])
    assert found.value == pytest.approx(1 / 3)
    assert found == proportion(1, 3)
    assert metrics.unattributable([[0.05, 0.9]], level=0.01).value == 1
    with pytest.raises(ValueError, match="expected q-values in"):
        metrics.unattributable([[1.5]])


def test_false_attribution(rng):
    others = rng.random((50, 20)) < 0.5
    assert metrics.false_attribution(np.zeros(50), others).value == 0
    assert metrics.false_attribution(others[:, 0], others[:, :1]).value == 1
    expected = others[:, 0].mean() / others.mean()
    assert metrics.false_attribution(others[:, 0], others).value == pytest.approx(expected)
    assert np.isnan(metrics.false_attribution(np.ones(3), np.zeros((3, 2))).value)
    with pytest.raises(ValueError, match="True or False"):
        metrics.false_attribution([0.5], [[1]])


# kernel distance


@given(SEEDS, st.integers(3, 12), st.integers(3, 12), st.integers(1, 4))
def test_kernel_distance_against_a_loop(seed, n, m, features):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, features)), 1 + rng.normal(size=(m, features))

    def k(x, y):
        return (x @ y / features + 1) ** 3

    def distance(a, b):
        n, m = len(a), len(b)
        return (
            sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
            + sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
            - 2 * sum(k(x, y) for x in a for y in b) / (n * m)
        )

    found = metrics.kernel_distance(a, b)
    assert found.value == pytest.approx(distance(a, b), rel=1e-9, abs=1e-9)
    without_a = [distance(np.delete(a, i, 0), b) for i in range(n)]
    without_b = [distance(a, np.delete(b, i, 0)) for i in range(m)]
    variance = sum((len(x) - 1) * np.var(x) for x in (without_a, without_b))
    assert found.high - found.value == pytest.approx(1.96 * np.sqrt(variance), rel=1e-6, abs=1e-9)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(0)
    same = [metrics.kernel_distance(rng.normal(size=(60, 5)), rng.normal(size=(40, 5))) for _ in range(200)]
    values = [one.value for one in same]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert 0.88 < np.mean([one.low < 0 < one.high for one in same]) <= 1
    shifted = metrics.kernel_distance(rng.normal(size=(60, 5)), 1 + rng.normal(size=(40, 5)))
    assert shifted.low > 0
    with pytest.raises(ValueError, match="three rows"):
        metrics.kernel_distance(np.zeros((2, 3)), np.zeros((5, 3)))


# features by path


@pytest.mark.torch
def test_inception_by_path(tmp_path):
    torch = pytest.importorskip("torch")
    from ensdiff.interop import inception

    class Tiny(torch.nn.Module):
        def forward(self, x, return_features: bool = False):
            mean = x.to(torch.float32).mean(dim=(2, 3))
            return mean if return_features else mean[:, :1]

    path = tmp_path / "tiny.pt"
    torch.jit.script(Tiny()).save(str(path))
    features = inception(path, batch=2)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_allclose(features(images), images.mean((1, 2)), rtol=1e-6)
    grey = images[..., :1] / 255.0
    np.testing.assert_allclose(features(grey), np.repeat(images[..., :1].mean((1, 2)), 3, axis=1), rtol=1e-6)
    assert metrics.frechet_distance(features(images), features(images)).value == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="channels last"):
        features(images[..., 0])
    with pytest.raises(ValueError, match="floats in"):
        features(images.astype(np.float32))
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a TorchScript file"):
        inception(tmp_path / "bad.pt")


def test_inception_without_a_file(tmp_path):
    from ensdiff.interop import inception

    with pytest.raises(FileNotFoundError, match="TorchScript"):
        inception(tmp_path / "none.pt")
