"""Samplers of every process: closed forms, limits, orders of convergence, and the compiled step against NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.diffusion.samplers import (
    SamplerConfig,
    StepRule,
    advance,
    first_scale,
    rule_of,
    sampler_steps,
    stages,
)
from ensdiff.diffusion.schedule import Schedule, conversion
from ensdiff.diffusion.spacing import default_spacing, visited
from tests.diffusion.twin import PROCESSES, SAMPLERS, first_state, gaussian, name_of, predicting, walk

FLOW = Schedule(1024, kind="flow", prediction="flow")
EDM = Schedule(1024, kind="edm", prediction="edm")
MEAN, DEVIATION = 0.3, 0.4


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_single_image_is_recovered(schedule, sampler, rng):
    """If all data are one image, every sampler ends there, whatever it starts from and with whatever noise."""
    image, z = rng.uniform(-1, 1, 5), rng.normal(size=(8, 5))
    config = SamplerConfig(sampler, 7)
    known = predicting(schedule, lambda x, signal, sigma: image)
    end = walk(schedule, config, first_state(schedule, config, z[7]), known, z)
    np.testing.assert_allclose(end, image, atol=2e-4)


@pytest.mark.parametrize(("schedule", "spacing", "sampler", "least"), [
    (Schedule(1024), "karras", "euler", 1.9),
    (Schedule(1024), "karras", "heun", 3.6),
    (Schedule(1024), "karras", "dpm++2m", 3.4),
    (FLOW, "trailing", "euler", 1.9),
    (FLOW, "trailing", "heun", 3.6),
    (FLOW, "karras", "dpm++2m", 3.2),
    (EDM, "karras", "euler", 1.9),
    (EDM, "karras", "heun", 3.6),
    (EDM, "karras", "dpm++2m", 3.6),
])  # fmt: skip
def test_order_of_convergence(schedule, spacing, sampler, least):
    """For Gaussian data the probability flow is known: twice the steps halve Euler's error and quarter the others'."""
    errors = []
    for steps in (16, 32, 64):
        config = SamplerConfig(sampler, steps, spacing=spacing, clip=False)
        x = np.array([-1.0, 0.5, 1.5]) * first_scale(schedule, config)
        level = stages(schedule, config)[0].level
        spread = np.hypot(level.signal * DEVIATION, level.sigma)
        exact = MEAN + DEVIATION * (x - level.signal * MEAN) / spread
        end = walk(schedule, config, x, predicting(schedule, gaussian(MEAN, DEVIATION)))
        errors.append(np.abs(end - exact).max())
    ratios = np.divide(errors[:-1], errors[1:])
    assert ratios.min() > least
    assert ratios.max() < 1.45 * least + 0.1
    assert errors[-1] < (0.05 if sampler == "euler" else 0.005)


@pytest.mark.parametrize("schedule", [Schedule(1000), FLOW, EDM, Schedule(prediction="v", zero_terminal_snr=True)])
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.5), ("heun", 0.0), ("dpm++2m", 0.0)])
def test_gaussian_data_are_recovered(schedule, sampler, eta):
    """The end of sampling is affine in all noise: its mean and deviation, from one noise at a time, are the data's."""
    config = SamplerConfig(sampler, 150, eta=eta, clip=False)
    first, noise = np.eye(1, 152)[0], np.eye(150, 152, 1)  # only x_T, only the noise of one step, or nothing
    known = predicting(schedule, gaussian(MEAN, DEVIATION))
    end = walk(schedule, config, first_state(schedule, config, first), known, noise)
    mean, deviation = end[-1], np.sqrt(np.sum((end[:-1] - end[-1]) ** 2))
    assert mean == pytest.approx(MEAN, abs=0.003)
    assert deviation == pytest.approx(DEVIATION, rel=0.06 if sampler in ("ddpm", "ddim") else 0.01)


