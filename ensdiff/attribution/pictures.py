"""The images that an attribution is about, checked, with the conditions that belong to them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from ensdiff.data import Dataset
from ensdiff.data.conditions import describe_spec
from ensdiff.data.images import check_images
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.models.condition import Leaf, flatten, unflatten
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
        images, cond = given.images, given.cond if isinstance(given, Samples) else conditions_of(params, given)
    else:
        images = given
    shape = tuple(params.image_shape)
    images = check_images(images, shape) if isinstance(params.space, Pixels) else _check_latents(images, shape)
    return Pictures(images, params.conditions(cond, len(images)))


def conditions_of(params: Ensemble, data: Dataset) -> Any:
    """Return the conditions of a data set in the classes of the ensemble.

    Raises:
        ValueError: the data have other classes or arrays, or none although the ensemble is conditional.
    """
    ours, theirs = params.condition, data.condition_spec
    if ours == theirs:
        return data.condition
    what = ["none" if spec is None else describe_spec(spec) for spec in (theirs, ours)]
    if ours is not None and theirs is not None:
        pairs = zip(ours.leaves, theirs.leaves, strict=False)
        if len(ours.leaves) == len(theirs.leaves) and all(_same_but_names(*pair) for pair in pairs):
            return data.condition
        one, other = ours.leaves[0], theirs.leaves[0]
        if len(ours.leaves) == len(theirs.leaves) == 1 and one.path == other.path and one.names and other.names:
            names = unflatten({one.path: np.array(other.names)[flatten(data.condition)[other.path]]})
            return ours.check(names, data.items, null=False)
        what = [f"{words} ({', '.join(names)}, ...)" if names else words for words, names in (
            (what[0], (other.names or ())[:3]), (what[1], (one.names or ())[:3]),
        )]  # fmt: skip
    raise ValueError(f"the conditions of the data are {what[0]}, those of the ensemble {what[1]}: expected the same")


def _same_but_names(one: Leaf, other: Leaf) -> bool:
    """Return whether two arrays of conditions are alike, and do not contradict each other about names of classes."""
    alike = dataclasses.replace(one, names=None) == dataclasses.replace(other, names=None)
    return alike and (one.names is None or other.names is None or one.names == other.names)


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
