"""Combine scores with the members' own losses: a posterior mean and standard deviation of every unit's effect (10).

The effects theta of the N units on minus the loss of query b, the prior scores g and the losses y of K members that
were trained on known parts of the units are related by a linear Gaussian model. C is the K x N code:

(c1) ``theta_b ~ N(beta g_b, tau_b^2 I)`` and ``y_b = mu_b + C theta_b + N(0, sigma_b^2 I)``. beta and the ratio
     ``rho = tau_b^2 / sigma_b^2`` are shared by the queries. The size sigma_b of the noise is each query's own, because
     losses of different queries differ in size.
(c2) The posterior mean is ``beta g + rho C^T P r``, with the residual ``r = y - beta C g``, the covariance
     ``M = rho C C^T + I``, and ``P = M^-1 - M^-1 1 1^T M^-1 / (1^T M^-1 1)``, which takes the unknown mu_b out. The
     posterior variance of a sum of m effects whose code rows add up to c is ``tau^2 (m - rho c^T P c)``.
(c3) The fit maximises the likelihood of the losses' differences between members, with sigma_b integrated out under
     the prior 1 / sigma_b^2. With the eigenvalues lambda_r of C C^T among the n = K - 1 differences and the squares
     ``q_b = sum_r r_br^2 / (1 + rho lambda_r)``, its logarithm is
     ``-B/2 sum_r log(1 + rho lambda_r) - n/2 sum_b log q_b``. Given rho and beta, effects have a t distribution with n
     degrees of freedom and ``sigma_b^2 = q_b / n``. A beta below 0 is taken as 0.
(c4) ``yhat_bk = beta (C g)_bk + rho (C C^T)_k P^(-k) r_b``, what the posterior without member k predicts for it.

In (c3) the noise (sigma) and the errors of the prior (tau) differ only by the eigenvalues. With many more units than
members, these are nearly equal, so that the members cannot tell the two apart, and could not order the units if they
did: K losses alone reach a cosine of about ``sqrt(K / (K + N))`` with the effects of N units. Then the prior is all
that the posterior mean uses. The members' losses enter (rho > 0) only where they fit the code better than they fit
random permutations of the members, all queries together (so that what makes a member better or worse on all queries
does not count as evidence): at a p-value of `LEVEL` or less. Without a prior (beta = 0) they always enter.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.likelihood import Profile, permutation_p_value
from ensdiff.metrics.arrays import precision, table
from ensdiff.typing import ArrayLike

LEVEL = 0.05
"""The largest p-value at which the members' losses change the prior."""
LEAST_MEMBERS = 4
"""With fewer members the effects have no finite variance."""
SHARES = np.logspace(-3, 3, 61)
"""Values of rho that are compared first, times the mean eigenvalue of C C^T."""
DROP = 1.92
"""By how much the logarithm of the likelihood may fall for an upper limit of rho: 95 % of a chi-square with 1 degree
of freedom."""
CHUNK = 2**16
"""Units whose code rows are converted to float64 at a time."""