@given(st.sampled_from(PROCESSES), st.integers(1, 60), st.sampled_from(["leading", "trailing"]))
def test_ddim_with_eta_one_is_ancestral(schedule, steps, spacing):
    ddpm = sampler_steps(schedule, SamplerConfig("ddpm", steps, spacing=spacing))
    ddim = sampler_steps(schedule, SamplerConfig("ddim", steps, eta=1.0, spacing=spacing))
    for name in ddpm._fields:
        np.testing.assert_allclose(getattr(ddpm, name), getattr(ddim, name), rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
def test_euler_is_ddim_without_noise(schedule):
    euler, ddim = (stages(schedule, SamplerConfig(sampler, 6)) for sampler in ("euler", "ddim"))
    assert euler == ddim


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
def test_ancestral_steps_are_the_posterior(schedule):
    """By Bayes: given x_0, x' is N(s' x_0, sigma'^2); given x', x is N(s / s' x', sigma^2 - (s / s' sigma')^2)."""
    steps = sampler_steps(schedule, SamplerConfig("ddpm", 9))
    for j in range(8):
        s, sigma, s_next, sigma_next = (a[i] for i in (j, j + 1) for a in (steps.signal_S, steps.sigma_S))
        slope = s / s_next
        precision = 1 / sigma_next**2 + slope**2 / (sigma**2 - slope**2 * sigma_next**2)
        keep = slope / (sigma**2 - slope**2 * sigma_next**2) / precision
        got = steps.keep_S[j], steps.target_S[j], steps.noise_S[j]
        assert got == pytest.approx((keep, s_next / sigma_next**2 / precision, precision**-0.5), rel=1e-6, abs=1e-12)


def test_heun_is_algorithm_1_of_karras():
    """With no stochasticity, in the variables of the paper."""
    schedule, steps = dataclasses.replace(EDM, sigma_max=20.0, sigma_min=0.01, rho=5.0), 9
    clean = gaussian(MEAN, DEVIATION)
    grid = (20**0.2 + np.arange(steps) / (steps - 1) * (0.01**0.2 - 20**0.2)) ** 5
    x = 20 * np.linspace(-1, 1, 5)
    start = x
    for sigma, after in itertools.pairwise([*grid, 0.0]):
        slope = (x - clean(x, 1.0, sigma)) / sigma
        moved = x + (after - sigma) * slope
        if after:
            slope = (slope + (moved - clean(moved, 1.0, after)) / after) / 2
            moved = x + (after - sigma) * slope
        x = moved
    got = walk(schedule, SamplerConfig("heun", steps, clip=False), start, predicting(schedule, clean))
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-5)


