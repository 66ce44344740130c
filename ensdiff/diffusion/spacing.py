"""Which noise levels a sampler visits."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ensdiff.diffusion.schedule import Schedule

Spacing = Literal["leading", "trailing", "karras"]

KARRAS_POWER = 7.0
"""The power of Karras' grid for kinds that have no `rho` of their own."""


class Visited(NamedTuple):
    """The levels from which the S steps of a sampler start, in the order of the steps; float64.

    Squares are kept because those of variance preserving processes are known exactly: abar and 1 - abar.

    Args:
        number_S: the number of each level, or None if they lie between the levels of the schedule.
        time_S: the time that the network is told.
        scale_S: the factor on the network's input.
        power_S: ``signal^2``.
        variance_S: ``sigma^2``.
        preserving: whether the two sum to 1.
    """

    number_S: Int[np.ndarray, " S"] | None
    time_S: Float[np.ndarray, " S"]
    scale_S: Float[np.ndarray, " S"]
    power_S: Float[np.ndarray, " S"]
    variance_S: Float[np.ndarray, " S"]
    preserving: bool


def default_spacing(schedule: Schedule) -> Spacing:
    """Return the spacing that suits a process.

    ``"karras"`` for EDM, ``"trailing"`` where the last level is pure noise, and otherwise ``"leading"``.

    >>> default_spacing(Schedule()), default_spacing(Schedule(kind="flow", prediction="flow"))
    ('leading', 'trailing')
    """
    if schedule.kind == "edm":
        return "karras"
    return "trailing" if schedule.kind == "flow" or schedule.zero_terminal_snr else "leading"


def visited(schedule: Schedule, steps: int, spacing: Spacing | None) -> Visited:
    """Return the levels that a sampler of S steps visits.

    Args:
        schedule: the process.
        steps: S.
        spacing: see `SamplerConfig`; None is `default_spacing`.

    Raises:
        ValueError: there are more steps than the schedule has levels, or Karras' grid would start at infinity.
    """
    spacing = default_spacing(schedule) if spacing is None else spacing
    if spacing == "karras":
        signal_S, sigma_S = _karras(schedule, steps)
        time_S, scale_S = schedule.time_of(signal_S, sigma_S), schedule.scale_of(sigma_S)
        return Visited(None, time_S, scale_S, signal_S**2, sigma_S**2, schedule.variance_preserving)
    T, S = schedule.timesteps, steps
    if S > T:
        raise ValueError(f"steps={S}: the schedule has only {T} noise levels; ask for at most {T} steps")
    if spacing == "leading":
        t_S = np.arange(S)[::-1] * (T // S)
    else:
        t_S = np.round(T - np.arange(S) * (T / S)).astype(np.int64) - 1
    if schedule.variance_preserving:
        power_S = schedule.abar_T[t_S]
        variance_S = 1.0 - power_S
    else:
        power_S, variance_S = schedule.signal_T[t_S] ** 2, schedule.sigma_T[t_S] ** 2
    return Visited(t_S, schedule.time_T[t_S], schedule.scale_T[t_S], power_S, variance_S, schedule.variance_preserving)


def _karras(schedule: Schedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return signal and sigma on the grid of eq. 5 of Karras et al. (arXiv 2206.00364), from the noisiest level down.

    The grid is one of sigma for flow and EDM, and otherwise of sigma / signal.
    """
    if schedule.zero_terminal_snr:
        raise ValueError(
            "spacing='karras' with zero_terminal_snr=True: the grid would start at an infinite ratio of noise to "
            "signal; use 'trailing'"
        )
    if schedule.kind == "edm":
        low, high, power = schedule.sigma_min, schedule.sigma_max, schedule.rho
    else:
        ratio_T = schedule.sigma_T if schedule.kind == "flow" else schedule.sigma_T / schedule.signal_T
        low, high, power = ratio_T[0], ratio_T[-1], KARRAS_POWER
    place_S = np.arange(steps) / max(1, steps - 1)
    grid_S = (high ** (1 / power) + place_S * (low ** (1 / power) - high ** (1 / power))) ** power
    grid_S[0] = high
    if schedule.kind == "flow":
        return 1.0 - grid_S, grid_S
    if schedule.kind == "edm":
        return np.ones(steps), grid_S
    signal_S = 1.0 / np.sqrt(1.0 + grid_S**2)
    return signal_S, grid_S * signal_S
