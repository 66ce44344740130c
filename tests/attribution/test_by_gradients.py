"""Gradient methods of `attribute`: against scores put together by hand, their nulls, judgement and bad requests."""

import dataclasses

import numpy as np
import pytest

import ensdiff
from ensdiff.attribution import gradient_scores
from ensdiff.attribution.by_gradients import _check_unseen, _predicted_without_each, _scaled
from ensdiff.attribution.calibration import TIE
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.combination import fit_combination
from ensdiff.attribution.conformal import group_factors
from ensdiff.attribution.gradients import (
    GradientConfig,
    member_scores,
    over_units,
    projected_gradients,
    write_gradients,
)
from ensdiff.attribution.gradients.scoring import TargetScores
from ensdiff.attribution.gradients.targets import targets_of
from ensdiff.attribution.judging import Judgement, cross_predictions, held_out, judge_scores
from ensdiff.attribution.pictures import Pictures
from ensdiff.attribution.queries import same_queries
from ensdiff.metrics import Estimate
from ensdiff.metrics.arrays import spearman
from ensdiff.models.space import Latents
from ensdiff.runs.pieces import Pieces
from tests.helpers import blobs, random_ensemble

CONFIG = GradientConfig(draws=4, parts=2, dimension=16, ridge=0.1, levels="all", normalize=False)
FEW = ensdiff.LossConfig(draws=4, block=2)
IMAGES = blobs(12)
SINGLE = ensdiff.data.arrays(IMAGES[:6])
GROUPED = ensdiff.data.arrays(IMAGES, groups=[0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5])
QUERIES = blobs(3, seed=1)
OTHERS = blobs(5, seed=2)


def attribute(params, method="trak", data=SINGLE, **options):
    options = {"gradients": CONFIG, "loss": FEW, "top": 6} | options
    return ensdiff.attribute(params, QUERIES, method, data=data, **options)


def test_scores_of_each_member(tiny):
    found = gradient_scores(tiny, QUERIES, GROUPED, config=CONFIG, held_out=OTHERS)
    np.testing.assert_allclose(found.items_KBn, by_hand(tiny, GROUPED), rtol=1e-5, atol=1e-9)
    assert found.extra_KBm.shape == (4, 3, 5)
    with pytest.raises(ValueError, match="give ridge, levels and normalize"):
        gradient_scores(tiny, QUERIES, SINGLE, config=dataclasses.replace(CONFIG, ridge=None))


def by_hand(params, data, method="trak", output="loss", config=CONFIG):
    """Return the (K, B, N) scores of units, put together from their parts."""
    query, train = ({output: projected_gradients(params, x, output, config)} for x in (QUERIES, data.images))
    seen_nK = params.code.matrix()[data.unit_of_item]
    scores = member_scores(method, query, train, seen_nK, config.settings()[0])
    return over_units(scores.items_KBn, data.unit_of_item, data.units)


def unscaled(att):
    """Return the slope by which influences were multiplied."""
    return att.judgement.slope.value if att.distance == "loss" else 1.0


def unseen_scores(scores_KBN, words_NK):
    """Return the mean of each item's scores over the members that did not see it, one item at a time."""
    out = np.empty(scores_KBN.shape[1:])
    for i, word_K in enumerate(words_NK):
        out[:, i] = np.mean([scores_KBN[k, :, i] for k in range(len(word_K)) if not word_K[k]], axis=0)
    return out


def comparable_scores(scores_KBN, words_NK):
    """Return the scores of items in groups (p3), one item at a time."""
    z_KBN, size_KB = np.zeros(scores_KBN.shape), np.zeros(scores_KBN.shape[:2])
    for k, b in np.ndindex(*size_KB.shape):
        inside = [scores_KBN[k, b, i] for i in range(len(words_NK)) if not words_NK[i, k]]
        size_KB[k, b] = np.std(inside)
        z_KBN[k, b] = (scores_KBN[k, b] - np.mean(inside)) / size_KB[k, b]
    return unseen_scores(z_KBN, words_NK) * size_KB.mean(0)[:, None]


def outputs(params):
    return -np.diagonal(ensdiff.loss_matrix(params, QUERIES, 0, FEW).mean_BKK, axis1=1, axis2=2)


def in_order(att, values_BN):
    """Return the values of all units in the order of an attribution."""
    return np.take_along_axis(np.asarray(values_BN, float), att.units, axis=1)


