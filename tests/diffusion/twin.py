"""Sampling in NumPy float64 with the scalars of `stages`, and networks with known answers."""

import numpy as np

from ensdiff.diffusion.samplers import first_scale, rule_of, stages
from ensdiff.diffusion.schedule import Schedule, conversion

SMALL = dict(timesteps=60, beta_start=1e-3, beta_end=0.2)

PROCESSES = [
    *(Schedule(**SMALL, prediction=prediction) for prediction in ("noise", "v", "clean", "flow")),
    Schedule(**SMALL, kind="scaled_linear"),
    *(Schedule(60, kind="cosine", prediction=prediction) for prediction in ("noise", "v", "flow")),
    *(Schedule(**SMALL, prediction=prediction, zero_terminal_snr=True) for prediction in ("v", "clean", "flow")),
    *(Schedule(60, kind="flow", prediction=prediction) for prediction in ("flow", "v", "clean")),
    Schedule(60, kind="flow", prediction="flow", shift=3.0),
    *(Schedule(60, kind="edm", prediction=prediction) for prediction in ("edm", "noise", "v", "clean", "flow")),
]
"""Every kind with the predictions that it allows."""

SAMPLERS = ["ddpm", "ddim", "euler", "heun", "dpm++2m"]


def name_of(schedule):
    extra = "-zero" if schedule.zero_terminal_snr else "-shifted" if schedule.shift != 1 else ""
    return f"{schedule.kind}-{schedule.prediction}{extra}"


def first_state(schedule, config, z):
    return first_scale(schedule, config) * z


def walk(schedule, config, x, network, noise=None):
    """Return the end of sampling from x, not clipped: ``network(x scale, time)`` is the prediction."""
    memory, rule = np.zeros_like(x), rule_of(schedule, config)
    for stage in stages(schedule, config):
        s = {name: float(value) for name, value in stage._asdict().items() if name != "level"}
        f = network(s["scale"] * x, s["time"])
        x0 = (s["clean_x"] * x + s["clean_f"] * f) / s["clean_over"]
        if rule.clip:
            x0 = np.clip(x0, -1, 1)
        moved = s["keep"] * x + s["target"] * x0 + s["past"] * memory
        if noise is not None:
            moved = moved + s["noise"] * noise[int(stage.number)]
        x, memory = moved, s["memory_x"] * x + s["memory_clean"] * x0
    return x


def predicting(schedule, clean):
    """Return a network, ``(x scale, time) -> prediction``, that knows the clean image: ``clean(x, signal, sigma)``."""

    def network(x_scaled, time):
        signal, sigma = level_at(schedule, float(time))
        x = x_scaled / schedule.scale_of(np.array([sigma]))[0]
        x0 = clean(x, signal, sigma)
        rule = conversion(schedule, signal, sigma)
        return rule.target_clean * x0 + rule.target_noise * (x - signal * x0) / sigma

    return network


def level_at(schedule, time):
    """Return signal and sigma at which the network is evaluated, from the time that it is told."""
    if schedule.kind == "flow":
        return 1 - time / schedule.timesteps, time / schedule.timesteps
    if schedule.kind == "edm":
        return 1.0, np.exp(4 * time)
    if time == int(time):
        return schedule.signal_T[int(time)], schedule.sigma_T[int(time)]
    ratio = np.exp(np.interp(time, np.arange(schedule.timesteps), np.log(schedule.sigma_T / schedule.signal_T)))
    return 1 / np.sqrt(1 + ratio**2), ratio / np.sqrt(1 + ratio**2)


def gaussian(mean, deviation):
    """Return the mean of the clean image given x, for data N(mean, deviation^2)."""

    def clean(x, signal, sigma):
        return mean + signal * deviation**2 / (signal**2 * deviation**2 + sigma**2) * (x - signal * mean)

    return clean
