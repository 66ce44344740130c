"""The encoded ensemble: one stacked parameter pytree, and the weights of its members.

(2) ``eps_w(x, t) = sum_k w_k eps_k(x, t)``; the factual weights are ``w = 1/K``.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ensdiff.codes import Code
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.digest import stacked_sums
from ensdiff.models.unet import UNetConfig
from ensdiff.typing import Array, Params, unmasked


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["code", "model", "schedule", "image_shape", "value_range", "data_digest"],
)
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """K trained members, as a pytree whose array leaves are ``params``; everything else is static.

    Args:
        params: linen parameters of `UNet`; every leaf has a leading member axis of length K.
        code: which member trained on which unit.
        model: the U-Net of one member.
        schedule: the noise schedule (1) that the members were trained with.
        image_shape: (H, W, C).
        value_range: the model-space values of black and white; images in [0, 1] are scaled to it.
        data_digest: `Dataset.digest` of the training data, in hexadecimal digits; None if it is not known, for example
            for members that were trained elsewhere.

    >>> params
    Ensemble(8 members, 40 units, 8x8x1 images, ... parameters per member)
    >>> {leaf.shape[0] for leaf in jax.tree.leaves(params.params)}
    {8}
    """

    params: Params
    code: Code
    model: UNetConfig
    schedule: Schedule
    image_shape: tuple[int, int, int]
    value_range: tuple[float, float] = (-1.0, 1.0)
    data_digest: str | None = None

    @property
    def members(self) -> int:
        """K, the number of members."""
        return self.code.members

    @property
    def fingerprint(self) -> str:
        """A hash, 64 hexadecimal digits, of everything that determines a sample: all members' parameters and settings.

        It covers all bits of the parameters, in member order. The settings are those of the network (except how it is
        computed: ``conv``, ``stack``, ``precision``, ``attention``, ``remat``, ``dropout``), the schedule, the image
        shape and the value range. The code is not included: images, noise and derivatives do not depend on it, and
        another code may be used to ask about other units. Devices, shards and processes have no influence either. For
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

_CONDITION = ("classes", "condition_width")
"""Fields that a fingerprint leaves out if they are None: unconditional networks had fingerprints before the fields."""


def _fingerprint(params: Ensemble) -> str:
    model = {
        name: value
        for name, value in dataclasses.asdict(params.model).items()
        if name not in _COMPUTED and not (name in _CONDITION and value is None)
    }
    named = jax.tree.leaves_with_path(params.params)
    arrays = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in named]
    settings = [model, dataclasses.asdict(params.schedule), params.image_shape, params.value_range, arrays]
    state = hashlib.sha256(json.dumps(_as_floats(settings)).encode())
    for sums in stacked_sums([leaf for _, leaf in named]):
        state.update(hashlib.sha256(sums.astype("<u4").tobytes()).digest())
    return state.hexdigest()


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


def to_model(images: Array, value_range: tuple[float, float]) -> Float[Array, "..."]:
    """Convert images in [0, 1], or uint8, to model space, float32."""
    x = images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images.astype(jnp.float32)
    low, high = value_range
    return low + (high - low) * x


def to_images(x: Array, value_range: tuple[float, float]) -> Float[Array, "..."]:
    """Convert model space to images: clip to the value range, then scale to [0, 1]."""
    low, high = value_range
    return (jnp.clip(x, low, high) - low) / (high - low)
