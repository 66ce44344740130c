"""Memorization and membership scores: against loops, against planted effects, and from a run over the data."""

import numpy as np
import pytest
from scipy.stats import norm

import ensdiff
from ensdiff.attribution import LossConfig, loss_matrix
from ensdiff.attribution.contrast import contrast_losses, contrast_table, unit_losses
from ensdiff.codes import Code
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.tracing import activation_bytes
from tests.helpers import CODE, blobs


def losses(rng, code, effect, spread=0.3):
    seen = code.matrix()
    difficulty, skill = rng.normal(10, 2, (code.units, 1)), rng.normal(0, 1, code.members)
    return difficulty + skill - effect * seen + rng.normal(0, spread, seen.shape)


def test_scores_against_loops(rng):
    code = Code.balanced(8, 12, 4)
    loss, seen = losses(rng, code, 0.5), code.matrix().astype(bool)
    result = contrast_losses(loss, code)
    centred = loss - loss.mean(0)
    variance = {}
    for kind in (True, False):
        squares = [((c := centred[i][seen[i] == kind]) - c.mean()) ** 2 for i in range(12)]
        variance[kind] = np.sum(squares) / (12 * 3)  # pooled: three degrees of freedom per unit
    for i in range(12):
        inside, outside = loss[i, seen[i]], loss[i, ~seen[i]]
        assert result.memorization_N[i] == pytest.approx(outside.mean() - inside.mean())
        error = np.sqrt(inside.var(ddof=1) / 4 + outside.var(ddof=1) / 4)
        assert result.memorization_error_N[i] == pytest.approx(error)
        for k in range(8):
            ratio = 0.0
            for kind, sign in ((True, 1), (False, -1)):
                others = [l for l in range(8) if l != k and seen[i, l] == kind]
                scale = np.sqrt(variance[kind] * (1 + 1 / len(others)))
                ratio += sign * norm.logpdf(centred[i, k], centred[i, others].mean(), scale)
            assert result.membership_NK[i, k] == pytest.approx(ratio, rel=1e-6)
        separation = result.membership_NK[i, seen[i]].mean() - result.membership_NK[i, ~seen[i]].mean()
        assert result.separation_N[i] == pytest.approx(separation)
    pairs = result.membership_NK[seen][:, None] - result.membership_NK[~seen][None]
    assert result.auc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_planted_memorization_is_recovered_and_its_absence_too(rng):
    code = Code.balanced(16, 500, 8)
    some = contrast_losses(losses(rng, code, 0.5), code)
    # members differ in skill, which the error bars include
    assert np.mean(np.abs(some.memorization_N - 0.5) < 2 * some.memorization_error_N) > 0.9
    assert some.auc > 0.8
    none = contrast_losses(losses(rng, code, 0.0), code)
    assert abs(none.auc - 0.5) < 0.03
    assert np.mean(np.abs(none.memorization_N) > 2.5 * none.memorization_error_N) < 0.06
    assert abs(none.separation_N.mean()) < 4 * none.separation_N.std() / np.sqrt(500)


@pytest.mark.filterwarnings("ignore::ensdiff.CodeWarning")
def test_units_with_too_few_members_are_nan(rng):
    code = Code.from_matrix([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0]])
    result = contrast_losses(rng.random((4, 5)), code)
    assert np.isnan(result.membership_NK[0]).all()  # only one member saw it
    assert np.isfinite(result.membership_NK[1:]).all()
    assert np.isfinite(result.memorization_N).all()
    assert np.isnan(result.memorization_error_N[0])


IDENTITY = [[1.0, 2.0, 3.0], [4.0, 1.0, 4.0], [5.0, 5.0, 2.0]]


@pytest.mark.filterwarnings("ignore::ensdiff.CodeWarning")
def test_one_member_for_each_unit():
    """With one model for each artist, trained elsewhere, memorization is known but membership is not."""
    found = contrast_losses(IDENTITY, Code.from_matrix(np.eye(3)))
    np.testing.assert_array_equal(found.memorization_N, [1.5, 3, 3])
    for nothing in found[2:6]:  # errors, membership and separation
        assert np.isnan(nothing).all()
    assert np.isnan(found.auc)
    assert found.notes == (
        "Membership, and the standard error of memorization, are NaN for 3 of 3 units that one member saw, or all but "
        "one: a spread needs at least two members of each kind.",
        "The AUC is NaN: there is no unit whose membership is known.",
    )
    but_one = contrast_losses(IDENTITY, Code.from_matrix(1 - np.eye(3)))
    np.testing.assert_array_equal(but_one.memorization_N, [-1.5, -3, -3])
    assert but_one.notes == found.notes
    lines = contrast_table(found, ["ada", "bob", "eve"], top=2).splitlines()
    assert lines[:2] == list(found.notes)
    assert lines[3:] == ["  bob: 3.000 (error unknown), unknown", "  eve: 3.000 (error unknown), unknown"]


