"""p- and q-values: uniform for exchangeable data, able to find planted units, and equal to SciPy's BH adjustment."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, kstest

from ensdiff.attribution.audit import audit_recall
from ensdiff.attribution.calibration import Calibration, null_ablations
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.forms import evaluate, loss_forms, score_words
from ensdiff.attribution.result import Attribution
from ensdiff.codes import Code
from experiments.comparison import agreement, named_first


def p_by_loop(scores, null):
    return np.array([(1 + sum(n >= s for n in null)) / (1 + len(null)) for s in scores])


@pytest.mark.parametrize("kinds", [1, 3])
def test_p_and_q_against_a_loop_and_scipy(rng, kinds):
    """Scores come in chunks, with ties, and with several kinds of candidates whose nulls have different sizes."""
    scores = rng.integers(0, 40, (2, 300)).astype(np.float32)
    null = rng.integers(0, 40, (2, 90)).astype(np.float32)
    kind_N, kind_L = rng.integers(0, kinds, 300), np.sort(rng.integers(0, kinds, 90))
    calibration = Calibration(null, kind_L)
    for start in range(0, 300, 70):
        part = scores[:, start : start + 70]
        calibration.count(part, np.broadcast_to(kind_N[start : start + 70], part.shape))
    p = calibration.p_values(scores, np.broadcast_to(kind_N, scores.shape))
    q = calibration.q_values(p)
    for b in range(2):
        for kind in range(kinds):
            expected = p_by_loop(scores[b, kind_N == kind], null[b, kind_L == kind])
            np.testing.assert_array_equal(p[b, kind_N == kind], expected)
        np.testing.assert_allclose(q[b], false_discovery_control(p[b], method="bh"), rtol=1e-12)


def test_rounding_does_not_decide_what_a_null_reaches():
    """A null influence that differs from a candidate's only by rounding reaches it, whichever of the two is larger."""
    null = np.array([[0.5, 1.0, 2.0, -4.0]], np.float32)
    calibration = Calibration(null, np.zeros(4, int))
    up, down = (np.nextafter(np.float32(1), np.float32(end)) for end in (2, 0))
    scores = np.array([[up, 1.0, down, 1.001, 2.001]], np.float32)
    np.testing.assert_array_equal(calibration.p_values(scores, None), np.array([[3, 3, 3, 2, 1]]) / 5)
    calibration.count(scores, None)
    np.testing.assert_allclose(calibration.q_values(calibration.p_values(scores, None))[0, :3], 3 / 5)


def test_candidates_that_were_not_looked_at_count_as_p_1(rng):
    calibration = Calibration(rng.random((1, 99)), np.zeros(99, int))
    scores = np.array([[2.0, 0.5, 0.1]], np.float32)
    calibration.count(scores, None)
    calibration.count_unknown(7)
    p = calibration.p_values(scores, None)
    every = false_discovery_control(np.append(p[0], np.ones(7)), method="bh")
    np.testing.assert_allclose(calibration.q_values(p)[0], every[:3])


def exchangeable_loss(rng, members):
    """Return R of members whose differences have nothing to do with the units that they saw."""
    error = rng.normal(size=(members, 30))
    return (error @ error.T)[None]


@pytest.mark.parametrize("code", [
    Code.balanced(12, 300, 6, seed=1),
    Code.balanced(12, 150, 4, seed=1),
    Code.from_matrix(np.concatenate([Code.balanced(12, 100, 6).matrix(), Code.balanced(12, 100, 3).matrix()])),
    Code.hierarchical(12, np.arange(300) % 3, group_weight=10, weight=5),
], ids=["half", "third", "mixed", "hierarchical"])  # fmt: skip
def test_p_values_are_uniform_when_data_are_exchangeable(code):
    """With random members, the p-value of a unit is uniform on its possible values, for every kind of code."""
    rng = np.random.default_rng(3)
    candidates = Candidates.of(code, None)
    kind_N, null = candidates.kind_N, null_ablations(candidates, 100, 0)
    collected = []
    for _ in range(400):
        forms = loss_forms(exchangeable_loss(rng, 12), np.full(12, 1 / 12))
        unit = rng.integers(0, code.units)
        score = evaluate(forms, code.rows(unit))
        kind = None if kind_N is None else kind_N[[[unit]]]
        calibration = Calibration(evaluate(forms, null.word_LK), null.kind_L)
        collected.append(calibration.p_values(score, kind)[0, 0])
    steps = int(round(1 / min(collected)))
    jittered = np.array(collected) - rng.random(400) / max(steps, 101)  # between the possible values
    assert kstest(jittered, "uniform").pvalue > 1e-3
    assert abs(np.mean(np.array(collected) <= 0.1) - 0.1) < 0.05


