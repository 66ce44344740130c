"""Processes: how images are mixed with noise, what the network is told and asked, and how much each level counts.

(1) ``x_t = signal_t x_0 + sigma_t eps``, at the levels t = 0 .. T - 1, of which T - 1 is the noisiest.

- Variance preserving (``linear``, ``scaled_linear``, ``cosine``; Ho et al. 2020, arXiv 2006.11239):
  ``signal = sqrt(abar_t)``, ``sigma = sqrt(1 - abar_t)``, ``abar_t = prod_{s <= t} (1 - beta_s)``.
- ``flow`` (rectified flow; Liu et al. 2022, arXiv 2209.03003): ``signal = 1 - u``, ``sigma = u``, at
  ``u = shift r / (1 + (shift - 1) r)``, ``r = (t + 1) / T`` (Esser et al. 2024, arXiv 2403.03206, eq. 23).
- ``edm`` (Karras et al. 2022, arXiv 2206.00364): ``signal = 1``, and level t has the (t + 1/2) / T quantile of the
  log-normal distribution of sigma that Karras et al. train with.

Training and losses draw the number of a level uniformly. `ensdiff.diffusion.conversion` says what predictions mean.
"""

import dataclasses
import functools
import statistics
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.diffusion.conversion import Conversion, Prediction, convert
from ensdiff.settings import check_fields
from ensdiff.typing import Array, ArrayLike

