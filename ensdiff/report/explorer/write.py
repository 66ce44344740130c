"""Writing the explorer's page: its data are JSON and small PNGs, in the page or, if large, in files beside it."""

import importlib.resources
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ensdiff.attribution import Attribution
from ensdiff.data.images import to_png
from ensdiff.data.viewing import Decode, viewer
from ensdiff.files.writing import make_folder, write_atomically
from ensdiff.metrics.arrays import at_most
from ensdiff.report.explorer.drawings import distribution, training
from ensdiff.report.explorer.layer import Layer
from ensdiff.report.explorer.scores import SHOWN, scores_of_sample, scores_text
from ensdiff.report.figures import data_uri
from ensdiff.report.page import render
from ensdiff.report.wording import measured
from ensdiff.sampling.sample import Samples

FIRST = 8
"""Number of units per sample that the page holds from the start. The others are loaded on demand."""
PICTURES = 4
"""Maximum number of training images shown per unit."""
THUMBNAIL = 64
"""Maximum side of training images in pixels; larger ones are scaled down."""
BLOCK = 256
"""Number of units whose training images are loaded together."""
View = Callable[[Any], np.ndarray]
INLINE = 3 * 2**20
"""Maximum bytes of on-demand data that are put into the page itself, which is then a single file."""


class Exploration(NamedTuple):
    """The content of a page.

    Args:
        title: its heading.
        samples: the samples.
        layers: one or two kinds of units.
        command: the start of a command that removes units from these samples. The page appends ``--remove=3,8``, and
            ``--groups`` if groups are removed.
        facts: pairs of a label and a value.
        metrics: the run's metrics, for the training curves.
        grids: PNGs of samples during training, by step.
        captions: a text for the condition of each sample (`ensdiff.sampling.captions.captions_of`), or None.
        decode: for latents, a function from latents (n, H, W, C) to pictures (n, h, w, c) in [0, 1].
    """

    title: str
    samples: Samples
    layers: Sequence[Layer]
    command: str
    facts: Sequence[tuple[str, str]] = ()
    metrics: Sequence[dict] = ()
    grids: Mapping[int, bytes] = {}
    captions: Sequence[str] | None = None
    decode: Decode | None = None


def write_explorer(path: str | os.PathLike, exploration: Exploration, *, inline: int = INLINE) -> pathlib.Path:
    """Write the page. On-demand data of more than ``inline`` bytes go into the folder ``<name>_files`` beside it.

    Names are escaped, nothing is fetched from a network, and the page is written completely or not at all.

    Args:
        path: the path of the page.
        exploration: the content of the page.
        inline: maximum bytes of on-demand data that are put into the page; 0 always writes files.

    Returns:
        The page's absolute path.

    Raises:
        ValueError: a layer or the captions are of other samples than the exploration, or ``decode`` is missing for
            latents.
    """
    path = pathlib.Path(path).resolve()
    lazy: dict[str, Any] = {}
    page = page_data(exploration, lazy)
    lazy |= unit_blocks(exploration)
    parts = {name: to_json(value) for name, value in lazy.items()}
    beside = sum(map(len, parts.values())) > inline
    folder = path.with_name(f"{path.stem}_files")
    page["folder"] = folder.name if beside else None
    text = {name: source(f"explorer.{name}") for name in ("css", "js")}
    html = to_html(exploration, page, parts={} if beside else parts, **text)
    make_folder(path.parent)
    if folder.is_dir():  # left by an earlier page
        shutil.rmtree(folder)
    if beside:
        folder.mkdir()
        for name, content in parts.items():
            (folder / f"{name}.js").write_text(f"explorer.loaded({to_json(name)}, {content});\n", encoding="ascii")
    write_atomically(path, html)
    return path


def source(name: str) -> str:
    """Return a style sheet or a script of the page."""
    return importlib.resources.files(__package__).joinpath(name).read_text("utf-8")


