"""`attribute`: which training units each sample depends on, most influential first, and whether that means something.

All methods score a weight row: ``exact`` by regenerating (4), ``differential`` by the Gram of the Jacobian (6),
``screen`` by (6) and then the best by (4), ``loss`` by the denoising loss (7). All are compared with the same null
(`ensdiff.attribution.calibration`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution.audit import Audit, audit_recall
from ensdiff.attribution.calibration import Calibration, Null, null_ablations
from ensdiff.attribution.candidates import Candidates, uniform
from ensdiff.attribution.differential import gram
from ensdiff.attribution.exact import exact_influence
from ensdiff.attribution.loss import LossConfig, LossMatrix, loss_matrix
from ensdiff.attribution.result import Attribution
from ensdiff.attribution.score import Forms, Top, gram_forms, loss_forms, score_words, stream
from ensdiff.codes import Code
from ensdiff.ensemble import Ensemble
from ensdiff.permute import derive_key
from ensdiff.sample import Samples, check_samples
from ensdiff.typing import Array, ArrayLike

Method = Literal["exact", "differential", "screen", "loss"]
EXACT_CHUNK = 1024
"""Candidates whose exact influences are computed at a time, of all samples."""


def attribute(
    params: Ensemble,
    samples: Samples | ArrayLike,
    method: Method | str = "screen",
    *,
    top: int = 10,
    units: Sequence[Any] | None = None,
    code: Code | None = None,
    features: Callable[[Array], Array] | None = None,
    verify: int = 50,
    audit: int = 0,
    null: int | Literal["all"] = 0,
    level: float = 0.1,
    loss: LossConfig | None = None,
    seed: int = 0,
    chunk: int | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Attribution:
    """Rank training units by what each sample loses when the unit is removed from its causal history.

    Args:
        params: the ensemble.
        samples: what `ensdiff.sample` returned; for ``"loss"`` also any images (B, H, W, C) in [0, 1], or uint8.
        method: ``"exact"`` regenerates every sample without every unit (4); ``"differential"`` predicts the distance
            from the Gram of the Jacobian (6), one run a sample for any number of units; ``"screen"`` ranks all units
            by (6) and verifies the best ``verify`` of them by (4); ``"loss"`` scores images by how much their
            denoising loss rises (7), one pass for any number of units.
        top: units returned a sample.
        units: the candidates: unit ids, or sets of ids that are removed together; by default all units one by one
            (of a run that has forgotten members: all that can still be removed).
        code: another code over the same members whose units are the candidates, such as ``code.group_code()`` of a
            hierarchical code.
        features: a function of images (B, H, W, C) in [0, 1] to features; distances are L2 between features. By
            default between pixels. Not for ``"loss"``.
        verify: units a sample that ``"screen"`` verifies exactly.
        audit: unverified units a sample that are verified too, at random, to estimate what ``"screen"`` missed.
        null: number of null ablations (of each kind) for p- and q-values; ``"all"`` that there are; 0 is none.
        level: q-value up to which a verdict attributes.
        loss: draws, levels and weighting of ``"loss"``.
        seed: of the null's code words, the audit and the draws of the loss.
        chunk: images at a time in exact ablation; by default from the memory budget.
        memory_budget: bytes of activations a device may hold.
        progress: show progress bars.

    Returns:
        `Attribution`, arrays of shape (B, top). Distances are >= 0, changes of loss have a sign; for both, larger
        means that the sample depends more on the unit.

    Raises:
        ValueError: unknown method or units, ``top`` larger than the number of candidates, too few unowned words,
            images without their noise where the method regenerates them.
        NoSurvivorError: every member saw some unit of a set.
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}: expected one of {', '.join(map(repr, get_args(Method)))}")
    if method == "loss":
        if features is not None:
            raise ValueError("features have no meaning for method='loss', which measures no distance: leave them out")
    else:
        check_samples(params, samples, f"method={method!r}")
    code = params.code if code is None else code
    if code.members != params.members:
        raise ValueError(f"the code is for {code.members} members, the ensemble has {params.members}")
    candidates = Candidates.of(code, units)
    N = len(candidates)
    if not 1 <= top <= N:
        raise ValueError(f"top={top}: expected 1 .. {N}, the number of candidate units")
    if verify < top and method == "screen":
        raise ValueError(f"verify={verify} is less than top={top}: verify at least as many units as are returned")
    if null != "all" and (isinstance(null, str) or null < 0):
        raise ValueError(f"null={null!r}: expected the number of null ablations, 0 for none, or 'all'")
    if audit < 0 or (audit and method != "screen"):
        raise ValueError(f"audit={audit}: expected 0, or with method='screen' a number of units")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a q-value between 0 and 1")
    words = null_ablations(candidates, null, seed) if null else None
    config = LossConfig() if loss is None else loss
    resources: dict[str, Any] = dict(chunk=chunk, memory_budget=memory_budget, progress=progress)
    run = _Run(params, samples, candidates, features, words, resources)
    settings: dict[str, Any] = dict(top=top, candidates=N, null=null, seed=seed)
    if words is not None:
        settings["null_of_a_kind"] = int(np.unique(words.kind_L, return_counts=True)[1].min())

    estimate: LossMatrix | None = None
    checked: Audit | None = None
    if method == "exact":
        index_BT, influence_BT, calibration = run.rank(run.exact_scores(), top, run.exact_null())
    elif method == "loss":
        images = samples.images if isinstance(samples, Samples) else samples
        estimate = loss_matrix(params, images, seed, config, code=code, memory_budget=memory_budget, progress=progress)
        settings |= dict(draws=estimate.draws, levels=config.levels, weighting=config.weighting)
        forms = loss_forms(estimate.mean_BKK, code.factual()[0])
        index_BT, influence_BT, calibration = run.rank(run.form_scores(forms), top, run.form_null(forms))
    else:
        assert isinstance(samples, Samples)
        grams = gram(params, samples, features, memory_budget=memory_budget, progress=progress)
        forms = gram_forms(grams, np.asarray(samples.weights_K))
        if method == "differential":
            index_BT, influence_BT, calibration = run.rank(run.form_scores(forms), top, run.form_null(forms))
        else:
            settings["verify"] = min(verify, N)
            best_BV, _, _ = run.rank(run.form_scores(forms), min(verify, N), None)
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
    distance = "l2" if features is None else getattr(features, "__name__", type(features).__name__)
    return Attribution(
        candidates.units(index_BT),
        influence_BT,
        p_BT,
        None if calibration is None else calibration[1],
        method,
        "loss" if method == "loss" else distance,
        settings,
        q_value=q_BT,
        level=level,
        standard_error=error_BT,
        sets=candidates.sets,
        audit=checked,
    )


