"""Loss weights by the formulas of their papers, and independence of what the network predicts."""

import dataclasses

import numpy as np
import pytest

from ensdiff.diffusion.schedule import Schedule, conversion
from ensdiff.diffusion.weights import loss_weights, vlb_weights
from tests.diffusion.twin import PROCESSES, name_of


def clean_error(schedule):
    """The squared error of x_0 if the prediction is off by 1, found by converting two predictions."""
    rule = conversion(schedule, schedule.signal_T, schedule.sigma_T)
    one, other = (((rule.clean_x * 0.3 + rule.clean_f * f) / rule.clean_over) for f in (0.0, 1.0))
    return (one - other) ** 2


def test_min_snr_of_the_paper():
    """Hang et al. 2023, section 3.4: the weights of the three predictions of variance preserving processes."""
    snr = Schedule().snr_T
    want = dict(noise=np.minimum(snr, 5) / snr, clean=np.minimum(snr, 5), v=np.minimum(snr, 5) / (snr + 1))
    for prediction, weights in want.items():
        np.testing.assert_allclose(loss_weights(Schedule(prediction=prediction), "min_snr"), weights, rtol=1e-10)


def test_edm_weights_of_the_paper():
    """Karras et al. 2022, table 1: lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on the clean image."""
    for data in (0.5, 0.8):
        schedule = Schedule(kind="edm", prediction="clean", sigma_data=data)
        want = (schedule.sigma_T**2 + data**2) / (schedule.sigma_T * data) ** 2
        np.testing.assert_allclose(loss_weights(schedule, "edm"), want, rtol=1e-12)
        np.testing.assert_allclose(loss_weights(dataclasses.replace(schedule, prediction="edm"), "edm"), 1, rtol=1e-12)


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
@pytest.mark.parametrize("weighting", ["min_snr", "edm"])
def test_one_loss_for_every_prediction(schedule, weighting):
    """The weight on an error of F, as one on the error of the clean image, does not depend on the prediction."""
    weights = loss_weights(schedule, weighting)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    clean = loss_weights(dataclasses.replace(schedule, prediction="clean"), weighting)
    np.testing.assert_allclose(weights, clean * clean_error(schedule), rtol=1e-9)
    assert (loss_weights(schedule, "simple") == 1).all()


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
def test_variational_bound(schedule):
    """Half of the decrease of SNR, on the error of the clean image; for noise, the formula of eq. 14 to the bit."""
    n, snr = 41, schedule.snr_T
    weights = vlb_weights(schedule, 10, 50)
    assert weights[0] == 0
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights[1:], n / 2 * -np.diff(snr) * clean_error(schedule)[1:], rtol=1e-6)
    if schedule.prediction == "noise" and schedule.variance_preserving:
        snr_T = schedule.abar_T / (1.0 - schedule.abar_T)
        np.testing.assert_array_equal(weights, n / 2 * np.concatenate([[0.0], snr_T[:-1] / snr_T[1:] - 1.0]))


def test_a_loss_as_a_number():
    """At snr = 16 / 9 with v: the clean image's error is sigma^2 of F's."""
    schedule = Schedule(2, 0.36, 0.36, prediction="v")  # signal 0.8, sigma 0.6 at level 0
    assert loss_weights(schedule, "min_snr")[0] == pytest.approx(16 / 9 * 0.36, rel=1e-12)
