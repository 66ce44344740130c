"""Pictures from outside, which experiments.attribute scores by loss or by gradients."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from . import decoding
from .prompts import asked_for


class Outside(NamedTuple):
    """Pictures that no member generated, or their latents, with their names and conditions."""

    images: np.ndarray
    names: list[str]
    cond: Any


def outside_images(params: Any, folder: str) -> Outside:
    """Return the pictures of a folder, resized to the ensemble's image size and encoded if it works on latents.

    Raises:
        ValueError: the ensemble's images are not square, --cond does not fit, or the encoder of latents is not known.
    """
    from ensdiff.data.pictures import read_pictures
    from ensdiff.files.reading import printable
    from ensdiff.models.space import Latents

    H, W, C = params.image_shape
    if H != W:
        raise ValueError(
            f"--images crops to squares, but the ensemble makes {H}x{W} images: pass arrays to ensdiff.attribute"
        )
    codec = decoding.needed(params, "--images of a run on latents") if isinstance(params.space, Latents) else None
    grey = C == 1 if codec is None else codec.grey
    size = H if codec is None else H * codec.factor
    images, names = read_pictures(pathlib.Path(folder), size=size, mode="L" if grey else "RGB")
    print(
        f"{len(names)} picture{'' if len(names) == 1 else 's'}: "
        + ", ".join(f"{b} = {printable(name)}" for b, name in enumerate(names[:20]))
    )
    default = None if params.condition is None else "none"
    if default is not None and flags.FLAGS.cond is None and not flags.FLAGS.prompt:
        print("conditions: none (--cond=... names the class of each picture, or one for all; --prompt=... its caption)")
    cond = asked_for(params, len(images), default=default).cond
    return Outside(images if codec is None else np.asarray(codec.encode(images), np.float32), names, cond)
