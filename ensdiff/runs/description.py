"""Descriptions: everything static about an ensemble, as the JSON-able values that a run and its checkpoints hold.

A description is in ``run.json`` and in every checkpoint. `from_description` reads one, `decided` reduces one to what
decides the parameters, and `foreign` compares two.
"""

import dataclasses
import hashlib
import math
import numbers
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ensdiff.codes import Code
from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.data.manifest import Manifest
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.checksums import DamagedError
from ensdiff.files.reading import read_bytes
from ensdiff.files.version import __version__
from ensdiff.models.unet import UNetConfig
from ensdiff.training.config import TrainConfig, decisive
from ensdiff.typing import Params

FORMAT = 3
"""Of a description. 1 had no checksums, and is read without them."""


def describe(params: Ensemble) -> dict[str, Any]:
    """Everything static about an ensemble, as JSON-able values; `from_description` reads it."""
    return {
        "format": FORMAT,
        "ensdiff": __version__,
        "model": dataclasses.asdict(params.model),
        "schedule": dataclasses.asdict(params.schedule),
        "code": params.code.to_dict(),
        "image_shape": list(params.image_shape),
        "value_range": list(params.value_range),
        **({} if params.data_digest is None else {"data": {"digest": params.data_digest}}),
    }


def from_description(text: Mapping[str, Any], params: Params) -> Ensemble:
    """An ensemble from `describe`'s values and a parameter pytree (or its shapes).

    Raises:
        ValueError: written by a newer version, or not what `describe` gives.
    """
    check_format(text)
    try:
        model: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in text["model"].items()}
        _check_origin(text.get("origin"))
        return Ensemble(
            params,
            Code.from_dict(text["code"]),
            UNetConfig(**model),
            Schedule(**text["schedule"]),
            _image_shape(text["image_shape"]),
            _value_range(text["value_range"]),
            _digest_of(text.get("data")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the description of an ensemble: {error!r}; expected what `describe` gives") from error


def _image_shape(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3 or not all(_is_whole(size) and size > 0 for size in value):
        raise ValueError(f"image_shape={value!r}: expected height, width and channels, three positive integers")
    return value[0], value[1], value[2]


def _value_range(value: Any) -> tuple[float, float]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(end, numbers.Real) and not isinstance(end, bool) and math.isfinite(end) for end in value)
        or not value[0] < value[1]
    ):
        raise ValueError(f"value_range={value!r}: expected the values of black and white, two finite ascending numbers")
    return value[0], value[1]


def _check_origin(origin: Any) -> None:
    """Raise ValueError unless it is None, of a trained run, or lists what forgetting kept and took."""
    if origin is None:
        return
    lists = [origin.get(name) for name in ("members", "forgotten")] if isinstance(origin, Mapping) else [None]
    if not all(isinstance(ids, list) and all(map(_is_whole, ids)) for ids in lists):
        raise ValueError(f"origin: expected lists of numbers called members and forgotten, found {str(origin)[:100]}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _digest_of(data: Any) -> str | None:
    """The digest of the training data in a description's section of them; versions of before had no digest."""
    digest = data.get("digest") if isinstance(data, Mapping) else None
    return digest if isinstance(digest, str) else None


def check_format(text: Mapping[str, Any]) -> None:
    """Raise ValueError unless this version reads a description's format."""
    found, version = text.get("format"), text.get("ensdiff", "unknown")
    if type(found) is int and 1 <= found <= FORMAT:
        return
    if type(found) is int and found > FORMAT:
        raise ValueError(
            f"this run was written by a newer ensdiff ({version}, format {found}); this is {__version__}, which reads "
            f"formats up to {FORMAT}. Upgrade: pip install --upgrade ensdiff"
        )
    raise ValueError(f"this run has format {found!r} (ensdiff {version}): expected 1 .. {FORMAT}; write the run again")


def read_manifest(run: pathlib.Path, description: Mapping[str, Any]) -> Manifest | None:
    """The manifest of a run's training data, compared with the digest in its description; None where it has none.

    Raises:
        DamagedError: it is another than the description says.
    """
    file = run / MANIFEST
    if not file.is_file():
        return None
    content = read_bytes(file)
    found, said = hashlib.sha256(content).hexdigest(), _digest_of(description.get("data"))
    if found != said:
        raise DamagedError(f"{file} is damaged: its SHA-256 is {found}, the run's description says {said}")
    try:
        return Manifest.from_bytes(content)
    except ValueError as error:
        raise DamagedError(f"{file} is damaged: {error}") from error


def decided(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the parameters at a step, of the description of a run or of a checkpoint.

    Fields that older versions did not write have their defaults, so that two versions' descriptions can be compared.

    Raises:
        ValueError: it is not what `describe` gives, or its training settings are none, or a newer version wrote it.
    """
    static = describe(from_description(text, None))
    train = text.get("train")
    try:
        settings = None if train is None else decisive(dataclasses.asdict(TrainConfig(**train)))
    except TypeError as error:
        raise ValueError(f"train: {error}; expected the fields of a TrainConfig") from error
    return {
        **{name: value for name, value in static.items() if name not in ("format", "ensdiff", "data")},
        "train": settings,
        "data": static.get("data", {}).get("digest"),
        "origin": text.get("origin"),
    }


class Difference(NamedTuple):
    """A field in which two JSON values differ.

    Args:
        name: where it is, such as ``train.seed`` or ``image_shape[0]``.
        one: what the first holds there, `MISSING` where it has no such field.
        other: what the second holds there.
    """

    name: str
    one: Any
    other: Any


MISSING: Any = type("Missing", (), {"__repr__": lambda self: "missing"})()


def differences(one: Any, other: Any, name: str = "", *, exact: bool = False) -> list[Difference]:
    """Return every field in which two JSON values differ.

    Args:
        one: a value.
        other: the other value.
        name: of both, before the names of their fields.
        exact: whether equal numbers of different types differ, such as 1 and 1.0.

    >>> differences({"train": {"seed": 0}, "steps": 4}, {"train": {"seed": 1}, "steps": 4})
    [Difference(name='train.seed', one=0, other=1)]
    """
    inside: Iterable[tuple[str, Any, Any]]
    if isinstance(one, dict) and isinstance(other, dict):
        inside = (
            (f"{name}.{key}" if name else str(key), one.get(key, MISSING), other.get(key, MISSING))
            for key in {**one, **other}
        )
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        inside = ((f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(one, other, strict=True)))
    else:
        same = one == other and (type(one) is type(other) or not exact)
        return [] if same else [Difference(name, one, other)]
    return [found for place, a, b in inside for found in differences(a, b, place, exact=exact)]


def brief(value: Any) -> str:
    """Return a value's repr for an error, of which the beginning is enough."""
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:70]}... ({len(text)} characters)"


def foreign(folder: pathlib.Path, text: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """Return how a checkpoint's description differs from that of its run, in words; nothing where it does not."""
    try:
        found = differences(decided(text), decided(said))
    except ValueError as error:
        return f"{folder} cannot be compared with run.json: {error}"
    if not found:
        return ""
    return f"{folder} is of another run than run.json says: other {', '.join(field.name for field in found)}"
