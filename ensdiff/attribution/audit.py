"""Audit: an estimate of what a screen missed, from units that it did not verify.

Screening ranks all N units by a prediction and verifies the m best exactly. The audit verifies a random sample of the
remaining N - m units, of size a. If tau is the influence of the last returned unit, and x of these a units exceed tau,
then about ``M = (N - m) x / a`` units were missed, and

(a1) ``recall = top / (top + M)`` is the share of the units with influence >= tau that the screen found.

Its interval follows from the interval of Clopper & Pearson (1934) for the proportion x / a. Samples are also pooled, as
if the proportion were the same in all of them: ``recall = B top / (B top + sum M)``.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution.calibration import TIE
from ensdiff.metrics.bootstrap import proportion


class Recall(NamedTuple):
    """A share and its confidence interval."""

    value: float
    low: float
    high: float


class Audit(NamedTuple):
    """The recall of a screen, estimated by a random audit of unverified candidates.

    Args:
        checked: number of audited candidates per sample.
        exceeding_B: number of audited candidates that exceed the last returned influence.
        recall_B: recall (a1) of each sample.
        low_B: lower end of its confidence interval.
        high_B: upper end of its confidence interval.
        pooled: recall of all samples together.
        confidence: confidence level of the intervals.
    """

    checked: int
    exceeding_B: Int[np.ndarray, " B"]
    recall_B: Float[np.ndarray, " B"]
    low_B: Float[np.ndarray, " B"]
    high_B: Float[np.ndarray, " B"]
    pooled: Recall
    confidence: float


def audit_recall(
    influence_BA: Float[np.ndarray, "B a"],
    least_B: Float[np.ndarray, " B"],
    outside: int,
    top: int,
    confidence: float = 0.95,
) -> Audit:
    """Return the recall (a1), from exact influences of ``a`` random unverified candidates per sample.

    Args:
        influence_BA: exact influences of the audited candidates.
        least_B: tau, the smallest returned influence of each sample.
        outside: N - m, the number of candidates that were not verified.
        top: candidates returned per sample.
        confidence: confidence level of the intervals.
    """
    B, checked = influence_BA.shape
    rounding_B = TIE * np.maximum(influence_BA.max(1, initial=0.0), least_B)
    exceeding_B = (influence_BA > (least_B + rounding_B)[:, None]).sum(1)
    rows = np.array([_recall(int(x), checked, outside, top, confidence) for x in exceeding_B])
    pooled = _recall(int(exceeding_B.sum()), B * checked, outside, top, confidence)
    return Audit(checked, exceeding_B, rows[:, 0], rows[:, 1], rows[:, 2], pooled, confidence)


def _recall(exceeding: int, checked: int, outside: int, top: int, confidence: float) -> Recall:
    if checked == 0 or outside == 0:
        return Recall(1.0, 1.0, 1.0) if outside == 0 else Recall(np.nan, 0.0, 1.0)
    missed = proportion(exceeding, checked, confidence)
    return Recall(*(top / (top + outside * part) for part in (missed.value, missed.high, missed.low)))
