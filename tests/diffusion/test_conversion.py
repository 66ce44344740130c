"""Predictions of every kind: they are converted without loss, and averaging commutes with the conversion."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.diffusion.conversion import convert
from ensdiff.diffusion.schedule import (
    Schedule,
    add_noise,
    clean_of,
    conversion,
    network_inputs,
    noise_of,
    target,
)
from tests.diffusion.twin import PROCESSES, name_of

numbers = st.floats(-3, 3)


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
@given(numbers, numbers)
def test_every_prediction_gives_back_image_and_noise(schedule, x0, eps):
    rule = conversion(schedule, schedule.signal_T, schedule.sigma_T)
    x = schedule.signal_T * x0 + schedule.sigma_T * eps
    f = rule.target_clean * x0 + rule.target_noise * eps
    scale = 1 + schedule.sigma_T / np.abs(rule.clean_over)
    np.testing.assert_allclose((rule.clean_x * x + rule.clean_f * f) / rule.clean_over / scale, x0 / scale, atol=1e-12)
    scale = 1 + schedule.signal_T / np.abs(rule.noise_over)
    np.testing.assert_allclose((rule.noise_x * x + rule.noise_f * f) / rule.noise_over / scale, eps / scale, atol=1e-12)


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
def test_averaging_predictions_is_averaging_images_and_noises(schedule, rng):
    """The mean of the members (2) may be taken before or after the conversion, for weights that sum to 1."""
    f_K, w_K, x = rng.normal(size=5), rng.dirichlet(np.ones(5)), 0.7
    rule = conversion(schedule, schedule.signal_T[:, None], schedule.sigma_T[:, None])
    for part in (rule[:3], rule[3:6]):
        of_x, of_f, over = (np.broadcast_to(a, (schedule.timesteps, 1)) for a in part)
        mean_T = (of_x[:, 0] * x + of_f[:, 0] * (f_K @ w_K)) / over[:, 0]
        np.testing.assert_allclose(((of_x * x + of_f * f_K) / over) @ w_K, mean_T, rtol=1e-9, atol=1e-12)


def test_what_predictions_mean():
    """By their definitions at s = 0.6, sigma = 0.8, and for EDM by Karras et al., table 1."""
    x0, eps, s, sigma = 0.4, -1.1, 0.6, 0.8
    want = dict(noise=eps, clean=x0, v=s * eps - sigma * x0, flow=eps - x0)
    for prediction, value in want.items():
        rule = convert(prediction, s, sigma)
        assert rule.target_clean * x0 + rule.target_noise * eps == pytest.approx(value, rel=1e-14)
    sigma, data = 1.7, 0.6
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / np.sqrt(sigma**2 + data**2)
    rule = convert("edm", 1.0, sigma, data)
    assert (rule.clean_x, rule.clean_f, rule.clean_over) == pytest.approx((skip, out, 1), rel=1e-14)
    f = (x0 - skip * (x0 + sigma * eps)) / out
    assert rule.target_clean * x0 + rule.target_noise * eps == pytest.approx(f, rel=1e-12)


def test_noise_predictions_are_converted_as_ever():
    schedule = Schedule()
    rule = conversion(schedule, schedule.signal_T, schedule.sigma_T)
    assert (rule.clean_x == 1).all()
    assert (rule.clean_f == -schedule.sigma_T).all()
    assert (rule.clean_over == schedule.signal_T).all()
    assert (rule.noise_x == 0).all() and (rule.noise_f == 1).all() and (rule.noise_over == 1).all()  # noqa: PT018


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
def test_compiled_functions_agree(schedule, rng):
    """`add_noise`, `target`, `clean_of` and `noise_of` invert each other in float32, at the ends and between."""
    t_B = jnp.array([0, 17, 40, 59])
    x0, eps = (jnp.asarray(rng.normal(size=(4, 2, 2, 1)), jnp.float32) for _ in range(2))

    @jax.jit
    def both(x0, eps):
        x, f = add_noise(schedule, x0, t_B, eps), target(schedule, x0, eps, t_B)
        return x, clean_of(schedule, x, f, t_B), noise_of(schedule, x, f, t_B), network_inputs(schedule, x, t_B)

    x, clean, noise, (scaled, time_B) = both(x0, eps)
    signal, sigma = (a_T[t_B][:, None, None, None] for a_T in (schedule.signal_T, schedule.sigma_T))
    np.testing.assert_allclose(x, signal * x0 + sigma * eps, rtol=1e-5, atol=1e-6)
    rule = conversion(schedule, signal, sigma)
    error = 4e-7 * (1 + np.abs(rule.clean_x * x) + sigma) / np.abs(rule.clean_over)
    assert (np.abs(clean - x0) <= 10 * error).all()
    error = 4e-7 * (1 + np.abs(rule.noise_x * x) + signal) / np.abs(rule.noise_over)
    assert (np.abs(noise - eps) <= 10 * error).all()
    assert scaled.dtype == time_B.dtype == jnp.float32
    np.testing.assert_allclose(scaled, x * schedule.scale_T[t_B][:, None, None, None].astype(np.float32), rtol=1e-6)
    np.testing.assert_allclose(time_B, schedule.time_T[t_B], rtol=1e-6)


def test_inputs_of_a_network():
    x, t_B = jnp.full((2, 1, 1, 1), 0.5), jnp.array([0, 3])
    for kind, prediction, times in (("cosine", "v", [0, 3]), ("flow", "flow", [1, 4])):
        scaled, time_B = network_inputs(Schedule(4, kind=kind, prediction=prediction), x, t_B)
        assert scaled is x
        assert time_B.tolist() == times
    edm = Schedule(4, kind="edm", prediction="edm")
    scaled, time_B = network_inputs(edm, x, t_B)
    np.testing.assert_allclose(scaled[:, 0, 0, 0], 0.5 / np.sqrt(edm.sigma_T[[0, 3]] ** 2 + 0.25), rtol=1e-6)
    np.testing.assert_allclose(time_B, np.log(edm.sigma_T[[0, 3]]) / 4, rtol=1e-6)


def test_karras_preconditioning_keeps_unit_variance():
    """For data of deviation sigma_data, inputs and targets of the EDM network have variance 1 at every level."""
    schedule = Schedule(kind="edm", prediction="edm", sigma_data=0.7)
    rule = conversion(schedule, schedule.signal_T, schedule.sigma_T)
    np.testing.assert_allclose((0.7**2 + schedule.sigma_T**2) * schedule.scale_T**2, 1, rtol=1e-12)
    np.testing.assert_allclose(rule.target_clean**2 * 0.7**2 + rule.target_noise**2, 1, rtol=1e-12)


def test_cosine_and_scaled_linear_by_their_papers():
    place = (np.arange(1001) / 1000 + 0.008) / 1.008
    bar = np.cos(place * np.pi / 2) ** 2
    cosine = Schedule(kind="cosine", prediction="v")
    np.testing.assert_allclose(cosine.abar_T[:990], bar[1:991] / bar[0], rtol=1e-9)
    assert cosine.beta_T.max() == pytest.approx(0.999)
    scaled = Schedule(3, 0.04, 0.16, kind="scaled_linear")
    np.testing.assert_allclose(scaled.beta_T, [0.04, 0.09, 0.16], rtol=1e-12)


def test_zero_terminal_snr_keeps_the_first_level():
    plain, zero = Schedule(), Schedule(prediction="v", zero_terminal_snr=True)
    assert zero.signal_T[-1] == 0 and zero.sigma_T[-1] == 1  # noqa: PT018
    assert zero.abar_T[0] == pytest.approx(plain.abar_T[0], rel=1e-12)
    np.testing.assert_allclose(np.cumprod(1 - zero.beta_T), zero.abar_T, rtol=1e-9, atol=1e-15)
    slope = np.diff(zero.signal_T) / np.diff(plain.signal_T)  # an affine function of the signal
    np.testing.assert_allclose(slope, slope[0], rtol=1e-6)


def test_levels_of_flow_and_edm():
    flow = Schedule(8, kind="flow", prediction="flow", shift=3.0)
    place = np.arange(1, 9) / 8
    np.testing.assert_allclose(flow.sigma_T, 3 * place / (1 + 2 * place), rtol=1e-14)
    np.testing.assert_array_equal(flow.signal_T, 1 - flow.sigma_T)
    assert flow.time_T[-1] == 8
    edm = Schedule(2000, kind="edm", prediction="edm")
    log_T = np.log(edm.sigma_T)
    assert (log_T.mean(), log_T.std()) == pytest.approx((-1.2, 1.2), abs=5e-3)
    assert (np.diff(log_T) > 0).all()


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
def test_noise_grows_with_the_level_and_times_agree(schedule):
    assert (np.diff(schedule.snr_T) < 0).all()
    inner = slice(0, -1) if schedule.zero_terminal_snr else slice(None)
    time_T = schedule.time_of(schedule.signal_T[inner], schedule.sigma_T[inner])
    np.testing.assert_allclose(time_T, schedule.time_T[inner], rtol=1e-9, atol=1e-9)
    assert hash(schedule) == hash(dataclasses.replace(schedule))


@pytest.mark.parametrize(("settings", "message"), [
    (dict(kind="flow"), "prediction='noise' with kind='flow'"),
    (dict(zero_terminal_snr=True), "prediction='noise' with zero_terminal_snr=True"),
    (dict(prediction="edm"), "prediction='edm' is for kind='edm', not 'linear'"),
    (dict(kind="flow", prediction="flow", zero_terminal_snr=True), "zero_terminal_snr=True is for kind='linear' or"),
    (dict(kind="cosine", beta_end=0.1), "beta_end=0.1 is for kind='linear' or 'scaled_linear'"),
    (dict(shift=2.0), "shift=2.0 is for kind='flow'"),
    (dict(kind="flow", prediction="flow", shift=0.0), "shift=0.0: expected a positive number"),
    (dict(rho=3.0), "rho=3.0 is for kind='edm'"),
    (dict(kind="edm", sigma_min=2.0, sigma_max=1.0), "expected 0 < sigma_min < sigma_max"),
    (dict(kind="cosines"), "kind='cosines': expected one of"),
    (dict(prediction="x0"), "prediction='x0': expected one of"),
])  # fmt: skip
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**settings)


@pytest.mark.parametrize("name", ["abar_T", "beta_T"])
def test_only_variance_preserving_processes_have_betas(name):
    with pytest.raises(ValueError, match=rf"{name} of kind='flow': .* use signal_T"):
        getattr(Schedule(kind="flow", prediction="flow"), name)
