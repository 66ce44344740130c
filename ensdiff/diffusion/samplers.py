"""Samplers as one affine step from level to level; their coefficients, in float64 on the host."""

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
    """What a `StepFunction` is told of its step: a step from level t, ``x_t = signal x_0 + sigma eps``, to the next.

    Args:
        t: the level.
        signal: ``sqrt(abar_t)``.
        sigma: ``sqrt(1 - abar_t)``.
        next_signal: the same of the level that the step goes to; 1 at the last step.
        next_sigma: 0 at the last step.
    """

    t: Any
    signal: Any
    sigma: Any
    next_signal: Any
    next_sigma: Any


StepFunction = Callable[[Array, Array, Array, Level], Array]
"""``(x_B, eps_B, z_B, level) -> x_B`` at the next level: states and predicted noise (B, H, W, C) in model space, fresh
standard normal noise of the same shape, and a `Level` of scalars. Made of JAX operations, one sample at a time:
whatever mixes samples would make a counterfactual depend on its neighbours."""


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to sample. Static and hashable.

    Args:
        sampler: ``"ddpm"`` (ancestral), ``"ddim"``, or a `StepFunction` of your own,
            ``(x_B, eps_B, z_B, level) -> x_B``. It does its own clipping; ``eta``, ``variance`` and ``clip`` are not
            for it, and are refused.
        steps: S, between 1 and the schedule's T; fewer than T strides over the levels.
        eta: noise share of ``"ddim"``, in [0, 1]; 0 is deterministic. Refused with other samplers.
        variance: variance of ``"ddpm"``, see the module's text. Refused with other samplers.
        spacing: which levels a strided sampler visits. ``"leading"``: 0, T//S, 2 T//S, ... (both references);
            ``"trailing"``: T - 1 downwards in steps of T / S.
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
    """Coefficients of (s1) and (s2) for each of S steps, first step first; float64 on the host."""

    t_S: Int[np.ndarray, " S"]
    signal_S: Float[np.ndarray, " S"]
    sigma_S: Float[np.ndarray, " S"]
    keep_S: Float[np.ndarray, " S"]
    target_S: Float[np.ndarray, " S"]
    noise_S: Float[np.ndarray, " S"]


def sampler_steps(schedule: Schedule, config: SamplerConfig) -> SamplerSteps:
    """Coefficients of every step of the sampler.

    Raises:
        ValueError: more steps than the schedule has levels.

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
    """The levels of the steps, first step first."""
    T, S = schedule.timesteps, config.steps
    if S > T:
        raise ValueError(f"steps={S}: the schedule has only {T} noise levels; ask for at most {T} steps")
    if config.spacing == "leading":
        return np.arange(S)[::-1] * (T // S)
    return np.round(T - np.arange(S) * (T / S)).astype(np.int64) - 1


def step_arguments(schedule: Schedule, config: SamplerConfig) -> list[tuple]:
    """What `advance` needs of each step: an int level, then float32 scalars, computed in float64.

    Of a `StepFunction` the fields of `Level`, else those of `SamplerSteps`.

    Raises:
        ValueError: more steps than the schedule has levels.
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
    """What decides how a sampler takes a step, and so which program is compiled.

    Args:
        clip: whether (s1) clips x_0.
        function: takes the step in the place of (s1) and (s2).
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
    """One step of a sampler: (s1) and (s2), or the caller's step function.

    Raises:
        ValueError: a step function returned another shape.
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
    """The `StepRule` of a sampler."""
    return StepRule(config.clip, config.sampler if callable(config.sampler) else None)