class _Run:
    """The arguments of one call, and the steps that several methods share."""

    def __init__(self, params, samples, candidates: Candidates, features, null: Null | None, resources: dict):
        self.params, self.samples, self.candidates, self.features = params, samples, candidates, features
        self.null, self.resources = null, resources
        self.B = len(samples)

    def exact(self, word_RK: np.ndarray, sample_R: np.ndarray) -> np.ndarray:
        return exact_influence(self.params, self.samples, uniform(word_RK), sample_R, self.features, **self.resources)

    def exact_rows(self, word_MK: np.ndarray) -> Float[np.ndarray, "B M"]:
        """Exact influences of the same ablations for all samples."""
        rows = np.repeat(word_MK, self.B, axis=0)
        return self.exact(rows, np.tile(np.arange(self.B), len(word_MK))).reshape(-1, self.B).T

    def exact_scores(self):
        for start in range(0, len(self.candidates), EXACT_CHUNK):
            index = np.arange(start, min(start + EXACT_CHUNK, len(self.candidates)))
            yield start, self.exact_rows(self.candidates.words(index))

    def exact_null(self) -> Float[np.ndarray, "B L"] | None:
        return None if self.null is None else self.exact_rows(self.null.word_LK)

    def form_scores(self, forms: Forms):
        candidates = self.candidates
        source: Any = candidates.code
        if candidates.ids is not None or candidates.sets is not None or candidates.code.packed is not None:

            def source(start, stop):
                return candidates.words(np.arange(start, stop))

        return stream(forms, len(candidates), source, progress=self.resources["progress"])

    def form_null(self, forms: Forms) -> Float[np.ndarray, "B L"] | None:
        return None if self.null is None else score_words(forms, self.null.word_LK)

    def rank(self, scores, top: int, null_BL: np.ndarray | None):
        """The best ``top`` of a stream of scores, and the calibration of all of them."""
        best = Top(self.B, top)
        calibration = self.calibration(null_BL)
        kind_N = None if calibration is None else self.candidates.kinds()
        for start, score_BM in scores:
            best.update(start, score_BM)
            if calibration is not None:
                kind_M = None if kind_N is None else kind_N[start : start + score_BM.shape[1]]
                calibration.count(score_BM, None if kind_M is None else np.broadcast_to(kind_M, score_BM.shape))
        return best.index_BT, best.scores_BT, None if calibration is None else (calibration, null_BL)

    def calibration(self, null_BL: np.ndarray | None) -> Calibration | None:
        return None if self.null is None or null_BL is None else Calibration(null_BL, self.null.kind_L)

    def verify(self, best_BV: Int[np.ndarray, "B V"], top: int, candidates: int):
        """Exact influences of the screened candidates, and the best of them; all others count as p = 1."""
        B, V = best_BV.shape
        exact_BV = self.exact(self.candidates.words(best_BV.reshape(-1)), np.repeat(np.arange(B), V)).reshape(B, V)
        order = np.lexsort((best_BV, -exact_BV), axis=1)[:, :top]
        index_BT, influence_BT = (np.take_along_axis(a, order, axis=1) for a in (best_BV, exact_BV))
        null_BL = self.exact_null()
        calibration = self.calibration(null_BL)
        if calibration is None:
            return index_BT, influence_BT, None
        kind_N = self.candidates.kinds()
        calibration.count(exact_BV, None if kind_N is None else kind_N[best_BV])
        calibration.count_unknown(candidates - V)
        return index_BT, influence_BT, (calibration, null_BL)

    def audit(self, best_BV, least_B, count: int, top: int, seed: int) -> Audit:
        """Exact influences of ``count`` candidates of each sample that were not verified, chosen at random."""
        outside = len(self.candidates) - best_BV.shape[1]
        chosen = []
        for b, best in enumerate(best_BV):
            rng = np.random.default_rng(derive_key(seed, 3, b))
            # the places of `count` of the others in the list of all without the best
            place = np.sort(rng.choice(outside, count, replace=False))
            for taken in np.sort(best):
                place += place >= taken
            chosen.append(place)
        index = np.concatenate(chosen)
        exact_BA = np.empty((self.B, 0))
        if count:
            exact_BA = self.exact(self.candidates.words(index), np.repeat(np.arange(self.B), count))
            exact_BA = exact_BA.reshape(self.B, count)
        return audit_recall(exact_BA, least_B, outside, top)
