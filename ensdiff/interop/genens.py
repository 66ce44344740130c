"""GenEns checkpoints (``*_split{k}_ckpt.pt``): the ensembles of arXiv 2306.02174.

Its sampler is `SAMPLER` here, with a (1001, B, H, W, C) noise array: 1,000 ancestral steps with variance
``alpha_t beta_t``, and no clipping before the end.
"""

import os
import pathlib
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ensdiff.diffusion.samplers import SamplerConfig
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.reading import whole_number
from ensdiff.interop.options import GENENS
from ensdiff.interop.tensors import CodeLike, Style, read_state_dict, stack
from ensdiff.models.blocks import timestep_embedding
from ensdiff.models.unet import UNetConfig

SAMPLER = SamplerConfig("ddpm", steps=1000, variance="alpha_beta", clip=False)
TABLE = "time_embedding.timembedding.0.weight"
"""The fixed table of sinusoids, which is not a parameter."""


def load(
    paths: Sequence[str | os.PathLike] | str | os.PathLike,
    code: CodeLike = None,
    *,
    image_size: int | None = None,
) -> Ensemble:
    """Open a GenEns ensemble.

    Args:
        paths: the members' files in the order of the code's columns, or a folder of ``*_split{k}_ckpt.pt``.
        code: the code, its (N, K) matrix (1 = trained on), or a file that holds one (see `read_code`). By default,
            unit k stands for member k's own data. The files of a folder must have the same name except for k.
        image_size: height and width; by default 28 for one channel (MNIST) and 32 for three (CIFAR-10).

    Returns:
        The ensemble.

    Raises:
        FileNotFoundError, ImportError, ValueError: see `ensdiff.interop.tensors`. ValueError is also raised if a
            checkpoint has an entry that `ensdiff.interop.options` does not list or another table of noise levels than
            GenEns's 1,000, or if a folder holds checkpoints of several epochs or runs (the message names two of them).
    """
    files = _files(paths)
    states = [read_state_dict(file, "model_state_dict", GENENS) for file in files]
    config = infer_config(states[0], str(files[0]))
    for state, file in zip(states, files, strict=True):
        _check_levels(state, config, file)
    size = image_size or (28 if config.image_channels == 1 else 32)
    style = _style(config)
    return stack(
        states, [str(f) for f in files], config, style, (size, size, config.image_channels), code, frozenset({TABLE})
    )


def _files(paths: Sequence[str | os.PathLike] | str | os.PathLike) -> list[pathlib.Path]:
    if isinstance(paths, (str, os.PathLike)):
        folder = pathlib.Path(paths)
        found: dict[int, pathlib.Path] = {}
        one = None
        for path in sorted(folder.glob("*_split*_ckpt.pt")):
            match = re.fullmatch(r"(.*)_split(.*?)_ckpt\.pt", path.name, re.DOTALL)
            assert match is not None
            k = whole_number(match[2])
            if k is None:
                raise ValueError(
                    f"{path}: split {match[2]!r} is not a number such as 0, 1, 2, ...: rename it, or pass a list"
                )
            one = one or (match[1], path)
            if match[1] != one[0]:
                raise ValueError(
                    f"{one[1]} and {path} are checkpoints of different epochs or runs: pass a list of the files of one "
                    "ensemble, in the order of the code's columns"
                )
            found[k] = path
        if sorted(found) != list(range(len(found))) or not found:
            raise FileNotFoundError(
                f"{folder} holds splits {sorted(found)} of *_split{{k}}_ckpt.pt: expected 0, 1, ..."
            )
        return [found[k] for k in sorted(found)]
    files = [pathlib.Path(path) for path in paths]
    if not files:
        raise ValueError("no checkpoint given")
    return files


def _check_levels(state: dict[str, np.ndarray], config: UNetConfig, file: pathlib.Path) -> None:
    """Check T and the layout of the time embedding by the table of sinusoids, the only entry that shows them."""
    levels = Schedule().timesteps
    found = state.get(TABLE)
    expected = np.asarray(timestep_embedding(jnp.arange(levels), config.channels, config.time_layout))
    if found is not None and (found.shape != expected.shape or not np.allclose(found, expected, atol=1e-3)):
        raise ValueError(
            f"{file}: {TABLE} has shape {found.shape}: expected the interleaved sinusoids of {levels} noise levels, "
            f"{expected.shape}; models with other noise levels are not supported"
        )


def infer_config(state: dict[str, np.ndarray], source: str) -> UNetConfig:
    """Return the U-Net configuration that these weights belong to."""
    try:
        channels, image_channels = state["head.weight"].shape[:2]
        levels: list[list[int]] = [[]]
        attention = set()
        index = 0
        while f"downblocks.{index}.main.weight" in state or f"downblocks.{index}.block1.2.weight" in state:
            if f"downblocks.{index}.main.weight" in state:
                levels.append([])
            else:
                levels[-1].append(state[f"downblocks.{index}.block1.2.weight"].shape[0])
                if f"downblocks.{index}.attn.proj.weight" in state:
                    attention.add(len(levels) - 1)
            index += 1
        return UNetConfig(
            image_channels=image_channels,
            channels=channels,
            multipliers=tuple(widths[0] / channels for widths in levels),
            blocks=len(levels[0]),
            attention_levels=tuple(sorted(attention)),
            norm_groups=32,
            time_layout="interleaved",
            dropout=0.1,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{source} is not a GenEns U-Net: {error!r}") from error


def _style(config: UNetConfig) -> Style:
    levels, blocks = len(config.multipliers), config.blocks

    def block(kind: str, level: int, index: int) -> str:
        if kind == "middle":
            return f"middleblocks.{index}"
        if kind == "down":
            return f"downblocks.{level * (blocks + 1) + index}"
        return f"upblocks.{(levels - 1 - level) * (blocks + 2) + index}"

    def sample(kind: str, level: int) -> str:
        return f"{block(kind, level, blocks if kind == 'down' else blocks + 1)}.main"

    return Style(
        head="head",
        time=("time_embedding.timembedding.1", "time_embedding.timembedding.3"),
        tail=("tail.0", "tail.2"),
        block=block,
        sample=sample,
        attention=lambda *place: f"{block(*place)}.attn",
        in_block={
            "norm1": "block1.0",
            "conv1": "block1.2",
            "time": "temb_proj.1",
            "norm2": "block2.0",
            "conv2": "block2.3",
            "skip": "shortcut",
        },
        in_attention={"norm": "group_norm", "query": "proj_q", "key": "proj_k", "value": "proj_v", "out": "proj"},
    )
