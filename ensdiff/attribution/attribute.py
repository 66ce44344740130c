"""`attribute`: the training units that each sample depends on, most influential first, and their significance.

All methods score a weight row: ``exact`` by regenerating (4), ``differential`` by the Gram matrix of the Jacobian (6),
``screen`` by (6) and then the best candidates by (4), ``loss`` by the denoising loss (7). All are compared with the
same null (`ensdiff.attribution.calibration`). A call chooses the candidates, sets up their scores (`scoring`), scores
the null ablations, ranks the candidates while it counts all of them for the q-values (`ranking`), and computes p- and
q-values.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.audit import Audit
from ensdiff.attribution.by_gradients import attribute_by_gradients
from ensdiff.attribution.calibration import Null, null_ablations
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.draws import LossConfig
from ensdiff.attribution.exact import Distance, measure_of
from ensdiff.attribution.gradients.config import GradientConfig
from ensdiff.attribution.measures import measure_name
from ensdiff.attribution.pictures import pictures_of
from ensdiff.attribution.queries import query_marks, query_settings
from ensdiff.attribution.ranking import Ranking, audit_shortlist, calibrate, rank, rank_shortlist, significance
from ensdiff.attribution.request import Request, check_method, check_request, name_of, named_sampler
from ensdiff.attribution.result import Attribution
from ensdiff.attribution.scoring import GRADIENT_METHODS, Inputs, Method, Score, Scores, scores_of
from ensdiff.attribution.sufficient import with_null
from ensdiff.codes import Code
from ensdiff.data import Dataset
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.files.version import __version__
from ensdiff.models.adapters import network_of
from ensdiff.models.attention import resolve_attention
from ensdiff.models.conv import resolve
from ensdiff.models.denoiser import Denoiser
from ensdiff.models.unet import UNetConfig
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
    null: int | Literal["all", "auto"] = 0,
    level: float = 0.1,
    loss: LossConfig | None = None,
    cond: Any = None,
    data: Dataset | None = None,
    gradients: GradientConfig | None = None,
    store: str | os.PathLike | None = None,
    held_out: ArrayLike | Dataset | None = None,
    seed: int = 0,
    chunk: int | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
    partial: str | os.PathLike | None = None,
) -> Attribution:
    """Rank training units by how much each sample changes when the unit is removed from its causal history.

    The numbers in parentheses are those of the equations in `ensdiff.attribution`.

    Args:
        params: the ensemble.
        samples: the result of `ensdiff.sample`; for ``"loss"`` and gradient methods also any images (B, H, W, C) in
            [0, 1], or uint8, or latents.
        method: ``"exact"`` regenerates every sample without every unit (4). ``"differential"`` predicts the distance
            from the Gram matrix of the Jacobian (6), with one run per sample for any number of units. ``"screen"``
            ranks all units by (6) and verifies the best ``verify`` of them by (4); if there are no more than that, it
            is ``"exact"``. ``"loss"`` scores images by how
            much their denoising loss rises (7), with one pass for any number of units. ``"trak"``, ``"d-trak"`` and
            ``"das"`` score images by the members' gradients, and predict what retraining would change
            (`ensdiff.attribution.gradients`); the members choose the settings and grade the result (9).
            ``"combined"`` adds what the members' own losses say about units to the better of the first two (10). A
            function is a method of your own: it takes the weight rows (3) of M ablations, (M, K), and returns their
            scores (B, M), larger if a sample depends more on the removed units. It scores candidates and null ablations
            alike; candidates are ranked in the precision of its dtype.
        top: units returned per sample.
        units: the candidates: a list of unit ids or names, or of sets of them that are removed together, without
            duplicates. By default each unit is a candidate (after members were forgotten, each unit that can still be
            removed). Names are those of `ensdiff.Ensemble.names_of`.
        code: another code over the same members whose units are the candidates, such as ``code.group_code()`` of a
            hierarchical code.
        features: a function from images (B, H, W, C) in [0, 1] to features, between which L2 distances are measured;
            by default, distances are between pixels. Not for ``"loss"`` or a method of your own.
        distance: a function that replaces L2: it takes counterfactuals and samples, both (P, H, W, C) in [0, 1], or
            with ``features`` the features of both, and returns P distances >= 0. For ``"exact"``, and for the
            verification of ``"screen"`` (which still screens by L2).
        verify: units per sample that ``"screen"`` verifies exactly; by default 50, or ``top`` if that is more.
        audit: random unverified units per sample that are also verified, to estimate what ``"screen"`` missed.
        null: number of null ablations for p- and q-values, for each size of a set and each group of a hierarchical
            code; ``"all"`` uses every one, 0 uses none. ``"auto"`` uses as many as a verdict at ``level`` needs (s1),
            and warns before it computes if no verdict is possible (`ensdiff.attribution.plan_null`). Gradient methods
            compare single items with this many items of ``held_out``, units of several items with random groups of as
            many items, and sets of units with random sets of about as many items (11).
        level: largest q-value at which a verdict attributes a sample to a unit.
        loss: draws, levels and weighting of ``"loss"``, and of the members' losses that judge gradient scores.
        cond: the conditions of such images, for conditional members: one per image, or one for all. None is no
            condition. The result of `ensdiff.sample` carries its own.
        data: the training data, for gradient methods.
        gradients: how gradients are computed and compared; by default, the members choose ridge, noise levels and
            normalization.
        store: folder of the training images' gradients (`experiments.gradients` writes it); by default they are
            computed.
        held_out: (m, H, W, C) images that no member saw, with which gradient methods compare single items; or a
            `Dataset` of them, whose gradients may be in the store too. Training images are refused.
        seed: seed of the null's code words, of the audit and of the draws of the loss.
        chunk: images per batch in exact ablation; by default from the memory budget.
        memory_budget: bytes of activations that a device may hold.
        progress: show progress bars.
        partial: a folder for finished parts. After an interruption the same call continues there, and returns bit for
            bit what an uninterrupted call returns. In the end it removes these parts, and the folder unless it holds
            other files. Features, distances and samplers that are functions are distinguished only by their names:
            give another folder after changing such a function.

    Returns:
        `Attribution` with arrays of shape (B, top). Distances are >= 0, changes of loss have a sign; for both, larger
        means that the sample depends more on the unit. Gradient methods also return a `Judgement` of their scores.
        Among equal influences the unit with the lower id comes first
        (among sets, the one given first). Influences that should be equal but differ by rounding (in (6), those of a
        word and its complement) are ordered by the rounded values.

    Warns:
        NullWarning: with ``null="auto"``, no unit alone can reach the level; the message says what would change that.

    Raises:
        ValueError: unknown method or units, duplicate units, ``top`` larger than the number of candidates, too few
            unowned words, options of another method, influences that are not finite; and, if the method regenerates
            samples, images without their noise, samples of another ensemble or samples made with weights.
        NoSurvivorError: every member saw some unit of a set.
        FolderInUseError: another process uses ``partial``.

    >>> att = ensdiff.attribute(params, samples, "exact", units=[3, {4, 7}], top=1)
    >>> att.sets[att.units[0, 0]] in {(3,), (4, 7)}
    True
    >>> pictures = data.images[:2]  # any images, by their loss
    >>> ensdiff.attribute(params, pictures, "loss", top=5, loss=ensdiff.LossConfig(draws=4, block=2)).units.shape
    (2, 5)
    """
    options: Any = {"data": data, "gradients": gradients, "store": store, "held_out": held_out}
    check_method(params, samples, method, features, distance=distance, verify=verify, loss=loss, **options)
    candidates = Candidates.of(params.candidate_code(code), params.ids_of(units, code))
    candidates = candidates.by_id()  # among equals, the lower id comes first
    request = check_request(method, len(candidates), top, verify, audit, null, level, seed)
    resources = Resources(chunk, memory_budget, progress)
    computed = _computed(params.model)
    if cond is not None and (callable(method) or method not in ("loss", *GRADIENT_METHODS)):
        raise ValueError(f"cond is for images under method='loss' or gradients, not {name_of(method)!r}: leave it out")
    if method in GRADIENT_METHODS and data is not None:
        queries = pictures_of(params, samples, cond)
        with pieces(partial, __version__, params, queries, method, computed) as kept:
            return attribute_by_gradients(
                params, queries, method, candidates=candidates, request=request, loss=loss, resources=resources,
                kept=kept, data=data, gradients=gradients, store=store, held_out_images=held_out,
            ).named(params.names_of(code))  # fmt: skip
    request = with_null(request, candidates, name_of(method))
    if method == "screen" and len(candidates) <= request.verify and not audit:
        method = "exact"  # everything is verified, so that there is nothing to screen
    config = LossConfig() if loss is None else loss
    ablations = null_ablations(candidates, request.null, request.seed) if request.null else None
    measure = measure_name(features, distance, params.space)
    if isinstance(samples, Samples) and cond is not None:
        raise ValueError("the samples carry their own conditions: leave cond out")
    subject: Any = pictures_of(params, samples, cond) if method == "loss" else samples
    with pieces(partial, __version__, params, named_sampler(subject), measure, computed) as kept:
        inputs = Inputs(params, subject, features, measure_of(features, distance), resources, kept)
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
        _settings(params, subject, candidates, request, ablations, scores, config),
        q_value=tested.q_BT,
        q_value_of_call=tested.call_q_BT,
        level=request.level,
        standard_error=_standard_error(candidates, scores, ranking),
        sets=candidates.sets,
        audit=found,
    ).named(params.names_of(code))


def _computed(model: Denoiser) -> tuple[Any, ...]:
    """Return how the network is computed, because other ways of computing it round differently."""
    network = network_of(model)
    if network is not model:
        return model.stack, *_computed(network)
    if not isinstance(model, UNetConfig):
        return (model.stack,)
    forms = resolve(model.conv), resolve(model.conv, predicting=True)
    return *forms, model.stack, model.precision, resolve_attention(model.attention)


def _standard_error(candidates: Candidates, scores: Scores, ranking: Ranking) -> Float[np.ndarray, "B T"] | None:
    """Return the standard error of scores by loss, from the spread of the blocks of draws; None for other methods."""
    if scores.estimate is None:
        return None
    weights_RK = candidates.weights(ranking.index_BT.reshape(-1))
    weights_BTK = weights_RK.reshape(*ranking.index_BT.shape, -1)
    return scores.estimate.score_error_of_each(weights_BTK, candidates.code.factual()[0])


def _settings(
    params: Ensemble,
    samples: Any,
    candidates: Candidates,
    request: Request,
    ablations: Null | None,
    scores: Scores,
    config: LossConfig,
) -> dict[str, Any]:
    """Return the settings of a call that the result records, in Python's own types, which JSON can write."""
    code = candidates.code
    identity: dict[str, Any] = {} if code.names is None else {"names": list(code.names)}
    if params.data_digest is not None and code == params.code:
        identity = {"data": params.data_digest}
    used: dict[str, Any] = {} if scores.screen is None else {"verify": request.verify}
    if scores.estimate is not None:
        used = {"draws": scores.estimate.draws, "levels": config.levels, "weighting": config.weighting}
        used["queries"] = query_marks(samples.images)
    return {
        "top": request.top,
        "candidates": len(candidates),
        "units": code.units,
        "null": request.null,
        "seed": request.seed,
        **query_settings(params, samples),
        **identity,
        **({} if ablations is None else {"null_of_a_kind": ablations.fewest}),
        **used,
    }