@pytest.mark.parametrize("data", [SINGLE, GROUPED], ids=["single", "grouped"])
def test_influence_is_the_members_mean(tiny, data):
    att = attribute(tiny, data=data)
    scores_KBN = by_hand(tiny, data).astype(float)
    np.testing.assert_allclose(att.influence / unscaled(att), in_order(att, scores_KBN.mean(0)), rtol=1e-4, atol=1e-9)
    error = scores_KBN.std(0, ddof=1) / np.sqrt(tiny.members)
    np.testing.assert_allclose(att.standard_error / unscaled(att), in_order(att, error), rtol=1e-3, atol=1e-9)
    assert (np.diff(att.influence, axis=1) <= 0).all()
    assert att.p_value is att.verdict is None
    assert same_queries(att.settings["queries"], QUERIES)


def test_judgement_is_that_of_the_scores(tiny):
    att = attribute(tiny)
    expected = judge_scores(by_hand(tiny, SINGLE), outputs(tiny), tiny.code.matrix())
    np.testing.assert_allclose(att.judgement.lds, expected.lds, atol=1e-6)
    np.testing.assert_allclose(att.judgement.slope, expected.slope, rtol=1e-3)
    assert str(att.judgement) in repr(att)


def test_members_choose_what_is_left_open(tiny):
    config = dataclasses.replace(CONFIG, ridge=None, normalize=None)
    att = attribute(tiny, "d-trak", gradients=config)
    assert len(att.judgement.table) == len(config.settings()) == 8
    best = max(att.judgement.table, key=lambda row: row[1])
    assert att.settings["chosen"] == att.judgement.setting == best[0]
    setting = {name: att.settings["chosen"][name] for name in ("ridge", "normalize")}
    again = attribute(tiny, "d-trak", gradients=dataclasses.replace(CONFIG, **setting))
    np.testing.assert_array_equal(att.units, again.units)
    np.testing.assert_allclose(att.influence / unscaled(att), again.influence / unscaled(again), rtol=1e-6)


def test_sets_are_sums_and_compared_with_random_sets(tiny):
    single, sets = attribute(tiny), attribute(tiny, units=[{0, 1}, {2, 3}, 4], top=3, null=40)
    alone = np.empty((3, 6))
    np.put_along_axis(alone, single.units, single.influence / unscaled(single), axis=1)
    expected = np.stack([alone[:, [0, 1]].sum(1), alone[:, [2, 3]].sum(1), alone[:, 4]], axis=1)
    np.testing.assert_allclose(sets.influence / unscaled(sets), in_order(sets, expected), rtol=1e-4, atol=1e-9)
    unseen = comparable_scores(by_hand(tiny, SINGLE).astype(float), tiny.code.matrix())
    assert sets.settings["null_kind"] == "sets"
    assert sets.null_BL.shape == (3, 80)  # 40 of each size
    every = {tuple(sorted((i, j))) for i in range(6) for j in range(6) if i != j}
    sums = np.stack([unseen[:, list(pair)].sum(1) for pair in every], axis=1) * unscaled(sets)
    nearest = np.abs(sets.null_BL[:, 40:, None] - sums[:, None]).min(-1)  # sizes ascend
    assert nearest.max() < 1e-5 * np.abs(sums).max()


def test_p_values_count_held_out_items(tiny):
    """Scores are means over the members that did not see the unit, or that the null's word leaves out."""
    att = attribute(tiny, held_out=OTHERS, null="all")
    assert att.settings["null_kind"] == "held-out"
    query, train, extra = (
        {"loss": projected_gradients(tiny, x, "loss", CONFIG)} for x in (QUERIES, SINGLE.images, OTHERS)
    )
    code_NK = tiny.code.matrix()
    scores = member_scores("trak", query, train, code_NK, CONFIG.settings()[0], extra)
    score_BN = unseen_scores(scores.items_KBn, code_NK)
    targets = targets_of(tiny.code, SINGLE, Candidates.of(tiny.code, None), "all", 0, len(OTHERS))
    which_L = targets.of_held_mT.toarray()[:, 6:].argmax(0)
    words_LK = targets.words_mK[which_L]
    assert (words_LK.sum(1) == tiny.code.weight).all()
    null_BL = unseen_scores(scores.extra_KBm[:, :, which_L], words_LK)
    np.testing.assert_allclose(att.null_BL / unscaled(att), null_BL, rtol=1e-4, atol=1e-9)
    raised = null_BL + TIE * np.abs(null_BL).max(1, keepdims=True)
    p_BN = (1 + (raised[:, None] >= score_BN[..., None]).sum(-1)) / (1 + len(OTHERS))
    np.testing.assert_allclose(att.p_value, in_order(att, p_BN))


