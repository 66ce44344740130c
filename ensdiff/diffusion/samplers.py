"""Samplers as one affine step from level to level, with coefficients computed in float64 on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.diffusion.schedule import Schedule
from ensdiff.settings import check_fields
from ensdiff.typing import Array

Sampler = Literal["ddpm", "ddim"]
Variance = Literal["posterior", "beta", "alpha_beta"]
Spacing = Literal["leading", "trailing"]


class Level(NamedTuple):
    """The levels of a sampling step, passed to a `StepFunction`. At level t, ``x_t = signal x_0 + sigma eps``.

    Args:
        t: the level that the step starts from.
        signal: ``sqrt(abar_t)``.
        sigma: ``sqrt(1 - abar_t)``.
        next_signal: ``signal`` of the level that the step goes to; 1 at the last step.
        next_sigma: ``sigma`` of the level that the step goes to; 0 at the last step.
    """

    t: Any
    signal: Any
    sigma: Any
    next_signal: Any
    next_sigma: Any


StepFunction = Callable[[Array, Array, Array, Level], Array]
"""A caller's sampling step, ``(x_B, eps_B, z_B, level) -> x_B`` at the next level. Its arguments are the states and the
predicted noise, (B, H, W, C) in model space, fresh standard normal noise of the same shape, and a `Level` of scalars.
It must consist of JAX operations and treat each sample independently: mixing samples would make a counterfactual depend
on its neighbours."""


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Settings of sampling, static and hashable.

    Args:
        sampler: ``"ddpm"`` (ancestral), ``"ddim"``, or your own `StepFunction`, ``(x_B, eps_B, z_B, level) -> x_B``,
            which does its own clipping and does not accept ``eta``, ``variance`` or ``clip``.
        steps: S, between 1 and the schedule's T; with fewer than T, the sampler skips levels.
        eta: noise share of ``"ddim"``, in [0, 1]; 0 is deterministic. Other samplers refuse it.
        variance: variance of ``"ddpm"``, see `ensdiff.diffusion.schedule`. Other samplers refuse it.
        spacing: which levels the sampler visits when it skips some. ``"leading"``: 0, T//S, 2 T//S, ... (as in both
            reference implementations); ``"trailing"``: T - 1 downwards in steps of T / S.
        clip: clip the predicted x_0 to [-1, 1] at every step (s1).

    >>> config = SamplerConfig(sampler="ddim", steps=4, eta=0.5)
    >>> sampler_steps(Schedule(), config).t_S.tolist()
    [750, 500, 250, 0]
    """

    sampler: Sampler | Callable = "ddpm"
    steps: int = 50
    eta: float = 0.0
    variance: Variance = "posterior"
    spacing: Spacing = "leading"
    clip: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1 sampling step")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta={self.eta}: expected a number in [0, 1]")
        name = self.sampler if isinstance(self.sampler, str) else "a step function"
        for field, idle, sampler in (("eta", 0.0, "ddim"), ("variance", "posterior", "ddpm")):
            value = getattr(self, field)
            if value != idle and self.sampler != sampler:
                raise ValueError(f"{field}={value!r} is for sampler={sampler!r}, not {name}: leave it out")
        if not self.clip and callable(self.sampler):
            raise ValueError("clip=False is not for a step function, which does its own clipping: leave it out")


class SamplerSteps(NamedTuple):
    """Coefficients of (s1) and (s2) for each of S steps, in the order of the steps; float64 on the host."""

    t_S: Int[np.ndarray, " S"]
    signal_S: Float[np.ndarray, " S"]
    sigma_S: Float[np.ndarray, " S"]
    keep_S: Float[np.ndarray, " S"]
    target_S: Float[np.ndarray, " S"]
    noise_S: Float[np.ndarray, " S"]


