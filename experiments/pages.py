"""The figure and the page of an attribution, as experiments.attribute writes them."""

import pathlib
from typing import Any

import numpy as np

from . import decoding, facts, runs


def write_report(
    params: Any,
    data: Any,
    samples: Any,
    att: Any,
    stem: pathlib.Path,
    *,
    groups: bool = False,
    names: list[str] | None = None,
    cond: Any = None,
) -> None:
    """Write a figure, and an HTML page unless the attribution is to sets of units.

    Args:
        params: the ensemble.
        data: its training data.
        samples: samples, or pictures from elsewhere.
        att: their attribution.
        stem: the path of both files without suffix.
        groups: whether the attribution is to the groups of a hierarchical code.
        names: names of pictures from elsewhere; None for samples.
        cond: conditions of such pictures.
    """
    from ensdiff.report import Page, attribution_sections, finding, how_to_read, write_page

    code = params.code.group_code() if groups else params.code
    shown = data.regroup(params.code.group_of_unit()[data.unit_of_item], code.names) if groups else data
    pictures = samples if names is not None else np.asarray(samples.images)
    decode = decoding.decoder_of(params, pictures)
    if runs.is_writer():
        att.plot(pictures, shown, decode=decode).savefig(f"{stem}.png", dpi=120)
    print(f"figure: {stem}.png")
    if att.sets is not None:
        return
    sections = attribution_sections(
        params, data, samples, att, groups=groups, names=names, cond=cond, decode=decode, progress=True
    )
    if not runs.is_writer():
        return
    noun = "group" if groups else "training image" if data.units == data.items else "unit"
    things = "samples" if names is None else "pictures"
    told = [*facts.facts(params, data), *([] if names is not None else facts.sampler_facts(samples))]
    found = None if att.q_value is None else finding(att, shown.unit_names, noun, things)
    count = len(pictures)
    if names is None:
        title = f"What {count} sample{'' if count == 1 else 's'} of {data.name} depend{'s' if count == 1 else ''} on"
    else:
        title = f"What {names[0]} depends on" if count == 1 else f"What {count} pictures depend on"
    page = Page(title, how_to_read(att, generated=names is None), told, samples=sections, finding=found)
    print(f"report: {write_page(f'{stem}.html', page)}")
