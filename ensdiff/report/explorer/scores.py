"""A second attribution beside the exact one: the same samples by a gradient method or by the members' losses."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdiff.attribution import Attribution
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.queries import other_conditions, same_queries
from ensdiff.attribution.scoring import GRADIENT_METHODS
from ensdiff.codes import Code
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.metrics.arrays import at_most
from ensdiff.report.wording import judgement_sentence, meaning, null_words
from ensdiff.sampling.sample import Samples

METHODS: tuple[str, ...] = ("combined", *(name for name in GRADIENT_METHODS if name != "combined"), "loss")
"""The methods whose scores can be shown, the preferred one first."""
SHOWN = 6
"""Maximum number of units shown per sample."""


def unfit_scores(params: Ensemble, samples: Samples, att: Attribution, code: Code) -> str | None:
    """Return why an attribution cannot be shown beside the exact one of these samples, or None if it can."""
    settings = att.settings
    if att.method not in METHODS or att.sets is not None:
        return (
            f"it is by {att.method!r}{' of sets' if att.sets else ''}; shown are single units by {', '.join(METHODS)}"
        )
    if len(att) != len(samples):
        return f"it is of {len(att)} samples, not {len(samples)}"
    if att.units.max() >= code.units or settings.get("candidates") != len(Candidates.of(code, None)):
        return f"it is of other units than these {code.units}"
    if "queries" not in settings:
        return "it does not record which images it is of: attribute them again"
    if not same_queries(settings["queries"], np.asarray(samples.images)):
        return "it is of other samples"
    if problem := other_conditions(settings, params, samples):
        return problem
    if settings.get("data", params.data_digest) != params.data_digest:
        return "it is of an ensemble that was trained on other data"
    return None


def scores_text(att: Attribution, name: str) -> dict[str, Any]:
    """Return what the page says about the scores of all samples.

    Args:
        att: the attribution.
        name: the singular name for one unit.
    """
    null = null_words(att)
    text = f"The number is {meaning(att)}."
    if null is not None:
        text += f" q compares it with {null}."
    return {
        "title": f"By {att.method}{' (posterior)' if att.method == 'combined' else ''}",
        "judgement": None if att.judgement is None else judgement_sentence(att.judgement),
        "meaning": f"Most influential of {att.settings['candidates']:,} {name}s. {text}",
    }


def scores_of_sample(att: Attribution, b: int, names: Sequence[str]) -> dict[str, Any]:
    """Return a sample's rows (unit, value with error, q) and verdict.

    Args:
        att: the attribution.
        b: the sample.
        names: the name of each row's unit.
    """
    rows = []
    for t, unit in enumerate(att.units[b, :SHOWN].tolist()):
        error = "" if att.standard_error is None else f" ± {att.standard_error[b, t]:.2g}"
        q = None if att.q_value is None else f"{att.q_value[b, t]:.2g}"
        rows.append([unit, f"{att.influence[b, t]:.3g}{error}", q])
    verdict = None
    if att.q_value is not None:
        found = int(at_most(att.q_value[b], att.level).sum())
        verdict = f"Unattributable at level {att.level:g}."
        if found:
            more = ", ..." if found > len(names) else ""
            verdict = f"Attributable to {', '.join(names[:found])}{more} at level {att.level:g}."
        elif att.limitation is not None:
            verdict += f" But {att.limitation}."
    return {"rows": rows, "verdict": verdict}
