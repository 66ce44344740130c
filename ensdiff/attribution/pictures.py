"""The images that an attribution is about, checked, with the conditions that belong to them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from ensdiff.data import Dataset
from ensdiff.data.images import check_images
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.models.space import Pixels
from ensdiff.sampling.sample import Samples
from ensdiff.typing import Array, ArrayLike, unmasked


@functools.partial(jax.tree_util.register_dataclass, data_fields=["images", "cond"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images, generated or not, and their conditions.

    Args:
        images: (B, H, W, C): pixels in [0, 1], or uint8; or latents as the training data store them.
        cond: the condition tree of the images; None for unconditional members.
    """

    images: Shaped[ArrayLike, "B H W C"]
    cond: Any = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, items: Any) -> "Pictures":
        """Return some of the images."""
        return Pictures(self.images[items], jax.tree.map(lambda rows: rows[items], self.cond))


Given = Samples | Dataset | Pictures | ArrayLike
"""What functions accept as images: `Samples` and `Dataset` carry their conditions."""


def pictures_of(params: Ensemble, given: Given, cond: Any = None) -> Pictures:
    """Return images with their conditions, checked.

    Args:
        params: the ensemble.
        given: the result of `ensdiff.sample`, a data set, or an array of images (B, H, W, C).
        cond: the conditions of an array of images; None is no condition. `Samples` and data sets carry theirs.

    Raises:
        ValueError: the shape is not the ensemble's, pixels are outside of [0, 1] by more than rounding explains,
            latents are not finite, or the conditions are not those of the ensemble.
    """
    if isinstance(given, Pictures):
        return given
    if isinstance(given, Samples | Dataset):
        if cond is not None:
            raise ValueError(f"the {type(given).__name__.lower()} carry their own conditions: leave cond out")
        own = given.cond if isinstance(given, Samples) else given.condition
        images, cond = given.images, own
    else:
        images = given
    shape = tuple(params.image_shape)
    images = check_images(images, shape) if isinstance(params.space, Pixels) else _check_latents(images, shape)
    return Pictures(images, params.conditions(cond, len(images)))


def _check_latents(latents: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(unmasked(latents, "the latents"))
    if array.ndim != 4 or not len(array) or array.shape[1:] != shape or array.dtype.kind != "f":
        raise ValueError(
            f"the images have shape {array.shape} and dtype {array.dtype}: expected latents, floats of shape (B, "
            f"{', '.join(map(str, shape))}), channels last; encode pictures with the encoder of the training data"
        )
    if not np.isfinite(array).all():
        raise ValueError("the latents hold NaN or infinity: expected finite numbers")
    return array


def model_images(params: Ensemble, pictures: Pictures) -> Float[Array, "B H W C"]:
    """Return images in model space."""
    return params.space.to_model(jnp.asarray(pictures.images))