def sampler_steps(schedule: Schedule, config: SamplerConfig) -> SamplerSteps:
    """Return the coefficients of every step of the sampler.

    Raises:
        ValueError: there are more steps than the schedule has levels, or the sampler is a `StepFunction`.

    >>> sampler_steps(Schedule(), SamplerConfig(steps=50)).t_S[[0, 1, -1]].tolist()
    [980, 960, 0]
    """
    if callable(config.sampler):
        raise ValueError("a step function has no coefficients: see step_arguments")
    t_S = _visited(schedule, config)
    a = schedule.abar_T[t_S]
    p = np.append(schedule.abar_T[t_S[1:]], 1.0)
    beta = 1.0 - a / p
    posterior = (1.0 - p) / (1.0 - a) * beta
    if config.sampler == "ddim":
        variance = config.eta**2 * posterior
        keep = np.sqrt(np.maximum(1.0 - p - variance, 0.0) / (1.0 - a))
        target = np.sqrt(p) - keep * np.sqrt(a)
    else:
        choices = {"posterior": np.maximum(posterior, 1e-20), "beta": beta, "alpha_beta": (a / p) * beta}
        variance = choices[config.variance]
        if config.variance != "posterior":
            variance = np.append(variance[:-1], 0.0)  # the last step is a mean, not a draw
        keep = np.sqrt(a / p) * (1.0 - p) / (1.0 - a)
        target = np.sqrt(p) * beta / (1.0 - a)
    return SamplerSteps(t_S, np.sqrt(a), np.sqrt(1.0 - a), keep, target, np.sqrt(variance))


def _visited(schedule: Schedule, config: SamplerConfig) -> Int[np.ndarray, " S"]:
    """Return the level that each step starts from, in the order of the steps."""
    T, S = schedule.timesteps, config.steps
    if S > T:
        raise ValueError(f"steps={S}: the schedule has only {T} noise levels; ask for at most {T} steps")
    if config.spacing == "leading":
        return np.arange(S)[::-1] * (T // S)
    return np.round(T - np.arange(S) * (T / S)).astype(np.int64) - 1


def step_arguments(schedule: Schedule, config: SamplerConfig) -> list[tuple]:
    """Return the arguments of `advance` for each step: an int level, then float32 scalars, computed in float64.

    They are the fields of `Level` for a `StepFunction`, and those of `SamplerSteps` otherwise.

    Raises:
        ValueError: there are more steps than the schedule has levels.
    """
    if not callable(config.sampler):
        t_S, *columns = sampler_steps(schedule, config)
    else:
        t_S = _visited(schedule, config)
        a = schedule.abar_T[t_S]
        p = np.append(schedule.abar_T[t_S[1:]], 1.0)
        columns = [np.sqrt(a), np.sqrt(1.0 - a), np.sqrt(p), np.sqrt(1.0 - p)]
    floats = [np.asarray(column, np.float32) for column in columns]
    return [(np.int32(t), *(column[j] for column in floats)) for j, t in enumerate(t_S)]


class StepRule(NamedTuple):
    """The settings of a sampler that a compiled step depends on.

    Args:
        clip: whether (s1) clips x_0.
        function: a caller's step, used instead of (s1) and (s2).
    """

    clip: bool
    function: StepFunction | None = None


def advance(
    rule: StepRule,
    x_B: Float[Array, "B H W C"],
    eps_B: Float[Array, "B H W C"],
    z_B: Float[Array, "B H W C"],
    arguments: tuple,
) -> Float[Array, "B H W C"]:
    """Make one step of a sampler, by (s1) and (s2) or by the caller's step function, and return the states.

    Raises:
        ValueError: a step function returned an array of the wrong shape.
    """
    if rule.function is not None:
        moved = rule.function(x_B, eps_B, z_B, Level(*arguments))
        if getattr(moved, "shape", None) != x_B.shape:
            name = getattr(rule.function, "__name__", rule.function)
            raise ValueError(
                f"the sampler {name} returned {getattr(moved, 'shape', moved)}: expected the states at the next level, "
                f"of shape {x_B.shape}"
            )
        return moved.astype(x_B.dtype)
    _, signal, sigma, keep, target, scale = arguments
    x0_B = (x_B - sigma * eps_B) / signal
    if rule.clip:
        x0_B = jnp.clip(x0_B, -1.0, 1.0)
    return keep * x_B + target * x0_B + scale * z_B


def rule_of(config: SamplerConfig) -> StepRule:
    """Return the `StepRule` of a sampler."""
    return StepRule(config.clip, config.sampler if callable(config.sampler) else None)