@pytest.mark.filterwarnings("ignore::ensdiff.CodeWarning")
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_units_that_all_or_no_members_saw(rng):
    code = Code.from_matrix([[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]])
    found = contrast_losses(rng.random((3, 4)), code)
    assert np.isnan(found.memorization_N).tolist() == [True, False, False]
    assert np.isnan(found.membership_NK).any(1).tolist() == [True, False, False]
    assert np.isnan(found.separation_N).tolist() == [True, False, False]
    assert 0 <= found.auc <= 1
    assert len(found.notes) == 1
    assert "NaN for 1 of 3 units that all members or no member saw" in found.notes[0]
    table = contrast_table(found, ["none", "ada", "bob"])
    assert f"AUC {found.auc:.4f}" in table
    assert "none:" not in table
    nothing = contrast_losses([[1.0]], Code.undivided(1))  # one member, which saw everything
    assert np.isnan(nothing.memorization_N).all()
    assert np.isnan(nothing.auc)
    assert contrast_table(nothing, ["all"]).splitlines() == list(nothing.notes)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_equal_members_say_nothing_of_membership(rng):
    code = Code.balanced(8, 12, 4)
    found = contrast_losses(np.repeat(rng.random((12, 1)), 8, axis=1), code)
    np.testing.assert_allclose(found.memorization_N, 0, atol=1e-15)
    assert np.isnan(found.membership_NK).all()
    assert "losses do not vary" in found.notes[0]
    assert contrast_losses(losses(rng, code, 0.5), code).notes == ()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_unit_of_unknown_loss_changes_no_other(rng):
    code = Code.balanced(8, 12, 4)
    loss = losses(rng, code, 0.5)
    loss[5] = np.nan
    found = contrast_losses(loss, code)
    rest = np.delete(np.arange(12), 5)
    without = contrast_losses(loss[rest], Code.from_matrix(code.matrix()[rest]))
    for name in ("loss_NK", "memorization_N", "memorization_error_N", "membership_NK", "separation_N"):
        np.testing.assert_allclose(getattr(found, name)[rest], getattr(without, name), err_msg=name)
        assert np.isnan(getattr(found, name)[5]).all()
    assert found.auc == without.auc
    assert found.notes == ("Everything is NaN for 1 of 12 units with absent items: their loss is unknown.",)
    loss[6, 0] = np.nan
    with pytest.raises(ValueError, match="expected finite losses .* or rows of NaN for some"):
        contrast_losses(loss, code)


def test_losses_that_do_not_fit_the_code(rng):
    code = Code.balanced(8, 12, 4)
    for loss in (rng.random((12, 7)), rng.random(12), np.full((12, 8), np.nan)):
        with pytest.raises(ValueError, match="expected finite losses of 12 units under 8 members"):
            contrast_losses(loss, code)


def test_losses_of_units_are_diagonals_of_r(tiny):
    """One pass over items of several units, in small chunks, gives the diagonal of R for the same draws."""
    data = ensdiff.data.arrays(blobs(9), groups=[0, 0, 1, 2, 3, 4, 5, 5, 5])
    config = LossConfig(draws=16, block=8)
    loss = unit_losses(tiny, data, 3, config)
    diagonal = np.diagonal(loss_matrix(tiny, data.images, 3, config).mean_BKK, axis1=1, axis2=2)
    for unit in range(6):
        np.testing.assert_allclose(loss[unit], diagonal[data.items_of(unit)].mean(0), rtol=1e-4)
    one_at_a_time = Resources(memory_budget=config.block * activation_bytes(tiny.model, tiny.image_shape))
    np.testing.assert_allclose(unit_losses(tiny, data, 3, config, one_at_a_time), loss, rtol=1e-4)
    result = ensdiff.contrast(tiny, data, 3, config)
    np.testing.assert_array_equal(result.loss_NK, loss)
    assert CODE.units == len(result.memorization_N)
    gone = data.subset([0, 2, 3, 4, 5, 6, 7, 8]).align(data.manifest(), absent=[0])
    without = unit_losses(tiny, gone, 3, config)
    assert np.isnan(without[0]).all()
    np.testing.assert_array_equal(without[1:], loss[1:])
    with pytest.raises(ValueError, match="9 units"):
        unit_losses(tiny, ensdiff.data.arrays(blobs(9)), 3)
