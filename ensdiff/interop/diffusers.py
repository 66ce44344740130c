"""Reading and writing ensembles of `diffusers.UNet2DModel`.

counterfactualuniverses stores them as ``Shard{k}/pytorch_model.bin``. Its 50-step sampler is `SAMPLER` here, with a
(51, B, H, W, C) noise array: posterior variance on a strided chain, without clipping. Models that were trained
separately elsewhere also form an ensemble: pass their folders to `load`, with a code that states which member saw which
unit.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from ensdiff.codes import Code
from ensdiff.diffusion.samplers import SamplerConfig
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.checksums import DamagedError, read_sealed, write_sealed
from ensdiff.files.npy import read_npy
from ensdiff.files.reading import read_object, whole_number
from ensdiff.interop.matrices import read_code
from ensdiff.interop.tensors import CodeLike, Style, read_state_dict, stack, unstack, write_state_dict
from ensdiff.interop.unet2d import (
    height_and_width,
    model_options,
    read_schedule,
    scheduler_options,
    unet_config,
)
from ensdiff.models.unet import UNetConfig
from ensdiff.runs.description import describe, from_description
from ensdiff.runs.sums import all_sums
from ensdiff.settings import check_value

Format = Literal["safetensors", "bin"]
SAMPLER = SamplerConfig("ddpm", steps=50, clip=False)
FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin", "model.safetensors")
CONFIG, NOISE = "config.json", "scheduler_config.json"
DESCRIPTION, MATRIX = "ensdiff.json", "code.npy"
"""Files that `save` adds so that `load` can restore the code, schedule and network, and recognise the members."""
MATRIX_LIMIT = 2**28
"""Size in bytes of the largest code matrix that is written."""


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in checkpoints that diffusers wrote before version 0.15."""


def load(
    directory: str | os.PathLike | Sequence[str | os.PathLike],
    code: CodeLike = None,
    *,
    config: dict[str, Any] | None = None,
    image_size: int | None = None,
    schedule: Schedule | None = None,
) -> Ensemble:
    """Open an ensemble of `UNet2DModel` checkpoints.

    `ensdiff.interop.options` lists every field of the two kinds of configuration and how it is treated.

    Args:
        directory: a folder of ``Shard0``, ``Shard1``, ... with one checkpoint each, or the members' own folders (or
            files), in the order of the code's columns.
        code: the code, its (N, K) matrix (1 = trained on), or a file that holds one (see `read_code`). By default the
            code that `save` wrote to ``ensdiff.json`` (or, if that is missing, to ``code.npy``); the shards must then
            be those that `save` wrote, in their order. Without either file, unit k stands for member k's own data.
        config: `UNet2DModel`'s arguments, instead of every ``config.json``. Required if neither the folder nor every
            member has such a file.
        image_size: height and width, if the config has no ``sample_size``.
        schedule: the noise levels that the members were trained with, instead of every ``scheduler_config.json``.

    The noise schedule is read from the ``scheduler_config.json`` of each member (beside its weights, or in the
    ``scheduler`` folder of its pipeline) or of the folder. If none exists, it is the common default of diffusers and
    ensdiff. Sampling options of the scheduler are not read, because `ensdiff.sample` has its own settings.

    Returns:
        The ensemble.

    Raises:
        FileNotFoundError, ImportError, ValueError: see `ensdiff.interop.tensors`. The message names a field or value
            that ensdiff does not support, and the fields in which the networks or schedules of members differ.
        DamagedError: without ``code``, shards are not those that `save` wrote (the message names them), ``code.npy``
            holds another code than ``ensdiff.json``, or ``ensdiff.json`` was changed.
    """
    root = pathlib.Path(directory) if isinstance(directory, str | os.PathLike) else None
    members = _shards(root) if root is not None else [pathlib.Path(path) for path in directory]  # type: ignore[union-attr]
    if not members:
        raise ValueError("no checkpoint given: expected a folder of shards, or the members' folders or files")
    files = [_checkpoint(member) for member in members]
    unet, size = _common_config(root, files, config)
    size = image_size if image_size is not None else size
    if size is None:
        raise ValueError("the config has no sample_size: pass image_size=")
    found: list[tuple[str, Schedule]] = []
    digest, sums = None, None
    if root is not None and (root / DESCRIPTION).exists():
        text = read_sealed(root / DESCRIPTION)
        described = from_description(text, None)
        if code is None:
            _check_matrix(root, described.code)
            code, digest, sums = described.code, described.data_digest, text.get("sums")
        found.append((str(root / DESCRIPTION), described.schedule))
        if config is None:
            _same([(str(root / DESCRIPTION), unet_config(model_options(described))), (str(files[0].parent), unet)])
            unet = described.model
    elif code is None and root is not None and len(members) > 1 and (root / MATRIX).exists():
        code = read_code(root / MATRIX)
    schedule = _common_schedule(root, files, found) if schedule is None else schedule
    states = [_rename_old(read_state_dict(file)) for file in files]
    shape = (*height_and_width(size), unet.image_channels)
    params = stack(states, [str(f) for f in files], unet, _style(unet), shape, code, schedule=schedule)
    if sums is not None and root is not None:
        _check_members(root / DESCRIPTION, members, sums["params"], all_sums(params.params))
    return dataclasses.replace(params, data_digest=digest)


