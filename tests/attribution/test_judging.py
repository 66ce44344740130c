"""Members judge scores: against loops, in additive worlds whose truth is known, and without using what is predicted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import ensdiff
from ensdiff.attribution.judging import (
    choose,
    cross_predictions,
    held_out,
    judge_scores,
    member_outputs,
    without_level,
)
from ensdiff.codes import Code
from ensdiff.metrics import lds
from tests.helpers import blobs, random_ensemble

SEEDS = st.integers(0, 10_000)


def words(rng, N, K):
    """Return (N, K) random words of weight K / 2. `Code.balanced` searches for equal shares, which takes longer."""
    return (np.argsort(rng.random((N, K)), axis=1) < K // 2).astype(np.uint8)


def world(rng, K, N, B, noise=0.5):
    """Return effects (B, N), a code (N, K), and outputs (B, K): the sums of the effects of seen units plus noise."""
    effect_BN = rng.normal(size=(B, N))
    code_NK = words(rng, N, K)
    return effect_BN, code_NK, effect_BN @ code_NK + noise * np.sqrt(N / 4) * rng.normal(size=(B, K))


def noisy(rng, effect_BN, K, noise):
    """Return (K, B, N) scores: the effects plus each member's own noise."""
    return effect_BN + noise * rng.normal(size=(K, *effect_BN.shape))


@given(SEEDS, st.integers(3, 7), st.integers(1, 4), st.integers(4, 9))
def test_judging_against_a_loop(seed, K, B, N):
    rng = np.random.default_rng(seed)
    scores, outputs, code = rng.normal(size=(K, B, N)), rng.normal(size=(B, K)), rng.integers(0, 2, (N, K))
    predicted = np.zeros((B, K))
    for b in range(B):
        said = [[sum(code[i, k] * scores[j, b, i] for i in range(N)) for k in range(K)] for j in range(K)]
        for k in range(K):
            others = [j for j in range(K) if j != k]
            centred = [said[j][k] - np.mean([said[j][l] for l in range(K) if l != j]) for j in others]
            predicted[b, k] = np.mean(centred) / (1 - 1 / (K - 1) ** 2)
    np.testing.assert_allclose(held_out(cross_predictions(scores, code)), predicted, atol=1e-12)
    found = judge_scores(scores, outputs, code, resamples=0)
    expected = [stats.spearmanr(predicted[b], outputs[b]).statistic if np.ptp(predicted[b]) else 0 for b in range(B)]
    assert found.lds.value == pytest.approx(np.mean(expected))
    x, y = (values - values.mean(1, keepdims=True) for values in (predicted, outputs))
    assert found.slope.value == pytest.approx((x * y).sum() / (x * x).sum())
    assert (found.setting, found.queries, found.members, found.table) == (None, B, K, ((None, found.lds.value),))


def test_scores_without_members_are_judged_as_by_retraining(rng):
    effect, code, outputs = world(rng, 8, 20, 4)
    scores = effect + rng.normal(size=effect.shape)
    found = judge_scores(scores, outputs, code, resamples=50, seed=3)
    assert found.lds == lds(scores, code, outputs, resamples=50, seed=3)
    copies = judge_scores(np.stack(8 * [scores]), outputs, code, resamples=50, seed=3)
    np.testing.assert_allclose(copies.lds, found.lds)
    np.testing.assert_allclose(copies.slope, found.slope)


def test_nothing_of_a_member_predicts_this_member(rng):
    """Whatever the scores of member k are, the prediction of its loss, and the choice for it, stay the same."""
    effect, code, _ = world(rng, 6, 12, 3)
    scores = noisy(rng, effect, 6, 1.0)
    other = scores.copy()
    other[2] = 100 * rng.normal(size=other[2].shape)
    a, b = (cross_predictions(values, code) for values in (scores, other))
    np.testing.assert_allclose(held_out(a)[:, 2], held_out(b)[:, 2], atol=1e-12)
    np.testing.assert_allclose(held_out(a, 2), held_out(b, 2), atol=1e-12)
    smaller = code[:, [0, 1, 3, 4, 5]]
    np.testing.assert_allclose(
        held_out(a, 2), held_out(cross_predictions(scores[[0, 1, 3, 4, 5]], smaller)), atol=1e-12
    )


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_size_of_members_scores_says_nothing(rng, offset):
    """Scores that are as large as their member's loss, but alike for all units, have no member-LDS.

    Without the centred code the mean over the other members would give away the loss of the member left out.
    """
    code = Code.balanced(8, 70).matrix()  # all words, so that all members saw equally many units
    outputs = rng.normal(size=(5, 8)) - offset
    scores = np.repeat(-outputs.T[:, :, None], 70, axis=2)
    assert judge_scores(scores, outputs, code, resamples=20).lds == (0, 0, 0)
    seen = scores * (1 + 5 * code.T[:, None])  # larger for the units that the member saw
    assert judge_scores(seen, outputs, code, resamples=20).lds == (0, 0, 0)
    uncentred = cross_predictions(scores, code).sum(0) - np.einsum("kbk->bk", cross_predictions(scores, code))
    assert stats.spearmanr(uncentred[0], outputs[0]).statistic == pytest.approx(1)  # what is avoided


