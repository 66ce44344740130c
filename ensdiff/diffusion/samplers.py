"""Samplers: their settings, the scalars of each evaluation of the network, and the step itself.

`ensdiff.diffusion.coefficients` has the formulas (s1) to (s3), and `ensdiff.diffusion.spacing` the levels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.diffusion.coefficients import Affine, Variance, ddim, ddpm, dpm, heun
from ensdiff.diffusion.schedule import Schedule, conversion
from ensdiff.diffusion.spacing import Spacing, Visited, default_spacing, visited
from ensdiff.settings import check_fields
from ensdiff.typing import Array

Sampler = Literal["ddpm", "ddim", "euler", "heun", "dpm++2m"]

WITH_MEMORY = ("heun", "dpm++2m")
"""The samplers whose steps remember something (s3)."""


class Level(NamedTuple):
    """The levels of a sampling step, passed to a `StepFunction`. At level t, ``x_t = signal x_0 + sigma eps``.

    Args:
        t: the level that the step starts from: its number (int32) for variance preserving processes; between their
            levels, and for other processes, the time that the network is told (float32).
        signal: ``sqrt(abar_t)`` for variance preserving processes.
        sigma: ``sqrt(1 - abar_t)`` for variance preserving processes.
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
        sampler: ``"ddpm"`` (ancestral), ``"ddim"``, ``"euler"``, ``"heun"``, ``"dpm++2m"``, or your own `StepFunction`,
            ``(x_B, eps_B, z_B, level) -> x_B``, which does its own clipping and does not accept ``eta``, ``variance``
            or ``clip``. ``"heun"`` evaluates the network twice per step, except at the last.
        steps: S, at least 1; with ``"leading"`` and ``"trailing"`` at most the schedule's T. With fewer than T, the
            sampler skips levels.
        eta: noise share of ``"ddim"``, in [0, 1]; 0 is deterministic. Other samplers refuse it.
        variance: variance of ``"ddpm"``, see `ensdiff.diffusion.coefficients`. Other samplers refuse it.
        spacing: which levels the sampler visits. ``"leading"``: 0, T//S, 2 T//S, ... (as in both reference
            implementations); ``"trailing"``: T - 1 downwards in steps of T / S; ``"karras"``: Karras' grid between the
            noisiest and the cleanest level, off the levels of the schedule. None chooses by the process,
            `ensdiff.diffusion.spacing.default_spacing`.
        clip: clip the predicted x_0 to [-1, 1] at every step (s1). None: yes for pixels, no for latents.

    >>> config = SamplerConfig(sampler="ddim", steps=4, eta=0.5)
    >>> sampler_steps(Schedule(), config).t_S.tolist()
    [750, 500, 250, 0]
    """

    sampler: Sampler | Callable = "ddpm"
    steps: int = 50
    eta: float = 0.0
    variance: Variance = "posterior"
    spacing: Spacing | None = None
    clip: bool | None = None

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
        if self.clip is False and callable(self.sampler):
            raise ValueError("clip=False is not for a step function, which does its own clipping: leave it out")

    def resolved(self, schedule: Schedule, *, clip: bool) -> "SamplerConfig":
        """Return the same settings with the choices that were left open made.

        Args:
            schedule: the process, which chooses the spacing.
            clip: whether to clip if ``clip`` is None; a step function is not asked.

        >>> SamplerConfig().resolved(Schedule(), clip=True)
        SamplerConfig(sampler='ddpm', steps=50, eta=0.0, variance='posterior', spacing='leading', clip=True)
        """
        spacing = default_spacing(schedule) if self.spacing is None else self.spacing
        chosen = clip if self.clip is None and not callable(self.sampler) else self.clip
        return dataclasses.replace(self, spacing=spacing, clip=chosen)


class SamplerSteps(NamedTuple):
    """Coefficients of (s2) for each of S steps, in the order of the steps; float64 on the host."""

    t_S: Int[np.ndarray, " S"] | Float[np.ndarray, " S"]
    signal_S: Float[np.ndarray, " S"]
    sigma_S: Float[np.ndarray, " S"]
    keep_S: Float[np.ndarray, " S"]
    target_S: Float[np.ndarray, " S"]
    noise_S: Float[np.ndarray, " S"]


def sampler_steps(schedule: Schedule, config: SamplerConfig) -> SamplerSteps:
    """Return the coefficients of every step of a sampler without memory.

    Raises:
        ValueError: there are more steps than the schedule has levels, or the sampler is a `StepFunction` or has memory.

    >>> sampler_steps(Schedule(), SamplerConfig(steps=50)).t_S[[0, 1, -1]].tolist()
    [980, 960, 0]
    """
    if callable(config.sampler) or config.sampler in WITH_MEMORY:
        raise ValueError(f"sampler={config.sampler!r} is not one affine step per level: see stages")
    levels = visited(schedule, config.steps, config.spacing)
    affine = _affine(schedule, config, levels)
    t_S = levels.time_S if levels.number_S is None else levels.number_S
    signal_S, sigma_S = np.sqrt(levels.power_S), np.sqrt(levels.variance_S)
    return SamplerSteps(t_S, signal_S, sigma_S, affine.keep_E, affine.target_E, affine.noise_E)


def _affine(schedule: Schedule, config: SamplerConfig, levels: Visited) -> Affine:
    """Return the coefficients of a built-in sampler; those of ``ddim`` for a `StepFunction`, which uses none."""
    if config.sampler == "ddpm":
        if config.variance != "posterior" and not schedule.variance_preserving:
            raise ValueError(
                f"variance={config.variance!r} is for variance preserving processes, not kind={schedule.kind!r}, which "
                "has no beta: leave it out"
            )
        return ddpm(levels, config.variance)
    if config.sampler == "heun":
        return heun(levels, flow=schedule.kind == "flow")
    return dpm(levels) if config.sampler == "dpm++2m" else ddim(levels, config.eta)


class Stage(NamedTuple):
    """The scalars of one evaluation of the network: float32, computed in float64, except for two int32 numbers.

    Args:
        number: the number j of the sampling step, whose fresh noise has the number j + 1.
        time: the time that the network is told.
        scale: the factor on the network's input.
        clean_x: `ensdiff.diffusion.conversion.Conversion` at this level, and so on.
        clean_f: see there.
        clean_over: see there.
        noise_x: see there.
        noise_f: see there.
        noise_over: see there.
        keep: coefficients of (s3), and so on.
        target: see there.
        noise: see there.
        past: see there.
        memory_x: see there.
        memory_clean: see there.
        level: the levels of the step, for a `StepFunction`; its ``t`` may be int32.
    """

    number: Any
    time: Any
    scale: Any
    clean_x: Any
    clean_f: Any
    clean_over: Any
    noise_x: Any
    noise_f: Any
    noise_over: Any
    keep: Any
    target: Any
    noise: Any
    past: Any
    memory_x: Any
    memory_clean: Any
    level: Level


def stages(schedule: Schedule, config: SamplerConfig) -> list[Stage]:
    """Return the scalars of every evaluation of the network, in order: 2 S - 1 for ``"heun"`` and otherwise S.

    Raises:
        ValueError: there are more steps than the schedule has levels, or the process lacks what the settings need.

    >>> [float(stage.time) for stage in stages(Schedule(), SamplerConfig("heun", steps=2))]
    [500.0, 0.0, 0.0]
    """
    levels = visited(schedule, config.steps, config.spacing)
    signal_S, sigma_S = np.sqrt(levels.power_S), np.sqrt(levels.variance_S)
    rule = conversion(schedule, signal_S, sigma_S)
    affine = _affine(schedule, config, levels)
    levels_S = np.stack([signal_S, sigma_S, np.append(signal_S[1:], 1.0), np.append(sigma_S[1:], 0.0)])
    each_S = np.stack([levels.time_S, levels.scale_S, *rule[:6]]).astype(np.float32)
    integral = schedule.variance_preserving and levels.number_S is not None
    found = []
    for e, (j, i) in enumerate(zip(affine.step_E, affine.level_E, strict=True)):
        t = np.int32(levels.number_S[i]) if integral else np.float32(levels.time_S[i])  # type: ignore[index]
        level = Level(t, *levels_S[:, i].astype(np.float32))
        scalars = [*each_S[:, i], *(np.float32(column[e]) for column in affine[2:])]
        found.append(Stage(np.int32(j), *scalars, level))  # type: ignore[call-arg]
    return found


class StepRule(NamedTuple):
    """The settings of a sampler and its process that a compiled step depends on.

    Args:
        clip: whether (s1) clips x_0.
        function: a caller's step, used instead of (s1) to (s3).
        memory: whether the sampler remembers something (s3).
        predicts_noise: whether the network predicts the noise itself.
    """

    clip: bool
    function: StepFunction | None = None
    memory: bool = False
    predicts_noise: bool = True


def rule_of(schedule: Schedule, config: SamplerConfig) -> StepRule:
    """Return the `StepRule` of a sampler. A ``clip`` of None is True."""
    function = config.sampler if callable(config.sampler) else None
    return StepRule(config.clip is not False, function, config.sampler in WITH_MEMORY, schedule.prediction == "noise")


def first_scale(schedule: Schedule, config: SamplerConfig) -> float:
    """Return the factor on standard normal noise at which sampling starts: for EDM its first sigma, otherwise 1.

    >>> first_scale(Schedule(kind="edm", prediction="edm"), SamplerConfig("heun", steps=18))
    80.0
    """
    if schedule.kind != "edm":
        return 1.0
    return float(np.sqrt(visited(schedule, config.steps, config.spacing).variance_S[0]))


def advance(
    rule: StepRule,
    x_B: Float[Array, "B H W C"],
    f_B: Float[Array, "B H W C"],
    z_B: Float[Array, "B H W C"],
    memory_B: Float[Array, "B H W C"] | None,
    stage: Stage,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W C"] | None]:
    """Make one step of a sampler, by (s1) to (s3) or by the caller's step function.

    Args:
        rule: what is static about the sampler.
        x_B: the states, not scaled.
        f_B: the network's predictions, averaged over members.
        z_B: fresh standard normal noise.
        memory_B: what the sampler remembers; zeros at the first stage, and None if it has no memory.
        stage: the scalars of this evaluation of the network.

    Returns:
        The states and what is remembered.

    Raises:
        ValueError: a step function returned an array of the wrong shape, or memory is missing.
    """
    if rule.memory and memory_B is None:
        raise ValueError("this sampler remembers something: pass zeros of the states' shape as memory_B at first")
    if rule.function is not None:
        return _own_step(rule, x_B, f_B, z_B, stage), memory_B
    x0_B = _clean(rule, x_B, f_B, stage)
    if rule.clip:
        x0_B = jnp.clip(x0_B, -1.0, 1.0)
    moved = stage.keep * x_B + stage.target * x0_B + stage.noise * z_B
    if memory_B is None:
        return moved, None
    return moved + stage.past * memory_B, stage.memory_x * x_B + stage.memory_clean * x0_B


def _clean(rule: StepRule, x_B: Array, f_B: Array, stage: Stage) -> Array:
    if rule.predicts_noise:  # one product less than the general form, and another rounding
        return (x_B - stage.level.sigma * f_B) / stage.level.signal
    return (stage.clean_x * x_B + stage.clean_f * f_B) / stage.clean_over


def _own_step(rule: StepRule, x_B: Array, f_B: Array, z_B: Array, stage: Stage) -> Array:
    eps_B = f_B if rule.predicts_noise else (stage.noise_x * x_B + stage.noise_f * f_B) / stage.noise_over
    function: Any = rule.function
    moved = function(x_B, eps_B, z_B, stage.level)
    if getattr(moved, "shape", None) != x_B.shape:
        name = getattr(function, "__name__", function)
        raise ValueError(
            f"the sampler {name} returned {getattr(moved, 'shape', moved)}: expected the states at the next level, "
            f"of shape {x_B.shape}"
        )
    return moved.astype(x_B.dtype)