class Combination(NamedTuple):
    """The model (c1), fitted to queries.

    Args:
        beta: loss per unit of the prior score; 0 if higher scores do not mean a lower loss.
        ratio: rho of the means, the variance of an effect around the prior relative to the noise of a member's loss.
            0 if the members' losses do not support more than the prior.
        limit: the rho of the errors: ``ratio`` where the losses support it, else the largest that they allow.
        gain: logarithm of the likelihood of the best rho relative to rho = 0.
        p_value: share of permutations of the members with at least this gain.
        sigma_B: standard deviation of the noise of each query's losses, at ``limit``.
        basis_KR: orthonormal differences between members, eigenvectors of C C^T.
        eigen_R: their eigenvalues lambda.
        residual_BR: the residuals r of the queries in this basis.
        predicted_BR: the predictions ``C g`` in this basis.
    """

    beta: float
    ratio: float
    limit: float
    gain: float
    p_value: float
    sigma_B: Float[np.ndarray, " B"]
    basis_KR: Float[np.ndarray, "K R"]
    eigen_R: Float[np.ndarray, " R"]
    residual_BR: Float[np.ndarray, "B R"]
    predicted_BR: Float[np.ndarray, "B R"]

    @property
    def tau_B(self) -> Float[np.ndarray, " B"]:
        """Return the standard deviation of an effect around the prior, at ``limit``."""
        return np.sqrt(self.limit) * self.sigma_B

    def posterior(
        self, prior_BM: ArrayLike, rows_MK: ArrayLike, sizes_M: ArrayLike | None = None, *, owned: bool = True
    ) -> "Posterior":
        """Return the posterior (c2) of the effects of units, or of sets of units.

        Args:
            prior_BM: (B, M) prior scores; of a set, the sum over its units.
            rows_MK: (M, K) rows of the code; of a set, the sum of the rows of its units.
            sizes_M: (M,) number of units of each set; by default 1.
            owned: whether the units are in the code. If not, each row is that of one more unit, as in a null.

        Raises:
            ValueError: shapes that do not fit together; NaN.
        """
        prior = table(prior_BM, "prior_BM", "BM")
        rows = table(rows_MK, "rows_MK", "MK")
        (B, M), K = prior.shape, len(self.basis_KR)
        sizes = np.ones(M) if sizes_M is None else table(sizes_M, "sizes_M", "M")
        if rows.shape != (M, K) or sizes.shape != (M,) or len(self.residual_BR) != B:
            raise ValueError(
                f"prior {prior.shape}, rows {rows.shape}, sizes {sizes.shape}: expected ({len(self.residual_BR)}, M), "
                f"(M, {K}), (M,)"
            )
        row_MR = rows @ self.basis_KR  # differences between members only, so the rows need not be centred
        pull_MR = self.ratio * row_MR / (1 + self.ratio * self.eigen_R)
        # without noise all of the variance may be explained, up to rounding
        explained_M = (self.limit * np.square(row_MR) / (1 + self.limit * self.eigen_R)).sum(1)
        if owned:
            left_M = np.maximum(sizes - explained_M, 0)
        else:  # one more row in C C^T, by Sherman and Morrison
            pull_MR = pull_MR / (1 + (pull_MR * row_MR).sum(1) / sizes)[:, None]
            left_M = sizes / (1 + explained_M / sizes)
        n = K - 1
        error_BM = np.sqrt(n / (n - 2) * left_M) * self.tau_B[:, None]
        return Posterior(self.beta * prior + self.residual_BR @ pull_MR.T, error_BM, self)

    def held_out(self) -> Float[np.ndarray, "B K"]:
        """Return (c4), for judging: what the other members' losses and the prior predict for each member.

        beta and rho stay those of all members.
        """
        inverse_KK = (self.basis_KR / (1 + self.ratio * self.eigen_R)) @ self.basis_KR.T
        gram_KK = (self.basis_KR * self.eigen_R) @ self.basis_KR.T
        weighted_BK = (self.residual_BR / (1 + self.ratio * self.eigen_R)) @ self.basis_KR.T
        own_BK = weighted_BK / np.diagonal(inverse_KK)
        from_others_BK = weighted_BK @ gram_KK - own_BK * np.einsum("kl,lk->k", gram_KK, inverse_KK)
        return self.beta * self.predicted_BR @ self.basis_KR.T + self.ratio * from_others_BK


class Posterior(NamedTuple):
    """Posterior of effects on minus the loss: positive if the unit's presence makes the query more likely.

    Args:
        mean_BN: posterior means, in units of the loss.
        error_BN: posterior standard deviations. If the losses do not support a rho (``fit.ratio`` differs from
            ``fit.limit``), the members cannot tell errors of the prior from noise, and these are upper bounds.
        fit: the fitted model.
    """

    mean_BN: Float[np.ndarray, "B N"]
    error_BN: Float[np.ndarray, "B N"]
    fit: Combination


