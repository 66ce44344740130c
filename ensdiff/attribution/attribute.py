"""`attribute`: which training units each sample depends on, most influential first, and whether that means something.

All methods score a weight row: ``exact`` by regenerating (4), ``differential`` by the Gram of the Jacobian (6),
``screen`` by (6) and then the best by (4), ``loss`` by the denoising loss (7). All are compared with the same null
(`ensdiff.attribution.calibration`).
"""

import dataclasses
import functools
import json
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from ensdiff.attribution.audit import Audit
from ensdiff.attribution.calibration import null_ablations
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.exact import Distance
from ensdiff.attribution.loss import LossConfig, LossMatrix, loss_matrix
from ensdiff.attribution.ranking import Ranking, Score
from ensdiff.attribution.result import Attribution
from ensdiff.attribution.score import gram_forms, loss_forms
from ensdiff.codes import Code
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.version import __version__
from ensdiff.models.conv import resolve
from ensdiff.runs.pieces import pieces
from ensdiff.sampling.sample import Samples, check_samples
from ensdiff.typing import Array, ArrayLike

Method = Literal["exact", "differential", "screen", "loss"]
VERIFY = 50
"""Units a sample that a screen verifies."""


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
            from the Gram of the Jacobian (6), one run a sample for any number of units; ``"screen"`` ranks all units
            by (6) and verifies the best ``verify`` of them by (4); ``"loss"`` scores images by how much their
            denoising loss rises (7), one pass for any number of units. Or a function of your own, which is given the
            weight rows (3) of M ablations, (M, K), and returns their scores (B, M), larger where a sample depends more
            on what was removed; candidates and null are scored by it alike, and ranked in the precision of its dtype.
        top: units returned a sample.
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
    if not callable(method) and method not in get_args(Method):
        choices = ", ".join(map(repr, get_args(Method)))
        raise ValueError(f"method={method!r}: expected one of {choices}, or a function of weights (M, K)")
    for name, value, meant in (
        ("distance", distance, ("exact", "screen")),
        ("verify", verify, ("screen",)),
        ("loss", loss, ("loss",)),
    ):
        if value is not None and method not in meant:
            raise ValueError(
                f"{name} is for method={' and '.join(map(repr, meant))}, not {_name(method)!r}: leave it out"
            )
    if callable(method) or method == "loss":
        if features is not None:
            raise ValueError(
                f"features have no meaning for method={_name(method)!r}, which measures no distance: leave them out"
            )
        if not isinstance(samples, Samples) and np.ndim(samples) == 0:
            raise ValueError(
                f"samples is a {type(samples).__name__}: expected what ensdiff.sample returned, or images (B, H, W, "
                "C), such as data.images"
            )
    else:
        check_samples(params, samples, f"method={method!r}")
    candidates = Candidates.of(params.candidate_code(code), units).by_id()  # of equals, the lower id first
    N = len(candidates)
    if not _whole(top) or not 1 <= top <= N:
        raise ValueError(f"top={top}: expected 1 .. {N}, the number of candidate units")
    verify = max(VERIFY, top) if verify is None else verify
    if not _whole(verify):
        raise ValueError(f"verify={verify!r}: expected the number of units that are verified")
    if verify < top:
        raise ValueError(f"verify={verify} is less than top={top}: verify at least as many units as are returned")
    if null != "all" and (not _whole(null) or null < 0):
        raise ValueError(f"null={null!r}: expected the number of null ablations, 0 for none, or 'all'")
    if not _whole(audit) or audit < 0 or (audit and method != "screen"):
        raise ValueError(f"audit={audit}: expected 0, or with method='screen' a number of units")
    if not isinstance(level, numbers.Real) or not 0 < level < 1:
        raise ValueError(f"level={level}: expected a q-value between 0 and 1")
    if not _whole(seed):
        raise ValueError(f"seed={seed!r}: expected an integer")
    # Python's own numbers, which JSON can write
    top, verify, audit, seed, level = int(top), int(verify), int(audit), int(seed), float(level)
    null = null if null == "all" else int(null)
    words = null_ablations(candidates, null, seed) if null else None
    config = LossConfig() if loss is None else loss
    measured = "l2" if distance is None else _name(distance)
    if features is not None:
        measured = _name(features) if distance is None else f"{measured} of {_name(features)}"
    resources: dict[str, Any] = dict(chunk=chunk, memory_budget=memory_budget, progress=progress)
    algorithm = resolve(params.model.conv, predicting=True)  # another one rounds otherwise
    with pieces(partial, __version__, params, _named(samples), measured, algorithm) as kept:
        run = Ranking(params, samples, candidates, features, words, resources, kept, distance)
        settings: dict[str, Any] = dict(top=top, candidates=N, units=candidates.code.units, null=null, seed=seed)
        if params.data_digest is not None and candidates.code == params.code:
            settings["data"] = params.data_digest
        elif candidates.code.names is not None:
            settings["names"] = list(candidates.code.names)
        return _attribute(run, method, settings, verify, audit, level, config, measured)