def save(
    params: Ensemble,
    directory: str | os.PathLike,
    *,
    format: Format | str = "safetensors",
) -> None:
    """Write every member as a `UNet2DModel` checkpoint that makes the same predictions.

    ``Shard{k}`` gets ``config.json`` and the weights: ``UNet2DModel.from_pretrained("DIR/Shard0")`` opens them. The
    folder of the shards also gets ``config.json``, ``scheduler_config.json`` (for `DDPMScheduler`), the code matrix as
    ``code.npy`` (up to 256 MiB) and ``ensdiff.json``, from which `load` reads the code, the network, the schedule, the
    digest of the training data and a checksum of each member.

    Args:
        params: the ensemble; its value range must be that of diffusers, [-1, 1].
        directory: a new or empty folder.
        format: ``"safetensors"``, or ``"bin"`` for ``pytorch_model.bin``, which counterfactualuniverses reads.

    Raises:
        FileExistsError: the folder is not empty.
        ImportError: the ``torch`` extra is not installed.
        ValueError: `UNet2DModel` cannot represent the U-Net. The message states what differs.
    """
    check_value("format", format, Format)
    options = model_options(params)
    root = pathlib.Path(directory)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} already holds files; choose a new folder")
    name = FILES[0] if format == "safetensors" else "pytorch_model.bin"
    text = json.dumps(options, indent=2) + "\n"
    for k, state in enumerate(state_dicts(params)):
        shard = root / f"Shard{k}"
        shard.mkdir(parents=True)
        write_state_dict(shard / name, state)
        (shard / CONFIG).write_text(text)
    (root / CONFIG).write_text(text)
    (root / NOISE).write_text(json.dumps(scheduler_options(params.schedule), indent=2) + "\n")
    if params.code.units * params.members <= MATRIX_LIMIT:
        np.save(root / MATRIX, params.code.matrix())
    written = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params.params)
    write_sealed(root / DESCRIPTION, describe(params) | {"sums": {"params": all_sums(written)}})


def state_dicts(params: Ensemble) -> Iterator[dict[str, np.ndarray]]:
    """Yield the parameters of every member under the names that `UNet2DModel` gives them, float32."""
    return unstack(params, _style(params.model))


def _check_matrix(root: pathlib.Path, code: Code) -> None:
    """Raise DamagedError if the matrix beside the description exists and holds another code."""
    file = root / MATRIX
    if code.units * code.members > MATRIX_LIMIT or not file.exists():
        return
    if not np.array_equal(read_npy(file), code.matrix()):
        raise DamagedError(
            f"{file} holds another code than {root / DESCRIPTION}: one of them was changed. Pass the correct one for "
            f"the shards, such as code={str(file)!r}"
        )


def _check_members(
    where: pathlib.Path, members: Sequence[pathlib.Path], expected: Sequence[str], found: Sequence[str]
) -> None:
    """Raise DamagedError if members are not those that `save` wrote, or are in another order."""
    different = [
        f"{path.name} holds what was {members[expected.index(now)].name}" if now in expected else f"{path.name} differs"
        for path, then, now in zip(members, expected, found, strict=True)
        if then != now
    ]
    if different:
        raise DamagedError(
            f"{where} describes other members: {'; '.join(different)}. Its code states which member saw which unit and "
            "may be wrong for these. Restore the shards, or pass code= for the members as they are"
        )


