"""Sentences of the report and of the explorer that explain the numbers of an attribution, by its method."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdiff.attribution import Attribution
from ensdiff.attribution.judging import Judgement
from ensdiff.attribution.measures import distance_words
from ensdiff.attribution.scoring import GRADIENT_METHODS
from ensdiff.metrics.arrays import at_most

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


def named_units(att: Attribution, b: int) -> list[int]:
    """Return the units among the top that the verdict names for one sample, most influential first."""
    assert att.q_value is not None
    return [int(unit) for unit in att.units[b, at_most(att.q_value[b], att.level)]]


def _name(att: Attribution, unit: int, names: Sequence[str]) -> str:
    """Return the name of a unit: as the attribution has it, with the id where names repeat, or else among names."""
    return names[unit] if att.names is None else att.label(unit)


def _joined(texts: Sequence[Any]) -> str:
    texts = [str(text) for text in texts]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def verdict_words(att: Attribution, b: int, names: Sequence[str]) -> str:
    """Return the verdict on one sample in a few words, with names of units.

    >>> att = ensdiff.attribute(params, samples, "differential", units=[3, 5], top=2, null=9, level=0.1)
    >>> verdict_words(att, 0, [f"artist {i}" for i in range(40)]).split(" artist ")[0]
    'no answer: the null is too small'
    """
    found, top = [_name(att, unit, names) for unit in named_units(att, b)], att.units.shape[1]
    every = (att.settings.get("attributed") or [len(found)] * len(att))[b]
    if every > len(found):
        return f"depends on {_joined([*found, f'{every - len(found)} more'])}"
    if len(found) > MOST_NAMED:
        return f"depends on {_joined([*found[:MOST_NAMED], f'{len(found) - MOST_NAMED} more'])}"
    if found:
        return f"depends on {_joined(found)}" + (" and perhaps more" if len(found) == top > 1 else "")
    if att.limitation is not None:
        return "no answer: the null is too small"
    assert att.q_value is not None
    return f"unattributable; first is {_name(att, int(att.units[b, 0]), names)}, q {att.q_value[b, 0]:.2g}"


def finding(att: Attribution, names: Sequence[str], noun: str = "unit", things: str = "samples") -> str:
    """Return one line on what was found in all samples, with what its q-values mean.

    Args:
        att: an attribution with a null.
        names: names of its units.
        noun: what its units are, such as "class".
        things: what was attributed, such as "samples".
    """
    assert att.q_value is not None
    B = len(att)
    named = [named_units(att, b) for b in range(B)]
    count, a = sum(bool(units) for units in named), "an" if noun[:1] in "aeio" else "a"
    every, top = att.settings.get("attributed") or [0] * B, att.units.shape[1]
    outside = [b for b in range(B) if every[b] and not named[b]]  # the most influential need not have the smallest p
    if not count and not outside:
        who = f"None of {B} {things} can" if B > 1 else f"The {things.removesuffix('s')} cannot"
        text = f"{who} be attributed to {a} {noun} at level {att.level:g}."
        return text if att.limitation is None else f"{text} {att.limitation[0].upper()}{att.limitation[1:]}."
    of_unit: dict[int, list[int]] = {}
    for b, units in enumerate(named):
        for unit in units[:1]:
            of_unit.setdefault(unit, []).append(b)
    order = sorted(of_unit, key=lambda unit: (-len(of_unit[unit]), unit))
    listed = [f"{_name(att, unit, names)} ({_those(things, of_unit[unit])})" for unit in order]
    shown = listed[:MOST_LISTED] + ([f"{len(listed) - MOST_LISTED} more"] if len(listed) > MOST_LISTED else [])
    said = [f"{count} of {B} {things} depend on {a} {noun} that can be named: {_joined(shown)}."] if count else []
    if outside:
        nouns = f"{noun}es" if noun.endswith("s") else f"{noun}s"
        said.append(
            f"{len(outside)} of {B} depend on {nouns} that are not among the top {top} ({_those(things, outside)})."
        )
    text = " ".join(said)
    more = sum(len(units) > 1 for units in named)
    text += f" {more} of them depend{'s' if more == 1 else ''} on others too." if more else ""
    if att.settings.get("q_among") == "call":
        return f"{text} That is at q <= {att.level:g} within all {B} together."
    text += f" That is at q <= {att.level:g} within each of the {things}"
    if att.q_value_of_call is None:
        return f"{text}."
    over = int(at_most(att.q_value_of_call, att.level).any(1).sum())
    return f"{text}; at q <= {att.level:g} within all {B} together, {over} of them."


def _those(things: str, places: Sequence[int]) -> str:
    """Return which of some things are meant, such as "samples 0 and 3"."""
    return f"{things if len(places) > 1 else things.removesuffix('s')} {_joined(places)}"


MOST_NAMED = 3
"""Most units that a verdict in a few words names."""
MOST_LISTED = 8
"""Most units that the line on all samples lists."""
