"""How large a null a verdict needs, and what a call does where there is no such null."""

import importlib
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ensdiff
from ensdiff.attribution import Calibration, NullWarning, null_needed, plan_null
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.sufficient import unowned_words_of
from tests.helpers import random_ensemble


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from([0.01, 0.05, 0.1, 0.123, 0.3]))
def test_the_needed_null_is_the_smallest_with_which_one_candidate_reaches_the_level(candidates, level):
    def best(null):
        calibration = Calibration(np.zeros((1, null)), np.zeros(null, int))
        scores = np.r_[1.0, -np.ones(candidates - 1)][None]
        calibration.count(scores, None)
        return calibration.q_values(calibration.p_values(scores[:, :1], None))[0, 0]

    needed = null_needed(candidates, level)
    assert best(needed) <= level * (1 + 1e-9)
    assert needed < 1 or best(needed - 1) > level * (1 - 1e-9)


def counted(code, units=None):
    """Return how many unowned words there are of the rarest kind, by listing them."""
    candidates = Candidates.of(code, units)
    kinds = [None] if candidates.kind_N is None else np.unique(candidates.kind_N)
    return min(len(ensdiff.attribution.calibration._null_of_kind(candidates, kind, None, 0)) for kind in kinds)


@pytest.mark.parametrize("code", [
    ensdiff.Code.balanced(8, 30, seed=1),
    ensdiff.Code.from_matrix(ensdiff.Code.balanced(6, 7, weight=2).matrix()),
    ensdiff.Code.hierarchical(8, np.arange(12) // 4, group_weight=6),
    ensdiff.Code.hierarchical(8, np.arange(12) // 4, group_weight=6).group_code(),
], ids=["balanced", "matrix", "items of groups", "groups"])  # fmt: skip
def test_unowned_words_are_counted_without_listing_them(code):
    assert unowned_words_of(Candidates.of(code, None)) == counted(code)


@pytest.mark.filterwarnings("ignore::ensdiff.codes.errors.CodeWarning")
def test_unowned_words_of_mixed_weights_are_those_of_the_rarest_weight():
    code = ensdiff.Code.from_matrix([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    assert unowned_words_of(Candidates.of(code, None)) == 3  # of weight 1: four words, one of them owned


@pytest.mark.parametrize(("method", "units", "level", "held_out", "null", "words"), [
    ("differential", 1400, 0.1, None, 11470, ["needs 13,999", "17 members", "1,147", "level of 0.123"]),
    ("differential", 40, 0.1, None, 399, None),
    ("exact", 99, 0.1, None, 989, None),
    ("exact", 200, 0.1, None, 99, ["1,999", "'differential' or 'loss'", "at most 100 candidates", "null=1999"]),
    ("d-trak", 1400, 0.1, 397, 397, ["Hold out more data", "397", "at most 39 candidates"]),
    ("d-trak", 10, 0.1, 397, 99, None),
    ("combined", 1400, 0.1, None, 13999, None),  # random groups: as many as are asked for
])  # fmt: skip
def test_a_plan_gives_the_null_of_a_verdict_or_says_what_to_change(method, units, level, held_out, null, words):
    plan = plan_null(Candidates.of(ensdiff.Code.balanced(16, units), None), method, level, held_out)
    assert plan.null == null
    assert (plan.problem is None) == (words is None)
    assert [word for word in words or () if word not in plan.problem] == []


def test_sets_of_units_in_groups_have_no_null_and_the_plan_says_so():
    code = ensdiff.Code.hierarchical(8, np.arange(12) // 4, group_weight=6)
    plan = plan_null(Candidates.of(code, [[0, 1], [5, 9]]), "loss", 0.1)
    assert plan.null == 0
    assert "have no null" in plan.problem


def test_a_plan_never_asks_for_what_there_is_already():
    artists = ensdiff.Code.hierarchical(8, np.arange(24) % 4)  # whose group weight is 6
    plan = plan_null(Candidates.of(artists.group_code(), None), "exact", 0.1)
    assert "leaves 24. Train with a weight of 5 instead of 6, or more members, choose at most 2" in plan.problem
    assert math.comb(8, 5) - 4 >= plan.needed
    plan = plan_null(Candidates.of(artists, None), "exact", 0.1)
    assert plan.problem.endswith("Train with more members, or a larger group weight")  # no number of candidates helps


@pytest.fixture(scope="module")
def here():
    params = random_ensemble(ensdiff.Code.balanced(8, 6))
    return params, ensdiff.sample(params, 0, 2, steps=2)


def test_auto_is_the_planned_number(here):
    params, samples = here
    with warnings.catch_warnings():
        warnings.simplefilter("error", NullWarning)
        auto = ensdiff.attribute(params, samples, "differential", units=[0], top=1, null="auto", level=0.4)
    asked = ensdiff.attribute(params, samples, "differential", units=[0], top=1, null=2, level=0.4)
    np.testing.assert_array_equal(auto.null_BL, asked.null_BL)
    assert auto.settings["null"] == 2
    assert auto.limitation is None


def test_a_printed_result_says_among_which_candidates_its_q_values_are(here):
    params, samples = here
    att = ensdiff.attribute(params, samples, "differential", top=2, null=5)
    count = int((att.q_value_of_call <= att.level).any(1).sum())
    assert f"among those of all 2 samples, {count} of the samples have one with q <= 0.1" in repr(att)
    assert "q_value_of_call" in att.to_pandas()
    assert "q compares" not in repr(ensdiff.attribute(params, samples, "differential", top=2))


def test_a_call_that_cannot_give_a_verdict_says_so_before_it_computes(here, monkeypatch):
    params, samples = here

    def computed(*_, **__):
        raise AssertionError("computed before the warning")

    # the package's attribute of this name is the function
    monkeypatch.setattr(importlib.import_module("ensdiff.attribution.attribute"), "scores_of", computed)
    with pytest.warns(NullWarning, match="one of 6 candidates needs 599 null ablations"), pytest.raises(AssertionError):
        ensdiff.attribute(params, samples, "differential", top=1, null="auto", level=0.01)


def test_a_screen_that_verifies_every_candidate_computes_no_jacobian(here, monkeypatch):
    params, samples = here

    def gram(*_, **__):
        raise AssertionError("the Jacobian was computed")

    monkeypatch.setattr("ensdiff.attribution.scoring.gram", gram)
    screen = ensdiff.attribute(params, samples, "screen", top=3, null=3)
    exact = ensdiff.attribute(params, samples, "exact", top=3, null=3)
    np.testing.assert_array_equal(screen.influence, exact.influence)
    np.testing.assert_array_equal(screen.q_value, exact.q_value)
    with pytest.raises(AssertionError, match="Jacobian"):
        ensdiff.attribute(params, samples, "screen", top=3, verify=4)


def test_q_values_of_a_call_count_the_candidates_of_all_samples():
    rng = np.random.default_rng(0)
    null_BL, score_BM = rng.normal(size=(3, 49)), rng.normal(1, 1, size=(3, 8))
    calibration = Calibration(null_BL, np.zeros(49, int))
    calibration.count(score_BM, None)
    p_BM = calibration.p_values(score_BM, None)
    p_R = p_BM.reshape(-1)
    expected = [min(min(1.0, p * p_R.size / (p_R <= p).sum()) for p in p_R[p_R >= own]) for own in p_R]
    np.testing.assert_allclose(calibration.q_values(p_BM, of_call=True).reshape(-1), expected)
    assert not np.allclose(calibration.q_values(p_BM), calibration.q_values(p_BM, of_call=True))


def test_verdicts_over_a_call_allow_for_the_number_of_samples(here):
    params, samples = here
    att = ensdiff.attribute(params, samples, "differential", top=2, null=23, level=0.25)
    over = att.over_call()
    assert (att.resolution, over.resolution) == (0.25, 0.5)  # 6 candidates, and 12 of two samples
    assert att.limitation is None
    assert over.limitation is not None
    assert "q compares the candidates of all 2 samples" in repr(over)
    bare = ensdiff.attribute(params, samples, "differential", top=2)
    with pytest.raises(ValueError, match="no q-values among all samples"):
        bare.over_call()
