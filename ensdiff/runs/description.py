"""Descriptions: everything static about an ensemble, as the JSON-able values that a run and its checkpoints hold.

``run.json`` and every checkpoint hold a description. `from_description` reads one, `decided` reduces one to what
determines the parameters, and `foreign` compares two.
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
from ensdiff.ensemble.ensemble import Combine, Ensemble, check_scale
from ensdiff.files.checksums import DamagedError
from ensdiff.files.reading import read_bytes
from ensdiff.files.version import __version__
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import Denoiser
from ensdiff.models.describing import fingerprint_of, model_from_dict
from ensdiff.models.parameters import digest_of
from ensdiff.models.space import Pixels, space_from_dict, space_to_dict
from ensdiff.settings import check_value
from ensdiff.training.config import EXECUTED, TrainConfig, decisive
from ensdiff.typing import Params

FORMAT = 5
"""Format number of descriptions. Format 1 had no checksums, and is read without them. Formats up to 4 knew only pixels,
with a ``value_range`` instead of a space, and no conditions."""


def describe(params: Ensemble) -> dict[str, Any]:
    """Return everything static about an ensemble as JSON-able values, for `from_description`."""
    digest = params.base_digest
    if digest is None and params.base is not None:
        digest = digest_of(params.base)
    return {
        "format": FORMAT,
        "ensdiff": __version__,
        "model": params.model.text if isinstance(params.model, Undefined) else fingerprint_of(params.model),
        "schedule": dataclasses.asdict(params.schedule),
        "code": params.code.to_dict(),
        "image_shape": list(params.image_shape),
        "space": space_to_dict(params.space),
        **({} if params.condition is None else {"condition": params.condition.to_dict()}),
        **({} if params.data_digest is None else {"data": {"digest": params.data_digest}}),
        **({} if digest is None else {"base": digest}),
        **({} if params.combine == "predictions" else {"combine": params.combine}),
        **({} if params.scale == 1 else {"scale": params.scale}),
    }


def from_description(text: Mapping[str, Any], params: Params, model: Denoiser | None = None) -> Ensemble:
    """Return an ensemble from the values of `describe` and a parameter pytree (or its shapes).

    Args:
        text: the description.
        params: the parameters; None if only what is static matters.
        model: the network, if it is one of the caller's own; built-in networks are rebuilt from the description.
            Without ``params`` it may be left out: `Undefined` takes its place.

    Raises:
        ValueError: a newer version wrote the description, it is not one that `describe` returns, or the model is
            missing or another one.
    """
    check_format(text)
    try:
        _check_origin(text.get("origin"))
        found = text.get("condition")
        return Ensemble(
            params,
            Code.from_dict(text["code"]),
            _model(text["model"], model, needed=params is not None),
            Schedule(**text["schedule"]),
            _image_shape(text["image_shape"]),
            space_from_dict(text["space"]) if "space" in text else Pixels(*_value_range(text["value_range"])),
            None if found is None else ConditionSpec.from_dict(found),
            _digest_of(text.get("data")),
            combine=_combine(text.get("combine", "predictions")),
            scale=check_scale(text.get("scale", 1.0)),
            base_digest=text.get("base"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the description of an ensemble: {error!r}; expected what `describe` returns") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Undefined:
    """Stands for a network of the caller's own where only the description of a run was read.

    Args:
        text: the description of the network.
    """

    text: Mapping[str, Any]
    stack: int = 1

    def init(self, key: Any) -> Any:
        """Raise ValueError, because the network is not known."""
        raise ValueError(self.why)

    def apply(self, params: Any, x_BHWC: Any, t_B: Any, cond: Any = None, key_B: Any = None) -> Any:
        """Raise ValueError, because the network is not known."""
        raise ValueError(self.why)

    @property
    def why(self) -> str:
        """Why nothing can be computed, and what to do."""
        return (
            f"this run's network is one of your own ({self.text.get('name')}), which a run does not store: pass it as "
            "model=, for example ensdiff.load(run, model=mine). Programs cannot open such a run; use it from Python"
        )


def _model(text: Mapping[str, Any], model: Denoiser | None, needed: bool) -> Denoiser:
    inner = text.get("base") if isinstance(text, Mapping) and text.get("kind") == "adapted" else text
    own = isinstance(inner, Mapping) and inner.get("kind") == "own"
    return Undefined(text) if own and model is None and not needed else model_from_dict(text, model)


def _combine(value: Any) -> Combine:
    check_value("combine", value, Combine)
    found: Combine = value
    return found


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
    """Raise ValueError unless the origin is None (a trained run) or lists the members kept and the units forgotten."""
    if origin is None:
        return
    lists = [origin.get(name) for name in ("members", "forgotten")] if isinstance(origin, Mapping) else [None]
    if not all(isinstance(ids, list) and all(map(_is_whole, ids)) for ids in lists):
        raise ValueError(f"origin: expected lists of numbers called members and forgotten, found {str(origin)[:100]}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _digest_of(data: Any) -> str | None:
    """Return the digest of the training data from the data section of a description. Older versions had no digest."""
    digest = data.get("digest") if isinstance(data, Mapping) else None
    return digest if isinstance(digest, str) else None


def check_format(text: Mapping[str, Any]) -> None:
    """Raise ValueError unless this version can read a description's format."""
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
    """Return the manifest of a run's training data, compared with the digest in its description, or None without one.

    Raises:
        DamagedError: the manifest does not match the digest in the description.
    """
    file = run / MANIFEST
    if not file.is_file():
        return None
    content = read_bytes(file)
    found, said = hashlib.sha256(content).hexdigest(), _digest_of(description.get("data"))
    if found != said:
        raise DamagedError(f"{file} is damaged: its SHA-256 is {found}, but the run's description states {said}")
    try:
        return Manifest.from_bytes(content)
    except ValueError as error:
        raise DamagedError(f"{file} is damaged: {error}") from error


