"""The explorer as a server shows it: the same page, with forms for what the server computes when asked.

The server gives the page at an address that ends with ``/``, and beside it ``source/NAME`` (`SOURCES`) and
``data/SET/NAME``, the parts that the page loads on demand. ``live.js`` documents the requests that it sends.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ensdiff.attribution import Attribution
from ensdiff.data.viewing import viewer
from ensdiff.report.explorer.layer import Layer
from ensdiff.report.explorer.scores import SHOWN, scores_of_sample, scores_text
from ensdiff.report.explorer.write import (
    Exploration,
    page_data,
    picture_uri,
    rounded,
    source,
    to_html,
    to_json,
    unit_name,
    units_data,
)

SOURCES = ("explorer.css", "explorer.js", "live.css", "live.js")
"""The style sheets and scripts of the page."""
BLOCK = 16
"""Number of units whose training images the server sends together."""


class Controls(NamedTuple):
    """What the page's forms offer.

    Args:
        number: the number of this set of samples, 0 for the first.
        samples: number of samples that are drawn unless the reader asks for another.
        most: maximum number of samples.
        seed: the next seed.
        classes: the names of the classes, for members conditioned on one class; None for others.
        prompts: whether members are conditioned on embeddings of text.
        methods: the methods that attribute a picture of the reader's own.
        side: the side of pictures that the members generate, in pixels.
    """

    number: int
    samples: int
    most: int
    seed: int
    classes: Sequence[str] | None
    prompts: bool
    methods: Sequence[str]
    side: int


class LivePage(NamedTuple):
    """The page as HTML, and the JSON of the parts that it loads on demand, by name."""

    html: str
    parts: Mapping[str, str]


def live_page(exploration: Exploration, controls: Controls) -> LivePage:
    """Return the page for a server.

    Args:
        exploration: the content of the page.
        controls: what the forms offer.

    Raises:
        ValueError: as for `ensdiff.report.explorer.write_explorer`.
    """
    lazy: dict[str, Any] = {}
    page = page_data(exploration, lazy) | {"block": BLOCK, "live": {"set": controls.number}}
    html = to_html(exploration, page, parts={}, live=controls)
    return LivePage(html, {name: to_json(value) for name, value in lazy.items()})


def live_source(name: str) -> str:
    """Return one of `SOURCES`.

    Raises:
        KeyError: it is none of these.

    >>> live_source("live.css").startswith(".")
    True
    """
    if name not in SOURCES:
        raise KeyError(name)
    return source(name)


def live_units(exploration: Exploration, layer: int, block: int) -> str:
    """Return the JSON of `BLOCK` neighbouring units: names, classes, code words and some training images.

    Raises:
        KeyError: there is no such layer or block.
    """
    layers = exploration.layers
    if not 0 <= layer < len(layers) or not 0 <= block * BLOCK < layers[layer].code.units:
        raise KeyError((layer, block))
    chosen = layers[layer]
    ids = np.arange(block * BLOCK, min((block + 1) * BLOCK, chosen.code.units))
    return to_json(units_data(chosen, ids, viewer(chosen.data.space, exploration.decode)))


def removal_data(exploration: Exploration, image: np.ndarray, influence: float) -> list[Any]:
    """Return what the page shows of a removal: how far the sample moved, and the picture.

    Args:
        exploration: the content of the page.
        image: (H, W, C) the sample without the units, pixels or latents.
        influence: the distance of the sample without the units to the sample.
    """
    view = viewer(exploration.layers[0].data.space, exploration.decode)
    return [rounded(influence), picture_uri(view(image[None])[0])]


def attribution_data(layer: Layer, att: Attribution, picture: np.ndarray) -> dict[str, Any]:
    """Return what the page shows of the attribution of one picture by loss or by gradients.

    Args:
        layer: the kind of units.
        att: the attribution.
        picture: (H, W, C) the picture as the members see it, uint8 or in [0, 1].
    """
    names = [unit_name(layer, unit) for unit in att.units[0, :SHOWN].tolist()]
    return {"picture": picture_uri(picture), **scores_text(att, layer.name), **scores_of_sample(att, 0, names)}