def to_html(exploration: Exploration, page: dict[str, Any], **values: Any) -> str:
    """Return the page for its JSON and further values of the template."""
    measure = measured(exploration.layers[0].att)
    return render("explorer/explorer.html.jinja", page=exploration, measure=measure, page_json=to_json(page), **values)


def to_json(value: Any) -> str:
    """Return JSON that is safe inside ``<script>``: ASCII only, without HTML's special characters."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(exploration: Exploration, lazy: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of the page, and put data that are only used on demand into ``lazy`` by name.

    The units' training images are left out of these (see `unit_blocks`).

    Raises:
        ValueError: a layer or the captions are of other samples than the exploration, or ``decode`` is missing for
            latents.
    """
    B = len(exploration.samples)
    for layer in exploration.layers:
        if not len(layer.att) == len(layer.landscape) == len(layer.sets) == B:
            raise ValueError(f"the layer of {layer.name}s is of {len(layer.att)} samples, the exploration of {B}")
    if exploration.captions is not None and len(exploration.captions) != B:
        raise ValueError(f"{len(exploration.captions)} captions for {B} samples: expected one for each")
    stored = np.asarray(exploration.samples.images)
    view = viewer(exploration.layers[0].data.space, exploration.decode)
    images = view(stored)
    return {
        "members": exploration.layers[0].code.members,
        "height": images.shape[1],
        "width": images.shape[2],
        "command": exploration.command,
        "block": BLOCK,
        "samples": [picture_uri(image) for image in images],
        "captions": None if exploration.captions is None else list(exploration.captions),
        "layers": [_layer(number, layer, stored, view, lazy) for number, layer in enumerate(exploration.layers)],
        "training": training(exploration.metrics) if exploration.metrics else None,
        "grids": [[step, data_uri(png)] for step, png in sorted(exploration.grids.items())],
    }