def test_groups_are_compared_with_random_groups_of_their_size(tiny):
    att = attribute(tiny, data=GROUPED, null=30)
    assert att.settings["null_kind"] == "groups"
    assert att.settings["null_of_a_kind"] == 30
    assert att.null_BL.shape == (3, 90)  # groups of 1, 2 and 3 items
    single = attribute(tiny, data=GROUPED.regroup(GROUPED.unit_of_item))  # the same scores
    np.testing.assert_array_equal(att.influence, single.influence)
    targets = targets_of(tiny.code, GROUPED, Candidates.of(tiny.code, None), 30, 0, 0)
    np.testing.assert_array_equal(targets.of_items_nT.sum(0), targets.kind_T)
    query, train = ({"loss": projected_gradients(tiny, x, "loss", CONFIG)} for x in (QUERIES, GROUPED.images))
    words_nK = tiny.code.matrix()[GROUPED.unit_of_item]
    scores = member_scores("trak", query, train, words_nK, CONFIG.settings()[0])
    item_Bn = comparable_scores(scores.items_KBn.astype(float), words_nK)
    null_BL = item_Bn @ targets.of_items_nT.toarray()[:, 6:]
    np.testing.assert_allclose(att.null_BL / unscaled(att), null_BL, rtol=1e-3, atol=1e-6 * np.abs(null_BL).max())
    sizes = np.bincount(GROUPED.unit_of_item)
    unseen = [np.mean((words_nK == 0).sum(0)[word == 0]) for word in tiny.code.matrix()]
    tested_BN = group_factors(sizes, unseen, 12) * over_units(item_Bn[None], GROUPED.unit_of_item, 6)[0]
    raised = null_BL + TIE * np.abs(null_BL).max(1, keepdims=True)
    of_size = targets.kind_T[6:] == sizes[:, None]
    p_BN = (1 + ((raised[:, None] >= tested_BN[..., None]) & of_size).sum(-1)) / (1 + 30)
    assert (np.abs(att.p_value - in_order(att, p_BN)) < 1e-9).mean() > 0.9  # but for rounding
    again = attribute(tiny, data=GROUPED, null=30)
    np.testing.assert_array_equal(att.p_value, again.p_value)


@pytest.mark.slow  # tests/attribution/test_conformal.py says more, without networks
def test_random_units_have_uniform_p_values():
    """Members whose data are noise know nothing of their units: held-out items score alike."""
    code = ensdiff.Code.balanced(members=4, units=6)
    params = random_ensemble(code, seed=3)
    found = [attribute(params, data=ensdiff.data.arrays(blobs(6, seed=s)), held_out=blobs(5, seed=s + 50), null="all")
             for s in range(10, 14)]  # fmt: skip
    p = np.concatenate([att.p_value.ravel() for att in found])
    assert 0.35 < p.mean() < 0.8


