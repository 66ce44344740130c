"""Facts about a run and its samples, which the reports show."""

import re
from typing import Any


def facts(params: Any, data: Any) -> list[tuple[str, str]]:
    """Return the facts about an ensemble for a report, as (name, value) pairs."""
    from ensdiff.data.conditions import describe_spec
    from ensdiff.models.space import Latents

    latents = isinstance(params.space, Latents)
    shares, weight = params.code.shares(), params.code.weight
    if weight is None:
        weights = sorted({int(n) for _, words in params.code.chunks() for n in words.sum(1)})
        weight = f"{weights[0]} to {weights[-1]}"
    return [
        (f"training {'latents' if latents else 'images'}", f"{data.items:,} of {'x'.join(map(str, data.shape))}"),
        ("training units", f"{data.units:,}"),
        ("members", f"{params.members}, each sees {shares.min():,} to {shares.max():,} units"),
        ("code word", f"{weight} of {params.members} members see a unit"),
        *([] if params.condition is None else [("condition", describe_spec(params.condition))]),
        *(
            [("encoder", re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1...", params.space.encoder or "unknown"))]
            if latents
            else []
        ),
    ]


def sampler_facts(samples: Any) -> list[tuple[str, str]]:
    """Return the facts about samples for a report, as (name, value) pairs."""
    found = [("sampler", f"{samples.config.sampler}, {samples.config.steps} steps")]
    return found if samples.cond is None else [*found, ("guidance", f"{samples.guidance:g}")]
