"""Saved pipelines of Stable Diffusion: the network, its noise levels, the autoencoder and the text encoder together."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ensdiff.diffusion.schedule import Schedule
from ensdiff.files.reading import read_object
from ensdiff.interop.schedulers import read_schedule
from ensdiff.interop.text import TextEncoder, text_encoder
from ensdiff.interop.unet2d import height_and_width
from ensdiff.interop.unets import load_unet
from ensdiff.interop.vae import Autoencoder, vae
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.space import Latents
from ensdiff.models.unet import UNetConfig
from ensdiff.typing import Params

INDEX = "model_index.json"
PARTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
"""The parts that a pipeline must have, besides the scheduler, and their classes."""
IGNORED = {
    "safety_checker": "the safety checker is not used: pictures are not filtered",
    "feature_extractor": None,  # of the safety checker
}
"""Parts that are left out, with the note about it."""
SETTINGS = ("requires_safety_checker",)


class Pipeline(NamedTuple):
    """The parts of a pipeline.

    Args:
        model: the U-Net, which takes as many tokens as the text encoder makes.
        params: the parameters of one member.
        schedule: the noise levels, and what the U-Net predicts.
        vae: the autoencoder, between pictures and latents.
        text: the text encoder, from prompts to token embeddings.
        image_shape: (H, W, C) of the latents that the U-Net was trained on.
        notes: what was left out, as sentences.
    """

    model: UNetConfig
    params: Params
    schedule: Schedule
    vae: Autoencoder
    text: TextEncoder
    image_shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    @property
    def space(self) -> Latents:
        """The space of the latents, which names the autoencoder."""
        return self.vae.space

    @property
    def condition(self) -> ConditionSpec:
        """What the U-Net is told: token embeddings, with that of the empty prompt for no condition."""
        taken = self.model.condition
        assert taken is not None
        return taken.with_null(self.text.null, self.text.describe())


def pipeline(
    directory: str | os.PathLike,
    *,
    dtype: Literal["float32", "bfloat16"] | str = "float32",
    device: str | None = None,
) -> Pipeline:
    """Open a pipeline that diffusers saved: a `StableDiffusionPipeline` of Stable Diffusion 1 or 2.

    Nothing is downloaded. The U-Net runs in JAX; the autoencoder and the text encoder run in PyTorch. Sampling settings
    of the scheduler are not read, because `ensdiff.sample` has its own. A safety checker is left out, and `notes` say
    so.

    Args:
        directory: the folder with ``model_index.json``.
        dtype: dtype of the parameters of the U-Net, as in `ensdiff.interop.diffusers.load_unet`.
        device: a device of PyTorch for the other two; by default ``"cuda"`` if there is one, or else ``"cpu"``.

    Raises:
        FileNotFoundError: a file does not exist.
        ImportError: torch, diffusers or transformers is not installed.
        ValueError: it is another kind of pipeline, it has parts that are not supported (such as a second text encoder,
            a ControlNet or an image encoder), or its parts do not fit together. The message names the part.
    """
    root = pathlib.Path(directory)
    notes = check_index(read_object(root / INDEX), str(root / INDEX))
    text = text_encoder(root, device=device)
    schedule = read_schedule(root / "scheduler" / "scheduler_config.json")
    model, params = load_unet(root / "unet", dtype=dtype, context_length=text.tokens)
    codec = vae(root / "vae", device=device)
    for what, one, other in (
        ("width of the text encoder's tokens and of those that the U-Net takes", text.width, model.context_width),
        ("number of channels of the autoencoder's latents and of those that the U-Net takes", codec.channels,
         model.image_channels),
    ):  # fmt: skip
        if one != other:
            raise ValueError(f"{root}: the {what} differ: {one} and {other}")
    size = read_object(root / "unet" / "config.json").get("sample_size")
    if size is None:
        raise ValueError(
            f"{root / 'unet' / 'config.json'} has no sample_size: expected height and width of the latents"
        )
    return Pipeline(model, params, schedule, codec, text, (*height_and_width(size), model.image_channels), notes)


def check_index(values: Mapping[str, Any], source: str = INDEX) -> tuple[str, ...]:
    """Check a ``model_index.json``, and return notes about the parts that are left out.

    Raises:
        ValueError: the pipeline is of another class, or a part is missing, of another class or not supported. The
            message names it.

    >>> check_index({"_class_name": "StableDiffusionXLPipeline"})
    Traceback (most recent call last):
    ValueError: model_index.json: _class_name='StableDiffusionXLPipeline' is not supported: expected ...
    """
    name = values.get("_class_name")
    if name != "StableDiffusionPipeline":
        why = " (SDXL has two text encoders)" if "XL" in str(name) else ""
        raise ValueError(f"{source}: _class_name={name!r} is not supported: expected 'StableDiffusionPipeline'{why}")
    parts = {part: value for part, value in values.items() if not part.startswith("_") and part not in SETTINGS}
    present = {part: _class_of(value, part, source) for part, value in parts.items()}
    present = {part: kind for part, kind in present.items() if kind is not None}
    for part, kinds in PARTS.items():
        if present.get(part) not in kinds:
            raise ValueError(f"{source}: {part}={present.get(part)!r} is not supported: expected {' or '.join(kinds)}")
    if "scheduler" not in present:
        raise ValueError(f"{source}: the pipeline has no scheduler: expected one")
    for part, kind in present.items():
        if part not in (*PARTS, *IGNORED, "scheduler"):
            raise ValueError(f"{source}: the part {part} ({kind}) is not supported: expected {', '.join(PARTS)}")
    return tuple(note for part, note in IGNORED.items() if part in present and note is not None)


def _class_of(value: Any, part: str, source: str) -> str | None:
    """Return the class of a part; None if the pipeline is without it."""
    if value is None or value == [None, None]:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{source}: {part}={value!r:.60}: expected its library and class, or null")
    return value[1]