def test_combined_is_the_posterior(tiny):
    att = attribute(tiny, "combined", data=GROUPED, null=9)
    method = att.settings["chosen"]["method"]
    scores_KBN = by_hand(tiny, GROUPED, method, {"trak": "loss", "d-trak": "square"}[method])
    code_NK = tiny.code.matrix()
    fit = fit_combination(held_out(cross_predictions(scores_KBN, code_NK)), outputs(tiny), code_NK)
    expected = fit.posterior(scores_KBN.mean(0, dtype=float), code_NK)
    assert att.distance == "loss"
    np.testing.assert_allclose(att.influence, in_order(att, expected.mean_BN), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(att.standard_error, in_order(att, expected.error_BN), rtol=1e-3)
    assert len(att.judgement.table) == 2  # TRAK and D-TRAK


def test_combined_predicts_members_with_a_choice_and_a_fit_without_them():
    """Against the posterior means of all units."""
    rng = np.random.default_rng(1)
    code_NK = ensdiff.Code.balanced(members=6, units=9).matrix()
    truth_BN = rng.normal(size=(3, 9))
    y_BK = truth_BN @ code_NK + rng.normal(size=(3, 6))
    crosses = [cross_predictions(truth_BN + 2 * rng.normal(size=(6, 3, 9)), code_NK) for _ in range(4)]
    expected, picked = np.empty_like(y_BK), []
    for k in range(6):
        rest = np.delete(np.arange(6), k)
        picked.append(int(np.argmax([spearman(held_out(cross, k), y_BK[:, rest]).mean() for cross in crosses])))
        cross = crosses[picked[-1]]
        fit = fit_combination(held_out(cross, k), y_BK[:, rest], code_NK[:, rest])
        effect_BN = fit.posterior(np.zeros((3, 9)), code_NK[:, rest]).mean_BN
        expected[:, k] = fit.beta * held_out(cross)[:, k] + effect_BN @ code_NK[:, k]
    assert len(set(picked)) > 1
    found = _predicted_without_each(dict(enumerate(crosses)), y_BK, code_NK, 0)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_two_members_cannot_judge():
    code, data = ensdiff.Code.balanced(members=2, units=2), ensdiff.data.arrays(IMAGES[:2])
    params = random_ensemble(code, seed=5)
    att = attribute(params, data=data, top=2, held_out=OTHERS, null="all")
    assert att.judgement is None
    assert att.distance == "score"
    assert att.p_value is not None
    with pytest.raises(ValueError, match="at least 4 members, the ensemble has 2"):
        attribute(params, "combined", data=data, top=2)


def test_units_that_all_members_saw_have_no_p_value():
    words = [[1, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]]
    code = ensdiff.Code.from_matrix(words).only([0, 1, 2])  # of mixed weights, and too few for a null of 50
    with pytest.raises(ensdiff.NoSurvivorError):
        targets_of(code, SINGLE, Candidates.of(code, [0, 1]), 2, 0, 5)
    grouped = targets_of(code, GROUPED, Candidates.of(code, [1, 2]), 50, 0, 0)
    sets = targets_of(code, SINGLE, Candidates.of(code, [{1, 3}]), 50, 0, 0)
    assert not grouped.of_items_nT[:3].sum()
    assert not sets.of_items_nT[[0]].sum()


def test_null_words_of_a_combination_belong_to_no_unit():
    code = ensdiff.Code.balanced(members=6, units=6)
    targets = targets_of(code, SINGLE, Candidates.of(code, None), "all", 0, 5)
    owned = {word.tobytes() for word in code.matrix().astype(np.int64)}
    assert not any(word.tobytes() in owned for word in np.ascontiguousarray(targets.column_KT[:, 6:].T))


def test_result_is_saved_and_loaded(tiny, tmp_path):
    att = attribute(tiny, "combined", held_out=OTHERS, null=4)
    att.save(tmp_path / "att")
    loaded = ensdiff.Attribution.load(tmp_path / "att")
    assert loaded.judgement == att.judgement
    assert repr(loaded) == repr(att)
    assert "4 held-out items" in repr(att)
    assert "more held-out items" in att.limitation


@pytest.fixture
def killed_after_a_block(monkeypatch):
    """Return the list of computed blocks of two members; with "kill" in it, the second block is interrupted."""
    from ensdiff.attribution.gradients import scoring

    monkeypatch.setattr(scoring, "members_at_once", lambda members: 2)
    snapshot = Pieces.snapshot
    monkeypatch.setattr(
        Pieces, "snapshot", lambda self, *state: vars(self).update(_written=0.0) or snapshot(self, *state)
    )
    real, calls = scoring._add_members, []

    def counted(*args):
        if calls == ["kill", "block"]:
            raise KeyboardInterrupt
        calls.append("block")
        return real(*args)

    monkeypatch.setattr(scoring, "_add_members", counted)
    return calls


def test_an_interrupted_call_continues(tiny, tmp_path, killed_after_a_block):
    expected, calls = attribute(tiny, "d-trak"), killed_after_a_block
    calls[:] = ["kill"]
    with pytest.raises(KeyboardInterrupt):
        attribute(tiny, "d-trak", partial=tmp_path / "part")
    calls.clear()
    att = attribute(tiny, "d-trak", partial=tmp_path / "part")
    assert len(calls) == 1  # the other block is from before
    np.testing.assert_array_equal(att.influence, expected.influence)
    np.testing.assert_array_equal(att.standard_error, expected.standard_error)
    assert not (tmp_path / "part").exists()


def test_another_seed_does_not_continue_with_the_words_of_the_first(tiny, tmp_path, killed_after_a_block):
    options, calls = {"held_out": OTHERS, "null": "all"}, killed_after_a_block
    expected = attribute(tiny, seed=1, **options)
    calls[:] = ["kill"]
    with pytest.raises(KeyboardInterrupt):
        attribute(tiny, partial=tmp_path / "part", **options)
    calls.clear()
    found = attribute(tiny, partial=tmp_path / "part", seed=1, **options)
    np.testing.assert_array_equal(found.null_BL, expected.null_BL)


@pytest.mark.parametrize("method", ["combined", pytest.param("d-trak", marks=pytest.mark.slow)])
def test_two_passes_over_a_store_are_one(tiny, tmp_path, monkeypatch, method):
    """First what choosing needs, then the chosen setting: the result is that of all settings at once."""
    from ensdiff.attribution import by_gradients

    config = dataclasses.replace(CONFIG, ridge=None, levels=None)
    write_gradients(tmp_path / "store", tiny, SINGLE, ("loss", "square"), config)
    asked, score_targets = [], by_gradients.score_targets

    def counted(params, images, choices, *rest):
        asked.append(choices)
        return score_targets(params, images, choices, *rest)

    monkeypatch.setattr(by_gradients, "score_targets", counted)
    options = {"gradients": config, "units": [{0, 1}, {2, 3}, 4], "top": 3, "null": 9, "store": tmp_path / "store"}
    two = attribute(tiny, method, **options)
    assert [choice.plain for choice in asked[0]] == [two.settings["chosen"]]

    def one_pass(params, images, choices, *rest):
        everything = targets_of(tiny.code, SINGLE, Candidates.of(tiny.code, options["units"]), 9, 0, 0)
        scores = score_targets(params, images, choices, rest[0], everything, *rest[1:])
        monkeypatch.setattr(by_gradients, "score_targets", lambda *args: scores)
        return {choice: found.cross_KBK for choice, found in scores.items()}

    monkeypatch.setattr(by_gradients, "cross_scores", one_pass)
    one = attribute(tiny, method, **options)
    assert one.judgement == two.judgement
    for name in ("units", "influence", "standard_error", "null_BL", "p_value", "q_value"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.bad_input
def test_training_images_are_not_held_out(tiny):
    both = np.concatenate([OTHERS[:2], IMAGES[[4]]])
    as_floats = both.astype(np.float32) / 255
    for others in (both, as_floats, ensdiff.data.arrays(both)):
        with pytest.raises(ValueError, match=r"1 of 3 images are training images: 2 \(item 4\)\. "):
            attribute(tiny, held_out=others, null=2)


@pytest.mark.bad_input
def test_training_latents_are_not_held_out(rng):
    latents = rng.normal(size=(6, 2, 2, 3)).astype(np.float32)
    classes = [0, 1] * 3  # an item of another class is still seen
    data = ensdiff.data.arrays(latents, space=Latents(), condition=classes)
    _check_unseen(Pictures(latents[:2] + 1), data)
    with pytest.raises(ValueError, match=r"2 of 3 images are training images: 0 \(item 3\), 2 \(item 5\)\. "):
        _check_unseen(Pictures(np.stack([latents[3], latents[4] + 1, latents[5]]).astype(np.float64)), data)


def test_das_has_no_unit_of_loss():
    """However well squares seem to predict losses: they have no sign."""
    sure = Estimate(2.0, 1.0, 3.0)
    judgement, scores = Judgement(sure, sure, None, (), 1, 4), TargetScores(*3 * [np.ones((1, 1))], np.ones((4, 1, 4)))
    found = {method: _scaled(method, scores, judgement) for method in ("das", "trak")}
    assert (found["das"].unit, found["das"].influence_BT) == ("score", 1.0)
    assert (found["trak"].unit, found["trak"].influence_BT) == ("loss", 2.0)


def test_sets_are_compared_with_sets_of_as_many_items():
    """A set of three large units is not compared with any three units."""
    sizes = [1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 9, 9, 9, 9]
    data = ensdiff.data.arrays(blobs(sum(sizes)), groups=np.repeat(np.arange(len(sizes)), sizes))
    code = ensdiff.Code.balanced(members=8, units=len(sizes))
    wanted = [{10, 11}, {0, 4}, {3}]
    targets = targets_of(code, data, Candidates.of(code, wanted), 200, 0, 0)
    items_T = targets.of_items_nT.sum(0)
    assert items_T[:3].tolist() == targets.kind_T[:3].tolist() == [18, 3, 1]
    for kind in (18, 3, 1):
        of_kind = items_T[3:][targets.kind_T[3:] == kind]
        assert len(of_kind) == 200
        assert (np.abs(of_kind - kind) <= 2).all()
        assert abs(of_kind.mean() - kind) < 0.5
    counts = np.unique(targets.units_T[3:][targets.kind_T[3:] == 18])
    assert len(counts) > 3  # not only pairs
    matrix = targets.of_items_nT.toarray()[:, 3:]
    np.testing.assert_array_equal(targets.units_T[3:], [len(np.unique(data.unit_of_item[c > 0])) for c in matrix.T])


def test_a_store_with_other_held_out_items(tiny, tmp_path):
    write_gradients(tmp_path / "store", tiny, SINGLE, ("loss",), CONFIG, held_out=ensdiff.data.arrays(OTHERS))
    options = {"held_out": ensdiff.data.arrays(blobs(7, seed=8)), "null": "all"}
    att, stored = attribute(tiny, **options), attribute(tiny, store=tmp_path / "store", **options)
    size = np.abs(att.null_BL).max() / unscaled(att)
    np.testing.assert_allclose(stored.null_BL / unscaled(stored), att.null_BL / unscaled(att), atol=0.01 * size)


def test_stored_gradients_give_the_same_scores(tiny, tmp_path):
    write_gradients(tmp_path / "store", tiny, SINGLE, ("loss",), CONFIG)
    att, stored = attribute(tiny), attribute(tiny, store=tmp_path / "store")
    np.testing.assert_allclose(stored.influence / unscaled(stored), att.influence / unscaled(att), rtol=0.02)
    with pytest.raises(ValueError, match="seed"):
        attribute(tiny, store=tmp_path / "store", gradients=dataclasses.replace(CONFIG, seed=1))


def test_hierarchical_groups():
    code = ensdiff.Code.hierarchical(4, [0, 0, 1, 1, 2, 2], group_weight=3, weight=2)
    params = random_ensemble(code, seed=4)
    items, groups = attribute(params), attribute(params, code=code.group_code(), top=3, null=9)
    alone = np.empty((3, 6))
    np.put_along_axis(alone, items.units, items.influence / unscaled(items), axis=1)
    expected = alone.reshape(3, 3, 2).sum(-1)
    np.testing.assert_allclose(groups.influence / unscaled(groups), in_order(groups, expected), rtol=1e-4, atol=1e-9)
    assert groups.settings["null_kind"] == "sets"
    with pytest.raises(ValueError, match="leave code out"):
        attribute(params, code=ensdiff.Code.balanced(members=4, units=4, weight=1), top=3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": None}, "pass data="),
        ({"data": ensdiff.data.arrays(IMAGES[:5])}, "5 units"),
        ({"null": 3}, "pass held_out="),
        ({"null": 9, "held_out": OTHERS}, "5 are given"),
        ({"null": "all", "data": GROUPED}, "give a number"),
        ({"held_out": np.zeros((2, 4, 4, 1))}, "4, 4, 1"),
        ({"features": lambda x: x}, "features have no meaning"),
        ({"verify": 3}, "verify is for"),
        ({"method": "das-trak"}, "'das'"),
        ({"top": 7}, r"expected 1 \.\. 6"),
        ({"store": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_what_is_refused(tiny, options, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        attribute(tiny, **options)


def test_other_methods_refuse_the_options_of_gradients(tiny):
    with pytest.raises(ValueError, match="data is for"):
        ensdiff.attribute(tiny, QUERIES, "loss", top=1, loss=FEW, data=SINGLE)


def test_a_verdict_counts_units_outside_of_the_top(tiny):
    """The ranking is by all members, p-values are by those that did not see a unit: the orders differ."""
    every = attribute(tiny, held_out=OTHERS, null="all", level=0.999)
    first = attribute(tiny, held_out=OTHERS, null="all", level=0.999, top=1)
    count_B = (every.q_value <= 0.999).sum(1)
    assert every.settings["attributed"] == first.settings["attributed"] == count_B.tolist()
    for said, count, q in zip(first.verdict, count_B, first.q_value[:, 0], strict=True):
        hidden = count - (q <= 0.999)
        assert (f"{hidden} units outside of the top 1" in said) == (hidden > 0)
    assert count_B.max() > 1
