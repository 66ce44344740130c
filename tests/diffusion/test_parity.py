"""Samplers against the schedulers of diffusers of the same name, with a fixed function as the network.

Where diffusers has another convention, the test that meets it says so and maps it.
"""

import numpy as np
import pytest

from ensdiff.diffusion.samplers import SamplerConfig, stages
from ensdiff.diffusion.schedule import Schedule
from tests.diffusion.twin import predicting, walk

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PREDICTIONS = {"noise": "epsilon", "v": "v_prediction", "clean": "sample"}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
EXACT = ("DDPMScheduler", "DDIMScheduler")
"""These keep the last level of zero terminal SNR at 0; others set its abar to 2^-24."""


def network_of(schedule):
    """A denoiser of smooth images, of the scaled state and the time, for arrays and tensors."""

    def clean(x, signal, sigma):
        return 0.7 * np.tanh(1.3 * signal * x / (signal**2 + sigma**2) + 0.2)

    known = predicting(schedule, clean)

    def network(x, time):
        return known(x, time) if isinstance(x, np.ndarray) else torch.from_numpy(known(x.numpy(), time))

    return network


def start(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 1, 4, 4))


def scheduler_of(name, schedule, **options):
    options |= dict(num_train_timesteps=schedule.timesteps, prediction_type=PREDICTIONS[schedule.prediction])
    if schedule.kind != "cosine":
        options |= dict(beta_start=schedule.beta_start, beta_end=schedule.beta_end)
    if schedule.zero_terminal_snr:
        options["rescale_betas_zero_snr"] = True
    scheduler = getattr(diffusers, name)(beta_schedule=BETAS[schedule.kind], **options)
    assert name not in EXACT or np.abs(scheduler.alphas_cumprod.numpy() - schedule.abar_T).max() < 2e-6
    # it multiplies float32 betas, whose errors grow to 2e-5 of the signal: compare the formulas, not the rounding
    scheduler.alphas_cumprod = torch.tensor(schedule.abar_T)
    return scheduler


def theirs(scheduler, network, x, steps, **options):
    """Return the end of sampling by diffusers. ``x`` is in its space: x / signal for schedulers with sigmas."""
    scheduler.set_timesteps(steps)
    state = torch.from_numpy(x)
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
        state = scheduler.step(network(given, t), t, state, **options).prev_sample
    return state.numpy()


def assert_close(got, want, tolerance=1e-5):
    scale = np.abs(want).max()
    assert 0.3 < scale < 3
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


DISCRETE = [
    (Schedule(), "leading"),
    (Schedule(), "trailing"),
    (Schedule(kind="scaled_linear", beta_start=0.00085, beta_end=0.012), "leading"),
    (Schedule(kind="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="v"), "trailing"),
    (Schedule(kind="cosine", prediction="v"), "leading"),
    (Schedule(kind="cosine", prediction="clean"), "trailing"),
    (Schedule(prediction="clean"), "leading"),
    (Schedule(prediction="v", zero_terminal_snr=True), "trailing"),
    (Schedule(prediction="clean", zero_terminal_snr=True), "trailing"),
]


@pytest.mark.parametrize(("schedule", "spacing"), DISCRETE)
@pytest.mark.parametrize("clip", [False, True])
def test_ddim(schedule, spacing, clip):
    """diffusers keeps the predicted noise when it clips x_0, unless ``use_clipped_model_output``; ours follows x_0."""
    steps, network = 20, network_of(schedule)
    scheduler = scheduler_of("DDIMScheduler", schedule, clip_sample=clip, timestep_spacing=spacing)
    want = theirs(scheduler, network, start(), steps, use_clipped_model_output=True)
    got = walk(schedule, SamplerConfig("ddim", steps, spacing=spacing, clip=clip), start(), network)
    assert_close(got, want)


@pytest.mark.parametrize(("schedule", "spacing"), DISCRETE)
def test_ddim_with_noise(schedule, spacing):
    steps, eta, network = 20, 0.6, network_of(schedule)
    scheduler = scheduler_of("DDIMScheduler", schedule, clip_sample=False, timestep_spacing=spacing)
    noise = [torch.from_numpy(start(j + 1)) for j in range(steps)]
    drawn = iter(noise)
    scheduler.set_timesteps(steps)
    state = torch.from_numpy(start())
    for t in scheduler.timesteps:
        state = scheduler.step(network(state, t), t, state, eta=eta, variance_noise=next(drawn)).prev_sample
    config = SamplerConfig("ddim", steps, eta=eta, spacing=spacing, clip=False)
    got = walk(schedule, config, start(), network, [z.numpy() for z in noise])
    assert_close(got, state.numpy())


@pytest.mark.parametrize(("schedule", "spacing"), DISCRETE)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ddpm(schedule, spacing, variance):
    """With trailing spacing and large variance, diffusers adds noise to the finished image: compare its mean."""
    steps, network = 20, network_of(schedule)
    kinds = {"posterior": "fixed_small", "beta": "fixed_large"}
    scheduler = scheduler_of(
        "DDPMScheduler", schedule, clip_sample=False, timestep_spacing=spacing, variance_type=kinds[variance]
    )
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    state = torch.from_numpy(start())
    for t in scheduler.timesteps:
        made = scheduler.step(network(state, t), t, state, generator=generator)
        state = made.prev_sample
    state = made.pred_original_sample
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(state.shape, generator=generator, dtype=torch.float64).numpy() for _ in range(steps)]
    config = SamplerConfig("ddpm", steps, variance=variance, spacing=spacing, clip=False)
    assert_close(walk(schedule, config, start(), network, noise), state.numpy())


@pytest.mark.parametrize(("schedule", "spacing"), [case for case in DISCRETE if not case[0].zero_terminal_snr])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++2m"])
def test_probability_flow(schedule, spacing, sampler):
    """The states of Euler and Heun in diffusers are x / signal.

    Its DPM-Solver++ leaves out level 0 when spacing is leading, with another stride: only trailing is the same there.
    The last level of the cosine schedule has sigma / signal = 20,000, which its Euler and Heun round to float32.
    """
    if sampler == "dpm++2m" or schedule.kind == "cosine":
        spacing = "trailing" if sampler == "dpm++2m" else "leading"
    name = {"euler": "EulerDiscrete", "heun": "HeunDiscrete", "dpm++2m": "DPMSolverMultistep"}[sampler] + "Scheduler"
    steps, network = 20, network_of(schedule)
    scheduler = scheduler_of(name, schedule, timestep_spacing=spacing)
    config = SamplerConfig(sampler, steps, spacing=spacing, clip=False)
    first = stages(schedule, config)[0].level.signal if sampler != "dpm++2m" else 1.0
    want = theirs(scheduler, network, start() / first, steps)
    assert_close(walk(schedule, config, start(), network), want)
    euler = walk(schedule, SamplerConfig("euler", steps, spacing=spacing, clip=False), start(), network)
    assert sampler == "euler" or np.abs(euler - want).max() > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "dpm++2m"])
