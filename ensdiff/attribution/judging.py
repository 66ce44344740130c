"""Members judge scores: the linear datamodeling score (LDS) of any method, without retraining.

Every member is a model that was trained on a known part of the units. A score that predicts retraining must therefore
predict how likely each member finds a query, and this prediction can be compared with the member's loss (9). For
scores ``g_j`` of member j (gradients, for example), queries b, units i and members k:

(j1) ``yhat_bk = c mean_{j != k} (Y_jbk - mean_{l != j} Y_jbl)`` with ``Y_jbk = sum_i code_ik g_jbi``, what the scores
     of member j say about member k. No score of member k is used for member k. The factor
     ``c = 1 / (1 - 1 / (K - 1)^2)`` makes yhat_bk that of one score, but for a constant, if all members have the same.
(j2) ``y_bk = -R_kk`` (7): minus the loss of query b under member k alone.
(j3) ``member-LDS = mean_b spearman_k(yhat_bk, y_bk)``.
(j4) ``slope = sum_bk yhat_bk y_bk / sum_bk yhat_bk^2``, both centred per query: the change of the loss per unit of
     the score.

In (j1) the predictions from each member's scores are centred. For scores that use no member this would only subtract a
constant of the query. For scores of members it is essential: the mean over all members but k falls as the size of
member k's own scores rises, so without centring, scores that are the same for all units but as large as their member's
loss would have a perfect member-LDS. For the same reason no intercept is fitted without member k, and the mean over l
leaves out member j, whose own units may all have larger scores than the others.

The choice among settings is nested: for each member k the setting is chosen by (j3) among the other members, from
scores of the other members, and then predicts member k. The member-LDS of these predictions is not raised by the
choice, however many settings there are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.draws import LossConfig
from ensdiff.attribution.loss import LossMatrix, loss_matrix
from ensdiff.attribution.pictures import Given, pictures_of
from ensdiff.data import Dataset
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.metrics import Estimate
from ensdiff.metrics.arrays import rankable, spearman, table
from ensdiff.metrics.bootstrap import RESAMPLES
from ensdiff.metrics.datamodel import of_many, pooled_slope, rank_agreement, subset_sums
from ensdiff.runs.identity import check_data
from ensdiff.typing import ArrayLike

LEAST_MEMBERS = 3
"""The fewest members that can judge; one more is needed to choose among settings."""


class Judgement(NamedTuple):
    """What the members say about scores.

    Args:
        lds: member-LDS (j3), in [-1, 1]; 0 is what scores without information have. If a setting was chosen, it is
            that of the nested choice. The interval resamples queries and members.
        slope: (j4) of the chosen setting, in units of the loss (squared noise summed over pixels) per unit of score.
            A unit's score times the slope is the rise of one model's loss that the members predict for retraining
            without the unit.
        setting: the setting with the highest member-LDS; None if there was nothing to choose.
        table: every setting with its own member-LDS, which for the best of many settings is too high.
        queries: number of queries.
        members: number of members.

    >>> print(found := Judgement(Estimate(0.41, 0.36, 0.46), Estimate(1.2), None, (), 24, 16))
    member-LDS 0.41 [0.36, 0.46] on 24 queries and 16 members
    >>> round(found.corrected.value, 2)
    0.43
    """

    lds: Estimate
    slope: Estimate
    setting: Any
    table: tuple[tuple[Any, float], ...]
    queries: int
    members: int

    @property
    def corrected(self) -> Estimate:
        """Return the member-LDS as it would be over many members (`ensdiff.metrics.of_many`).

        Compare this with an LDS by retraining, corrected alike for its number of models.
        """
        return Estimate(*(end if np.isnan(end) else of_many(end, self.members) for end in self.lds))

    def __str__(self) -> str:
        low, high = self.lds.low, self.lds.high
        interval = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
        return f"member-LDS {self.lds.value:.2f}{interval} on {self.queries} queries and {self.members} members"


def judge(
    params: Ensemble,
    data: Dataset,
    scores: ArrayLike | Mapping[Any, ArrayLike],
    queries: Given,
    *,
    cond: Any = None,
    outputs: LossMatrix | ArrayLike | None = None,
    loss: LossConfig | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Judgement:
    """Return the linear datamodeling score of any scores, judged by the members of an ensemble instead of retraining.

    A positive score must mean that the unit's presence makes the query more likely, as for all scores of this library.
    A number added to the scores of all units changes nothing (`without_level`).

    Args:
        params: the ensemble.
        data: the data on which it was trained.
        scores: (K, B, N) scores of each unit for each query, computed from each member alone; or (B, N) scores that
            use no member, such as distances of pixels. Instead of units, N may be the items of ``data``. To choose
            among settings, a mapping from each setting to its scores.
        queries: the B queries: the result of `ensdiff.sample`, or images (B, H, W, C) in [0, 1], or uint8, or
            latents.
        cond: the conditions of an array of queries, for conditional members; None is no condition.
        outputs: what the members say about the queries, if it is known: the result of `loss_matrix`, or (B, K) minus
            the loss of each query under each member.
        loss: draws, levels and weighting of the loss, if it is not known.
        seed: seed of the draws of the loss and of the interval.
        resamples: number of resamples (of queries and members) for the intervals; 0 gives none.
        memory_budget: bytes of activations that a device may hold.
        progress: show a progress bar.

    Raises:
        ValueError: other data; fewer than three members, or than four to choose among settings; scores or outputs of
            the wrong shape or with NaN.

    >>> pixels = data.images.reshape(data.items, -1) / 255.0
    >>> nearness = -np.square(pixels[:3, None] - pixels[None]).sum(2)
    >>> few = ensdiff.LossConfig(draws=4, block=2)
    >>> found = ensdiff.judge(params, data, nearness, data.images[:3], loss=few)
    >>> -1 <= found.lds.low <= found.lds.high <= 1, found.members
    (True, 8)
    """
    check_data(params, data)
    if outputs is not None and loss is not None:
        raise ValueError("loss sets how outputs are computed, but outputs are given: leave one of them out")
    if outputs is None:
        asked = pictures_of(params, queries, cond)
        outputs = loss_matrix(of_members(params), asked, seed, loss, memory_budget=memory_budget, progress=progress)
    outputs_BK = member_outputs(outputs) if isinstance(outputs, LossMatrix) else outputs
    code_NK = params.code.matrix()
    several = scores if isinstance(scores, Mapping) else {None: scores}
    predictions = {}
    for setting, of_setting in several.items():
        N = np.shape(of_setting)[-1] if np.ndim(of_setting) else 0
        items = N == data.items != data.units
        of_units = np.asarray(of_setting) @ np.eye(data.units)[data.unit_of_item] if items else of_setting
        predictions[setting] = cross_predictions(without_level(of_units), code_NK)
    return choose(predictions, outputs_BK, resamples=resamples, seed=seed)


def of_members(params: Ensemble) -> Ensemble:
    """Return the ensemble for questions about single members, which do not depend on what their weights combine."""
    return params if params.combine == "predictions" else dataclasses.replace(params, combine="predictions")


def member_outputs(estimate: LossMatrix) -> Float[np.ndarray, "B K"]:
    """Return (j2) from the loss matrices of the queries."""
    return -np.diagonal(estimate.mean_BKK, axis1=1, axis2=2)


def judge_scores(
    scores: ArrayLike, outputs_BK: ArrayLike, code_NK: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Judgement:
    """Return the judgement of one setting's scores.

    Args:
        scores: (K, B, N) scores from each member alone, or (B, N) scores that use no member.
        outputs_BK: (B, K) minus the loss of each query under each member (j2).
        code_NK: (N, K) 1 where member k was trained on unit i.
        resamples: number of resamples (of queries and members) for the intervals; 0 gives none.
        seed: seed of the resampling.

    Raises:
        ValueError: fewer than three members; arrays whose shapes do not fit together; NaN.

    >>> rng = np.random.default_rng(0)
    >>> truth_BN, code_NK = rng.normal(size=(4, 20)), ensdiff.Code.balanced(8, 20).matrix()
    >>> judge_scores(np.stack(8 * [truth_BN]), truth_BN @ code_NK, code_NK).lds.value.__round__(9)
    1.0
    """
    return choose({None: cross_predictions(scores, code_NK)}, outputs_BK, resamples=resamples, seed=seed)


def without_level(scores: ArrayLike) -> np.ndarray:
    """Return the scores minus their mean over units (the last axis).

    An LDS compares subsets of one size, so a number added to the scores of all units changes nothing. Members see
    different numbers of units: without this, scores with a level, such as minus a distance, would mostly predict how
    many units a member saw.

    >>> without_level([[1.0, 2.0, 6.0]]).tolist()
    [[-2.0, -1.0, 3.0]]
    """
    array = np.asarray(scores)
    if array.dtype.kind not in "buif" or array.ndim < 2 or not array.shape[-1]:
        return array  # refused by `cross_predictions`
    array = array.astype(np.float64)
    return array - array.mean(-1, keepdims=True)


def cross_predictions(scores: ArrayLike, code_NK: ArrayLike) -> Float[np.ndarray, "*J B K"]:
    """Return ``Y[j, b, k] = sum_i code_ik g_jbi``: what the scores of member j say about the training of member k.

    All that judging and choosing needs of a setting is in these K x B x K numbers, so its scores need not be kept.

    Args:
        scores: (K, B, N) scores from each member alone; or (B, N) scores that use no member, which give (B, K).
        code_NK: (N, K) 1 where member k was trained on unit i.

    Raises:
        ValueError: arrays whose shapes do not fit together; NaN.

    >>> cross_predictions([[1.0, 2.0, 4.0]], [[1, 0], [0, 1], [1, 1]]).tolist()
    [[5.0, 6.0]]
    """
    code = table(code_NK, "code_NK", "NK")
    parts = np.asarray(scores)
    if parts.ndim not in (2, 3) or parts.shape[-1] != len(code) or (parts.ndim == 3 and len(parts) != code.shape[1]):
        N, K = code.shape
        raise ValueError(
            f"scores have shape {parts.shape}: expected ({K}, B, {N}), scores from each of {K} members for {N} units, "
            f"or (B, {N}), scores that use no member"
        )
    if parts.ndim == 2:
        return subset_sums(table(parts, "scores", "BN"), code)
    return np.stack([subset_sums(table(part, f"scores of member {j}", "BN"), code) for j, part in enumerate(parts)])


def choose(
    predictions: Mapping[Any, ArrayLike], outputs_BK: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Judgement:
    """Choose the setting with the highest member-LDS, and return the member-LDS of the nested choice.

    For each member, the predictions of the setting that the other members choose are divided by their root mean square
    over members (for each query), so that predictions of different settings can be ranked together. This uses no
    outputs. With one setting the result is that of `judge_scores`.

    Args:
        predictions: `cross_predictions` of each setting. The first of equally good settings is chosen.
        outputs_BK: (B, K) minus the loss of each query under each member (j2).
        resamples: number of resamples (of queries and members) for the intervals; 0 gives none.
        seed: seed of the resampling.

    Raises:
        ValueError: no settings; fewer than three members, or than four if there is a choice; shapes that do not fit
            together; NaN.

    >>> rng = np.random.default_rng(0)
    >>> truth_BN, code_NK = rng.normal(size=(4, 20)), ensdiff.Code.balanced(8, 20).matrix()
    >>> settings = {"noise": rng.normal(size=(8, 4, 20)), "truth": truth_BN + rng.normal(size=(8, 4, 20))}
    >>> predictions = {name: cross_predictions(scores, code_NK) for name, scores in settings.items()}
    >>> choose(predictions, truth_BN @ code_NK).setting
    'truth'
    """
    outputs = rankable(outputs_BK, "outputs_BK", "BK")
    B, K = outputs.shape
    if not predictions:
        raise ValueError("no settings to choose from: give at least one")
    several = len(predictions) > 1
    least = LEAST_MEMBERS + several
    if least > K:
        what = "choose among settings" if several else "judge scores"
        raise ValueError(f"{K} members cannot {what}: expected at least {least}")
    cross = {setting: _checked(setting, values, B, K) for setting, values in predictions.items()}
    held = {setting: held_out(values) for setting, values in cross.items()}
    own = tuple((s, rank_agreement(held[s], outputs, resamples=0).value) for s in held)  # resampling all takes minutes
    best = max(own, key=lambda row: row[1])[0]
    slope = pooled_slope(held[best], outputs, resamples=resamples, seed=seed)
    if not several:
        lds = rank_agreement(held[best], outputs, resamples=resamples, seed=seed)
        return Judgement(lds, slope, best, own, B, K)
    nested_BK = np.empty((B, K))
    for k, setting in enumerate(chosen_without_each(cross, outputs)):
        chosen_BK = held[setting]
        size_B = np.sqrt(np.square(chosen_BK).mean(1))
        nested_BK[:, k] = np.divide(chosen_BK[:, k], size_B, out=np.zeros(B), where=size_B > 0)
    lds = rank_agreement(nested_BK, outputs, resamples=resamples, seed=seed)
    return Judgement(lds, slope, best, own, B, K)


def chosen_without_each(
    cross: Mapping[Any, Float[np.ndarray, "*J B K"]], outputs_BK: Float[np.ndarray, "B K"]
) -> list[Any]:
    """Return, for each member, the setting that the other members choose, from scores of the other members.

    Args:
        cross: `cross_predictions` of each setting.
        outputs_BK: (B, K) minus the loss of each query under each member (j2).
    """
    chosen = []
    for k in range(outputs_BK.shape[1]):
        others_BL = np.delete(outputs_BK, k, axis=1)
        without = {setting: spearman(held_out(values, k), others_BL).mean() for setting, values in cross.items()}
        chosen.append(max(without, key=without.__getitem__))
    return chosen


def held_out(cross: Float[np.ndarray, "*J B K"], without: int | None = None) -> Float[np.ndarray, "B L"]:
    """Return (j1) from `cross_predictions`: what the other members' scores predict for each member.

    Args:
        cross: (K, B, K) predictions of each member's scores; or (B, K) of scores that use no member.
        without: a member of which neither the scores nor the training are used; the result has K - 1 columns.

    >>> held_out(np.array([[[9.0, 1.0, 2.0]], [[1.0, 9.0, 5.0]], [[1.0, 2.0, 9.0]]])).round(6).tolist()
    [[-1.666667, 0.0, 1.666667]]
    """
    if without is not None:
        cross = np.delete(cross, without, axis=-1)
        cross = cross if cross.ndim == 2 else np.delete(cross, without, axis=0)
    # equal predictions stay equal if one of them is subtracted before the mean
    if cross.ndim == 2:
        centred_BK = cross - cross[:, :1]
        return centred_BK - centred_BK.mean(1, keepdims=True)
    K = len(cross)
    member_K = np.arange(K)
    centred = cross - cross[member_K, :, (member_K == 0).astype(int)][:, :, None]
    centred[member_K, :, member_K] = 0.0
    centred -= centred.sum(-1, keepdims=True) / (K - 1)
    centred[member_K, :, member_K] = 0.0
    return centred.sum(0) / (K - 1 - 1 / (K - 1))


def _checked(setting: Any, values: ArrayLike, B: int, K: int) -> np.ndarray:
    name = "predictions" if setting is None else f"predictions of {setting!r}"
    array = table(values, name, "KBK" if np.ndim(values) == 3 else "BK")
    if array.shape not in ((K, B, K), (B, K)):
        raise ValueError(
            f"{name} have shape {array.shape}: expected ({K}, {B}, {K}) or ({B}, {K}), for {B} queries and {K} members"
        )
    return array


def judgement_of(values: dict[str, Any] | None) -> Judgement | None:
    """Return a judgement from its JSON; None if there is none, as in files of older versions."""
    if values is None:
        return None
    table = tuple((setting, lds) for setting, lds in values["table"])
    return Judgement(**{**values, "lds": Estimate(*values["lds"]), "slope": Estimate(*values["slope"]), "table": table})
