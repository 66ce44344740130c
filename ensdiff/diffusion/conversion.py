"""What a network's prediction F means: the one place that converts it to the clean image and to the noise.

With ``x = s x_0 + sigma eps`` (s is `signal`), the predictions and their conversions are

(c1) noise: ``F = eps``; ``x_0 = (x - sigma F) / s``.
(c2) clean: ``F = x_0``; ``eps = (x - s F) / sigma``.
(c3) v (Salimans & Ho 2022, arXiv 2202.00512): ``F = s eps - sigma x_0``; ``x_0 = (s x - sigma F) / (s^2 + sigma^2)``,
     ``eps = (sigma x + s F) / (s^2 + sigma^2)``.
(c4) flow (Lipman et al. 2023, arXiv 2210.02747): ``F = eps - x_0``; ``x_0 = (x - sigma F) / (s + sigma)``,
     ``eps = (x + s F) / (s + sigma)``.
(c5) edm (Karras et al. 2022, arXiv 2206.00364, table 1), with s = 1 and ``D^2 = sigma^2 + sigma_data^2``:
     ``x_0 = (sigma_data^2 / D^2) x + (sigma sigma_data / D) F``, ``eps = (sigma / D^2) x - (sigma_data / D) F``.

All are affine in (x, F) at a given level. The weights of an ensemble sum to 1, so averaging predictions and converting
the average is the same as averaging converted predictions.
"""

from typing import Any, Literal, NamedTuple

import numpy as np

Prediction = Literal["noise", "v", "clean", "flow", "edm"]


class Conversion(NamedTuple):
    """Coefficients of a prediction F at one level, or at each of several: float64 scalars or arrays.

    Args:
        clean_x: ``x_0 = (clean_x x + clean_f F) / clean_over``.
        clean_f: see `clean_x`.
        clean_over: see `clean_x`.
        noise_x: ``eps = (noise_x x + noise_f F) / noise_over``.
        noise_f: see `noise_x`.
        noise_over: see `noise_x`.
        target_clean: ``F = target_clean x_0 + target_noise eps``.
        target_noise: see `target_clean`.
    """

    clean_x: Any
    clean_f: Any
    clean_over: Any
    noise_x: Any
    noise_f: Any
    noise_over: Any
    target_clean: Any
    target_noise: Any


def convert(prediction: Prediction, signal: Any, sigma: Any, sigma_data: float = 0.5) -> Conversion:
    """Return the conversion of a prediction, by (c1) to (c5).

    Args:
        prediction: what the network predicts.
        signal: s, a number or an array.
        sigma: the deviation of the noise, of the shape of ``signal``.
        sigma_data: the deviation of the data, for ``"edm"``, whose ``signal`` must be 1.

    >>> [float(a) for a in convert("flow", 0.25, 0.75)[:6]]  # x_0 = (x - 0.75 F) / 1, eps = (x + 0.25 F) / 1
    [1.0, -0.75, 1.0, 1.0, 0.25, 1.0]
    """
    s, sigma = np.asarray(signal, np.float64)[()], np.asarray(sigma, np.float64)[()]
    zero = 0.0 * s
    one = zero + 1.0
    if prediction == "noise":
        return Conversion(one, -sigma, s, zero, one, one, zero, one)
    if prediction == "clean":
        return Conversion(zero, one, one, one, -s, sigma, one, zero)
    if prediction == "v":
        power = s**2 + sigma**2
        return Conversion(s, -sigma, power, sigma, s, power, -sigma, s)
    if prediction == "flow":
        return Conversion(one, -sigma, s + sigma, one, s, s + sigma, -one, one)
    root = np.sqrt(sigma**2 + sigma_data**2)
    skip, out = (sigma_data / root) ** 2, sigma * sigma_data / root
    clean, noise = sigma / (sigma_data * root), sigma_data / root
    return Conversion(skip, out, one, sigma / root**2, -noise, one, clean, -noise)
