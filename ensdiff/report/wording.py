"""Sentences of the report and of the explorer that explain the numbers of an attribution, by its method."""

import numpy as np

from ensdiff.attribution import Attribution
from ensdiff.attribution.judging import Judgement
from ensdiff.attribution.measures import distance_words
from ensdiff.attribution.scoring import GRADIENT_METHODS

NULL_WORDS = {
    "ablations": "ablations by code words that no unit owns",
    "held-out": "held-out items, which no member saw",
    "groups": "random groups of as many items",
    "sets": "random sets of about as many items",
}
"""What the null of an attribution is, by its kind in the attribution's settings."""


def by_gradients(att: Attribution) -> bool:
    """Return whether an attribution is by a gradient method of the library."""
    return att.method in GRADIENT_METHODS and "chosen" in att.settings


def meaning(att: Attribution) -> str:
    """Return what the number of a unit is, as the end of a sentence that begins with "The number is"."""
    if not by_gradients(att):
        if att.distance == "loss":
            return "how much the image's loss rises if the members that saw the unit are dropped, ± its standard error"
        return "the distance that the sample moves without the unit"
    error = "posterior standard deviation" if att.method == "combined" else "standard error"
    scale = (
        "squared noise summed over pixels"
        if att.distance == "loss"
        else "in arbitrary units, because the members cannot tell the scale of these scores"
    )
    return f"how much the unit's presence in training lowers the image's loss for one model ({scale}), ± its {error}"


def measured(att: Attribution) -> str:
    """Return in which space the distances of an attribution are measured, such as "L2 over pixels in [0, 1]"."""
    return distance_words(att.distance)


def null_words(att: Attribution) -> str | None:
    """Return what the null is and its size, such as "99 held-out items, which no member saw"; None without a null."""
    if att.null_BL is None:
        return None
    return f"{att.null_BL.shape[1]:,} {NULL_WORDS[att.settings.get('null_kind', 'ablations')]}"


def judgement_sentence(judgement: Judgement) -> str:
    """Return the members' judgement as a sentence, followed by a warning if its interval reaches 0.

    >>> from ensdiff.metrics import Estimate
    >>> print(judgement_sentence(Judgement(Estimate(0.41, 0.36, 0.46), Estimate(1.2), None, (), 8, 16)))
    Held-out check: member-LDS 0.41 [0.36, 0.46] on these 8 samples by 16 members; 0 means that the scores do not \
predict what training on a unit changes.
    """
    value, low, high = judgement.lds
    interval = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
    those = "this sample" if judgement.queries == 1 else f"these {judgement.queries} samples"
    text = (
        f"Held-out check: member-LDS {value:.2f}{interval} on {those} by {judgement.members} members; 0 means that the "
        "scores do not predict what training on a unit changes."
    )
    if low > 0 or (not interval and value > 0):
        return text
    reach = "the interval is below 0" if high < 0 else "the interval reaches 0" if interval else "it is not above 0"
    return f"{text} Warning: {reach}, so these scores may say nothing about {those}."