def test_a_null_of_another_weight_would_not_be_uniform():
    """Each kind needs its own null because fewer survivors mean larger influences."""
    code = Code.from_matrix(np.concatenate([Code.balanced(12, 100, 6).matrix(), Code.balanced(12, 100, 3).matrix()]))
    rng, wrong = np.random.default_rng(3), []
    null = code.unowned(100, weight=3)
    for _ in range(200):
        forms = loss_forms(exchangeable_loss(rng, 12), np.full(12, 1 / 12))
        calibration = Calibration(evaluate(forms, null), np.zeros(100, int))
        wrong.append(calibration.p_values(evaluate(forms, code.rows(rng.integers(0, 100))), None)[0, 0])
    assert kstest(wrong, "uniform").pvalue < 1e-6


def planted_loss(rng, code, unit, members):
    """Return R of members that predict the image better if they saw the unit."""
    seen = code.rows(unit)[0].astype(bool)
    error = rng.normal(size=(members, 400)) * np.where(seen, 0.6, 1.4)[:, None]
    return (error @ error.T)[None]


def test_planted_units_are_found_and_others_are_not():
    code, rng = Code.balanced(20, 400, 10, seed=2), np.random.default_rng(0)
    candidates = Candidates.of(code, None)
    null = null_ablations(candidates, 20_000, 0)
    found, false = 0, 0
    for trial in range(20):
        unit = int(rng.integers(0, 400))
        planted = trial < 10
        R = planted_loss(rng, code, unit, 20) if planted else exchangeable_loss(rng, 20)
        forms = loss_forms(R, np.full(20, 1 / 20))
        calibration = Calibration(score_words(forms, null.word_LK), null.kind_L)
        scores = score_words(forms, code.matrix())
        calibration.count(scores, None)
        q = calibration.q_values(calibration.p_values(scores, None))[0]
        if planted:
            assert np.argmax(scores) == unit
            found += q[unit] <= 0.1
        else:
            false += (q <= 0.1).any()
    assert found >= 9
    assert false <= 3


def test_nulls_of_each_kind():
    code = Code.hierarchical(12, np.arange(60) % 3, group_weight=9, weight=4)
    null = null_ablations(Candidates.of(code, None), 20, 0)
    np.testing.assert_array_equal(np.bincount(null.kind_L), [20, 20, 20])
    owned = set(map(bytes, code.matrix()))
    for group in range(3):
        words = null.word_LK[null.kind_L == group]
        assert (words <= code.group_code().rows(group)).all()
        assert (words.sum(1) == 4).all()
        assert not owned & set(map(bytes, words))
    groups = null_ablations(Candidates.of(code.group_code(), None), "all", 0)
    assert len(groups.word_LK) == 220 - 3
    assert (groups.word_LK.sum(1) == 9).all()

    flat = Code.balanced(12, 60, 3)
    sets = null_ablations(Candidates.of(flat, [{0, 1}, 5, {2, 3}]), 30, 0)
    single, double = (sets.word_LK[sets.kind_L == kind] for kind in (1, 2))
    assert (single.sum(1) == 3).all()
    assert double.sum(1).min() > 3
    assert double.sum(1).max() <= 6
    assert len(double) == len(single) == 30


