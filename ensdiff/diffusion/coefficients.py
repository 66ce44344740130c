"""Samplers as affine steps from level to level, with coefficients computed in float64 on the host.

A step goes from a level (s, sigma) to the next one (s', sigma'), and the last step goes to (1, 0). With the clean image
``x_0`` that the network's prediction means, and the noise ``eps = (x - s x_0) / sigma`` that goes with it:

(s1) ``x_0`` is clipped to [-1, 1] if ``clip`` is set,
(s2) ``x <- keep x + target x_0 + noise z``.

- ``ddpm``: the posterior of Ho et al. 2020 (arXiv 2006.11239) eq. 7 on the strided chain. With
  ``beta = sigma^2 - (s / s')^2 sigma'^2``: ``keep = (s / s') sigma'^2 / sigma^2``, ``target = s' beta / sigma^2``, and
  a variance that is ``posterior`` (``sigma'^2 / sigma^2 beta``, at least 1e-20), or for variance preserving processes
  ``beta`` (``beta = 1 - s^2 / s'^2``) or ``alpha_beta`` (``s^2 / s'^2 beta``, as in GenEns).
- ``ddim``: Song et al. 2021 (arXiv 2010.02502) eq. 12 and 16 with the variance ``v = eta^2 sigma'^2 / sigma^2 beta``:
  ``keep = sqrt(sigma'^2 - v) / sigma``, ``target = s' - keep s``. With eta = 1 it is ``ddpm``, posterior variance.
- ``euler``: Euler's method for the probability flow, which is exactly ``ddim`` with eta = 0, in every variable below.

Two samplers remember something h of the state's shape:

(s3) ``x <- keep x + target x_0 + noise z + past h``, then ``h <- memory_x x + memory_clean x_0`` (of the old x).

- ``heun`` (Karras et al. 2022, arXiv 2206.00364, algorithm 1): the probability flow is ``dy / du = eps``, with
  ``y = x / s`` and ``u = sigma / s``; for rectified flow, and for a step that starts with (next to) no signal, where
  that u is infinite (or so large that the rule below is useless), it is ``dy / du = eps - x_0``, with
  ``y = x / (s + sigma)`` and ``u = sigma / (s + sigma)``. A step of Euler's method is followed by a second evaluation
  and the trapezoidal rule, ``y' = y + (u' - u) / 2 (slope + slope')``. The first stage remembers
  ``y + (u' - u) / 2 slope``. The last step is one of Euler's method: 2 S - 1 evaluations.
- ``dpm++2m`` (Lu et al. 2022, arXiv 2211.01095, algorithm 2): with ``lambda = ln(s / sigma)``, ``l = lambda' - lambda``
  and r the previous step's l divided by this one's: ``x' = (sigma' / sigma) x + s' (1 - exp(-l)) D``,
  ``D = x_0 + (x_0 - h) / (2 r)``, h the previous ``x_0``. The first and last steps are of first order, ``D = x_0``.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ensdiff.diffusion.spacing import Visited

Variance = Literal["posterior", "beta", "alpha_beta"]

NO_SIGNAL = 1e-3
"""The ratio of signal to sigma below which a step of ``heun`` uses the variable of rectified flow. The cosine schedule
starts at 5e-5; the linear ones, and EDM up to sigma 1000, never fall below."""


class Affine(NamedTuple):
    """Coefficients of (s3) for each of E evaluations of the network, in their order; float64.

    Args:
        step_E: the sampling step that each evaluation belongs to.
        level_E: the level at which the network is evaluated: the number of the step that starts there.
        keep_E: factor on the state.
        target_E: factor on the clean image.
        noise_E: factor on fresh noise.
        past_E: factor on what was remembered.
        memory_x_E: factor on the state in what is remembered.
        memory_clean_E: factor on the clean image in what is remembered.
    """

    step_E: Int[np.ndarray, " E"]
    level_E: Int[np.ndarray, " E"]
    keep_E: Float[np.ndarray, " E"]
    target_E: Float[np.ndarray, " E"]
    noise_E: Float[np.ndarray, " E"]
    past_E: Float[np.ndarray, " E"]
    memory_x_E: Float[np.ndarray, " E"]
    memory_clean_E: Float[np.ndarray, " E"]


def ddim(levels: Visited, eta: float) -> Affine:
    """Return the coefficients of ``ddim``, and of ``euler`` for eta = 0."""
    a, b, p, q = _squares(levels)
    variance = eta**2 * (q / b * _beta(levels))
    keep = np.sqrt(np.maximum(q - variance, 0.0) / b)
    target = np.sqrt(p) - keep * np.sqrt(a)
    return _without_memory(keep, target, np.sqrt(variance))


def ddpm(levels: Visited, variance: Variance) -> Affine:
    """Return the coefficients of ``ddpm``. Only ``"posterior"`` has a meaning if the process has no betas."""
    a, b, p, q = _squares(levels)
    beta = _beta(levels)
    choices = {"posterior": np.maximum(q / b * beta, 1e-20), "beta": beta, "alpha_beta": (a / p) * beta}
    chosen = choices[variance]
    if variance != "posterior":
        chosen = np.append(chosen[:-1], 0.0)  # the last step is a mean, not a draw
    keep = np.sqrt(a / p) * q / b
    target = np.sqrt(p) * beta / b
    return _without_memory(keep, target, np.sqrt(chosen))


def dpm(levels: Visited) -> Affine:
    """Return the coefficients of ``dpm++2m``."""
    s, sigma, s_next, sigma_next = map(np.sqrt, _squares(levels))
    S = len(s)
    keep = sigma_next / sigma
    whole = s_next - s * keep
    with np.errstate(divide="ignore"):
        lambda_S = np.log(s / sigma)
    half = np.zeros(S)  # 1 / (2 r); the first and the last step are of first order
    for j in range(1, S - 1):
        half[j] = (lambda_S[j + 1] - lambda_S[j]) / (lambda_S[j] - lambda_S[j - 1]) / 2.0
    zero, one = np.zeros(S), np.ones(S)
    return Affine(np.arange(S), np.arange(S), keep, whole * (1.0 + half), zero, -whole * half, zero, one)


def heun(levels: Visited, *, flow: bool) -> Affine:
    """Return the coefficients of ``heun``: two evaluations per step, one at the last.

    Args:
        levels: the levels.
        flow: whether the variable is ``sigma / (s + sigma)`` at every step.
    """
    s_S, sigma_S, s_next_S, sigma_next_S = map(np.sqrt, _squares(levels))
    first = ddim(levels, 0.0)
    rows = []
    for j, (s, sigma, s_next, sigma_next) in enumerate(zip(s_S, sigma_S, s_next_S, sigma_next_S, strict=True)):
        keep, target = first.keep_E[j], first.target_E[j]
        if j + 1 == len(s_S):
            rows.append((j, j, keep, target, 0.0, 0.0, 0.0, 0.0))
            break
        c = 1.0 if flow or s < NO_SIGNAL * sigma else 0.0  # the slope is eps - c x_0 = x / sigma - (s / sigma + c) x_0
        n, n_next = s + c * sigma, s_next + c * sigma_next
        half = (sigma_next / n_next - sigma / n) / 2.0
        memory = (1.0 / n + half / sigma, -half * (s / sigma + c))
        rows.append((j, j, keep, target, 0.0, 0.0, *memory))
        corrected = (n_next * half / sigma_next, -n_next * half * (s_next / sigma_next + c))
        rows.append((j, j + 1, *corrected, 0.0, n_next, 0.0, 0.0))
    step_E, level_E, *columns = zip(*rows, strict=True)
    return Affine(np.array(step_E), np.array(level_E), *(np.array(column) for column in columns))


def _squares(levels: Visited) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return ``s^2``, ``sigma^2``, ``s'^2`` and ``sigma'^2`` of each step."""
    a, b = levels.power_S, levels.variance_S
    return a, b, np.append(a[1:], 1.0), np.append(b[1:], 0.0)


def _beta(levels: Visited) -> np.ndarray:
    """Return ``sigma^2 - (s / s')^2 sigma'^2`` of each step."""
    a, b, p, q = _squares(levels)
    return 1.0 - a / p if levels.preserving else b - (a / p) * q


def _without_memory(keep: np.ndarray, target: np.ndarray, noise: np.ndarray) -> Affine:
    number, zero = np.arange(len(keep)), np.zeros(len(keep))
    return Affine(number, number, keep, target, noise, zero, zero, zero)