def decided(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's or checkpoint's description that determines the parameters at a step.

    Fields that older versions did not write get their defaults, so that descriptions of two versions can be compared.
    Settings that a run's executions record (`ensdiff.training.config.EXECUTED`) are left out.

    Raises:
        ValueError: it is not a description, its training settings are invalid, or a newer version wrote it.
    """
    static = describe(from_description(text, None))
    free = EXECUTED if static["model"].get("kind") == "unet" else ("stack",)
    train = text.get("train")
    try:
        settings = None if train is None else decisive(dataclasses.asdict(TrainConfig(**train)))
    except TypeError as error:
        raise ValueError(f"train: {error}; expected the fields of a TrainConfig") from error
    return {
        **{name: value for name, value in static.items() if name not in ("format", "ensdiff", "data")},
        "model": {name: value for name, value in static["model"].items() if name not in free},
        "train": settings,
        "data": static.get("data", {}).get("digest"),
        "origin": text.get("origin"),
    }


class Difference(NamedTuple):
    """A field in which two JSON values differ.

    Args:
        name: the path of the field, such as ``train.seed`` or ``image_shape[0]``.
        one: the first value of the field, or `MISSING` if the first has no such field.
        other: the second value of the field, or `MISSING`.
    """

    name: str
    one: Any
    other: Any


MISSING: Any = type("Missing", (), {"__repr__": lambda self: "missing"})()


def differences(one: Any, other: Any, name: str = "", *, exact: bool = False) -> list[Difference]:
    """Return every field in which two JSON values differ.

    Args:
        one: the first value.
        other: the second value.
        name: the path of both values, which precedes the names of their fields.
        exact: whether equal numbers of different types, such as 1 and 1.0, count as different.

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
    """Return a value's repr for an error message, shortened to its beginning if it is long."""
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:70]}... ({len(text)} characters)"


def foreign(folder: pathlib.Path, text: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """Describe how a checkpoint's description differs from that of its run, or return an empty string."""
    try:
        found = differences(decided(text), decided(said))
    except ValueError as error:
        return f"{folder} cannot be compared with run.json: {error}"
    if not found:
        return ""
    return f"{folder} belongs to another run than run.json, which differs in {', '.join(field.name for field in found)}"