def combine(
    prior_BN: ArrayLike,
    predicted_BK: ArrayLike | None,
    outputs_BK: ArrayLike,
    code_NK: ArrayLike,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Posterior:
    """Return the posterior (c2) of the effect of every unit, from prior scores and the members' losses.

    Args:
        prior_BN: (B, N) scores of any method, positive if the unit's presence makes the query more likely. With zeros,
            the members' losses alone count.
        predicted_BK: (B, K) what the scores say about the losses of each member, without scores of that member:
            `ensdiff.attribution.judging.held_out`. None computes it from ``prior_BN``, for scores that use no member.
        outputs_BK: (B, K) minus the loss of each query under each member.
        code_NK: (N, K) 1 where member k was trained on unit i.
        level: the largest p-value at which the members' losses change the prior; 1 always lets them.
        seed: seed of the permutations of the members.

    Raises:
        ValueError: fewer than four members; a code or outputs that do not vary among members; shapes that do not fit
            together; NaN.

    >>> rng = np.random.default_rng(0)
    >>> truth_BN, code_NK = rng.normal(size=(20, 10)), ensdiff.Code.balanced(16, 10).matrix()
    >>> prior_BN = truth_BN + rng.normal(size=truth_BN.shape)
    >>> found = combine(prior_BN, None, truth_BN @ code_NK + rng.normal(size=(20, 16)), code_NK)
    >>> bool(np.abs(found.mean_BN - truth_BN).mean() < np.abs(prior_BN - truth_BN).mean())
    True
    """
    prior = table(prior_BN, "prior_BN", "BN")
    code = np.asarray(code_NK)
    if predicted_BK is None:
        if code.ndim != 2 or len(code) != prior.shape[1]:
            raise ValueError(f"prior {prior.shape} and code {code.shape}: expected (B, N) and (N, K)")
        predicted_BK = prior @ code
    fit = fit_combination(predicted_BK, outputs_BK, code, level=level, seed=seed)
    return fit.posterior(prior, code)


def fit_combination(
    predicted_BK: ArrayLike, outputs_BK: ArrayLike, code_NK: ArrayLike, *, level: float = LEVEL, seed: int = 0
) -> Combination:
    """Fit beta and rho to all queries by (c3); arguments and errors as in `combine`."""
    outputs = table(outputs_BK, "outputs_BK", "BK")
    predicted = table(predicted_BK, "predicted_BK", "BK", like=outputs)
    K = outputs.shape[1]
    if not K >= LEAST_MEMBERS:
        raise ValueError(f"{K} members: combining scores with their losses takes at least {LEAST_MEMBERS}")
    eigen_R, basis_KR = _differences(code_NK, K)
    z_BR, p_BR = _centred(outputs) @ basis_KR, _centred(predicted) @ basis_KR
    varies_B = np.square(z_BR).sum(1) > 0
    if not varies_B.any():
        raise ValueError("outputs_BK do not vary among members: their losses say nothing about any unit")
    profile = Profile(z_BR[varies_B], p_BR[varies_B], eigen_R)
    nothing, beta = profile.at(0.0)
    ratios_G = SHARES / eigen_R.mean()
    values_G = np.array([profile.at(ratio).value for ratio in ratios_G])
    best = profile.refined(ratios_G, values_G)
    gain = max(profile.at(best).value - nothing, 0.0)
    p_value = permutation_p_value((profile.z_BR - beta * profile.p_BR) @ basis_KR.T, basis_KR, eigen_R, ratios_G, seed)
    supported = gain > 0 and p_value <= level
    limit = best if supported else float(ratios_G[values_G >= values_G.max() - DROP].max())
    ratio = best if supported or beta == 0 else 0.0
    beta = profile.at(ratio).beta
    residual_BR = z_BR - beta * p_BR
    sigma_B = np.sqrt((np.square(residual_BR) / (1 + limit * eigen_R)).sum(1) / (K - 1))
    return Combination(beta, ratio, limit, gain, p_value, sigma_B, basis_KR, eigen_R, residual_BR, p_BR)


def cosine_of_members(members: ArrayLike | float, units: ArrayLike | float, share: float = 1.0) -> np.ndarray:
    """Return the cosine that the contrast of K members' losses reaches with the additive effects of N units.

    The contrast is ``C^T y``: for each unit, the losses of the members that saw it against those of the others. With
    independent effects and random words its cosine is about ``sqrt(K / (K + N / r))``, where r is the share of the
    losses' variance between members that is due to the data. Without noise (r = 1) and with fewer members than units,
    the posterior mean (c2) reaches ``sqrt((K - 1) / N)`` instead; with noise it is nearer to the contrast.

    >>> cosine_of_members(16, np.array([10, 256, 4096])).round(2).tolist()
    [0.78, 0.24, 0.06]
    """
    K = np.asarray(members, np.float64)
    return np.sqrt(K / (K + np.asarray(units, np.float64) / share))


def _centred(values_BK: np.ndarray) -> np.ndarray:
    """Subtract a value of each row, so that constant rows become exactly 0."""
    return values_BK - values_BK[:, :1]


def _differences(code_NK: ArrayLike, K: int) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, "K R"]]:
    """Return the K - 1 eigenvalues of C C^T among differences between members, and their eigenvectors.

    Raises:
        ValueError: the code has another number of members, or all of them saw the same units.
    """
    from scipy.linalg import helmert  # takes a second to import

    code = np.asarray(code_NK)
    if code.ndim != 2 or code.shape[1] != K or not len(code):
        raise ValueError(f"code_NK has shape {code.shape}: expected (N, {K}), for outputs of {K} members")
    gram_KK = np.zeros((K, K))
    for start in range(0, len(code), CHUNK):
        part = table(code[start : start + CHUNK], "code_NK", "NK")
        gram_KK += part.T @ part
    contrasts_KR = helmert(K).T
    eigen_R, vectors_RR = np.linalg.eigh(contrasts_KR.T @ gram_KK @ contrasts_KR)
    eigen_R = np.where(eigen_R > K * precision(1.0) * gram_KK.max(), eigen_R, 0.0)
    if not eigen_R.any():
        raise ValueError("code_NK does not vary among members: all of them saw the same units")
    return eigen_R, contrasts_KR @ vectors_RR