def unit_blocks(exploration: Exploration) -> dict[str, Any]:
    """Return the data of all units on the page, in blocks that are loaded together, by name."""
    view = viewer(exploration.layers[0].data.space, exploration.decode)
    out = {}
    for number, layer in enumerate(exploration.layers):
        listed = _listed(layer)
        for block in np.unique(listed // BLOCK):
            out[f"units-{number}-{block}"] = units_data(layer, listed[listed // BLOCK == block], view)
    return out


def _listed(layer: Layer) -> np.ndarray:
    """Return the ids of the units of a layer that are on the page."""
    return np.unique(np.concatenate([layer.landscape.units.ravel(), layer.att.units.ravel()]))


def _layer(number: int, layer: Layer, stored: np.ndarray, view: View, lazy: dict[str, Any]) -> dict[str, Any]:
    att, field = layer.att, layer.landscape
    B, T = att.units.shape
    first = min(FIRST, T)
    shown = np.unique(att.units[:, :first])
    if layer.scores is not None:
        shown = np.union1d(shown, layer.scores.units[:, :SHOWN])
    pictures_BT = view(layer.image_BTHWC)
    for b in range(B):
        if first < T:
            lazy[f"more-{number}-{b}"] = _rows(layer, b, slice(first, T), pictures_BT[b])
        lazy[f"landscape-{number}-{b}"] = {
            "units": field.units[b].tolist(),
            "influence": _numbers(field.influence[b]),
        }
    listed = _listed(layer)
    lazy[f"names-{number}"] = {"units": listed.tolist(), "names": [unit_name(layer, unit) for unit in listed.tolist()]}
    if layer.classes is not None:
        names = sorted(set(layer.classes), key=lambda name: (len(name), name))
        place = {name: i for i, name in enumerate(names)}
        lazy[f"classes-{number}"] = {"names": names, "of": [place[name] for name in layer.classes]}
    return {
        "name": layer.name,
        "count": layer.code.units,
        "candidates": att.settings["candidates"],
        "verified": att.units.shape[1],
        "exact": layer.exact,
        "whole": layer.whole,
        "kept": field.units.shape[1],
        "groups": layer.name == "group",
        "classes": layer.classes is not None,
        "level": att.level,
        "limitation": att.limitation,
        "scores": None if layer.scores is None else scores_text(layer.scores, layer.name),
        "units": units_data(layer, shown, view),
        "samples": [_sample(layer, b, first, stored[b], pictures_BT[b], view) for b in range(B)],
    }


def _sample(layer: Layer, b: int, first: int, stored: np.ndarray, pictures_T: np.ndarray, view: View) -> dict[str, Any]:
    att, field = layer.att, layer.landscape
    null = None if att.null_BL is None else att.null_BL[b]
    drawn = None if field.null_BL is None else field.null_BL[b]
    kind = f"{layer.name}s" if layer.exact else f"{layer.name}s, predicted"
    sets = layer.sets[b]
    without = view(np.stack([removal.image for removal in sets.values()])) if sets else ()
    return {
        "rows": _rows(layer, b, slice(0, first), pictures_T),
        "verdict": None if att.verdict is None else _verdict(layer, b),
        "radius": rounded(layer.radius_B[b]),
        "scale": rounded(np.linalg.norm(stored)),
        "null": None if null is None else [len(null), *_numbers(np.quantile(null, (0.5, 0.95, 1.0)))],
        "field_null": None if drawn is None else _numbers(np.quantile(drawn, (0.5, 0.95, 1.0))),
        "sets": {
            ",".join(map(str, units)): [rounded(removal.influence), picture_uri(picture)]
            for (units, removal), picture in zip(sets.items(), without, strict=True)
        },
        "scores": None if layer.scores is None else _scores(layer, layer.scores, b),
        "figure": distribution(field.influence[b], drawn, list(field.influence[b, :3]), kind),
    }


def _scores(layer: Layer, scores: Attribution, b: int) -> dict[str, Any]:
    return scores_of_sample(scores, b, [unit_name(layer, unit) for unit in scores.units[b, :SHOWN]])


def _verdict(layer: Layer, b: int) -> list[int]:
    """Return the units that a sample is attributed to."""
    att = layer.att
    assert att.q_value is not None
    return [int(unit) for unit in att.units[b, at_most(att.q_value[b], att.level)]]


def _rows(layer: Layer, b: int, part: slice, pictures_T: np.ndarray) -> list[list[Any]]:
    """Return rows of a sample's units: id, influence, p, q and the picture without the unit."""
    att = layer.att
    rows = []
    for t in range(*part.indices(att.units.shape[1])):
        p, q = (None if a is None else rounded(a[b, t]) for a in (att.p_value, att.q_value))
        rows.append([int(att.units[b, t]), rounded(att.influence[b, t]), p, q, picture_uri(pictures_T[t])])
    return rows


def units_data(layer: Layer, ids: np.ndarray, view: View) -> dict[str, list[Any]]:
    """Return by id each unit's name, class, code word, number of training images, and some images not deleted."""
    out = {}
    of_unit = [layer.data.pictures_of(unit)[:PICTURES] for unit in ids.tolist()]
    ends = np.cumsum([len(some) for some in of_unit])[:-1]
    pictures = np.split(view(np.concatenate(of_unit)), ends) if of_unit else []
    for unit, word, some in zip(ids.tolist(), layer.code.rows(ids), pictures, strict=True):
        out[str(unit)] = [
            unit_name(layer, unit),
            None if layer.classes is None else layer.classes[unit],
            "".join(map(str, word.tolist())),
            len(layer.data.items_of(unit)),
            [data_uri(to_png(image, most=THUMBNAIL)) for image in some],
        ]
    return out


def unit_name(layer: Layer, unit: int) -> str:
    """Return what the page calls a unit."""
    name = str(layer.data.unit_names[unit])
    return f"{layer.name} {name}" if name.isdigit() else name


def picture_uri(image: np.ndarray) -> str:
    """Return a picture as a data URI."""
    return data_uri(to_png(image))


def rounded(value: Any) -> float:
    """Round to six significant digits. The page shows three, so that double rounding does not change them."""
    return float(f"{float(value):.6g}")


def _numbers(values: np.ndarray) -> list[float]:
    return [rounded(value) for value in values]
