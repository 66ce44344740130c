"""The encoded ensemble: one stacked parameter pytree, and the weights of its members.

(2) ``eps_w(x, t) = sum_k w_k eps_k(x, t)``. The *factual* weights, with which samples are generated before anything is
    removed, are ``w_k = 1/K`` for every member k.

Equation (1) is in `ensdiff.diffusion.schedule`, (8) in `Combine`; `ensdiff.attribution` lists where the others are.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from ensdiff.codes import Code
from ensdiff.codes.choosing import ids_of_names
from ensdiff.codes.unit_names import UnitNames
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.digest import stacked_sums
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.describing import fingerprint_of
from ensdiff.models.parameters import digest_of
from ensdiff.models.space import PIXELS, Pixels, Space, space_to_dict
from ensdiff.settings import check_value
from ensdiff.typing import Params, unmasked

Combine = Literal["predictions", "parameters"]
"""What the generator is: ``"predictions"``, the weighted mean of the members' predictions (2); or ``"parameters"``, one
network with ``theta_w = theta_0 + s sum_k w_k (theta_k - theta_0)`` (8), which takes one prediction instead of K.
Members must share their start for that. The scale s is 1 by default. What members learned apart from each other cancels
in their mean, which is therefore shorter than each member's change, and an s somewhat above 1 can make better pictures
(docs/results.md). Ablation stays exact for any fixed s."""


def check_scale(scale: Any) -> float:
    """Return a scale of averaged changes (8), checked.

    Raises:
        ValueError: it is not a positive finite number.
    """
    check_value("scale", scale, float)
    if not scale > 0:
        raise ValueError(f"scale={scale!r}: expected a positive number; 1 is the mean of the members' changes")
    return float(scale)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "base"],
    meta_fields=[
        "code",
        "model",
        "schedule",
        "image_shape",
        "space",
        "condition",
        "data_digest",
        "combine",
        "scale",
        "base_digest",
        "unit_names",
    ],
)
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """K trained members, as a pytree whose array leaves are ``params`` and ``base``; everything else is static.

    Args:
        params: parameters of the networks; every leaf has a leading member axis of length K.
        code: which member trained on which unit.
        model: the network of one member, a `Denoiser` such as a `UNetConfig`.
        schedule: the process that the members were trained with, and what they predict.
        image_shape: (H, W, C).
        space: how stored values become numbers in model space: `Pixels` or `Latents`.
        condition: what the members are told about each image; None for unconditional members.
        data_digest: `Dataset.digest` of the training data, in hexadecimal digits; None if it is not known, for example
            for members that were trained elsewhere.
        base: the parameters that all members started from, without a member axis: the frozen base of adapted members
            (`ensdiff.models.adapted`), or the common start of others. None if there is none.
        combine: what the weights of members combine, see `Combine`.
        scale: the factor of the averaged changes with ``combine="parameters"``, see `Combine`.
        base_digest: SHA-256 of ``base`` (`ensdiff.models.parameters.digest_of`), also where only the description of an
            ensemble is known.
        unit_names: names of the units of ``code``, as the training data have them; None if they are not known or only
            number the units. They are for reading and choosing units (`names_of`): nothing that is computed depends on
            them.

    >>> params
    Ensemble(8 members, 40 units, 8x8x1 images, ... parameters per member)
    >>> {leaf.shape[0] for leaf in jax.tree.leaves(params.params)}
    {8}
    """

    params: Params
    code: Code
    model: Any  # a Denoiser
    schedule: Schedule
    image_shape: tuple[int, int, int]
    space: Space = PIXELS
    condition: ConditionSpec | None = None
    data_digest: str | None = None
    base: Params | None = None
    combine: Combine = "predictions"
    scale: float = 1.0
    base_digest: str | None = None
    unit_names: UnitNames | None = None

    @property
    def members(self) -> int:
        """K, the number of members."""
        return self.code.members

    @property
    def fingerprint(self) -> str:
        """A hash, 64 hexadecimal digits, of everything that determines a sample: all members' parameters and settings.

        It covers all bits of the parameters, in member order. The settings are those of the network (except how it is
        computed: ``conv``, ``stack``, ``precision``, ``attention``, ``remat``, ``dropout``), the schedule, the image
        shape, the space and the condition. For a network of your own, it covers its name and the names and shapes of
        its parameters, not what it computes. The code is not included: images and derivatives do not depend on
        it, and another code may be used to ask about other units. Devices, shards and processes have no influence. For
        parameters that are JAX arrays, whose values cannot change, the hash is computed only once. With several
        processes, all must ask for it together.

        >>> params.fingerprint == ensdiff.sample(params, 0, 1, steps=2).fingerprint
        True
        """
        found = self.__dict__.get("_fingerprint")
        if found is None:
            found = _fingerprint(self)
            if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self.params)):
                object.__setattr__(self, "_fingerprint", found)
        return found

    def candidate_code(self, code: Code | None = None) -> Code:
        """Return the code whose units are asked about: the ensemble's own, or the given one over the same members.

        Raises:
            ValueError: the code is for a different number of members.
        """
        code = self.code if code is None else code
        if code.members != self.members:
            raise ValueError(f"the code is for {code.members} members, the ensemble has {self.members}")
        return code

    def names_of(self, code: Code | None = None) -> UnitNames | None:
        """Return the names of a code's units: those in the code, or else, for the ensemble's own code, `unit_names`.

        None if they have no names, or names that only number them.

        >>> params.names_of() is None
        True
        """
        code = self.code if code is None else code
        known = self.unit_names
        own = known is not None and code == self.code and len(known) == code.units
        return UnitNames.of(code.names) or (known if own else None)

    def ids_of(self, units: Any, code: Code | None = None) -> Any:
        """Return units with every name replaced by its id (`ensdiff.codes.choosing.ids_of_names`).

        Args:
            units: ids, names, and collections of them.
            code: the code whose units they are; by default the ensemble's own.

        Raises:
            ValueError: a name does not exist or belongs to several units, or the units have no names.
        """
        return ids_of_names(units, self.names_of(code))

    def conditions(self, cond: Any, count: int) -> Any:
        """Return the conditions of ``count`` images as the members need them: a tree of NumPy arrays, or None.

        Args:
            cond: a condition tree with one row per image, or one row for all; for classes also their names. None
                stands for no condition.
            count: B.

        Raises:
            ValueError: the members are unconditional but conditions are given, or the conditions are not theirs.
        """
        if self.condition is None:
            if cond is not None:
                raise ValueError("a condition is given, but the members were trained without conditions: leave it out")
            return None
        return self.condition.null(count) if cond is None else self.condition.check(cond, count)

    def __repr__(self) -> str:
        try:
            size = sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(self.params))
            parameters = f"{size:,} parameters per member"
        except (AttributeError, TypeError):
            parameters = "abstract parameters"
        H, W, C = self.image_shape
        return f"Ensemble({self.members} members, {self.code.units} units, {H}x{W}x{C} images, {parameters})"


_COMPUTED = ("conv", "stack", "precision", "attention", "remat", "dropout")
"""Fields of `UNetConfig` that change the predictions of a trained network by the rounding of products of float32.

