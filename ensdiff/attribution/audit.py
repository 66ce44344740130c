"""What a screen missed, estimated from units that it did not verify.

Screening ranks all N units by a prediction and verifies the m best exactly. Of the N - m others, a of them chosen at
random are verified too. With tau the influence of the last unit that is returned, x of the a exceed tau, so about
``M = (N - m) x / a`` units were missed, and

(a1) ``recall = top / (top + M)``: the share of the units with influence >= tau that the screen found,

with the interval that comes from Clopper & Pearson's (1934) for the proportion x / a. Samples are also pooled, as if
the proportion were the same in all: ``recall = B top / (B top + sum M)``.
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
    """What a random audit of unverified candidates says about a screen.

    Args:
        checked: candidates that were audited, a sample.
        exceeding_B: of these, how many exceed the last returned influence.
        recall_B: (a1) of each sample, and of its interval the ends.
        low_B: lower end.
        high_B: upper end.
        pooled: of all samples together.
        confidence: of the intervals.
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
    """Recall (a1) from the exact influences of a random unverified candidates of each sample.

    Args:
        influence_BA: exact influences of the audited candidates.
        least_B: tau, the smallest influence that is returned for each sample.
        outside: N - m, candidates that were not verified.
        top: candidates that are returned a sample.
        confidence: of the intervals.
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
