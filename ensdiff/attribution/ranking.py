"""The steps that the methods of `attribute` share: scores of the candidates and of their null, and the best."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution.audit import Audit, audit_recall
from ensdiff.attribution.calibration import Calibration, Null
from ensdiff.attribution.candidates import Candidates, uniform
from ensdiff.attribution.differential import gram
from ensdiff.attribution.exact import Distance, exact_influence
from ensdiff.attribution.score import Forms, Top, score_words, stream
from ensdiff.codes.permute import derive_key
from ensdiff.runs.pieces import Pieces
from ensdiff.typing import unmasked

EXACT_CHUNK = 1024
"""Candidates whose exact influences are computed at a time, of all samples."""
PIECE = 4096
"""States of exact ablation that are kept together, where an interrupted call is to go on."""


def check_finite(score_BM: np.ndarray | None) -> None:
    """Refuse influences that cannot be ranked.

    Raises:
        ValueError: one is NaN or infinite; names the sample.
    """
    if score_BM is not None and not np.isfinite(score_BM).all():
        b = int(np.flatnonzero(~np.isfinite(score_BM).all(1))[0])
        raise ValueError(
            f"sample {b} has an influence that is NaN or infinite: the sample, its features or the parameters of a "
            "member that survives are"
        )


Score = Callable[[Float[np.ndarray, "M K"]], Any]
"""A caller's method: the weight rows (3) of M ablations to scores (B, M); larger means that the sample depends more on
what was removed. Scores of one ablation must not depend on which others are asked for together."""


class Ranking:
    """The arguments of one call, and the steps that several methods share."""

    def __init__(
        self,
        params,
        samples,
        candidates: Candidates,
        features,
        null: Null | None,
        resources: dict,
        kept: Pieces,
        distance: Distance | None = None,
    ):
        self.params, self.samples, self.candidates, self.features = params, samples, candidates, features
        self.distance = distance
        self.null, self.resources, self.kept = null, resources, kept
        self.B = len(samples)

    def exact(self, word_RK: np.ndarray, sample_R: np.ndarray) -> np.ndarray:
        """Exact influences of any pairs of an ablation and a sample."""

        def influence(word_PK: np.ndarray, sample_P: np.ndarray) -> np.ndarray:
            return exact_influence(
                self.params, self.samples, uniform(word_PK), sample_P, self.features, self.distance, **self.resources
            )

        if self.kept.folder is None or not len(word_RK):
            return influence(word_RK, sample_R)
        parts = [slice(start, start + PIECE) for start in range(0, len(word_RK), PIECE)]
        return np.concatenate(
            [
                self.kept.get(
                    functools.partial(influence, word_RK[part], sample_R[part]), "exact", word_RK[part], sample_R[part]
                )
                for part in parts
            ]
        )

    def gram(self) -> np.ndarray:
        """G of the samples (6)."""
        resources = {name: self.resources[name] for name in ("memory_budget", "progress")}
        return self.kept.get(lambda: gram(self.params, self.samples, self.features, **resources), "gram")

    def exact_rows(self, word_MK: np.ndarray) -> Float[np.ndarray, "B M"]:
        """Exact influences of the same ablations for all samples."""
        rows = np.repeat(word_MK, self.B, axis=0)
        return self.exact(rows, np.tile(np.arange(self.B), len(word_MK))).reshape(-1, self.B).T

    def given_rows(self, score: Score, word_MK: np.ndarray) -> Float[np.ndarray, "B M"]:
        """Scores of the same ablations for all samples by a caller's method.

        Raises:
            ValueError: it returned something else than one finite number a sample and ablation.
        """
        name = getattr(score, "__name__", score)
        found = np.asarray(unmasked(score(uniform(word_MK)), f"scores of the method {name}"))
        if found.dtype.kind not in "buif" and not jnp.issubdtype(found.dtype, jnp.floating):
            raise ValueError(f"the method {name} returned {found.dtype}: expected real numbers")
        # as exact as they are: integers are doubles, numbers of 16 bits are widened
        found = found.astype(np.float64 if found.dtype.kind in "biu" or found.itemsize > 4 else np.float32)
        expected = (self.B, len(word_MK))
        if found.shape != expected or not np.isfinite(found).all():
            what = f"shape {found.shape}" if found.shape != expected else "NaN or infinity"
            raise ValueError(
                f"the method {name} returned {what} for weights of shape "
                f"{word_MK.shape}: expected {expected} finite scores, one row a sample and one column an ablation"
            )
        return found

    def scores(self, rows: Callable[[np.ndarray], np.ndarray], first: int):
        """Scores of the candidates from a number on, a chunk at a time; ``rows`` scores some words for all samples."""
        for start in range(first, len(self.candidates), EXACT_CHUNK):
            index = np.arange(start, min(start + EXACT_CHUNK, len(self.candidates)))
            yield start, rows(self.candidates.words(index))

    def rank_rows(self, rows: Callable[[np.ndarray], np.ndarray], top: int):
        """`rank` of candidates and null by ``rows``."""
        null_BL = None if self.null is None else rows(self.null.word_LK)
        return self.rank(functools.partial(self.scores, rows), top, null_BL)

    def form_scores(self, forms: Forms, first: int):
        """Scores of the candidates from a number on by quadratic forms, a chunk at a time."""
        candidates = self.candidates
        source: Any = candidates.code
        if candidates.ids is not None or candidates.sets is not None or candidates.code.packed is not None:

            def source(start, stop):
                return candidates.words(np.arange(start, stop))

        return stream(forms, len(candidates), source, first=first, progress=self.resources["progress"])

    def form_null(self, forms: Forms) -> Float[np.ndarray, "B L"] | None:
        """The same of the null ablations."""
        return None if self.null is None else score_words(forms, self.null.word_LK)

    def rank_forms(self, forms: Forms, top: int, null_BL: np.ndarray | None):
        """`rank` of quadratic forms, which keeps how far it has come."""
        candidates = self.candidates
        identity = json.dumps([candidates.code.to_dict(), candidates.sets, top, forms.root])
        null = np.empty(0) if null_BL is None else null_BL
        ids = np.empty(0) if candidates.ids is None else candidates.ids
        return self.rank(
            functools.partial(self.form_scores, forms), top, null_BL, (identity, forms.matrix_BKK, null, ids)
        )

    def rank(self, scores, top: int, null_BL: np.ndarray | None, of: tuple | None = None):
        """The best ``top`` of a stream of scores, and the calibration of all of them.

        Args:
            scores: the stream from a given number on.
            top: how many.
            null_BL: influences of the null.
            of: what decides the scores, to keep how far they have come; None to begin anew after an interruption.
        """
        best = Top(self.B, top)
        check_finite(null_BL)
        calibration = self.calibration(null_BL)
        kind_N = None if calibration is None else self.candidates.kinds()
        first = 0
        if of is not None and (found := self.kept.last("rank", *of)) is not None:
            first, best.scores_BT, best.index_BT = int(found["first"]), found["scores_BT"], found["index_BT"]
            if calibration is not None:
                calibration.restore(found)

        for start, score_BM in scores(first):
            check_finite(score_BM)
            best.update(start, score_BM)
            if calibration is not None:
                kind_M = None if kind_N is None else kind_N[start : start + score_BM.shape[1]]
                calibration.count(score_BM, None if kind_M is None else np.broadcast_to(kind_M, score_BM.shape))
            if of is not None:
                state = {"first": np.asarray(start + score_BM.shape[1])} | vars(best)
                self.kept.snapshot(state | (calibration.state() if calibration is not None else {}), "rank", *of)
        return best.index_BT, best.scores_BT, None if calibration is None else (calibration, null_BL)

    def calibration(self, null_BL: np.ndarray | None) -> Calibration | None:
        """p- and q-values against the influences of the null, where there are some."""
        return None if self.null is None or null_BL is None else Calibration(null_BL, self.null.kind_L)

    def verify(self, best_BV: Int[np.ndarray, "B V"], top: int, candidates: int):
        """Exact influences of the screened candidates, and the best of them; all others count as p = 1."""
        B, V = best_BV.shape
        exact_BV = self.exact(self.candidates.words(best_BV.reshape(-1)), np.repeat(np.arange(B), V)).reshape(B, V)
        check_finite(exact_BV)
        order = np.lexsort((best_BV, -exact_BV), axis=1)[:, :top]
        index_BT, influence_BT = (np.take_along_axis(a, order, axis=1) for a in (best_BV, exact_BV))
        null_BL = None if self.null is None else self.exact_rows(self.null.word_LK)
        check_finite(null_BL)
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
