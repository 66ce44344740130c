"""The noise schedule and the coefficients of the samplers, in float64 on the host.

Forward noising, Ho et al. 2020 (arXiv 2006.11239):

(1) ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps``, beta linear, ``abar_t = prod_{s <= t} (1 - beta_s)``.

Every sampler here is the same affine step from level t (``a = abar_t``) to the previous level (``p = abar_prev``):

(s1) ``x_0 = (x - sqrt(1 - a) eps) / sqrt(a)``, clipped to [-1, 1] if ``clip`` is set,
(s2) ``x <- keep * x + target * x_0 + noise * z``.

- ``ddpm``: the posterior of Ho et al. eq. 7 on the strided chain, ``alpha' = a / p``, ``beta' = 1 - alpha'``:
  ``keep = sqrt(alpha') (1 - p) / (1 - a)``, ``target = sqrt(p) beta' / (1 - a)``, and a variance that is
  ``posterior`` (``(1 - p) / (1 - a) beta'``, at least 1e-20), ``beta`` (``beta'``) or ``alpha_beta``
  (``alpha' beta'``, as in GenEns).
- ``ddim``: Song et al. 2021 (arXiv 2010.02502) eq. 12 and 16 with ``sigma^2 = eta^2 (1 - p) / (1 - a) beta'``:
  ``keep = sqrt(1 - p - sigma^2) / sqrt(1 - a)``, ``target = sqrt(p) - keep sqrt(a)``, ``noise = sigma``.
  With eta = 1 it is ``ddpm`` with the posterior variance.

A caller's own step, a `StepFunction`, replaces (s1) and (s2).
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.settings import check_fields
from ensdiff.typing import Array, ArrayLike


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
        """Beta of each level, (T,) float64."""
        return np.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=np.float64)

    @functools.cached_property
    def abar_T(self) -> Float[np.ndarray, " T"]:
        """Cumulative product of 1 - beta, (T,) float64."""
        return np.cumprod(1.0 - self.beta_T)


def add_noise(
    schedule: Schedule,
    x_BHWC: Float[ArrayLike, "B H W C"],
    t_B: Int[ArrayLike, " B"],
    eps_BHWC: Float[ArrayLike, "B H W C"],
) -> Float[Array, "B H W C"]:
    """Add noise to images in model space, [-1, 1], up to the levels ``t_B``, by equation (1)."""
    signal_T = jnp.asarray(np.sqrt(schedule.abar_T), x_BHWC.dtype)
    sigma_T = jnp.asarray(np.sqrt(1.0 - schedule.abar_T), x_BHWC.dtype)
    return signal_T[t_B][:, None, None, None] * x_BHWC + sigma_T[t_B][:, None, None, None] * eps_BHWC
