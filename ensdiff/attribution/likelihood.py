"""The likelihood of the members' losses under a combination with scores, and whether it is more than chance.

The equations are those of `ensdiff.attribution.combination`. Losses are given as differences between members, in the
basis in which C C^T is diagonal.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ensdiff.codes.permute import derive_key
from ensdiff.metrics.arrays import precision

PERMUTATIONS = 199
"""Permutations of the members that the fit is compared with."""
PERMUTED = 2**20
"""Number of losses that are permuted at a time."""


class Point(NamedTuple):
    """The likelihood at a ratio rho.

    Args:
        value: its logarithm, up to a constant.
        beta: the beta that maximises it.
    """

    value: float
    beta: float


class Profile:
    """The likelihood (c3) as a function of the ratio rho.

    Args:
        z_BR: minus the losses.
        p_BR: predictions of the prior scores.
        eigen_R: eigenvalues of C C^T.
    """

    def __init__(
        self, z_BR: Float[np.ndarray, "B R"], p_BR: Float[np.ndarray, "B R"], eigen_R: Float[np.ndarray, " R"]
    ):
        self.z_BR, self.p_BR, self.eigen_R = z_BR, p_BR, eigen_R

    def at(self, ratio: float) -> Point:
        """Return the likelihood at a ratio, for the best beta."""
        variance_R = 1 + ratio * self.eigen_R
        zz_B, zp_B, pp_B = (
            (a * b / variance_R).sum(1)
            for a, b in ((self.z_BR, self.z_BR), (self.z_BR, self.p_BR), (self.p_BR, self.p_BR))
        )
        least_B = precision(1.0) * zz_B  # of a prior that predicts all losses exactly
        q_B, beta = zz_B, 0.0
        if pp_B.any():
            for _ in range(100):  # weighted least squares, which raises the likelihood at every step
                before, beta = beta, max(0.0, float((zp_B / q_B).sum() / (pp_B / q_B).sum()))
                q_B = np.maximum(zz_B - 2 * beta * zp_B + beta**2 * pp_B, least_B)
                if abs(beta - before) <= 1e-10 * beta:
                    break
        B, n = self.z_BR.shape
        return Point(float(-B / 2 * np.log(variance_R).sum() - n / 2 * np.log(q_B).sum()), beta)

    def refined(self, ratios_G: np.ndarray, values_G: np.ndarray) -> float:
        """Return the best ratio near the best of the grid."""
        from scipy.optimize import minimize_scalar

        best = int(values_G.argmax())
        bounds = np.log(ratios_G[[max(best - 1, 0), min(best + 1, len(ratios_G) - 1)]])
        found = minimize_scalar(lambda log: -self.at(float(np.exp(log))).value, bounds=bounds, method="bounded")
        return float(np.exp(found.x) if -found.fun > values_G[best] else ratios_G[best])


def permutation_p_value(
    residual_BK: Float[np.ndarray, "B K"],
    basis_KR: Float[np.ndarray, "K R"],
    eigen_R: Float[np.ndarray, " R"],
    ratios_G: Float[np.ndarray, " G"],
    seed: int,
) -> float:
    """Return the p-value of the gain of the best rho over 0, with beta as it is at 0, among permuted members."""
    (B, K), n = residual_BK.shape, len(eigen_R)
    variance_GR = 1 + ratios_G[:, None] * eigen_R
    cost_G = B / 2 * np.log(variance_GR).sum(1)
    floor_B1 = precision(1.0) * np.square(residual_BK).sum(1, keepdims=True)
    floor_B1 = np.where(floor_B1 > 0, floor_B1, 1.0)
    rng = np.random.default_rng(derive_key(seed, 4))
    orders = [np.arange(K), *(rng.permutation(K) for _ in range(PERMUTATIONS))]
    together = max(1, PERMUTED // (B * max(K, len(ratios_G))))
    gains = []
    for start in range(0, len(orders), together):
        order_PK = np.stack(orders[start : start + together])
        square_PBR = np.square(np.swapaxes(residual_BK[:, order_PK], 0, 1) @ basis_KR)
        q_PBG = np.maximum(square_PBR @ (1 / variance_GR).T, floor_B1)
        gains.append((-n / 2 * np.log(q_PBG).sum(1) - cost_G).max(1))
    gain_P = np.concatenate(gains)
    return float((gain_P >= gain_P[0] - precision(1.0) * abs(gain_P[0])).mean())