def test_dpm_solver_is_algorithm_2_of_its_paper():
    schedule, steps = Schedule(60, 1e-3, 0.2, prediction="v"), 7
    clean, x = gaussian(MEAN, DEVIATION), np.linspace(-1, 1, 5)
    levels = visited(schedule, steps, "trailing")
    alpha, sigma = np.sqrt(levels.power_S), np.sqrt(levels.variance_S)
    lam = np.log(alpha / sigma)
    config = SamplerConfig("dpm++2m", steps, spacing="trailing", clip=False)
    got = walk(schedule, config, x, predicting(schedule, clean))
    before = None
    for i in range(1, steps):
        h, now = lam[i] - lam[i - 1], clean(x, alpha[i - 1], sigma[i - 1])
        r = None if before is None else (lam[i - 1] - lam[i - 2]) / h
        guess = now if r is None else (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
        x, before = sigma[i] / sigma[i - 1] * x - alpha[i] * np.expm1(-h) * guess, now
    np.testing.assert_allclose(got, clean(x, alpha[-1], sigma[-1]), rtol=1e-5, atol=1e-5)


def old_step(clip, x, eps, z, signal, sigma, keep, target, scale):
    x0 = (x - sigma * eps) / signal
    if clip:
        x0 = jnp.clip(x0, -1.0, 1.0)
    return keep * x + target * x0 + scale * z


@pytest.mark.parametrize("clip", [True, False])
def test_steps_of_noise_predictions_keep_their_bits(clip, rng):
    """The compiled step equals to the bit the one that knew only noise, written above."""
    schedule, config = Schedule(), SamplerConfig("ddim", 40, eta=0.3, clip=clip)
    x, eps, z = (jnp.asarray(rng.normal(size=(3, 8, 8, 2)), jnp.float32) for _ in range(3))
    new = jax.jit(lambda x, eps, z, stage: advance(rule_of(schedule, config), x, eps, z, None, stage)[0])
    old = jax.jit(lambda *arrays: old_step(clip, *arrays))
    steps = sampler_steps(schedule, config)
    for j, stage in enumerate(stages(schedule, config)):
        want = old(x, eps, z, *(np.float32(column[j]) for column in steps[1:]))
        np.testing.assert_array_equal(new(x, eps, z, stage), want)


@pytest.mark.parametrize("sampler", ["ddpm", "heun", "dpm++2m"])
@pytest.mark.parametrize("schedule", [PROCESSES[0], PROCESSES[1], PROCESSES[-5]], ids=name_of)
@pytest.mark.parametrize("clip", [True, False])
def test_compiled_steps_equal_numpy(schedule, sampler, clip, rng):
    """The loop over `advance` in float32 equals its float64 twin in NumPy."""
    config, shape = SamplerConfig(sampler, 5, clip=clip), (2, 2, 2, 1)
    z = rng.normal(size=(6, *shape))
    network = predicting(schedule, lambda x, signal, sigma: np.tanh(2 * x / np.hypot(signal, sigma)) * 1.3)
    want = walk(schedule, config, first_state(schedule, config, z[5]), network, z)
    rule = rule_of(schedule, config)
    step = jax.jit(lambda *arguments: advance(rule, *arguments))
    x = jnp.asarray(first_state(schedule, config, z[5]), jnp.float32)
    memory = jnp.zeros_like(x) if rule.memory else None
    for stage in stages(schedule, config):
        f = network(np.asarray(x, np.float64) * float(stage.scale), float(stage.time))
        noise = jnp.asarray(z[int(stage.number)], jnp.float32)
        x, memory = step(x, jnp.asarray(f, jnp.float32), noise, memory, stage)
        assert (memory is None) == (not rule.memory)
    np.testing.assert_allclose(x, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
def test_own_steps_are_given_noise_and_levels(schedule):
    """A user's DDIM, from the noise that any prediction means, is the built-in one."""

    def own(x, eps, z, level):
        x0 = (x - level.sigma * eps) / level.signal if level.signal > 0 else jnp.full_like(x, 0.2)
        return level.next_signal * x0 + level.next_sigma * eps

    config = SamplerConfig(own, 4)
    x = jnp.full((1, 1, 1, 1), 0.7 * first_scale(schedule, config))
    known = predicting(schedule, lambda x, signal, sigma: 0.2 + 0 * x)
    want = walk(schedule, SamplerConfig("ddim", 4), np.asarray(x, np.float64), known)
    rule = rule_of(schedule, config)
    for stage in stages(schedule, config):
        f = known(np.asarray(x, np.float64) * float(stage.scale), float(stage.time))
        x, memory = advance(rule, x, jnp.asarray(f, jnp.float32), x, None, stage)
        assert memory is None
        expected = np.int32 if schedule.variance_preserving else np.float32
        assert type(stage.level.t) is expected
        assert stage.level.t == stage.time
    np.testing.assert_allclose(x, want, atol=2e-3)


@pytest.mark.parametrize("schedule", PROCESSES, ids=name_of)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stages(schedule, sampler):
    """The scalars of each evaluation are finite float32, and belong to the levels in their order."""
    config = SamplerConfig(sampler, 6)
    found = stages(schedule, config)
    assert [int(stage.number) for stage in found] == (
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5] if sampler == "heun" else list(range(6))
    )
    scalars = np.array([stage[1:-1] for stage in found])
    assert scalars.dtype == np.float32
    assert np.isfinite(scalars).all()
    last = found[-1].level
    assert (last.next_signal, last.next_sigma) == (1, 0)
    for stage in found:
        rule = conversion(schedule, stage.level.signal, stage.level.sigma)
        np.testing.assert_allclose(stage[3:9], rule[:6], rtol=2e-5, atol=1e-6)
    assert (
        default_spacing(schedule) == "karras"
        or found[0].time == schedule.time_T[visited(schedule, 6, None).number_S[0]]
    )
    assert (found[0].noise > 0) == (sampler == "ddpm")
    assert rule_of(schedule, config).memory == (sampler in ("heun", "dpm++2m"))


def test_spacing_and_clipping_are_chosen_by_the_process():
    assert SamplerConfig().resolved(FLOW, clip=False) == SamplerConfig(spacing="trailing", clip=False)
    assert SamplerConfig(clip=True, spacing="leading").resolved(EDM, clip=False).spacing == "leading"
    assert SamplerConfig(lambda x, eps, z, level: x).resolved(EDM, clip=True).clip is None
    assert default_spacing(EDM) == "karras"
    assert rule_of(FLOW, SamplerConfig()) == StepRule(clip=True, predicts_noise=False)
    assert not rule_of(FLOW, SamplerConfig(clip=False)).clip
    for schedule, first in ((FLOW, 1.0), (Schedule(prediction="v", zero_terminal_snr=True), 1.0)):
        assert stages(schedule, SamplerConfig(steps=7))[0].level.sigma == first
    grid = visited(EDM, 5, "karras")
    assert grid.variance_S[[0, -1]] == pytest.approx([6400, 4e-6])
    assert first_scale(EDM, SamplerConfig(steps=5)) == 80
    assert first_scale(Schedule(), SamplerConfig(steps=5)) == 1


def without_memory(x):
    return advance(StepRule(True, memory=True), x, x, x, None, stages(EDM, SamplerConfig("heun"))[0])


@pytest.mark.parametrize(("make", "message"), [
    (lambda: stages(FLOW, SamplerConfig("ddpm", 5, variance="beta")), "variance='beta' is for variance preserving"),
    (lambda: stages(FLOW, SamplerConfig(steps=1025)), "only 1024 noise levels"),
    (lambda: visited(Schedule(prediction="v", zero_terminal_snr=True), 5, "karras"), "use 'trailing'"),
    (lambda: sampler_steps(EDM, SamplerConfig("heun")), "see stages"),
    (lambda: SamplerConfig(spacing="linspace"), "'leading', 'trailing', 'karras'"),
    (lambda: SamplerConfig("heun", eta=0.5), "eta=0.5 is for sampler='ddim', not heun"),
    (lambda: without_memory(jnp.zeros((1, 1, 1, 1))), "pass zeros of the states' shape as memory_B"),
])  # fmt: skip
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
