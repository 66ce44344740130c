"""The scores that each method of `attribute` gives to ablations; an ablation is given by the members that it drops.

`ensdiff.attribution` lists where the numbered equations are.
"""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from ensdiff.attribution.candidates import Candidates, uniform
from ensdiff.attribution.differential import gram
from ensdiff.attribution.draws import LossConfig
from ensdiff.attribution.exact import Measure, measured_influence
from ensdiff.attribution.forms import Chunk, Forms, gram_forms, loss_forms, score_words, stream
from ensdiff.attribution.loss import LossMatrix, loss_matrix
from ensdiff.attribution.rows import RowLosses
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.runs.pieces import Pieces
from ensdiff.typing import Array, unmasked

WORDS_AT_ONCE = 1024
"""Candidates per chunk, for all samples, for methods other than quadratic forms."""
PAIRS_OF_A_PIECE = 4096
"""Exact influences, one per pair of an ablation and a sample, that are stored together if progress is stored."""

GradientMethod = Literal["trak", "d-trak", "das", "combined"]
Method = Literal["exact", "differential", "screen", "loss"] | GradientMethod
GRADIENT_METHODS: tuple[GradientMethod, ...] = get_args(GradientMethod)
Score = Callable[[Float[np.ndarray, "M K"]], Any]
"""A caller's method: a function from the weight rows (3) of M ablations to scores (B, M). Larger means that the sample
depends more on the removed units. The scores of one ablation must not depend on the other ablations of the call."""


class Scoring(NamedTuple):
    """One method's scores of candidates, and of any other ablations.

    Args:
        candidates: the candidates to score.
        samples: B, the number of samples.
        of_words: a function from the members that each of M ablations drops, (M, K), to scores (B, M).
        chunks: a function from a candidate's number to the scores of this candidate and all later ones, in order.
        identity: everything that determines these scores, so that an interrupted ranking can continue; None if it
            starts over.
    """

    candidates: Candidates
    samples: int
    of_words: Callable[[UInt8[np.ndarray, "M K"]], Float[np.ndarray, "B M"]]
    chunks: Callable[[int], Iterator[Chunk]]
    identity: tuple | None = None


class Inputs(NamedTuple):
    """The inputs from which the scores of one call are computed.

    Args:
        params: the ensemble.
        samples: the result of `ensdiff.sample`, or images (B, H, W, C) for methods that regenerate nothing.
        features: a function from images to the features between which distances are measured; None for pixels.
        measure: the distance between pixels or features, compiled for this call alone.
        resources: memory budget, chunk and progress bars of all computations.
        kept: the store of finished parts.
    """

    params: Ensemble
    samples: Any
    features: Callable[[Array], Array] | None
    measure: Measure
    resources: Resources
    kept: Pieces


class Scores(NamedTuple):
    """The scores of one method.

    Args:
        final: the scores that the call returns, for candidates and null alike.
        screen: the predictions by which the method ``"screen"`` chooses the candidates to verify; None for others.
        estimate: the losses behind the scores of ``"loss"``; None for other methods.
    """

    final: Scoring
    screen: Scoring | None = None
    estimate: LossMatrix | RowLosses | None = None


def scores_of(
    method: Method | str | Score, inputs: Inputs, candidates: Candidates, config: LossConfig, seed: int
) -> Scores:
    """Return the scores of a method.

    What all of its scores share is computed first. For ``"differential"`` and ``"screen"`` these are the Gram matrices
    of (6). For ``"loss"`` they are the loss matrices of (7), unless the ensemble averages parameters.

    Args:
        method: a name, or a caller's function.
        inputs: the ensemble and the samples.
        candidates: the candidates to score.
        config: draws of ``"loss"``.
        seed: seed of these draws.
    """
    params, samples, features, _, resources, kept = inputs
    shared: Any = dict(memory_budget=resources.memory_budget, progress=resources.progress)
    exact = score_by_words(functools.partial(exact_of_words, inputs), candidates, len(samples))
    if callable(method):
        return Scores(score_by_words(functools.partial(own_scores, method, len(samples)), candidates, len(samples)))
    if method == "exact":
        return Scores(exact)
    if method == "loss" and params.combine == "parameters":
        losses = RowLosses(params, samples, seed, config, resources, kept, candidates.code)
        of_words = functools.partial(_changes, losses)
        return Scores(score_by_words(of_words, candidates, len(samples)), estimate=losses)
    if method == "loss":
        estimate = loss_matrix(params, samples, seed, config, code=candidates.code, kept=kept, **shared)
        forms = loss_forms(estimate.mean_BKK, candidates.code.factual()[0])
        return Scores(score_by_forms(forms, candidates, resources), estimate=estimate)
    gram_BKK = kept.get(lambda: gram(params, samples, features, **shared), "gram")
    predicted = score_by_forms(gram_forms(gram_BKK, np.asarray(samples.weights_K)), candidates, resources)
    return Scores(predicted) if method == "differential" else Scores(exact, screen=predicted)