Kind = Literal["linear", "scaled_linear", "cosine", "flow", "edm"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A process: signal and noise at each of T levels, and what the network predicts.

    A setting that belongs to other kinds is refused.

    Args:
        timesteps: T.
        beta_start: beta at level 0, for ``"linear"`` and ``"scaled_linear"``.
        beta_end: beta at level T - 1.
        kind: ``"linear"`` (beta is linear), ``"scaled_linear"`` (the square root of beta is linear, as in Stable
            Diffusion), ``"cosine"`` (Nichol & Dhariwal 2021, arXiv 2102.09672, beta at most 0.999), ``"flow"`` or
            ``"edm"``.
        prediction: what the network predicts: ``"noise"``, ``"v"``, ``"clean"``, ``"flow"``, or for the kind ``"edm"``
            also ``"edm"``, Karras' preconditioned network. See `ensdiff.diffusion.conversion`.
        zero_terminal_snr: rescale a variance preserving schedule so that the last level has no signal (Lin et al. 2023,
            arXiv 2305.08891). The noise cannot be the prediction then.
        shift: above 1, the levels of ``"flow"`` are noisier, as for large images.
        sigma_data: the deviation of the data in model space, for the prediction and the loss weights of EDM.
        sigma_min: the smallest sigma at which sampling of ``"edm"`` evaluates the network.
        sigma_max: the largest one; sampling starts there.
        rho: the power of the grid of sigmas between them (eq. 5 of Karras et al.).
        log_mean: the mean of ln sigma in training of ``"edm"``.
        log_deviation: the deviation of ln sigma in training.

    >>> Schedule().abar_T[[0, 999]].round(6).tolist()
    [0.9999, 4e-05]
    >>> flow = Schedule(timesteps=4, kind="flow", prediction="flow")
    >>> flow.signal_T.tolist(), flow.sigma_T.tolist()
    ([0.75, 0.5, 0.25, 0.0], [0.25, 0.5, 0.75, 1.0])
    """

    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    kind: Kind = "linear"
    prediction: Prediction = "noise"
    zero_terminal_snr: bool = False
    shift: float = 1.0
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    log_mean: float = -1.2
    log_deviation: float = 1.2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.timesteps < 2:
            raise ValueError(f"timesteps={self.timesteps}: expected at least 2 noise levels")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}: expected 0 < beta_start <= beta_end < 1"
            )
        for names, kinds in _OWNERS.items():
            for name in names:
                value = getattr(self, name)
                if self.kind not in kinds and value != getattr(Schedule, name):
                    raise ValueError(f"{name}={value!r} is for kind={' or '.join(map(repr, kinds))}: leave it out")
        for name in ("shift", "sigma_data", "rho", "log_deviation"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: expected 0 < sigma_min < sigma_max"
            )
        self._check_prediction()

    def _check_prediction(self) -> None:
        if self.prediction == "edm" and self.kind != "edm":
            raise ValueError(f"prediction='edm' is for kind='edm', not {self.kind!r}: use 'v' instead")
        if self.prediction == "noise" and (self.kind == "flow" or self.zero_terminal_snr):
            setting = "kind='flow'" if self.kind == "flow" else "zero_terminal_snr=True"
            raise ValueError(
                f"prediction='noise' with {setting}: the last level has no signal, so its noise does not determine the "
                "image: use 'v', 'clean' or 'flow'"
            )

    @property
    def variance_preserving(self) -> bool:
        """Whether ``signal^2 + sigma^2 = 1``, with betas."""
        return self.kind in VARIANCE_PRESERVING

    @functools.cached_property
    def beta_T(self) -> Float[np.ndarray, " T"]:
        """Beta of each level, (T,) float64; ValueError for kinds without betas."""
        self._check_betas("beta_T")
        if self.zero_terminal_snr:
            return 1.0 - self.abar_T / np.append(1.0, self.abar_T[:-1])
        return self._raw_beta_T

    @functools.cached_property
    def abar_T(self) -> Float[np.ndarray, " T"]:
        """Cumulative product of 1 - beta, (T,) float64; ValueError for kinds without betas."""
        self._check_betas("abar_T")
        abar_T = np.cumprod(1.0 - self._raw_beta_T)
        if self.zero_terminal_snr:
            root_T = np.sqrt(abar_T)
            abar_T = ((root_T - root_T[-1]) * (root_T[0] / (root_T[0] - root_T[-1]))) ** 2
        return abar_T

    @property
    def _raw_beta_T(self) -> np.ndarray:
        if self.kind == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=np.float64)
        if self.kind == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.timesteps, dtype=np.float64) ** 2
        place = np.arange(self.timesteps + 1, dtype=np.float64) / self.timesteps
        abar = np.cos((place + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1.0 - abar[1:] / abar[:-1], 0.999)

    def _check_betas(self, name: str) -> None:
        if not self.variance_preserving:
            raise ValueError(f"{name} of kind={self.kind!r}: only variance preserving kinds have betas; use signal_T")

    @functools.cached_property
    def signal_T(self) -> Float[np.ndarray, " T"]:
        """The factor on the image at each level, (T,) float64."""
        if self.variance_preserving:
            return np.sqrt(self.abar_T)
        return 1.0 - self.sigma_T if self.kind == "flow" else np.ones(self.timesteps)

    @functools.cached_property
    def sigma_T(self) -> Float[np.ndarray, " T"]:
        """The deviation of the noise at each level, (T,) float64."""
        if self.variance_preserving:
            return np.sqrt(1.0 - self.abar_T)
        place = np.arange(self.timesteps, dtype=np.float64)
        if self.kind == "flow":
            place = (place + 1) / self.timesteps
            return self.shift * place / (1.0 + (self.shift - 1.0) * place)
        normal = statistics.NormalDist(self.log_mean, self.log_deviation)
        return np.exp([normal.inv_cdf((t + 0.5) / self.timesteps) for t in place])

    @functools.cached_property
    def snr_T(self) -> Float[np.ndarray, " T"]:
        """``signal^2 / sigma^2`` of each level, (T,) float64."""
        if self.variance_preserving:
            return self.abar_T / (1.0 - self.abar_T)
        return (self.signal_T / self.sigma_T) ** 2

    @functools.cached_property
    def time_T(self) -> Float[np.ndarray, " T"]:
        """The time that the network is told at each level, (T,) float64, see `time_of`."""
        if self.variance_preserving:
            return np.arange(self.timesteps, dtype=np.float64)
        return self.time_of(self.signal_T, self.sigma_T)

    @functools.cached_property
    def scale_T(self) -> Float[np.ndarray, " T"]:
        """The factor on the network's input at each level, (T,) float64, see `scale_of`."""
        return self.scale_of(self.sigma_T)

    def time_of(self, signal: Float[np.ndarray, "..."], sigma: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return the time that the network is told between levels, float64.

        It is ``T sigma`` for ``"flow"`` and ``ln(sigma) / 4`` for ``"edm"``, and otherwise the number of the level,
        interpolated linearly in the logarithm of sigma / signal.
        """
        if self.kind == "flow":
            return self.timesteps * sigma
        if self.kind == "edm":
            return np.log(sigma) / 4.0
        known = self.signal_T > 0
        log_T = np.log(self.sigma_T[known] / self.signal_T[known])
        return np.interp(np.log(sigma / signal), log_T, np.flatnonzero(known).astype(np.float64))

    def scale_of(self, sigma: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return the factor on the network's input: ``1 / sqrt(sigma^2 + sigma_data^2)`` for ``"edm"``, otherwise 1."""
        return 1.0 / np.sqrt(sigma**2 + self.sigma_data**2) if self.kind == "edm" else np.ones_like(sigma)


VARIANCE_PRESERVING = ("linear", "scaled_linear", "cosine")

_OWNERS = {
    ("beta_start", "beta_end"): ("linear", "scaled_linear"),
    ("zero_terminal_snr",): VARIANCE_PRESERVING,
    ("shift",): ("flow",),
    ("sigma_min", "sigma_max", "rho", "log_mean", "log_deviation"): ("edm",),
}
"""Which kinds have a setting. Others must leave it at its default."""


def conversion(schedule: Schedule, signal: Any, sigma: Any) -> Conversion:
    """Return how the network's prediction is converted where ``x = signal x_0 + sigma eps``.

    >>> [float(a) for a in conversion(Schedule(), 0.6, 0.8)[:3]]  # x_0 = (x - 0.8 F) / 0.6
    [1.0, -0.8, 0.6]
    """
    return convert(schedule.prediction, signal, sigma, schedule.sigma_data)


def add_noise(
    schedule: Schedule,
    x_BHWC: Float[ArrayLike, "B H W C"],
    t_B: Int[ArrayLike, " B"],
    eps_BHWC: Float[ArrayLike, "B H W C"],
) -> Float[Array, "B H W C"]:
    """Add noise to images in model space up to the levels ``t_B``, by equation (1)."""
    signal_B11, sigma_B11 = (_at(a_T, t_B, x_BHWC.dtype) for a_T in (schedule.signal_T, schedule.sigma_T))
    return signal_B11 * x_BHWC + sigma_B11 * eps_BHWC


def target(
    schedule: Schedule,
    x0_BHWC: Float[ArrayLike, "B H W C"],
    eps_BHWC: Float[ArrayLike, "B H W C"],
    t_B: Int[ArrayLike, " B"],
) -> Float[ArrayLike, "B H W C"]:
    """Return what the network should predict for `add_noise` of clean images ``x0_BHWC`` at the levels ``t_B``."""
    if schedule.prediction in ("noise", "clean"):
        return eps_BHWC if schedule.prediction == "noise" else x0_BHWC
    rule = conversion(schedule, schedule.signal_T, schedule.sigma_T)
    clean, noise = (_at(a_T, t_B, x0_BHWC.dtype) for a_T in (rule.target_clean, rule.target_noise))
    return clean * x0_BHWC + noise * eps_BHWC


def network_inputs(
    schedule: Schedule, x_BHWC: Float[Array, "B H W C"], t_B: Int[ArrayLike, " B"]
) -> tuple[Float[Array, "B H W C"], Float[Array, " B"]]:
    """Return what the network is given for noisy images at the levels ``t_B``: the scaled images, and float32 times."""
    if schedule.variance_preserving:
        return x_BHWC, jnp.asarray(t_B).astype(jnp.float32)
    time_B = jnp.asarray(schedule.time_T, jnp.float32)[t_B]
    if schedule.kind == "flow":
        return x_BHWC, time_B
    return _at(schedule.scale_T, t_B, x_BHWC.dtype) * x_BHWC, time_B


def noise_of(
    schedule: Schedule,
    x_BHWC: Float[ArrayLike, "B H W C"],
    f_BHWC: Float[ArrayLike, "B H W C"],
    t_B: Int[ArrayLike, " B"],
) -> Float[ArrayLike, "B H W C"]:
    """Return the noise that predictions ``f_BHWC`` for noisy images ``x_BHWC`` (not scaled) at levels ``t_B`` mean."""
    if schedule.prediction == "noise":
        return f_BHWC
    rule = conversion(schedule, schedule.signal_T, schedule.sigma_T)
    return _combined((rule.noise_x, rule.noise_f, rule.noise_over), x_BHWC, f_BHWC, t_B)


def clean_of(
    schedule: Schedule,
    x_BHWC: Float[ArrayLike, "B H W C"],
    f_BHWC: Float[ArrayLike, "B H W C"],
    t_B: Int[ArrayLike, " B"],
) -> Float[ArrayLike, "B H W C"]:
    """Return the clean image that predictions ``f_BHWC`` for noisy images ``x_BHWC`` at levels ``t_B`` mean."""
    if schedule.prediction == "clean":
        return f_BHWC
    rule = conversion(schedule, schedule.signal_T, schedule.sigma_T)
    return _combined((rule.clean_x, rule.clean_f, rule.clean_over), x_BHWC, f_BHWC, t_B)


def _combined(rule: tuple[np.ndarray, ...], x_BHWC: Any, f_BHWC: Any, t_B: Any) -> Array:
    """Return ``(x * x_BHWC + f * f_BHWC) / over`` with the numbers (x, f, over) of each image's level."""
    x, f, over = (_at(a_T, t_B, x_BHWC.dtype) for a_T in rule)
    return (x * x_BHWC + f * f_BHWC) / over


def _at(a_T: np.ndarray, t_B: Any, dtype: Any) -> Array:
    """Return a value of each level for images, (B, 1, 1, 1)."""
    return jnp.asarray(a_T, dtype)[t_B][:, None, None, None]
