"""How well the cheap methods agree with exact ablation, and what each costs."""

import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution import LossConfig, attribute
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.metrics.arrays import rankable, spearman
from ensdiff.report import Table
from ensdiff.sampling.sample import Samples
from experiments.tables import table


class MethodResult(NamedTuple):
    """One method against exact ablation.

    Args:
        method: its name.
        spearman_B: rank correlation of its influences with the exact ones over all units; NaN where it has not all.
        top1: share of samples for which its first unit is a most influential one.
        top10: mean share of its first ten that are among the ten most influential units. Units whose exact influences
            differ by rounding only are equally influential.
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
    N, K, B, S = params.code.units, params.members, len(samples), samples.config.steps
    survivors = K * N - int(params.code.shares().sum())
    config = LossConfig() if loss is None else loss
    linear = B * S * K * (1 + K)
    exact_BN = np.empty((B, N), np.float32)
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
            spearman_B = agreement(np.take_along_axis(exact_BN, att.units, axis=1), att.influence)
        found = named_first(exact_BN, att.units[:, :ten])
        if method == "screen":
            verified = params.code.weight if params.code.weight is not None else K // 2
            calls = linear + B * att.settings["verify"] * S * (K - verified)
        else:
            calls = {
                "exact": B * S * survivors,
                "differential": linear,
                "loss": B * K * att.settings.get("draws", 0),
            }[method]
        results.append(MethodResult(method, spearman_B, found.top1, found.top, calls, seconds))
    return results


def agreement(exact_BN: Float[np.ndarray, "B N"], other_BN: Float[np.ndarray, "B N"]) -> Float[np.ndarray, " B"]:
    """Rank correlation of each sample's influences; values that differ by rounding only share a rank.

    0 where a method says the same of all units.
    """
    return spearman(rankable(exact_BN, "exact_BN", "BN"), rankable(other_BN, "other_BN", "BN", like=exact_BN))


class NamedFirst(NamedTuple):
    """How many of the first T units that a method names are most influential.

    Args:
        top1: share of samples whose first unit is.
        top: mean share of all T units that are among the T most influential ones.
    """

    top1: float
    top: float


def named_first(exact_BN: Float[np.ndarray, "B N"], units_BT: Int[np.ndarray, "B T"]) -> NamedFirst:
    """Compare the units that a method names with exact influences, whatever the order of units with equal ones.

    >>> named_first(np.array([[0.3, 0.1 + 0.2, 0.1]]), np.array([[1, 2]]))
    NamedFirst(top1=1.0, top=0.5)
    """
    exact_BN = rankable(exact_BN, "exact_BN", "BN")
    descending_BN = -np.sort(-exact_BN, axis=1)
    named_BT = np.take_along_axis(exact_BN, units_BT, axis=1)
    least_B1 = descending_BN[:, units_BT.shape[1] - 1, None]
    return NamedFirst(float((named_BT[:, 0] == descending_BN[:, 0]).mean()), float((named_BT >= least_B1).mean()))


def methods_table(results: list[MethodResult]) -> Table:
    """Return the results as a table, one row per method; costs are relative to the first one, exact ablation."""
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
                "U-Net calls": f"{one.calls:,}",
                "of exact": f"{one.calls / exact.calls:.2%}",
                "seconds": one.seconds,
            }
        )
    return table("Methods against exact ablation", rows)
