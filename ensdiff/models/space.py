"""The space in which members work: how the stored values of an item become numbers in model space, and back.

Pixels are stored as uint8, or as floats in [0, 1]. Latents are stored as floats of any range and any number of
channels, and are never clipped. The numbers here are settings, never statistics of the training data: a mean over a
data set would let every unit influence every member.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ensdiff.settings import check_fields
from ensdiff.typing import Array


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images in [0, 1], scaled linearly to ``[low, high]``.

    Args:
        low: the value of black in model space.
        high: the value of white in model space.

    >>> Pixels().to_model(jnp.array([0, 255], jnp.uint8)).tolist()
    [-1.0, 1.0]
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}: expected the values of black and white, ascending")

    def to_model(self, images: Array) -> Float[Array, "..."]:
        """Convert images in [0, 1], or uint8, to model space, float32."""
        x = images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images.astype(jnp.float32)
        return self.low + (self.high - self.low) * x

    def to_images(self, x: Array) -> Float[Array, "..."]:
        """Convert model space to images: clip to ``[low, high]``, then scale to [0, 1]."""
        return (jnp.clip(x, self.low, self.high) - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class Latents:
    """Latents, shifted and scaled to model space: ``(z - mean) * scale``, with no clipping in either direction.

    Args:
        mean: one number for all channels, or one per channel.
        scale: one positive number for all channels, or one per channel; 0.18215 for the autoencoder of Stable
            Diffusion 1.
        encoder: a description of what made the latents, such as a digest of the encoder's weights; None if unknown.

    >>> space = Latents(mean=(1.0,), scale=(0.5,))
    >>> space.to_images(space.to_model(jnp.array([[3.0]]))).tolist()
    [[3.0]]
    """

    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    encoder: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.mean or not self.scale or not all(scale > 0 for scale in self.scale):
            raise ValueError(
                f"mean={self.mean}, scale={self.scale}: expected a number for all channels, or one per channel, and "
                "positive scales"
            )

    def check_channels(self, channels: int) -> None:
        """Raise ValueError unless there is one mean and one scale, or one per channel."""
        for name, values in (("mean", self.mean), ("scale", self.scale)):
            if len(values) not in (1, channels):
                raise ValueError(f"{name}={values}: expected one number, or one for each of the {channels} channels")

    def to_model(self, latents: Array) -> Float[Array, "..."]:
        """Convert stored latents, (..., C), to model space, float32."""
        return (latents.astype(jnp.float32) - _per_channel(self.mean, latents)) * _per_channel(self.scale, latents)

    def to_images(self, x: Array) -> Float[Array, "..."]:
        """Convert model space to latents as they are stored, float32."""
        return x / _per_channel(self.scale, x) + _per_channel(self.mean, x)


def _per_channel(values: tuple[float, ...], x: Array) -> np.ndarray:
    return np.asarray(values, np.float32).reshape((1,) * (x.ndim - 1) + (-1,))


Space = Pixels | Latents
PIXELS = Pixels()
"""Pixels in [-1, 1], the space of most models."""


def space_to_dict(space: Space) -> dict[str, Any]:
    """Return a space as JSON-able values, for `space_from_dict`."""
    return {"kind": type(space).__name__.lower(), **dataclasses.asdict(space)}


def space_from_dict(text: Mapping[str, Any]) -> Space:
    """Return the space that `space_to_dict` described.

    Raises:
        ValueError: it is not the description of a space.
    """
    try:
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in text.items()
        }
        kinds: dict[Any, Any] = {"pixels": Pixels, "latents": Latents}
        return kinds[fields.pop("kind")](**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"space={text!r}: expected the fields of Pixels or Latents, and their kind") from error
    except ValueError as error:
        raise ValueError(f"space: {error}") from error
