"""The run that the server shows: its sets of samples, and what is computed from them."""

import collections
import dataclasses
import io
import pathlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from .asking import LARGEST_PICTURE, MOST_SAMPLES, MOST_UNITS, Refused

MOST_SETS = 8
"""Most sets of samples that are kept. The first one always is."""
MOST_REMOVALS = 512
"""Most removals of a set of samples that are kept."""
MOST_BLOCKS = 256
"""Most blocks of units whose pictures are kept."""
METHODS = ("loss", "d-trak", "trak", "das", "combined")
"""The methods that attribute a picture of the reader's own."""
DRAWS = 64
"""Draws of noise for the loss of a picture."""


@dataclasses.dataclass
class Shown:
    """A set of samples with its page.

    Args:
        exploration: the content of the page.
        html: the page.
        parts: JSON that the page loads on demand, by name.
        removals: what was computed of removals, by layer, sample and sorted unit ids; the latest last.
    """

    exploration: Any
    html: str
    parts: Mapping[str, str]
    removals: collections.OrderedDict[tuple[int, int, tuple[int, ...]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the server's computations come from.

    Args:
        run: the run directory.
        params: the ensemble.
        data: the training data.
        explore: returns the `Exploration` of samples.
        prompted: returns ``(cond, captions)`` for prompts and a number of samples, by the run's text encoder.
        picture: returns an image of the members' space for a decoded picture (H, W, C), uint8; None if it cannot be.
        grey: whether pictures are grey.
        side: the side of the pictures, in pixels.
        held_out: returns images that no member saw, for gradient methods of single items, or None.
        null: number of null ablations of a picture by loss, of held-out items or of random groups, or ``"auto"``.
        memory_budget: maximum bytes of activations per device.
    """

    run: pathlib.Path
    params: Any
    data: Any
    explore: Callable[[Any], Any]
    prompted: Callable[[list[str], int], tuple[Any, Any]]
    picture: Callable[[np.ndarray], np.ndarray] | None
    grey: bool
    side: int
    held_out: Callable[[], Any]
    null: int | Literal["auto", "all"]
    memory_budget: int | None = None


class Session:
    """What the server computes. Methods that compute run in the worker's thread; the others may run in any."""

    def __init__(self, source: Source, exploration: Any) -> None:
        self.source = source
        self._lock = threading.Lock()
        self._sets: collections.OrderedDict[int, Shown] = collections.OrderedDict()
        self._blocks: collections.OrderedDict[tuple[int, int], str] = collections.OrderedDict()
        self._next = 0
        self._keep(exploration, seed=0)

    # what is known at once

    def shown(self, values: Mapping[str, Any]) -> Shown:
        """Return the set of samples that a request is about.

        Raises:
            Refused: there is no such set.
        """
        from . import asking

        chosen = asking.whole(values, "set", 0, 2**31 - 1, default=0)
        with self._lock:
            found = self._sets.get(chosen)
        if found is None:
            raise Refused(404, f"There is no set {chosen} of samples, or it was replaced by later ones: draw it again.")
        return found

    def part(self, values: Mapping[str, Any], name: str) -> str:
        """Return JSON that a page loads on demand.

        Raises:
            Refused: there is no such part.
        """
        from ensdiff.report.explorer.live import live_units

        found = self.shown(values)
        if name in found.parts:
            return found.parts[name]
        kind, *numbers = name.split("-")
        if kind == "units" and len(numbers) == 2 and all(text.isascii() and text.isdigit() for text in numbers):
            key = int(numbers[0][:9]), int(numbers[1][:9])
            if key in self._blocks:
                return self._blocks[key]
            try:
                block = live_units(found.exploration, *key)
            except KeyError:
                pass
            else:
                _add(self._blocks, key, block, MOST_BLOCKS)
                return block
        raise Refused(404, "The page has no such part.")

    def layer(self, found: Shown, values: Mapping[str, Any]) -> tuple[int, Any]:
        """Return the number of the layer that a request is about, and the layer."""
        from . import asking

        layers = found.exploration.layers
        chosen = asking.whole(values, "layer", 0, len(layers) - 1, default=0)
        return chosen, layers[chosen]

    def units(self, layer: Any, given: list[int | str]) -> list[int]:
        """Return the sorted ids of units that are given by ids, and by texts that list ids or names.

        Raises:
            Refused: one does not exist, or a name fits several, whose ids the sentence lists.
        """
        from ensdiff.codes.choosing import choose
        from ensdiff.codes.unit_names import UnitNames

        count, found = layer.code.units, set[int]()
        for unit in given:
            if isinstance(unit, int):
                found.add(unit)
                continue
            try:
                entries = choose(unit, count, UnitNames.of(layer.data.unit_names), parts=True)
            except ValueError as error:
                raise Refused(400, str(error)) from None
            found.update(*entries)
        if len(found) > MOST_UNITS:
            raise Refused(400, f"There are {len(found)} units in the request: expected at most {MOST_UNITS}.")
        wrong = [unit for unit in found if not 0 <= unit < count]
        if wrong:
            raise Refused(400, f"There is no {layer.name} {wrong[0]}: expected ids from 0 to {count - 1}.")
        return sorted(found)

    def survivors(self, layer: Any, ids: list[int]) -> np.ndarray:
        """Return the weights of the members that survive a removal, (1, K).

        Raises:
            Refused: no member survives.
        """
        try:
            return layer.code.ablate([ids])
        except ValueError as error:
            raise Refused(400, str(error)) from None

    # what is computed

    def remove(self, found: Shown, number: int, sample: int, ids: list[int]) -> dict[str, Any]:
        """Return a sample without units: its picture, and how far it moved."""
        from ensdiff.ensemble.memory import Resources
        from ensdiff.metrics.arrays import distances
        from ensdiff.report.explorer.live import removal_data
        from ensdiff.sampling.sample import ablated

        key = number, sample, tuple(ids)
        if key not in found.removals:
            exploration = found.exploration
            samples, layer = exploration.samples, exploration.layers[number]
            weights_1K = self.survivors(layer, ids)
            resources = Resources(memory_budget=self.source.memory_budget)
            images = ablated(self.source.params, samples, weights_1K, np.array([sample]), resources)
            moved = distances(images, np.asarray(samples.images[sample])[None])
            data = removal_data(exploration, images[0], float(moved[0]))
            answer = {"ids": ids, "removal": data, "survivors": int(np.count_nonzero(weights_1K))}
            _add(found.removals, key, answer, MOST_REMOVALS)
        return found.removals[key]

    def draw(self, n: int, seed: int, cond: str | None, prompt: str | None, guidance: float | None) -> dict[str, int]:
        """Draw samples, remove their most influential units, and keep them as a new set; return its number."""
        import ensdiff

        given: dict[str, Any] = self._conditions(n, cond, prompt)
        if guidance is not None:
            given["guidance"] = guidance
        config = self._sets[0].exploration.samples.config
        samples = ensdiff.sample(self.source.params, seed, n, sampler=config, **given)
        return {"set": self._keep(self.source.explore(samples), seed)}

    def attribute(
        self, layer: Any, method: str, content: bytes, cond: str | None, prompt: str | None
    ) -> dict[str, Any]:
        """Return the attribution of a picture by loss or by gradients."""
        import ensdiff
        from ensdiff.data.pictures import decode_picture
        from ensdiff.report.explorer.live import attribution_data
        from ensdiff.report.explorer.scores import SHOWN

        source = self.source
        assert source.picture is not None
        picture = decode_picture(io.BytesIO(content), source.side, "L" if source.grey else "RGB").pixels
        top = min(SHOWN, layer.att.settings["candidates"])
        options: dict[str, Any] = {"null": source.null, "loss": ensdiff.LossConfig(draws=DRAWS)}
        if method != "loss":
            options |= self._gradients(layer)
        att = ensdiff.attribute(
            source.params,
            source.picture(picture)[None],
            method,
            top=top,
            code=layer.code,
            cond=self._conditions(1, cond or "none", prompt).get("cond"),
            level=layer.att.level,
            memory_budget=source.memory_budget,
            **options,
        )
        return attribution_data(layer, att, picture)

    def _gradients(self, layer: Any) -> dict[str, Any]:
        """Return the options of gradient methods: the data, stored gradients, and what single items compare with."""
        source = self.source
        found: dict[str, Any] = {"data": source.data}
        if (source.run / "gradients").is_dir():
            found["store"] = source.run / "gradients"
        if source.null and source.data.items == source.data.units == layer.code.units:
            held_out = source.held_out()
            found |= {"null": 0} if held_out is None else {"held_out": held_out}
        return found

    def _conditions(self, n: int, cond: str | None, prompt: str | None) -> dict[str, Any]:
        """Return the conditions of n samples as `ensdiff.sample` takes them."""
        from ..conditions import asked

        if prompt is not None:
            rows, captions = self.source.prompted([prompt], n)
            return {"cond": rows, "captions": captions}
        spec = self.source.params.condition
        return {} if spec is None else {"cond": asked(spec, cond, n).cond}

    def _keep(self, exploration: Any, seed: int) -> int:
        from ensdiff.report.explorer.live import Controls, live_page

        params = self.source.params
        number, self._next = self._next, self._next + 1
        controls = Controls(
            number,
            min(len(exploration.samples), MOST_SAMPLES),
            MOST_SAMPLES,
            min(seed + 1, 2**31 - 1),
            class_names(params.condition),
            takes_prompts(params.condition),
            METHODS if self.source.picture is not None else (),
            self.source.side,
        )
        html, parts = live_page(exploration, controls)
        with self._lock:
            self._sets[number] = Shown(exploration, html, parts, collections.OrderedDict())
            if len(self._sets) > MOST_SETS:
                del self._sets[sorted(self._sets)[1]]
        return number


def check_picture(content: bytes) -> None:
    """Refuse a file that is no picture, or one with too many pixels, before anything is decoded."""
    import warnings

    from PIL import Image

    from ensdiff.data.pictures import readable

    formats = readable().formats
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=formats) as picture:
                width, height = picture.size
    except Exception:
        raise Refused(400, f"The file is no picture that can be read: expected {', '.join(formats)}.") from None
    if width * height > LARGEST_PICTURE:
        raise Refused(
            413, f"The picture has {width:,} × {height:,} pixels: expected at most {LARGEST_PICTURE:,}; resize it."
        )


def class_names(spec: Any) -> tuple[str, ...] | None:
    """Return the names of the classes of a condition, or their numbers; None if it is not one class per image."""
    if spec is None or spec.in_turn(1) is None:
        return None
    (leaf,) = spec.leaves
    return leaf.names or tuple(map(str, range(leaf.classes)))


def takes_prompts(spec: Any) -> bool:
    """Return whether a condition is an embedding of text."""
    return spec is not None and len(spec.leaves) == 1 and spec.leaves[0].encoder is not None


def _add(kept: collections.OrderedDict, key: Any, value: Any, most: int) -> None:
    """Keep a value, and forget the oldest if there are more than ``most``."""
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)