def test_member_lds_tracks_the_lds_of_retraining():
    """In an additive world, over scores of different quality, the two agree and order the scores alike."""
    rng, K, N, B = np.random.default_rng(1), 32, 60, 24
    effect, code, outputs = world(rng, K, N, B)
    subsets = (np.argsort(rng.random((N, 200)), axis=0) < N // 2).astype(int)
    retrained = effect @ subsets + 0.5 * np.sqrt(N / 4) * rng.normal(size=(B, 200))
    ours, truth = [], []
    for noise in (0.0, 3.0, 6.0, 12.0, 24.0, 1000.0):
        scores = noisy(rng, effect, K, noise)
        found = judge_scores(scores, outputs, code, resamples=0)
        real = lds(scores.mean(0), subsets, retrained, resamples=0).value
        ours.append(found.lds.value)
        truth.append(real)
    np.testing.assert_allclose(ours, truth, atol=0.06)
    assert stats.spearmanr(ours, truth).statistic > 0.9


def test_slope_gives_units_of_loss(rng):
    effect, code, outputs = world(rng, 24, 40, 16)
    found = judge_scores(effect / 7, outputs, code, resamples=200)
    assert found.slope.low < 7 < found.slope.high
    assert found.slope.high - found.slope.low < 1.5
    assert judge_scores(-effect, outputs, code, resamples=0).slope.value == pytest.approx(-found.slope.value / 7)


def test_the_slopes_interval_against_a_loop(rng):
    from ensdiff.metrics.bootstrap import bootstrap

    effect, code, outputs = world(rng, 6, 12, 4)
    predicted = effect @ code

    def slope(rows, columns):
        x, y = (values[rows][:, columns] for values in (predicted, outputs))
        x, y = (values - values.mean(1, keepdims=True) for values in (x, y))
        return (x * y).sum() / (x * x).sum()

    expected = bootstrap(slope, 4, 6, resamples=60, seed=5)
    np.testing.assert_allclose(judge_scores(effect, outputs, code, resamples=60, seed=5).slope, expected)


def test_noise_is_not_chosen_and_the_choice_is_among_members_without_the_judged_one(rng):
    effect, code, outputs = world(rng, 12, 30, 8)
    settings = {f"noise {i}": noisy(rng, 0 * effect, 12, 1.0) for i in range(4)}
    settings |= {"good": noisy(rng, effect, 12, 2.0), "small": 1e-6 * noisy(rng, effect, 12, 6.0)}
    predictions = {name: cross_predictions(scores, code) for name, scores in settings.items()}
    found = choose(predictions, outputs, resamples=50)
    alone = judge_scores(settings["good"], outputs, code, resamples=50)
    assert found.setting == "good"
    assert dict(found.table)["good"] == alone.lds.value
    assert found.slope == alone.slope
    assert found.lds.value == pytest.approx(alone.lds.value, abs=0.05)
    assert [name for name, _ in found.table] == list(settings)
    assert max(lds for name, lds in found.table if "noise" in name) < 0.3


def nested_by_loop(predictions, outputs):
    """Return the value of the nested choice, by leaving each member out of everything."""
    B, K = outputs.shape
    nested = np.zeros((B, K))
    for k in range(K):
        best, most = None, -np.inf
        for setting, cross in predictions.items():
            rest = [j for j in range(K) if j != k]
            value = np.mean(
                [
                    stats.spearmanr(held_out(cross[np.ix_(rest, range(B), rest)])[b], outputs[b, rest]).statistic
                    for b in range(B)
                ]
            )
            if value > most:
                best, most = setting, value
        chosen = held_out(predictions[best])
        nested[:, k] = chosen[:, k] / np.sqrt((chosen**2).mean(1))
    return np.mean([stats.spearmanr(nested[b], outputs[b]).statistic for b in range(B)])


def test_the_nested_choice_against_a_loop(rng):
    effect, code, outputs = world(rng, 6, 15, 3)
    predictions = {s: cross_predictions(noisy(rng, 0.1 * effect, 6, 1.0), code) for s in range(5)}
    found = choose(predictions, outputs, resamples=0)
    assert found.lds.value == pytest.approx(nested_by_loop(predictions, outputs))
    assert found.lds.value != max(lds for _, lds in found.table)


def test_the_nested_value_of_noise_is_0():
    """Over many worlds without information, the best of four settings looks good, and the nested value is 0 on average.

    The outputs are noise, too: among settings of noise some are near to any effects by chance.
    """
    rng = np.random.default_rng(0)
    nested, best = [], []
    for _ in range(80):
        code = words(rng, 20, 6)
        predictions = {s: cross_predictions(rng.normal(size=(6, 3, 20)), code) for s in range(4)}
        found = choose(predictions, rng.normal(size=(3, 6)), resamples=0)
        nested.append(found.lds.value)
        best.append(max(lds for _, lds in found.table))
    assert np.mean(best) > 0.2
    assert abs(np.mean(nested)) < 3 * np.std(nested) / np.sqrt(len(nested))


@given(SEEDS, st.integers(4, 6), st.floats(1e-3, 1e3))
def test_what_changes_nothing(seed, K, scale):
    """The order of the units, and the scale of scores and outputs; of the slope the ratio of the scales is left."""
    rng = np.random.default_rng(seed)
    effect, code, outputs = world(rng, K, 5, 2)
    scores, order = noisy(rng, effect, K, 1.0), rng.permutation(5)
    first = judge_scores(scores, outputs, code, resamples=5)
    second = judge_scores(scale * scores[:, :, order], 3 * outputs + 5, code[order], resamples=5)
    np.testing.assert_allclose(first.lds, second.lds, atol=1e-12)
    np.testing.assert_allclose(np.multiply(first.slope, 3 / scale), second.slope, rtol=1e-6, atol=1e-9 / scale)


def test_degenerate_scores(rng):
    code, outputs = Code.balanced(6, 9).matrix(), rng.normal(size=(2, 6))
    for scores in (np.zeros((6, 2, 9)), np.zeros((2, 9)), np.zeros((2, 9), int)):
        found = judge_scores(scores, outputs, code, resamples=20)
        assert found.lds == found.slope == (0, 0, 0)
    scores = rng.normal(size=(6, 2, 9))
    assert judge_scores(scores, np.ones((2, 6)), code, resamples=20).lds == (0, 0, 0)
    alike = np.ones((9, 6), int)  # every member saw every unit: there is nothing to tell apart
    assert judge_scores(scores, outputs, alike, resamples=20).lds == (0, 0, 0)
    found = choose({"zero": np.zeros((6, 2, 6)), "other": np.zeros((2, 6))}, outputs, resamples=0)
    assert (found.lds.value, found.setting) == (0, "zero")
    twins = np.repeat(code[:, :3], 2, axis=1)  # members with equal splits are ties for scores without members
    tied = judge_scores(scores[0], outputs, twins, resamples=0).lds.value
    assert tied == lds(scores[0], twins, outputs, resamples=0).value
    assert np.isnan(judge_scores(scores, outputs, code, resamples=0).lds.low)


def test_refused(rng):
    code, outputs, scores = Code.balanced(4, 6).matrix(), rng.normal(size=(2, 4)), rng.normal(size=(4, 2, 6))
    with pytest.raises(ValueError, match=r"scores have shape \(4, 2, 5\): expected \(4, B, 6\).* or \(B, 6\)"):
        judge_scores(scores[..., :5], outputs, code)
    with pytest.raises(ValueError, match=r"scores have shape \(3, 2, 6\)"):
        judge_scores(scores[:3], outputs, code)
    with pytest.raises(ValueError, match="predictions have shape .* for 3 queries and 4 members"):
        judge_scores(scores, np.zeros((3, 4)), code)
    with pytest.raises(ValueError, match="scores of member 1 holds NaN or infinity"):
        judge_scores(np.where(np.arange(4)[:, None, None] == 1, np.nan, scores), outputs, code)
    with pytest.raises(ValueError, match="outputs_BK holds NaN"):
        judge_scores(scores, outputs + np.nan, code)
    with pytest.raises(ValueError, match="2 members cannot judge scores: expected at least 3"):
        judge_scores(scores[:2], outputs[:, :2], code[:, :2])
    predictions = {s: cross_predictions(scores[:3], code[:, :3]) for s in "ab"}
    with pytest.raises(ValueError, match="3 members cannot choose among settings: expected at least 4"):
        choose(predictions, outputs[:, :3])
    with pytest.raises(ValueError, match="no settings"):
        choose({}, outputs)
    with pytest.raises(ValueError, match="predictions of 'b' holds NaN"):
        choose({"a": np.ones((2, 4)), "b": np.full((2, 4), np.nan)}, outputs)


def test_text(rng):
    effect, code, outputs = world(rng, 6, 9, 4)
    found = judge_scores(effect, outputs, code)
    text = f"member-LDS {found.lds.value:.2f} [{found.lds.low:.2f}, {found.lds.high:.2f}] on 4 queries and 6 members"
    assert str(found) == text
    assert str(judge_scores(effect, outputs, code, resamples=0)).count("[") == 0


def test_judge_computes_the_outputs(tiny):
    """With images, with their loss matrices, and with given outputs; with scores of units, of items and of settings."""
    data = ensdiff.data.arrays(blobs(9), groups=[0, 0, 1, 1, 2, 2, 3, 4, 5])
    config = ensdiff.LossConfig(draws=4, block=2)
    rng = np.random.default_rng(0)
    items = rng.normal(size=(4, 2, 9))
    units = np.stack([items[..., data.items_of(unit)].sum(-1) for unit in range(6)], axis=-1)
    found = ensdiff.judge(tiny, data, units, data.images[:2], loss=config, seed=3, resamples=20)
    assert found.members == 4
    matrix = ensdiff.loss_matrix(tiny, data.images[:2], 3, config)
    np.testing.assert_allclose(member_outputs(matrix), -matrix.loss(np.eye(4)), rtol=1e-12)
    direct = judge_scores(without_level(units), -matrix.loss(np.eye(4)), tiny.code.matrix(), seed=3, resamples=20)
    np.testing.assert_allclose(found.lds, direct.lds)
    for outputs in (matrix, member_outputs(matrix)):
        again = ensdiff.judge(tiny, data, items, data.images[:2], outputs=outputs, seed=3, resamples=20)
        np.testing.assert_allclose(again.lds, found.lds)
        np.testing.assert_allclose(again.slope, found.slope)
    several = ensdiff.judge(tiny, data, {"a": units, "b": items[0]}, data.images[:2], outputs=matrix, resamples=0)
    assert dict(several.table)["a"] == pytest.approx(found.lds.value)


def test_judge_refuses(tiny):
    data = ensdiff.data.arrays(blobs(6))
    with pytest.raises(ValueError, match="outputs are given: leave one of them out"):
        ensdiff.judge(tiny, data, np.ones((1, 6)), data.images[:1], outputs=np.ones((1, 4)), loss=ensdiff.LossConfig())
    with pytest.raises(ValueError, match="units"):
        ensdiff.judge(tiny, ensdiff.data.arrays(blobs(7)), np.ones((1, 7)), data.images[:1], outputs=np.ones((1, 4)))
    three = random_ensemble(code=Code.balanced(3, 3))
    with pytest.raises(ValueError, match="4 members|expected"):
        ensdiff.judge(three, ensdiff.data.arrays(blobs(3)), {1: np.ones((1, 3)), 2: np.ones((1, 3))}, data.images[:1],
                      outputs=np.ones((1, 3)))  # fmt: skip


def test_a_level_of_the_scores_changes_nothing(rng):
    """Members of a random code see different numbers of units, which distances of pixels would predict by their sum."""
    code_NK = (rng.random((30, 9)) < 0.5).astype(np.uint8)
    assert len(set(code_NK.sum(0).tolist())) > 3
    scores, outputs = rng.normal(size=(4, 30)), rng.normal(size=(4, 9))
    without = without_level(scores)
    np.testing.assert_allclose(without_level(scores - 1000), without, atol=1e-9)
    found = judge_scores(without, outputs, code_NK, resamples=0).lds.value
    assert found == pytest.approx(judge_scores(without_level(scores - 1000), outputs, code_NK, resamples=0).lds.value)
    assert found != judge_scores(scores - 1000, outputs, code_NK, resamples=0).lds.value