def score_by_words(
    of_words: Callable[[UInt8[np.ndarray, "M K"]], Float[np.ndarray, "B M"]], candidates: Candidates, samples: int
) -> Scoring:
    """Return the scoring of candidates by a function of the members that they drop."""

    def chunks(first: int) -> Iterator[Chunk]:
        for start in range(first, len(candidates), WORDS_AT_ONCE):
            stop = min(start + WORDS_AT_ONCE, len(candidates))
            yield Chunk(start, of_words(candidates.words(np.arange(start, stop))))

    return Scoring(candidates, samples, of_words, chunks)


def score_by_forms(forms: Forms, candidates: Candidates, resources: Resources) -> Scoring:
    """Return the scoring of candidates by one quadratic form per sample: (6) or (7) of `ensdiff.attribution.forms`."""
    code, ids = candidates.code, candidates.ids
    source: Any = code
    if ids is not None or candidates.sets is not None or code.packed is not None:

        def source(start, stop):
            return candidates.words(np.arange(start, stop))

    def chunks(first: int) -> Iterator[Chunk]:
        return stream(forms, len(candidates), source, first=first, progress=resources.progress)

    identity = json.dumps([code.to_dict(), candidates.sets, forms.root])
    return Scoring(
        candidates,
        len(forms.matrix_BKK),
        functools.partial(score_words, forms),
        chunks,
        (identity, forms.matrix_BKK, np.empty(0) if ids is None else ids),
    )


def _changes(losses: RowLosses, word_MK: UInt8[np.ndarray, "M K"]) -> Float[np.ndarray, "B M"]:
    """Return how much every ablation changes the loss of every image under averaged parameters."""
    return losses.change(uniform(word_MK)).astype(np.float32)


def exact_of_pairs(
    inputs: Inputs, word_RK: UInt8[np.ndarray, "R K"], sample_R: Int[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    """Return the exact influence (4) on sample ``sample_R[r]`` of dropping the members ``word_RK[r]``, for each r."""

    def compute(word_RK: np.ndarray, sample_R: np.ndarray) -> np.ndarray:
        params, samples, _, measure, resources, _ = inputs
        return measured_influence(params, samples, uniform(word_RK), sample_R, measure, resources)

    if inputs.kept.folder is None or not len(word_RK):
        return compute(word_RK, sample_R)
    found = []
    for start in range(0, len(word_RK), PAIRS_OF_A_PIECE):
        pairs = word_RK[start : start + PAIRS_OF_A_PIECE], sample_R[start : start + PAIRS_OF_A_PIECE]
        found.append(inputs.kept.get(functools.partial(compute, *pairs), "exact", *pairs))
    return np.concatenate(found)


def exact_of_words(inputs: Inputs, word_MK: UInt8[np.ndarray, "M K"]) -> Float[np.ndarray, "B M"]:
    """Return the exact influence (4) of every ablation on every sample."""
    B = len(inputs.samples)
    influence_R = exact_of_pairs(inputs, np.repeat(word_MK, B, axis=0), np.tile(np.arange(B), len(word_MK)))
    return influence_R.reshape(-1, B).T


def own_scores(score: Score, samples: int, word_MK: UInt8[np.ndarray, "M K"]) -> Float[np.ndarray, "B M"]:
    """Return a caller's scores of ablations, checked.

    Raises:
        ValueError: the method did not return one finite number per sample and ablation.
    """
    name = getattr(score, "__name__", score)
    found = np.asarray(unmasked(score(uniform(word_MK)), f"scores of the method {name}"))
    if found.dtype.kind not in "buif" and not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"the method {name} returned {found.dtype}: expected real numbers")
    # no precision is lost: integers become float64, 16-bit floats become float32
    found = found.astype(np.float64 if found.dtype.kind in "biu" or found.itemsize > 4 else np.float32)
    expected = (samples, len(word_MK))
    if found.shape != expected or not np.isfinite(found).all():
        what = f"shape {found.shape}" if found.shape != expected else "NaN or infinity"
        raise ValueError(
            f"the method {name} returned {what} for weights of shape "
            f"{word_MK.shape}: expected {expected} finite scores, one row per sample and one column per ablation"
        )
    return found
