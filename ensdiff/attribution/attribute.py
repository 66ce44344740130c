"""`attribute`: which training units each sample depends on, most influential first, and whether that means something.

All methods score a weight row: ``exact`` by regenerating (4), ``differential`` by the Gram of the Jacobian (6),
``screen`` by (6) and then the best by (4), ``loss`` by the denoising loss (7). All are compared with the same null
(`ensdiff.attribution.calibration`). The steps of a call: the candidates; how they are scored (`scoring`); the null's
scores; the best candidates (`ranking`), while all are counted for the q-values; p- and q-values.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.audit import Audit
from ensdiff.attribution.calibration import Null, null_ablations
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.draws import LossConfig
from ensdiff.attribution.exact import Distance
from ensdiff.attribution.ranking import Ranking, audit_shortlist, calibrate, rank, rank_shortlist, significance
from ensdiff.attribution.request import Request, check_method, check_request, measure_name, name_of, named_sampler
from ensdiff.attribution.result import Attribution
from ensdiff.attribution.scoring import Inputs, Method, Score, Scores, scores_of
from ensdiff.codes import Code
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.files.version import __version__
from ensdiff.models.conv import resolve
from ensdiff.runs.pieces import pieces
from ensdiff.sampling.sample import Samples
from ensdiff.typing import Array, ArrayLike


def attribute(
    params: Ensemble,
    samples: Samples | ArrayLike,
    method: Method | str | Score = "screen",
    *,
    top: int = 10,
    units: Sequence[Any] | None = None,
    code: Code | None = None,
    features: Callable[[Array], Array] | None = None,
    distance: Distance | None = None,
    verify: int | None = None,
    audit: int = 0,
    null: int | Literal["all"] = 0,
    level: float = 0.1,
    loss: LossConfig | None = None,
    seed: int = 0,
    chunk: int | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
    partial: str | os.PathLike | None = None,
) -> Attribution:
    """Rank training units by what each sample loses when the unit is removed from its causal history.

    Args:
        params: the ensemble.
        samples: what `ensdiff.sample` returned; for ``"loss"`` also any images (B, H, W, C) in [0, 1], or uint8.
        method: ``"exact"`` regenerates every sample without every unit (4); ``"differential"`` predicts the distance
            from the Gram of the Jacobian (6), one run per sample for any number of units; ``"screen"`` ranks all units
            by (6) and verifies the best ``verify`` of them by (4); ``"loss"`` scores images by how much their
            denoising loss rises (7), one pass for any number of units. Or a function of your own, which is given the
            weight rows (3) of M ablations, (M, K), and returns their scores (B, M), larger where a sample depends more
            on what was removed; candidates and null are scored by it alike, and ranked in the precision of its dtype.
        top: units returned per sample.
        units: the candidates: a list of unit ids, or of sets of ids that are removed together, each once; by default
            all units one by one (of a run that has forgotten members: all that can still be removed).
        code: another code over the same members whose units are the candidates, such as ``code.group_code()`` of a
            hierarchical code.
        features: a function of images (B, H, W, C) in [0, 1] to features; distances are L2 between features. By
            default between pixels. Not for ``"loss"`` and methods of your own.
        distance: a function of counterfactuals and samples, both (P, H, W, C) in [0, 1], to P distances >= 0, in place
            of L2; with ``features``, a function of both's features. For ``"exact"``, and for what ``"screen"``
            verifies (it still screens by L2).
        verify: units per sample that ``"screen"`` verifies exactly; by default 50, or ``top`` where that is more.
        audit: unverified units per sample that are verified too, at random, to estimate what ``"screen"`` missed.
        null: number of null ablations (of each kind) for p- and q-values; ``"all"`` that there are; 0 is none.
        level: q-value up to which a verdict attributes.
        loss: draws, levels and weighting, for ``"loss"`` alone.
        seed: of the null's code words, the audit and the draws of the loss.
        chunk: images at a time in exact ablation; by default from the memory budget.
        memory_budget: bytes of activations a device may hold.
        progress: show progress bars.
        partial: a folder for what is finished. After an interruption the same call goes on there, and gives bit for
            bit what it would have given without one; at the end what it kept is removed, and the folder unless it
            holds other files. Features, distances and samplers that are functions are told apart by their names only.

    Returns:
        `Attribution`, arrays of shape (B, top). Distances are >= 0, changes of loss have a sign; for both, larger
        means that the sample depends more on the unit. Of equal influences the unit with the lower id comes first (of
        sets, the one given first). Influences that should be equal but differ by rounding (in (6), those of a word and
        its complement) are ordered by the rounded values.

    Raises:
        ValueError: unknown method or units, units given twice, ``top`` larger than the number of candidates, too few
            unowned words, options of another method, influences that are not finite; and, where the method regenerates
            samples, images without their noise, samples of another ensemble or samples made with weights.
        NoSurvivorError: every member saw some unit of a set.
        FolderInUseError: another process has ``partial``.

    >>> att = ensdiff.attribute(params, samples, "exact", units=[3, {4, 7}], top=1)
    >>> att.sets[att.units[0, 0]] in {(3,), (4, 7)}
    True
    >>> pictures = data.images[:2]  # any images, by their loss
    >>> ensdiff.attribute(params, pictures, "loss", top=5, loss=ensdiff.LossConfig(draws=4, block=2)).units.shape
    (2, 5)
    """
    check_method(params, samples, method, features, distance=distance, verify=verify, loss=loss)
    candidates = Candidates.of(params.candidate_code(code), units).by_id()  # of equals, the lower id first
    request = check_request(method, len(candidates), top, verify, audit, null, level, seed)
    resources = Resources(chunk, memory_budget, progress)
    config = LossConfig() if loss is None else loss
    ablations = null_ablations(candidates, request.null, request.seed) if request.null else None
    measure = measure_name(features, distance)
    algorithm = resolve(params.model.conv, predicting=True)  # another one rounds otherwise
    with pieces(partial, __version__, params, named_sampler(samples), measure, algorithm) as kept:
        inputs = Inputs(params, samples, features, distance, resources, kept)
        scores = scores_of(method, inputs, candidates, config, request.seed)
        calibration = calibrate(scores.final, ablations)
        found: Audit | None = None
        if scores.screen is None:
            ranking = rank(scores.final, request.top, calibration, kept)
        else:
            shortlist_BV = rank(scores.screen, request.verify, None, kept).index_BT
            ranking = rank_shortlist(inputs, candidates, shortlist_BV, request.top, calibration)
            if request.audit:
                found = audit_shortlist(inputs, candidates, shortlist_BV, ranking, request.audit, request.seed)
    tested = significance(ranking, candidates, calibration)
    return Attribution(
        candidates.units(ranking.index_BT),
        ranking.score_BT,
        tested.p_BT,
        tested.null_BL,
        name_of(method),
        "score" if callable(method) else "loss" if method == "loss" else measure,
        _settings(params, candidates, request, ablations, scores, config),
        q_value=tested.q_BT,
        level=request.level,
        standard_error=_standard_error(candidates, scores, ranking),
        sets=candidates.sets,
        audit=found,
    )


def _standard_error(candidates: Candidates, scores: Scores, ranking: Ranking) -> Float[np.ndarray, "B T"] | None:
    """Of scores by loss, from the spread of the blocks of draws; None for other methods."""
    if scores.estimate is None:
        return None
    weights_RK = candidates.weights(ranking.index_BT.reshape(-1))
    weights_BTK = weights_RK.reshape(*ranking.index_BT.shape, -1)
    return scores.estimate.score_error_of_each(weights_BTK, candidates.code.factual()[0])


def _settings(
    params: Ensemble,
    candidates: Candidates,
    request: Request,
    ablations: Null | None,
    scores: Scores,
    config: LossConfig,
) -> dict[str, Any]:
    """What the result records of a call, besides the method, in Python's own types, which JSON can write."""
    code = candidates.code
    identity: dict[str, Any] = {} if code.names is None else {"names": list(code.names)}
    if params.data_digest is not None and code == params.code:
        identity = {"data": params.data_digest}
    used: dict[str, Any] = {} if scores.screen is None else {"verify": request.verify}
    if scores.estimate is not None:
        used = {"draws": scores.estimate.draws, "levels": config.levels, "weighting": config.weighting}
    return {
        "top": request.top,
        "candidates": len(candidates),
        "units": code.units,
        "null": request.null,
        "seed": request.seed,
        **identity,
        **({} if ablations is None else {"null_of_a_kind": ablations.fewest}),
        **used,
    }