def test_too_small_nulls_say_what_would_do():
    full = Candidates.of(Code.balanced(8, 65), None)
    with pytest.raises(ValueError, match="65 units leave only 5 .*; 10 members would do"):
        null_ablations(full, 99, 0)
    with pytest.raises(ValueError, match="leave only .* use a larger group weight"):
        null_ablations(Candidates.of(Code.hierarchical(8, np.arange(30) % 3, group_weight=6), None), 20, 0)
    inside = Code.hierarchical(12, np.arange(60) % 3, group_weight=9, weight=4)
    with pytest.raises(ValueError, match="sets of units of a hierarchical code"):
        null_ablations(Candidates.of(inside, [{0, 1}]), 9, 0)
    with pytest.raises(ValueError, match="too many to list"):
        null_ablations(Candidates.of(Code.balanced(12, 60, 3), [{0, 1}]), "all", 0)
    with pytest.raises(ValueError, match="rarely leave a surviving member"):
        null_ablations(Candidates(Code.balanced(8, 30), sets=(tuple(range(10)),)), 9, 0)


def test_recall_of_an_audit():
    influence = np.array([[0.1, 0.9, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4]])
    audit = audit_recall(influence, np.array([0.5, 0.5]), outside=40, top=10)
    assert audit.exceeding_B.tolist() == [1, 0]
    np.testing.assert_allclose(audit.recall_B, [10 / (10 + 10), 1.0])  # one of four, so an estimated ten of forty
    assert audit.pooled.value == pytest.approx(10 / 15)
    np.testing.assert_allclose(audit.low_B[1], 10 / (10 + 40 * (1 - 0.025 ** (1 / 4))))  # Clopper-Pearson of 0 of 4
    assert (audit.low_B <= audit.recall_B).all()
    assert (audit.recall_B <= audit.high_B).all()
    assert audit.pooled.low > audit.low_B[0]
    nothing = audit_recall(np.empty((1, 0)), np.array([0.5]), outside=0, top=3)
    assert nothing.pooled == (1, 1, 1)


def test_an_audited_unit_that_exceeds_by_rounding_was_not_missed():
    least = np.array([0.5], np.float32)
    assert audit_recall(np.nextafter(least, np.float32(1))[None], least, outside=40, top=10).exceeding_B == 0
    assert audit_recall(np.array([[0.5001]]), least, outside=40, top=10).exceeding_B == 1


def test_methods_are_compared_without_regard_to_the_order_of_equals(rng):
    """Units 0 to 2 move the sample equally, up to rounding, so naming any of them first is right."""
    exact = np.array([[0.3, 0.1 + 0.2, 0.3, 0.2, 0.1]])
    for first in (0, 1, 2):
        assert named_first(exact, np.array([[first]])) == (1.0, 1.0)
    assert named_first(exact, np.array([[3, 1]])) == (0.0, 0.5)
    order = rng.permutation(5)
    scores = np.array([[0.5, 0.5, 0.4, 0.2, 0.2]])
    assert agreement(exact, scores) == pytest.approx(agreement(exact[:, order], scores[:, order]))
    assert agreement(exact, np.array([[2.0, 2.0, 2.0, 0.1 + 0.2, 0.3]])) == pytest.approx(7.5 / np.sqrt(8 * 7.5))
    assert agreement(exact, np.ones((1, 5))) == 0


def test_a_q_value_is_at_the_level_whatever_its_rounding():
    att = Attribution(
        units=np.array([[4, 2]]), influence=np.array([[2.0, 1.0]]), p_value=np.array([[0.1, 0.5]]),
        null_BL=np.ones((1, 9)), method="exact", distance="l2", q_value=np.array([[3 * 0.1, 0.5]]), level=0.3,
    )  # fmt: skip
    assert att.verdict == ["attributable to 4 at level 0.3"]


def test_intervals_of_recall_cover():
    """For populations of known recall, the interval contains the recall at least 95 % of the time."""
    rng, covered = np.random.default_rng(0), 0
    outside, missed, top = 200, 6, 10
    population = np.arange(outside) < missed
    for _ in range(300):
        audited = rng.choice(population, 60, replace=False)
        audit = audit_recall(audited[None].astype(float), np.array([0.5]), outside, top)
        covered += audit.low_B[0] <= top / (top + missed) <= audit.high_B[0]
    assert covered / 300 >= 0.93
