"""The noise schedule and the coefficients of the samplers, in float64 on the host.

Forward noising, Ho et al. 2020 (arXiv 2006.11239):

(1) ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps``, beta linear, ``abar_t = prod_{s <= t} (1 - beta_s)``.

Every sampler here is the same affine step from level t (``a = abar_t``) to the previous level (``p = abar_prev``):

(s1) ``x_0 = (x - sqrt(1 - a) eps) / sqrt(a)``, clipped to [-1, 1] when asked,
(s2) ``x <- keep * x + target * x_0 + noise * z``.

- ``ddpm``: the posterior of Ho et al. eq. 7 on the strided chain, ``alpha' = a / p``, ``beta' = 1 - alpha'``:
  ``keep = sqrt(alpha') (1 - p) / (1 - a)``, ``target = sqrt(p) beta' / (1 - a)``, and a variance that is
  ``posterior`` (``(1 - p) / (1 - a) beta'``, at least 1e-20), ``beta`` (``beta'``) or ``alpha_beta``
  (``alpha' beta'``, the one of GenEns).
- ``ddim``: Song et al. 2021 (arXiv 2010.02502) eq. 12 and 16 with ``sigma^2 = eta^2 (1 - p) / (1 - a) beta'``:
  ``keep = sqrt(1 - p - sigma^2) / sqrt(1 - a)``, ``target = sqrt(p) - keep sqrt(a)``, ``noise = sigma``.
  With eta = 1 it is ``ddpm`` with the posterior variance.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.settings import check_fields
from ensdiff.typing import Array

Sampler = Literal["ddpm", "ddim"]
Variance = Literal["posterior", "beta", "alpha_beta"]
Spacing = Literal["leading", "trailing"]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A linear beta schedule over T noise levels (1); t runs over 0 .. T - 1, and T - 1 is the noisiest.

    Args:
        timesteps: T.
        beta_start: beta at t = 0.
        beta_end: beta at t = T - 1, inclusive.

    >>> Schedule().abar_T[[0, 999]].round(6).tolist()
    [0.9999, 4e-05]
    """

    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        check_fields(self)
        if self.timesteps < 2:
            raise ValueError(f"timesteps={self.timesteps}: expected at least 2 noise levels")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}: expected 0 < beta_start <= beta_end < 1"
            )

    @functools.cached_property
    def beta_T(self) -> Float[np.ndarray, " T"]:
        """Beta of each level, float64."""
        return np.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=np.float64)

    @functools.cached_property
    def abar_T(self) -> Float[np.ndarray, " T"]:
        """Cumulative product of 1 - beta, float64."""
        return np.cumprod(1.0 - self.beta_T)


def add_noise(
    schedule: Schedule,
    x_BHWC: Float[Array, "B H W C"],
    t_B: Int[Array, " B"],
    eps_BHWC: Float[Array, "B H W C"],
) -> Float[Array, "B H W C"]:
    """Forward noising (1) of images in model space, [-1, 1], to the levels ``t_B``."""
    signal_T = jnp.asarray(np.sqrt(schedule.abar_T), x_BHWC.dtype)
    sigma_T = jnp.asarray(np.sqrt(1.0 - schedule.abar_T), x_BHWC.dtype)
    return signal_T[t_B][:, None, None, None] * x_BHWC + sigma_T[t_B][:, None, None, None] * eps_BHWC


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to sample. Static and hashable.

    Args:
        sampler: ``"ddpm"`` (ancestral) or ``"ddim"``.
        steps: S, between 1 and the schedule's T; fewer than T strides over the levels.
        eta: noise share of DDIM, in [0, 1]; 0 is deterministic. Ignored by ``"ddpm"``.
        variance: variance of ``"ddpm"``, see the module's text.
        spacing: which levels a strided sampler visits. ``"leading"``: 0, T//S, 2 T//S, ... (both references);
            ``"trailing"``: T - 1 downwards in steps of T / S.
        clip: clip the predicted x_0 to [-1, 1] at every step (s1).

    >>> config = SamplerConfig(sampler="ddim", steps=4, eta=0.5)
    >>> sampler_steps(Schedule(), config).t_S.tolist()
    [750, 500, 250, 0]
    """

    sampler: Sampler = "ddpm"
    steps: int = 50
    eta: float = 0.0
    variance: Variance = "posterior"
    spacing: Spacing = "leading"
    clip: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        _check_choice("sampler", self.sampler, ("ddpm", "ddim"))
        _check_choice("variance", self.variance, ("posterior", "beta", "alpha_beta"))
        _check_choice("spacing", self.spacing, ("leading", "trailing"))
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1 sampling step")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta={self.eta}: expected a number in [0, 1]")


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
    T, S = schedule.timesteps, config.steps
    if S > T:
        raise ValueError(f"steps={S}: the schedule has only {T} noise levels; ask for at most {T} steps")
    if config.spacing == "leading":
        t_S = np.arange(S)[::-1] * (T // S)
    else:
        t_S = np.round(T - np.arange(S) * (T / S)).astype(np.int64) - 1
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
