"""Compare the agreement of the cheaper methods with exact ablation, and their costs."""

import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution import LossConfig, attribute
from ensdiff.diffusion.samplers import stages
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.metrics.arrays import rankable, spearman
from ensdiff.report import Table
from ensdiff.sampling.conditions import mode_of, predictions_of
from ensdiff.sampling.sample import Samples

from .tables import table


class MethodResult(NamedTuple):
    """The comparison of one method with exact ablation.

    Args:
        method: name of the method.
        spearman_B: rank correlation of its influences with the exact ones over all units; NaN if it does not score all
            units.
        top1: share of samples whose top-ranked unit is a most influential one.
        top10: mean share of its first ten units that are among the ten most influential ones. Units whose exact
            influences differ only by rounding count as equally influential.
        calls: number of evaluations of one member's network on one image. A tangent through a member counts as one.
        seconds: wall-clock time, including compilation.
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
    """Run all methods on the same samples, over all units, and return their results, exact ablation first.

    Args:
        params: the ensemble.
        samples: samples returned by `ensdiff.sample`.
        verify: number of units that ``"screen"`` verifies.
        loss: draws of ``"loss"``, which measures a rise of the loss instead of a distance.
        seed: seed of the draws.
        memory_budget: bytes of activations that a device may hold.
        progress: show progress bars.
    """
    N, K, B = params.code.units, params.members, len(samples)
    # evaluations of a member per sample: two per step with guidance or, but for one step, by Heun's sampler
    S = len(stages(params.schedule, samples.config)) * predictions_of(mode_of(params.condition, samples.guidance))
    survivors = K * N - int(params.code.shares().sum())
    weight = K // 2 if params.code.weight is None else params.code.weight
    config = LossConfig() if loss is None else loss
    linear = B * S * K * (1 + K)
    exact_BN = np.empty((B, N), np.float32)
    results: list[MethodResult] = []
    ten = min(10, N)
    for method in ("exact", "differential", "screen", "loss"):
        begin = time.perf_counter()
        att = attribute(
            params,
            samples,
            method,
            top=ten if method == "screen" else N,
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
            spearman_B = agreement(np.take_along_axis(exact_BN, att.units, axis=1), att.influence)
        found = named_first(exact_BN, att.units[:, :ten])
        calls = {
            "exact": B * S * survivors,
            "differential": linear,
            "screen": linear + B * S * att.settings.get("verify", 0) * (K - weight),
            "loss": B * K * att.settings.get("draws", 0),
        }[method]
        results.append(MethodResult(method, spearman_B, found.top1, found.top, calls, seconds))
    return results


def agreement(exact_BN: Float[np.ndarray, "B N"], other_BN: Float[np.ndarray, "B N"]) -> Float[np.ndarray, " B"]:
    """Return the rank correlation of each sample's influences. Values that differ only by rounding share a rank.

    The correlation is 0 where a method gives all units the same influence.
    """
    return spearman(rankable(exact_BN, "exact_BN", "BN"), rankable(other_BN, "other_BN", "BN", like=exact_BN))


class NamedFirst(NamedTuple):
    """The share of a method's first T units that are most influential.

    Args:
        top1: share of samples whose first unit is a most influential one.
        top: mean share of the first T units that are among the T most influential ones.
    """

    top1: float
    top: float


def named_first(exact_BN: Float[np.ndarray, "B N"], units_BT: Int[np.ndarray, "B T"]) -> NamedFirst:
    """Compare a method's first units with the exact influences; the order of units with equal influences is irrelevant.

    >>> named_first(np.array([[0.3, 0.1 + 0.2, 0.1]]), np.array([[1, 2]]))
    NamedFirst(top1=1.0, top=0.5)
    """
    exact_BN = rankable(exact_BN, "exact_BN", "BN")
    descending_BN = -np.sort(-exact_BN, axis=1)
    named_BT = np.take_along_axis(exact_BN, units_BT, axis=1)
    least_B1 = descending_BN[:, units_BT.shape[1] - 1, None]
    return NamedFirst(float((named_BT[:, 0] == descending_BN[:, 0]).mean()), float((named_BT >= least_B1).mean()))


def methods_table(results: list[MethodResult]) -> Table:
    """Return the results as a table, one row per method, with costs relative to the first row, exact ablation."""
    exact = results[0]
    rows: list[dict[str, Any]] = []
    for one in results:
        rho = "" if np.isnan(one.spearman_B).all() else f"{one.spearman_B.mean():.3f} (min {one.spearman_B.min():.3f})"
        rows.append(
            {
                "method": one.method,
                "Spearman": rho,
                "top-1": one.top1,
                "top-10": one.top10,
                "network calls": f"{one.calls:,}",
                "of exact": f"{one.calls / exact.calls:.2%}",
                "seconds": one.seconds,
            }
        )
    return table("Methods against exact ablation", rows)
