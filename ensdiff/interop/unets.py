"""A U-Net of diffusers alone, without an ensemble: the frozen base of adapters, for example."""

import json
import os
import pathlib
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ensdiff.codes import Code
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.reading import read_object
from ensdiff.interop.networks import model_options, naming, part_of, read_config, state_dicts, with_context
from ensdiff.interop.tensors import member, names, write_state_dict
from ensdiff.interop.unet2d import height_and_width
from ensdiff.interop.weights import FILES, find_weights, read_weights
from ensdiff.models.denoiser import initial_shapes
from ensdiff.models.space import Latents
from ensdiff.models.unet import UNetConfig
from ensdiff.settings import check_value
from ensdiff.typing import Params

CONFIG = "config.json"


class LoadedUNet(NamedTuple):
    """A U-Net and the parameters of one member."""

    model: UNetConfig
    params: Params


def load_unet(
    directory: str | os.PathLike,
    *,
    variant: str | None = None,
    dtype: Literal["float32", "bfloat16"] | str = "float32",
    context_length: int | None = None,
) -> LoadedUNet:
    """Open a `UNet2DConditionModel`, the U-Net of Stable Diffusion 1 and 2, or a `UNet2DModel`.

    Args:
        directory: the folder with ``config.json`` and the weights, or that of a pipeline with a folder ``unet``. The
            weights may be in one file, or in several with an index.
        variant: which weights, such as ``"fp16"``; by default those without a name, or the only ones.
        dtype: dtype of the parameters. They are converted from that of the file. A network computes in its own
            ``compute_dtype`` anyway: bfloat16 halves the memory of parameters and rounds them to 8 significant bits.
        context_length: the number of tokens of each image, which the files do not say; by default 77.

    Returns:
        The network, computing in float32, and the parameters of one member, for `Denoiser.apply`.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `ensdiff.interop.diffusers.load`. The message names a field of
            the configuration that is not supported, or the tensor that does not fit.
    """
    check_value("dtype", dtype, Literal["float32", "bfloat16"])
    root = pathlib.Path(directory)
    folders = [folder for folder in (root, root / "unet") if (folder / CONFIG).is_file()]
    if not folders:
        raise FileNotFoundError(f"{root} holds no {CONFIG}, and no folder unet that does")
    model: Any = read_config(read_object(folders[0] / CONFIG), str(folders[0] / CONFIG))
    if not isinstance(model, UNetConfig):
        raise ValueError(f"{folders[0]} holds no U-Net, but a network for {type(model).__name__}")
    if context_length is not None:
        model = with_context(model, context_length)
    file = find_weights(folders[:1], variant)
    shapes = initial_shapes(model)
    table, leaves = names(naming(model), shapes), flatten_dict(shapes)
    state = part_of(model).incoming(read_weights(file), model, str(file))
    found = member(state, str(file), model, table, {path: leaf.shape for path, leaf in leaves.items()})
    return LoadedUNet(model, unflatten_dict({path: jnp.asarray(value, dtype) for path, value in found.items()}))


def save_unet(
    model: UNetConfig, params: Params, directory: str | os.PathLike, *, image_size: int | tuple[int, int] | None = None
) -> None:
    """Write a U-Net as diffusers' class does, so that its ``from_pretrained`` opens it: the inverse of `load_unet`.

    Args:
        model: the network.
        params: the parameters of one member; they are written as float32.
        directory: a new or empty folder.
        image_size: height and width of images, for which the class keeps a default; None leaves it open.

    Raises:
        FileExistsError: the folder is not empty.
        ImportError: the ``torch`` extra is not installed.
        ValueError: the class cannot represent the network. The message states what differs.
    """
    root = pathlib.Path(directory)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} already holds files; choose a new folder")
    if not isinstance(model, UNetConfig):
        raise ValueError(f"expected a UNetConfig, got {model!r}")
    shape = (*height_and_width(1 if image_size is None else image_size), model.image_channels)
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[None], params)
    alone = Ensemble(stacked, Code.undivided(1), model, Schedule(), shape, Latents(), model.condition)
    options = model_options(alone)
    if image_size is None:
        del options["sample_size"]
    (state,) = state_dicts(alone)
    root.mkdir(parents=True, exist_ok=True)
    write_state_dict(root / FILES[0], state)
    (root / CONFIG).write_text(json.dumps(options, indent=2) + "\n")