``precision`` is one of them, because its default already means something else on each device: an ensemble has one
fingerprint on a CPU and on a GPU that rounds factors to TF32. ``compute_dtype`` is not: it rounds everything that
layers pass on, on every device, and so it defines which function the members are."""


def _fingerprint(params: Ensemble) -> str:
    named = jax.tree.leaves_with_path(params.params)
    arrays = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in named]
    space: Any = params.space
    # in the form of older versions, so that samples that they made still belong to their ensemble
    model = _changed(fingerprint_of(params.model), _NEW_IN_MODELS)
    settings: list[Any] = [
        _as_defined(model),
        _changed(dataclasses.asdict(params.schedule), _NEW_IN_SCHEDULES),
        params.image_shape,
        (space.low, space.high) if isinstance(space, Pixels) else space_to_dict(space),
        arrays,
    ]
    if params.condition is not None:
        settings.append(params.condition.to_dict())
    if params.combine != "predictions":
        settings.append({"combine": params.combine, **({} if params.scale == 1 else {"scale": params.scale})})
    if params.base is not None:
        found = digest_of(params.base)
        if found != (params.base_digest or found) or found != getattr(params.model, "digest", found):
            raise ValueError(
                f"the base has digest {found[:12]}, and the ensemble was made with another one: give the base that the "
                "members adapt or started from, in its own dtype"
            )
        if params.combine == "parameters" and params.scale != 1:  # with 1, the start cancels in the mean
            settings.append({"base": found})
    state = hashlib.sha256(json.dumps(_as_floats(settings)).encode())
    for sums in stacked_sums([leaf for _, leaf in named]):
        state.update(hashlib.sha256(sums.astype("<u4").tobytes()).digest())
    return state.hexdigest()


def _as_defined(model: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a network, and of the base of an adapted one, without how they are computed."""
    own = {name: value for name, value in model.items() if name not in _COMPUTED}
    return {**own, "base": _as_defined(own["base"])} if isinstance(own.get("base"), dict) else own