def _common_schedule(
    root: pathlib.Path | None, files: Sequence[pathlib.Path], found: list[tuple[str, Schedule]]
) -> Schedule:
    """Return the noise levels of all members, which must agree with those in ``found``; by default ``Schedule()``."""
    if root is not None and (root / NOISE).exists():
        found.append((str(root / NOISE), read_schedule(root / NOISE)))
    for_all, silent = bool(found), []
    for file in files:
        places = (file.with_name(NOISE), file.parent.parent / "scheduler" / NOISE)  # "scheduler": a pipeline's
        own = next((place for place in places if place.exists()), None)
        if own is None:
            silent.append(str(file))
        else:
            found.append((str(own), read_schedule(own)))
    if not found:
        return Schedule()
    _same(found)
    if silent and not for_all:
        raise ValueError(
            f"{found[0][0]} gives its member's noise levels, but there is no {NOISE} with "
            f"{', '.join(silent[:3])}: copy it there if these were trained with the same, or pass schedule="
        )
    return found[0][1]


def _same(found: Sequence[tuple[str, Any]]) -> None:
    """Raise ValueError if the settings of two files differ. The message names the files and the fields."""
    (first, one), *others = found
    for place, other in others:
        if other != one:
            old, new = dataclasses.asdict(one), dataclasses.asdict(other)
            differs = [f"{name}: {old[name]!r} and {new[name]!r}" for name in old if old[name] != new[name]]
            raise ValueError(
                f"{first} and {place} differ ({'; '.join(differs)}): members of one ensemble share one network and one "
                "noise schedule"
            )


def _shards(root: pathlib.Path) -> list[pathlib.Path]:
    shards = {}
    for path in sorted(root.glob("Shard*")):
        if match := re.fullmatch(r"Shard(\d+)", path.name):
            k = whole_number(match[1])
            if k is None:
                raise ValueError(
                    f"{path}: expected shards named Shard0, Shard1, ..., without leading zeros: rename it, or "
                    "pass a list of the members' folders"
                )
            shards[k] = path
    if not shards or sorted(shards) != list(range(len(shards))):
        raise FileNotFoundError(
            f"{root} holds shards {sorted(shards)}: expected folders Shard0, Shard1, ..., or a list of the "
            "members' folders"
        )
    return [shards[k] for k in sorted(shards)]


def _checkpoint(member: pathlib.Path) -> pathlib.Path:
    if member.is_file():
        return member
    places = [member / name for name in FILES] + [member / "unet" / name for name in FILES]  # "unet": a pipeline's
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise FileNotFoundError(f"{member} holds none of {', '.join(FILES)}")
    return found


def _common_config(
    root: pathlib.Path | None, files: Sequence[pathlib.Path], given: Mapping[str, Any] | None
) -> tuple[UNetConfig, Any]:
    """Return the configuration that all members share, and their image size."""
    if given is not None:
        return unet_config(given), given.get("sample_size")
    shared = root / CONFIG if root is not None and (root / CONFIG).exists() else None
    places = [] if shared is None else [shared]
    for file in files:
        own = file.with_name(CONFIG)
        if own.exists():
            places.append(own)
        elif shared is None:
            raise FileNotFoundError(f"no {CONFIG} beside {file}: pass config=, UNet2DModel's arguments")
    contents = [read_object(place) for place in places]
    configs = [unet_config(content, str(place)) for place, content in zip(places, contents, strict=True)]
    _same([(str(place), config) for place, config in zip(places, configs, strict=True)])
    sizes = [content.get("sample_size") for content in contents]
    for place, size in zip(places, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(f"{places[0]} and {place} differ (sample_size: {sizes[0]!r} and {size!r})")
    return configs[0], sizes[0]


def _rename_old(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    old = re.compile(rf"(attentions\.[^.]*\.)({'|'.join(OLD_ATTENTION)})\.")
    return {old.sub(lambda m: f"{m[1]}{OLD_ATTENTION[m[2]]}.", name): value for name, value in state.items()}


def _style(config: UNetConfig) -> Style:
    last = len(config.multipliers) - 1

    def place(kind: str, level: int) -> str:
        return {"down": f"down_blocks.{level}", "middle": "mid_block", "up": f"up_blocks.{last - level}"}[kind]

    return Style(
        head="conv_in",
        time=("time_embedding.linear_1", "time_embedding.linear_2"),
        tail=("conv_norm_out", "conv_out"),
        block=lambda kind, level, index: f"{place(kind, level)}.resnets.{index}",
        sample=lambda kind, level: f"{place(kind, level)}.{kind}samplers.0.conv",
        attention=lambda kind, level, index: f"{place(kind, level)}.attentions.{index}",
        in_block={
            "norm1": "norm1",
            "conv1": "conv1",
            "time": "time_emb_proj",
            "norm2": "norm2",
            "conv2": "conv2",
            "skip": "conv_shortcut",
        },
        in_attention={"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
    )
