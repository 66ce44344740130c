"""How well the cheap methods agree with exact ablation, and what each costs."""

import time
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.attribute import attribute
from ensdiff.attribution.loss import LossConfig
from ensdiff.ensemble import Ensemble
from ensdiff.sample import Samples


class MethodResult(NamedTuple):
    """One method against exact ablation.

    Args:
        method: its name.
        spearman_B: rank correlation of its influences with the exact ones over all units; NaN where it has not all.
        top1: share of samples whose most influential unit it names first.
        top10: mean share of the ten most influential units that are among its first ten.
        calls: evaluations of one member's U-Net on one image. A tangent through a member counts as one.
        seconds: wall time, compilation included.
    """

    method: str
    spearman_B: Float[np.ndarray, " B"]
    top1: float
    top10: float
    calls: int
    seconds: float


def compare_methods(
    params: Ensemble,
    samples: Samples,
    *,
    verify: int = 50,
    loss: LossConfig | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: bool = False,
) -> list[MethodResult]:
    """All methods on the same samples, over all units, the exact one first.

    Args:
        params: the ensemble.
        samples: what `ensdiff.sample` returned.
        verify: units that ``"screen"`` verifies.
        loss: draws of ``"loss"``, which measures something else than a distance.
        seed: of the draws.
        memory_budget: bytes of activations a device may hold.
        progress: show progress bars.
    """
    from scipy.stats import spearmanr

    N, K, B, S = params.code.units, params.members, len(samples), samples.config.steps
    survivors = K * N - int(params.code.shares().sum())
    config = LossConfig() if loss is None else loss
    linear = B * S * K * (1 + K)
    exact_BN = np.empty((B, N))
    results: list[MethodResult] = []
    ten = min(10, N)
    for method in ("exact", "differential", "screen", "loss"):
        begin = time.perf_counter()
        top = ten if method == "screen" else N
        att = attribute(
            params,
            samples,
            method,
            top=top,
            verify=max(verify, ten) if method == "screen" else None,
            loss=config if method == "loss" else None,
            seed=seed,
            memory_budget=memory_budget,
            progress=progress,
        )
        seconds = time.perf_counter() - begin
        spearman_B = np.full(B, np.nan)
        if method == "exact":
            np.put_along_axis(exact_BN, att.units, att.influence, axis=1)
        if method != "screen":
            for b in range(B):
                spearman_B[b] = spearmanr(exact_BN[b, att.units[b]], att.influence[b]).statistic
        best_BT = np.argsort(-exact_BN, axis=1, kind="stable")[:, :ten]
        shared = [len(np.intersect1d(a, b)) / ten for a, b in zip(att.units[:, :ten], best_BT, strict=True)]
        if method == "screen":
            verified = params.code.weight if params.code.weight is not None else K // 2
            calls = linear + B * att.settings["verify"] * S * (K - verified)
        else:
            calls = {
                "exact": B * S * survivors,
                "differential": linear,
                "loss": B * K * att.settings.get("draws", 0),
            }[method]
        top1 = float((att.units[:, 0] == best_BT[:, 0]).mean())
        results.append(MethodResult(method, spearman_B, top1, float(np.mean(shared)), calls, seconds))
    return results


def comparison_table(results: list[MethodResult]) -> str:
    """The results as text, one line a method."""
    exact = results[0]
    lines = [
        f"{'method':<13}{'Spearman':>20}{'top-1':>8}{'top-10':>8}{'U-Net calls':>16}{'of exact':>10}{'seconds':>10}"
    ]
    for row in results:
        rho = "" if np.isnan(row.spearman_B).all() else f"{row.spearman_B.mean():.3f} (min {row.spearman_B.min():.3f})"
        lines.append(
            f"{row.method:<13}{rho:>20}{row.top1:>8.2f}{row.top10:>8.3f}{row.calls:>16,}"
            f"{row.calls / exact.calls:>10.2%}{row.seconds:>10.1f}"
        )
    return "\n".join(lines)