def test_zero_terminal_snr_by_sigmas(sampler):
    """These schedulers leave a signal of 2^-12 at the last level, which moves the result by about as much.

    Heun in diffusers starts at sigma / signal = 4,096, where its rule is useless; ours changes the variable.
    """
    schedule, steps = Schedule(prediction="v", zero_terminal_snr=True), 20
    name = {"euler": "EulerDiscrete", "dpm++2m": "DPMSolverMultistep"}[sampler] + "Scheduler"
    scheduler = scheduler_of(name, schedule, timestep_spacing="trailing")
    scheduler.alphas_cumprod[-1] = 2.0**-24
    scheduler.alpha_t, scheduler.sigma_t = scheduler.alphas_cumprod**0.5, (1 - scheduler.alphas_cumprod) ** 0.5
    first = 2.0**-12 if sampler == "euler" else 1.0
    network = network_of(schedule)
    want = theirs(scheduler, network, start() / first, steps)
    assert_close(walk(schedule, SamplerConfig(sampler, steps, clip=False), start(), network), want, 3 * 2.0**-12)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++2m"])
def test_karras_grid(sampler):
    """Levels between those of the schedule: the time is interpolated in the logarithm of sigma / signal.

    The DPM-Solver++ of diffusers rounds that time.
    """
    schedule, steps = Schedule(), 10
    exact = network_of(schedule)
    network = (lambda x, time: exact(x, round(float(time)))) if sampler == "dpm++2m" else exact
    name = {"euler": "EulerDiscrete", "heun": "HeunDiscrete", "dpm++2m": "DPMSolverMultistep"}[sampler] + "Scheduler"
    scheduler = scheduler_of(name, schedule, timestep_spacing="linspace", use_karras_sigmas=True)
    config = SamplerConfig(sampler, steps, spacing="karras", clip=False)
    first = stages(schedule, config)[0].level.signal if sampler != "dpm++2m" else 1.0
    want = theirs(scheduler, network, start() / first, steps)
    assert_close(walk(schedule, config, start(), network), want)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift):
    """diffusers shifts its default grid twice; its pipelines pass the grid 1, .., 1 / S, which it shifts once."""
    schedule, steps = Schedule(kind="flow", prediction="flow", shift=shift), 20
    network = network_of(schedule)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    state = torch.from_numpy(start())
    for t in scheduler.timesteps:
        state = scheduler.step(network(state, t), t, state).prev_sample
    got = walk(schedule, SamplerConfig("euler", steps, clip=False), start(), network)
    assert_close(got, state.numpy())


def test_flow_matching_by_heun():
    """Its grid always ends at 1 / T: all levels are visited."""
    schedule, steps = Schedule(20, kind="flow", prediction="flow"), 20
    network = network_of(schedule)
    want = theirs(diffusers.FlowMatchHeunDiscreteScheduler(num_train_timesteps=20), network, start(), steps)
    assert_close(walk(schedule, SamplerConfig("heun", steps, clip=False), start(), network), want)


@pytest.mark.parametrize("sampler", ["euler", "dpm++2m"])
def test_edm(sampler):
    schedule, steps = Schedule(kind="edm", prediction="edm", sigma_data=0.6, rho=6.0), 18
    name = {"euler": "EDMEuler", "dpm++2m": "EDMDPMSolverMultistep"}[sampler] + "Scheduler"
    scheduler = getattr(diffusers, name)(sigma_data=0.6, rho=6.0)
    x, network = start() * schedule.sigma_max, network_of(schedule)
    got = walk(schedule, SamplerConfig(sampler, steps, clip=False), x, network)
    assert_close(got, theirs(scheduler, network, x, steps))
