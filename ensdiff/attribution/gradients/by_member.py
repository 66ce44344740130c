"""Gradient scores of all units under each member, for tests and judgements of one's own."""

from typing import Any

import numpy as np

from ensdiff.attribution.gradients.config import GradientConfig
from ensdiff.attribution.gradients.features import projected_gradients
from ensdiff.attribution.gradients.kernels import OUTPUTS, MemberScores, Method, member_scores, over_units
from ensdiff.attribution.pictures import Given, pictures_of
from ensdiff.data import Dataset
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.runs.identity import check_data
from ensdiff.settings import check_value


def gradient_scores(
    params: Ensemble,
    queries: Given,
    data: Dataset,
    method: Method = "trak",
    config: GradientConfig | None = None,
    *,
    cond: Any = None,
    held_out: Given | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> MemberScores:
    """Return the scores of all units, and of held-out images, under each member, with one setting.

    `ensdiff.attribute` chooses a setting, averages over members and computes p-values. Per-member scores are for other
    questions: `ensdiff.judge`, or whether training on a unit changes its score
    (`ensdiff.attribution.in_out_difference`, with ``GradientConfig(members=False)``).

    Args:
        params: the ensemble.
        queries: the result of `ensdiff.sample`, or images (B, H, W, C) in [0, 1], or uint8.
        data: the training data.
        method: ``"trak"``, ``"d-trak"`` or ``"das"``.
        config: how gradients are computed, with ridge, levels and normalize; by default 0.1, all levels and not
            normalized.
        cond: the conditions of an array of queries, for conditional members; None is no condition.
        held_out: images outside of the training data, (m, H, W, C) or a `Dataset`.
        memory_budget: bytes of gradients that a device may hold.
        progress: show progress bars.

    Returns:
        Scores (K, B, N) of units, and (K, B, m) of held-out images or None.

    Raises:
        ValueError: data on which the ensemble was not trained, absent items, or a setting that is left open.

    >>> config = ensdiff.GradientConfig(draws=4, parts=1, dimension=16, ridge=0.1, levels="all", normalize=False)
    >>> found = ensdiff.attribution.gradient_scores(params, samples, data, config=config)
    >>> found.items_KBn.shape, ensdiff.attribution.in_out_difference(found.items_KBn, code.matrix()).t_BN.shape
    ((8, 2, 40), (2, 40))
    """
    check_value("method", method, Method)
    check_data(params, data)
    data.check_present("a gradient score")
    config = GradientConfig(ridge=0.1, levels="all", normalize=False) if config is None else config
    setting, *others = config.settings()
    if others:
        raise ValueError(f"{config} leaves the setting open: give ridge, levels and normalize")
    shown: Any = {"memory_budget": memory_budget, "progress": progress}

    def gradients(of: Any) -> dict[str, np.ndarray]:
        return {output: projected_gradients(params, of, output, config, **shown) for output in OUTPUTS[method]}

    seen_nK = params.code.matrix()[data.unit_of_item] if config.members else None
    extra = None if held_out is None else gradients(held_out)
    found = member_scores(
        method, gradients(pictures_of(params, queries, cond)), gradients(data), seen_nK, setting, extra
    )
    return found._replace(items_KBn=over_units(found.items_KBn, data.unit_of_item, data.units))
