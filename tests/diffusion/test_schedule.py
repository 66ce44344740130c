"""Schedules and sampler coefficients against NumPy and a data distribution with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.diffusion.samplers import SamplerConfig, sampler_steps
from ensdiff.diffusion.schedule import Schedule, add_noise


def test_abar_is_the_running_product():
    schedule = Schedule(timesteps=7, beta_start=0.1, beta_end=0.4)
    beta = np.linspace(0.1, 0.4, 7)
    product, expected = 1.0, []
    for b in beta:
        product *= 1.0 - b
        expected.append(product)
    np.testing.assert_allclose(schedule.abar_T, expected, rtol=1e-14)


def test_forward_noising_has_the_stated_moments():
    schedule = Schedule()
    t = jnp.array([0, 500, 999])
    x = jnp.full((3, 2, 2, 1), 0.5)
    mean = add_noise(schedule, x, t, jnp.zeros_like(x))[:, 0, 0, 0]
    noisy = add_noise(schedule, jnp.zeros_like(x), t, jnp.ones_like(x))[:, 0, 0, 0]
    np.testing.assert_allclose(mean, 0.5 * np.sqrt(schedule.abar_T[t]), rtol=1e-6)
    np.testing.assert_allclose(mean**2 / 0.25 + noisy**2, 1.0, rtol=1e-6)


def ancestral_from_ho(schedule: Schedule, x, eps_of, z):
    """Ho et al. 2020, algorithm 2 with the posterior variance, in float64, as written there."""
    for t in range(schedule.timesteps - 1, -1, -1):
        alpha, abar = 1.0 - schedule.beta_T[t], schedule.abar_T[t]
        before = schedule.abar_T[t - 1] if t else 1.0
        mean = (x - (1 - alpha) / np.sqrt(1 - abar) * eps_of(x, t)) / np.sqrt(alpha)
        sigma = np.sqrt((1 - before) / (1 - abar) * (1 - alpha))
        x = mean + (sigma * z[t] if t else 0.0)
    return x


def run(schedule, config, x, eps_of, z_of):
    steps = sampler_steps(schedule, config)
    for j, t in enumerate(steps.t_S):
        x0 = (x - steps.sigma_S[j] * eps_of(x, t)) / steps.signal_S[j]
        x = steps.keep_S[j] * x + steps.target_S[j] * x0 + steps.noise_S[j] * z_of(t)
    return x


def test_all_steps_of_ddpm_are_algorithm_2(rng):
    schedule = Schedule(timesteps=60, beta_start=1e-3, beta_end=0.2)
    x, z = rng.normal(size=8), rng.normal(size=(60, 8))

    def eps_of(x, t):
        return np.tanh(x) * np.cos(t / 10)

    expected = ancestral_from_ho(schedule, x, eps_of, z)
    got = run(schedule, SamplerConfig(steps=60, clip=False), x, eps_of, lambda t: z[t])
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@given(
    st.integers(2, 300),
    st.floats(1e-5, 1e-2),
    st.floats(0.011, 0.5),
    st.sampled_from(["leading", "trailing"]),
    st.data(),
)
def test_ddim_with_eta_one_is_ancestral_at_any_stride(T, start, end, spacing, data):
    schedule = Schedule(T, start, end)
    steps = data.draw(st.integers(1, T))
    ddpm = sampler_steps(schedule, SamplerConfig("ddpm", steps, spacing=spacing))
    ddim = sampler_steps(schedule, SamplerConfig("ddim", steps, eta=1.0, spacing=spacing))
    for name in ddpm._fields:
        np.testing.assert_allclose(getattr(ddpm, name), getattr(ddim, name), rtol=1e-6, atol=1e-7, err_msg=name)
    assert (np.diff(ddpm.t_S) < 0).all()
    assert ddpm.t_S.min() >= 0
    assert ddpm.t_S.max() < T


def test_ddim_without_noise_moves_along_the_line():
    """With the true eps known, eta = 0 maps sqrt(a) x0 + sqrt(1-a) eps to sqrt(p) x0 + sqrt(1-p) eps."""
    schedule, config = Schedule(), SamplerConfig("ddim", 10)
    steps = sampler_steps(schedule, config)
    x0, eps = 0.3, -1.2
    x = steps.signal_S[0] * x0 + steps.sigma_S[0] * eps
    for j in range(9):
        x = steps.keep_S[j] * x + steps.target_S[j] * x0
        assert x == pytest.approx(steps.signal_S[j + 1] * x0 + steps.sigma_S[j + 1] * eps, rel=1e-10)
        assert steps.noise_S[j] == 0


@pytest.mark.parametrize("config", [
    SamplerConfig("ddpm", 1000, clip=False),
    SamplerConfig("ddpm", 1000, variance="beta", clip=False),
    SamplerConfig("ddim", 1000, clip=False),
    SamplerConfig("ddim", 200, eta=0.5, clip=False),
])  # fmt: skip
def test_gaussian_data_are_recovered(config):
    """For N(m, s^2) data the optimal eps is known, so mean and spread of samples are the data's, in closed form."""
    schedule, m, s = Schedule(), 0.4, 0.3
    steps = sampler_steps(schedule, config)
    mean, variance = 0.0, 1.0  # of the state, a Gaussian throughout: every step is affine
    for j in range(len(steps.t_S)):
        a = steps.signal_S[j] ** 2
        total = a * s**2 + 1 - a
        # E[eps | x] = sqrt(1-a) (x - sqrt(a) m) / total
        slope = np.sqrt(1 - a) / total
        x0_slope = (1 - steps.sigma_S[j] * slope) / steps.signal_S[j]
        x0_shift = steps.sigma_S[j] * slope * steps.signal_S[j] * m / steps.signal_S[j]
        gain = steps.keep_S[j] + steps.target_S[j] * x0_slope
        mean = gain * mean + steps.target_S[j] * x0_shift
        variance = gain**2 * variance + steps.noise_S[j] ** 2
    assert mean == pytest.approx(m, abs=0.01)
    assert np.sqrt(variance) == pytest.approx(s, rel=0.05)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Schedule(1), "timesteps=1"),
    (lambda: Schedule(beta_start=0.5, beta_end=0.1), "beta_start"),
    (lambda: SamplerConfig(sampler="rk4"), "'ddpm', 'ddim'"),
    (lambda: SamplerConfig(steps=0), "steps=0"),
    (lambda: SamplerConfig(eta=2.0), r"eta=2.0"),
    (lambda: sampler_steps(Schedule(10), SamplerConfig(steps=11)), "only 10 noise levels"),
])  # fmt: skip
def test_bad_settings_say_what_is_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_genens_variance():
    steps = sampler_steps(Schedule(), SamplerConfig(steps=1000, variance="alpha_beta"))
    schedule = Schedule()
    t = 700
    j = 999 - t
    expected = schedule.abar_T[t] / schedule.abar_T[t - 1] * schedule.beta_T[t]
    assert steps.noise_S[j] ** 2 == pytest.approx(expected, rel=1e-9)
    assert steps.noise_S[-1] == 0


def test_add_noise_is_jittable():
    schedule = Schedule(10)
    out = jax.jit(lambda x: add_noise(schedule, x, jnp.array([3]), x))(jnp.ones((1, 2, 2, 1)))
    assert out.shape == (1, 2, 2, 1)