def _changed(settings: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """Return settings without newer ones whose value means what older versions did without them."""
    return {name: value for name, value in settings.items() if name not in newer or newer[name] != value}


_NEW_IN_MODELS: dict[str, Any] = {"kind": "unet", "classes": None, "condition_width": None}
_NEW_IN_SCHEDULES: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Schedule)[3:]}


def _as_floats(value: Any) -> Any:
    """Return settings with every number as a float, so that 1, 1.0 and a NumPy scalar are the same setting."""
    if isinstance(value, dict):
        return {name: _as_floats(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_floats(entry) for entry in value]
    return value if value is None or isinstance(value, str | bool) else float(value)


WEIGHT_SUM = 1e-5
"""The largest allowed distance of a sum of weights from 1, many times the rounding error of float32."""


def member_weights(weights: Any, members: int, name: str = "weights") -> Float[np.ndarray, "*rows K"]:
    """Return member weights as (2) needs them: rows that sum to 1.

    Args:
        weights: (..., K). Booleans, and integers that are all 0 or 1, are masks of the members to keep, which get equal
            weights. Other numbers are used as weights; they may be negative.
        members: K.
        name: name of the argument, for error messages.

    Returns:
        Float64; each row sums to 1 within `WEIGHT_SUM`.

    Raises:
        ValueError: the shape is wrong, a number is not finite, a mask keeps no member, or weights do not sum to 1.

    >>> member_weights([True, False, True, False], 4).tolist()
    [0.5, 0.0, 0.5, 0.0]
    """
    given = np.asarray(unmasked(weights, name))
    try:
        values = given.astype(np.float64)
    except (TypeError, ValueError):
        values = np.full(given.shape, np.nan)
    if given.shape[-1:] != (members,) or not np.isfinite(values).all():
        raise ValueError(f"{name} has shape {given.shape}: expected {members} finite numbers, not all 0")
    total = values.sum(-1, keepdims=True)
    if given.dtype.kind == "b" or (given.dtype.kind in "iu" and np.isin(given, (0, 1)).all()):
        if not total.all():
            raise ValueError(f"{name} is a mask that keeps none of the {members} members: keep at least one")
        return values / total
    wrong = total[np.abs(total - 1) > WEIGHT_SUM]
    if len(wrong):
        raise ValueError(
            f"{name} sum to {wrong[0]:.6g}: expected 1 (within {WEIGHT_SUM:g}), so that predictions are averaged; give "
            f"{name} / {name}.sum(-1, keepdims=True), or a boolean mask of the members to keep"
        )
    return values
