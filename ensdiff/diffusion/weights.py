"""How much each noise level counts in a loss: factors on ``|target - F|^2``, for any process and prediction.

A weight is written for the error of the clean image or of the noise, and converted: an error of F is
``clean_f / clean_over`` times as large in x_0, and ``noise_f / noise_over`` times as large in eps
(`ensdiff.diffusion.conversion`). With ``SNR = signal^2 / sigma^2``:

(w1) min-SNR (Hang et al. 2023, arXiv 2303.09556): ``min(SNR, 5) |x_0 error|^2``.
(w2) EDM (Karras et al. 2022, arXiv 2206.00364): ``(1 / sigma_data^2 + SNR) |x_0 error|^2``, which is 1 for their F.
(w3) variational bound (Kingma et al. 2021, arXiv 2107.00630, eq. 14): ``n / 2 (SNR(t-1) - SNR(t)) |x_0 error|^2``,
     ``= n / 2 (SNR(t-1) / SNR(t) - 1) |eps error|^2``.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from ensdiff.diffusion.schedule import Schedule, conversion

Weighting = Literal["simple", "min_snr", "edm"]

MOST_SNR = 5.0
"""The gamma of (w1)."""


def loss_weights(schedule: Schedule, weighting: Weighting) -> Float[np.ndarray, " T"]:
    """Return the factor on ``|target - F|^2`` of each level, (T,) float64.

    Args:
        schedule: the process, and what the network predicts.
        weighting: ``"simple"`` (1), ``"min_snr"`` (w1) or ``"edm"`` (w2). With min-SNR, a level without signal has
            weight 0.

    >>> loss_weights(Schedule(), "min_snr")[[0, 999]].round(6).tolist()  # min(SNR, 5) / SNR
    [0.0005, 1.0]
    """
    if weighting == "simple":
        return np.ones(schedule.timesteps)
    if weighting == "min_snr":
        return np.minimum(schedule.snr_T, MOST_SNR) * _clean_error_T(schedule)
    return (1.0 / schedule.sigma_data**2 + schedule.snr_T) * _clean_error_T(schedule)


def vlb_weights(schedule: Schedule, first: int, last: int) -> Float[np.ndarray, " T"]:
    """Return (w3) as factors on ``|target - F|^2``, for the levels ``first .. last`` (both included), (T,) float64.

    The mean of the weighted errors over these ``n = last - first + 1`` levels is then their part of the variational
    bound on -log p(x), in nats. Level 0 has weight 0. Weights of levels outside of the range are of no use.
    """
    snr_T, n = schedule.snr_T, last - first + 1
    if schedule.prediction == "noise":
        return n / 2 * np.concatenate([[0.0], snr_T[:-1] / snr_T[1:] - 1.0])
    return n / 2 * np.concatenate([[0.0], snr_T[:-1] - snr_T[1:]]) * _clean_error_T(schedule)


def _clean_error_T(schedule: Schedule) -> np.ndarray:
    """Return the squared error of x_0 per squared error of F, at each level."""
    rule = conversion(schedule, schedule.signal_T, schedule.sigma_T)
    return (rule.clean_f / rule.clean_over) ** 2
