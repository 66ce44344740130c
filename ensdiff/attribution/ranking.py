"""From scores to a ranking: scores of the null, best candidates of each sample, their verification, p- and q-values."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution.audit import Audit, audit_recall
from ensdiff.attribution.calibration import Calibration, Null
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.scoring import Inputs, Scoring, exact_of_pairs
from ensdiff.codes.permute import derive_key
from ensdiff.runs.pieces import Pieces


class Ranking(NamedTuple):
    """The most influential candidates of each sample, most influential first.

    Args:
        index_BT: the numbers of these candidates.
        score_BT: the scores of these candidates.
    """

    index_BT: Int[np.ndarray, "B T"]
    score_BT: Float[np.ndarray, "B T"]


class Significance(NamedTuple):
    """The significance of a ranking relative to the null; all fields are None without a null.

    Args:
        p_BT: p-values (n1).
        q_BT: q-values (n2) among the candidates of the same sample.
        call_q_BT: q-values (n2) among the candidates of all samples.
        null_BL: scores of the null ablations.
    """

    p_BT: Float[np.ndarray, "B T"] | None = None
    q_BT: Float[np.ndarray, "B T"] | None = None
    call_q_BT: Float[np.ndarray, "B T"] | None = None
    null_BL: Float[np.ndarray, "B L"] | None = None


class Top:
    """The highest scores of each sample so far, with candidate numbers; among equal scores the lower number wins."""

    def __init__(self, samples: int, top: int):
        self.scores_BT = np.full((samples, top), -np.inf)
        self.index_BT = np.full((samples, top), -1, np.int64)

    def update(self, start: int, scores_BM: Float[np.ndarray, "B M"]) -> None:
        """Add the scores of ablations ``start``, ``start + 1``, ..."""
        top = self.scores_BT.shape[1]
        for b, scores_M in enumerate(scores_BM):
            better = np.flatnonzero(scores_M > self.scores_BT[b, -1])
            if len(better) > top:
                cut = np.partition(scores_M[better], len(better) - top)[len(better) - top]
                better = better[scores_M[better] >= cut]
            scores = np.concatenate([self.scores_BT[b], scores_M[better]])
            index = np.concatenate([self.index_BT[b], start + better])
            best = np.lexsort((index, -scores))[:top]
            self.scores_BT[b], self.index_BT[b] = scores[best], index[best]


def calibrate(scoring: Scoring, null: Null | None) -> Calibration | None:
    """Score the null ablations like the candidates, and return their calibration; None without a null."""
    if null is None:
        return None
    null_BL = scoring.of_words(null.word_LK)
    _check_finite(null_BL)
    return Calibration(null_BL, null.kind_L)


def rank(scoring: Scoring, top: int, calibration: Calibration | None, kept: Pieces) -> Ranking:
    """Return the candidates with the highest scores, and count all candidates in the calibration.

    Args:
        scoring: the scoring of the candidates.
        top: candidates to return per sample.
        calibration: the calibration that counts all scores, or None.
        kept: the store of the progress, which is used if the scoring has an identity.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    best, first = Top(scoring.samples, top), 0
    key = None
    if scoring.identity is not None:
        key = ("ranking", *scoring.identity, top, np.empty(0) if calibration is None else calibration.null_BL)
        if (found := kept.last(*key)) is not None:
            first, best.scores_BT, best.index_BT = int(found["first"]), found["scores_BT"], found["index_BT"]
            if calibration is not None:
                calibration.restore(found)
    for start, score_BM in scoring.chunks(first):
        _check_finite(score_BM)
        best.update(start, score_BM)
        stop = start + score_BM.shape[1]
        if calibration is not None:
            calibration.count(score_BM, scoring.candidates.kinds_of(slice(start, stop)))
        if key is not None:
            counted = {} if calibration is None else calibration.state()
            kept.snapshot({"first": np.asarray(stop), **vars(best), **counted}, *key)
    return Ranking(best.index_BT, best.scores_BT)


def rank_shortlist(
    inputs: Inputs,
    candidates: Candidates,
    shortlist_BV: Int[np.ndarray, "B V"],
    top: int,
    calibration: Calibration | None,
) -> Ranking:
    """Rank each sample's shortlist by exact influence, and count all other candidates as p = 1.

    Raises:
        ValueError: an influence is NaN or infinite.
    """
    B, V = shortlist_BV.shape
    words_RK = candidates.words(shortlist_BV.reshape(-1))
    exact_BV = exact_of_pairs(inputs, words_RK, np.repeat(np.arange(B), V)).reshape(B, V)
    _check_finite(exact_BV)
    if calibration is not None:
        calibration.count(exact_BV, candidates.kinds_of(shortlist_BV))
        calibration.count_unknown(len(candidates) - V)
    order = np.lexsort((shortlist_BV, -exact_BV), axis=1)[:, :top]
    return Ranking(np.take_along_axis(shortlist_BV, order, axis=1), np.take_along_axis(exact_BV, order, axis=1))


def audit_shortlist(
    inputs: Inputs,
    candidates: Candidates,
    shortlist_BV: Int[np.ndarray, "B V"],
    ranking: Ranking,
    count: int,
    seed: int,
) -> Audit:
    """Estimate what a shortlist missed, from (at most) ``count`` random candidates per sample that are not on it."""
    B, outside = len(shortlist_BV), len(candidates) - shortlist_BV.shape[1]
    count = min(count, outside)
    chosen = []
    for b, shortlist in enumerate(shortlist_BV):
        rng = np.random.default_rng(derive_key(seed, 3, b))
        # positions of `count` candidates in the list of those that are not on the shortlist
        place = np.sort(rng.choice(outside, count, replace=False))
        for taken in np.sort(shortlist):
            place += place >= taken
        chosen.append(place)
    exact_BA = np.empty((B, 0))
    if count:
        words_RK = candidates.words(np.concatenate(chosen))
        exact_BA = exact_of_pairs(inputs, words_RK, np.repeat(np.arange(B), count)).reshape(B, count)
    return audit_recall(exact_BA, ranking.score_BT[:, -1], outside, ranking.score_BT.shape[1])


def significance(ranking: Ranking, candidates: Candidates, calibration: Calibration | None) -> Significance:
    """Return the p- and q-values of a ranking whose candidates the calibration has counted."""
    if calibration is None:
        return Significance()
    p_BT = calibration.p_values(ranking.score_BT, candidates.kinds_of(ranking.index_BT))
    q_BT, call_q_BT = calibration.q_values(p_BT), calibration.q_values(p_BT, of_call=True)
    return Significance(p_BT, q_BT, call_q_BT, calibration.null_BL)


def _check_finite(score_BM: np.ndarray) -> None:
    """Refuse scores that cannot be ranked.

    Raises:
        ValueError: a score is NaN or infinite; the message names the sample.
    """
    if not np.isfinite(score_BM).all():
        b = int(np.flatnonzero(~np.isfinite(score_BM).all(1))[0])
        raise ValueError(
            f"sample {b} has an influence that is NaN or infinite: check that the sample, its features and the "
            "parameters of the surviving members are finite"
        )
