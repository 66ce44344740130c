"""The gradient methods of `attribute`: scores of units, their choice and grade by the members, and their significance.

The members' projected gradients give a score of every item for every query (`ensdiff.attribution.gradients`). The
score of a unit is the sum over its items, and the mean over members. The members' own losses of the queries, of which
each is the loss of a model trained on a known half of the units, choose the settings and grade the scores (9)
(`ensdiff.attribution.judging`). ``"combined"`` adds what these losses say about the units themselves (10)
(`ensdiff.attribution.combination`). Targets that nobody owns give the null (11)
(`ensdiff.attribution.gradients.targets`).
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.calibration import Calibration
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.combination import fit_combination
from ensdiff.attribution.draws import LossConfig
from ensdiff.attribution.gradients.config import GradientConfig
from ensdiff.attribution.gradients.kernels import Method
from ensdiff.attribution.gradients.scoring import (
    Choice,
    Images,
    TargetScores,
    choices_of,
    cross_scores,
    query_gradients,
    score_targets,
)
from ensdiff.attribution.gradients.store import SHARED, open_gradients
from ensdiff.attribution.gradients.stored import GradientStore
from ensdiff.attribution.gradients.targets import Targets, null_kind, targets_of
from ensdiff.attribution.judging import (
    LEAST_MEMBERS,
    Judgement,
    choose,
    chosen_without_each,
    held_out,
    member_outputs,
    of_members,
)
from ensdiff.attribution.loss import loss_matrix
from ensdiff.attribution.pictures import Pictures, pictures_of
from ensdiff.attribution.queries import query_marks, query_settings
from ensdiff.attribution.ranking import Significance
from ensdiff.attribution.request import Request
from ensdiff.attribution.result import Attribution
from ensdiff.attribution.scoring import GradientMethod
from ensdiff.attribution.sufficient import with_null
from ensdiff.data import Dataset
from ensdiff.data.images import to_uint8
from ensdiff.data.manifest import hash_item
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.metrics.arrays import at_most
from ensdiff.runs.identity import check_data
from ensdiff.runs.pieces import Pieces
from ensdiff.typing import ArrayLike

FEWEST = 4
"""The fewest members that can choose among settings."""
SHOWN = 10
"""Most held-out images that an error lists."""
DEFAULTS: dict[str, Any] = {"ridge": 0.1, "levels": "all", "normalize": False}
"""Settings that are not chosen where there are too few members to choose."""


class Result(NamedTuple):
    """The influences of T targets, and what p-values compare.

    Args:
        influence_BT: what is returned.
        error_BT: `TargetScores.error_BT` in the same units, or the posterior standard deviation.
        tested_BT: what p-values compare, in the same units.
        unit: ``"loss"``, or ``"score"`` for DAS and if the members cannot tell the scale.
        settings: what the result records besides.
    """

    influence_BT: Float[np.ndarray, "B T"]
    error_BT: Float[np.ndarray, "B T"]
    tested_BT: Float[np.ndarray, "B T"]
    unit: str
    settings: dict[str, Any]


def attribute_by_gradients(
    params: Ensemble,
    queries: Pictures,
    method: GradientMethod,
    data: Dataset,
    candidates: Candidates,
    request: Request,
    *,
    gradients: GradientConfig | None,
    store: str | os.PathLike | None,
    held_out_images: ArrayLike | Dataset | None,
    loss: LossConfig | None,
    resources: Resources,
    kept: Pieces,
) -> Attribution:
    """Rank candidates by gradient scores; see `ensdiff.attribute`, whose arguments are checked already.

    Raises:
        ValueError: data on which the ensemble was not trained, absent items, held-out images that are training images,
            gradients stored for something else, or too little to form the null.
    """
    check_data(params, data)
    data.check_present(f"method={method!r}", "use method='loss', which needs no data")
    if held_out_images is not None and params.condition is not None and not isinstance(held_out_images, Dataset):
        raise ValueError(
            "held_out is an array of images without conditions, which cannot be compared with training items that have "
            "theirs: pass a Dataset with the conditions of its items"
        )
    others = None if held_out_images is None else pictures_of(params, held_out_images)
    if others is not None:
        _check_unseen(others, data)
    stored = None if store is None else open_gradients(store, params, data)
    known = stored is not None and isinstance(held_out_images, Dataset) and stored.holds(held_out_images)
    config = _config(gradients, stored)
    if method == "combined" and params.members < FEWEST:
        raise ValueError(f"method='combined' needs at least {FEWEST} members, the ensemble has {params.members}")
    if params.members < FEWEST:
        config = dataclasses.replace(
            config, **{name: value for name, value in DEFAULTS.items() if getattr(config, name) is None}
        )
    seen = 0 if others is None else len(others)
    compared = seen if null_kind(params.code, data, candidates) == "held-out" else None
    request = with_null(request, candidates, method, compared)
    targets = targets_of(params.code, data, candidates, request.null, request.seed, seen)
    images = Images(queries, data, others, stored, known)
    methods: tuple[Method, ...] = ("trak", "d-trak") if method == "combined" else (method,)
    choices = choices_of(methods, config)
    query = query_gradients(params, queries, methods, config, resources)
    scores: dict[Choice, TargetScores] = {}
    if stored is not None and len(choices) > 1:  # reading the store again is cheaper than all targets of all settings
        cross = cross_scores(params, images, choices, config, kept, resources, query)
    else:
        scores = score_targets(params, images, choices, config, targets, kept, resources, query)
        cross = {choice: one.cross_KBK for choice, one in scores.items()}
    best, judgement = choices[0], None
    if params.members >= LEAST_MEMBERS:
        shown: Any = {"memory_budget": resources.memory_budget, "progress": resources.progress}
        outputs_BK = member_outputs(loss_matrix(of_members(params), queries, request.seed, loss, kept=kept, **shown))
        judgement = choose(cross, outputs_BK, seed=request.seed)
        best = judgement.setting
    if best not in scores:
        scores = score_targets(params, images, [best], config, targets, kept, resources, query)
    if method == "combined" and judgement is not None:
        result, judgement = _combined(scores[best], cross, judgement, targets, outputs_BK, params, request.seed)
    else:
        result = _scaled(method, scores[best], judgement)
    if judgement is not None:
        table = tuple((choice.plain, lds) for choice, lds in judgement.table)
        judgement = judgement._replace(setting=best.plain, table=table)
    M = targets.candidates
    order_BT = np.argsort(-result.influence_BT[:, :M], axis=1, kind="stable")[:, : request.top]
    tested, attributed = _significance(result.tested_BT, targets, order_BT, request.level)
    own = {"data": params.data_digest} if params.data_digest is not None and candidates.code == params.code else {}
    settings = {
        "top": request.top,
        "candidates": M,
        "units": candidates.code.units,
        "null": request.null,
        "seed": request.seed,
        **({} if candidates.code.names is None else {"names": list(candidates.code.names)}),
        **own,
        **({} if targets.kind is None else {"null_kind": targets.kind, "null_of_a_kind": _fewest(targets)}),
        **({} if attributed is None else {"attributed": attributed}),
        "draws": config.draws,
        "chosen": best.plain,
        "queries": query_marks(queries.images),
        **query_settings(params, queries),
        **result.settings,
    }
    return Attribution(
        candidates.units(order_BT),
        np.take_along_axis(result.influence_BT, order_BT, axis=1),
        tested.p_BT,
        tested.null_BL,
        method,
        result.unit,
        settings,
        q_value=tested.q_BT,
        q_value_of_call=tested.call_q_BT,
        level=request.level,
        standard_error=np.take_along_axis(result.error_BT, order_BT, axis=1),
        sets=candidates.sets,
        judgement=judgement,
    )


def _check_unseen(held_out: Pictures, data: Dataset) -> None:
    """Check by content that no held-out image is a training image, whatever the conditions of both.

    Raises:
        ValueError: some are. Members that saw them would score them as if they had not, and p-values would be wrong.
    """
    pixels = data.images.dtype == np.uint8
    images = to_uint8(held_out.images) if pixels else np.asarray(held_out.images).astype(data.images.dtype)
    ours = [hash_item(image).encode() for image in images]
    item_of = dict(zip(data.manifest().contents.tolist(), range(data.items), strict=True))
    both = [f"{i} (item {item_of[found]})" for i, found in enumerate(ours) if found in item_of]
    if both:
        listed = ", ".join(both[:SHOWN]) + (", ..." if len(both) > SHOWN else "")
        raise ValueError(
            f"held_out: {len(both)} of {len(ours)} images are training images: {listed}. P-values compare with images "
            "that no member saw: leave these out (ensdiff.runs.identity.other_items finds the rest of a data set)"
        )


def _config(gradients: GradientConfig | None, stored: GradientStore | None) -> GradientConfig:
    """Return the settings of a call, which stored gradients decide where the caller does not.

    Raises:
        ValueError: the caller asks for other gradients than those stored.
    """
    if stored is None:
        return GradientConfig() if gradients is None else gradients
    given = stored.config if gradients is None else gradients
    for name in SHARED:
        ours, theirs = getattr(given, name), getattr(stored.config, name)
        if ours != theirs:
            raise ValueError(
                f"gradients with {name}={ours!r}, but {stored.folder} holds gradients with {name}={theirs!r}: ask for "
                "these, or leave store out"
            )
    return given


def _combined(
    best: TargetScores,
    cross: Mapping[Choice, np.ndarray],
    judgement: Judgement,
    targets: Targets,
    outputs_BK: np.ndarray,
    params: Ensemble,
    seed: int,
) -> tuple[Result, Judgement]:
    """Return the posterior (10) of the targets, and the judgement of its predictions for members left out.

    With four members, too few to fit it without one of them, the judgement is that of the prior scores.
    """
    code_NK = params.code.matrix()
    fit = fit_combination(held_out(best.cross_KBK), outputs_BK, code_NK, seed=seed)
    M, row_TK, size_T = targets.candidates, targets.column_KT.T, targets.units_T

    def posterior(prior_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [fit.posterior(prior_BT[:, :M], row_TK[:M], size_T[:M])]
        if targets.null:
            own = targets.kind == "sets"
            parts.append(fit.posterior(prior_BT[:, M:], row_TK[M:], size_T[M:], owned=own))
        return np.hstack([part.mean_BN for part in parts]), np.hstack([part.error_BN for part in parts])

    influence_BT, error_BT = posterior(best.mean_BT)
    tested_BT = posterior(best.unseen_BT)[0]
    settings = {"beta": fit.beta, "ratio": fit.ratio, "members_p_value": fit.p_value}
    result = Result(influence_BT, error_BT, tested_BT, "loss", settings)
    if params.members > FEWEST:
        nested_BK = _predicted_without_each(cross, outputs_BK, code_NK, seed)
        of_all = choose({judgement.setting: nested_BK}, outputs_BK, seed=seed)
        judgement = judgement._replace(lds=of_all.lds, slope=of_all.slope)
    return result, judgement


def _predicted_without_each(
    cross: Mapping[Choice, np.ndarray], outputs_BK: np.ndarray, code_NK: np.ndarray, seed: int
) -> Float[np.ndarray, "B K"]:
    """Return the posterior's prediction for each member, with a setting chosen and a model fitted without the member.

    If beta and rho were fitted to all members, scores and losses without information would seem to agree.
    """
    B, K = outputs_BK.shape
    gram_KK = code_NK.T.astype(np.float64) @ code_NK
    predicted_BK = np.empty((B, K))
    for k, choice in enumerate(chosen_without_each(cross, outputs_BK)):
        others = np.delete(np.arange(K), k)
        fit = fit_combination(held_out(cross[choice], k), outputs_BK[:, others], code_NK[:, others], seed=seed)
        # what member k saw, as one set of units
        more = fit.posterior(np.zeros((B, 1)), gram_KK[None, k, others], gram_KK[None, k, k])
        predicted_BK[:, k] = fit.beta * held_out(cross[choice])[:, k] + more.mean_BN[:, 0]
    return predicted_BK


def _scaled(method: str, scores: TargetScores, judgement: Judgement | None) -> Result:
    """Return scores in units of the loss, if the members can tell the scale, which needs a slope that is surely > 0.

    Scores of DAS are squares of changes of the prediction. They have no sign, so no slope makes them changes of a loss.
    """
    known = method != "das" and judgement is not None and judgement.slope.low > 0
    scale = judgement.slope.value if judgement is not None and known else 1.0
    return Result(
        scale * scores.mean_BT, scale * scores.error_BT, scale * scores.unseen_BT, "loss" if known else "score", {}
    )


def _significance(
    tested_BT: np.ndarray, targets: Targets, order_BT: np.ndarray, level: float
) -> tuple[Significance, list[int] | None]:
    """Return p- and q-values (11) of the candidates of ``order_BT``, among all candidates; None without a null.

    Also return how many candidates of each query have q <= level. The ranking is by all members and p-values are by
    those that did not see a unit, so these candidates need not be the first ones.
    """
    if targets.kind is None:
        return Significance(), None
    M = targets.candidates
    calibration = Calibration(tested_BT[:, M:], targets.kind_T[M:])
    calibration.count(tested_BT[:, :M], targets.kind_T[:M])
    p_BM = calibration.p_values(tested_BT[:, :M], np.broadcast_to(targets.kind_T[:M], (len(tested_BT), M)))
    q_BM, call_q_BM = calibration.q_values(p_BM), calibration.q_values(p_BM, of_call=True)
    p_BT, q_BT, call_q_BT = (np.take_along_axis(a, order_BT, axis=1) for a in (p_BM, q_BM, call_q_BM))
    return Significance(p_BT, q_BT, call_q_BT, calibration.null_BL), at_most(q_BM, level).sum(1).tolist()


def _fewest(targets: Targets) -> int:
    """Return the number of null targets of the rarest kind."""
    return int(np.unique(targets.kind_T[targets.candidates :], return_counts=True)[1].min())