def _whole(number: Any) -> bool:
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)


def _name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


def _named(samples: Any) -> Any:
    """The samples with the name of their sampler in the place of a function, whose address is another in each run."""
    if not isinstance(samples, Samples) or isinstance(samples.config.sampler, str):
        return samples
    values = dataclasses.asdict(samples.config) | {"sampler": _name(samples.config.sampler)}
    return samples.images, samples.noise, samples.weights_K, json.dumps(values)


def _attribute(
    run: Ranking,
    method: str | Score,
    settings: dict[str, Any],
    verify: int,
    audit: int,
    level: float,
    config: LossConfig,
    distance: str,
) -> Attribution:
    """`attribute` once its arguments are checked."""
    params, samples, candidates, words = run.params, run.samples, run.candidates, run.null
    top, N, seed, code = settings["top"], len(candidates), settings["seed"], candidates.code
    if words is not None:
        settings["null_of_a_kind"] = int(np.unique(words.kind_L, return_counts=True)[1].min())

    estimate: LossMatrix | None = None
    checked: Audit | None = None
    if callable(method):
        index_BT, influence_BT, calibration = run.rank_rows(functools.partial(run.given_rows, method), top)
    elif method == "exact":
        index_BT, influence_BT, calibration = run.rank_rows(run.exact_rows, top)
    elif method == "loss":
        images = samples.images if isinstance(samples, Samples) else samples
        budget, progress = run.resources["memory_budget"], run.resources["progress"]
        estimate = loss_matrix(
            params, images, seed, config, code=code, memory_budget=budget, progress=progress, kept=run.kept
        )
        settings |= dict(draws=estimate.draws, levels=config.levels, weighting=config.weighting)
        forms = loss_forms(estimate.mean_BKK, code.factual()[0])
        index_BT, influence_BT, calibration = run.rank_forms(forms, top, run.form_null(forms))
    else:
        assert isinstance(samples, Samples)
        grams = run.gram()
        forms = gram_forms(grams, np.asarray(samples.weights_K))
        if method == "differential":
            index_BT, influence_BT, calibration = run.rank_forms(forms, top, run.form_null(forms))
        else:
            settings["verify"] = min(verify, N)
            best_BV, _, _ = run.rank_forms(forms, min(verify, N), None)
            index_BT, influence_BT, calibration = run.verify(best_BV, top, N)
            outside = N - best_BV.shape[1]
            if audit:
                checked = run.audit(best_BV, influence_BT[:, -1], min(audit, outside), top, seed)

    p_BT = q_BT = error_BT = None
    if calibration is not None:
        kind_N = candidates.kinds()
        p_BT = calibration[0].p_values(influence_BT, None if kind_N is None else kind_N[index_BT])
        q_BT = calibration[0].q_values(p_BT)
    if estimate is not None:
        weights_BTK = candidates.weights(index_BT.reshape(-1)).reshape(*index_BT.shape, -1)
        error_BT = np.stack(
            [
                estimate._replace(blocks_JBKK=estimate.blocks_JBKK[:, b : b + 1]).score_error(row, code.factual()[0])[0]
                for b, row in enumerate(weights_BTK)
            ]
        )
    return Attribution(
        candidates.units(index_BT),
        influence_BT,
        p_BT,
        None if calibration is None else calibration[1],
        _name(method),
        "score" if callable(method) else "loss" if method == "loss" else distance,
        settings,
        q_value=q_BT,
        level=level,
        standard_error=error_BT,
        sets=candidates.sets,
        audit=checked,
    )
