"""Reading and writing ensembles of diffusers' networks: U-Nets, those of Stable Diffusion 1 and 2, and DiTs.

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
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from ensdiff.codes import Code
from ensdiff.diffusion.samplers import SamplerConfig
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.blending import whole_members
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.checksums import DamagedError, read_sealed, write_sealed
from ensdiff.files.npy import read_npy
from ensdiff.files.reading import read_object, whole_number
from ensdiff.interop.matrices import read_code
from ensdiff.interop.networks import (
    Network,
    completed,
    model_options,
    naming,
    part_of,
    read_config,
    state_dicts,
    with_context,
)
from ensdiff.interop.pipelines import Pipeline, pipeline
from ensdiff.interop.schedulers import read_schedule, schedule_of, scheduler_options
from ensdiff.interop.tensors import CodeLike, stack, write_state_dict
from ensdiff.interop.unet2d import height_and_width
from ensdiff.interop.unets import CONFIG, LoadedUNet, load_unet, save_unet
from ensdiff.interop.weights import FILES, find_weights, read_weights
from ensdiff.models.space import PIXELS, Latents, Space
from ensdiff.runs.description import describe, from_description
from ensdiff.runs.sums import all_sums
from ensdiff.settings import check_value

__all__ = ["SAMPLER", "Format", "LoadedUNet", "Pipeline", "load", "load_unet", "pipeline", "save", "save_unet"]

Format = Literal["safetensors", "bin"]
SAMPLER = SamplerConfig("ddpm", steps=50, clip=False)
NOISE = "scheduler_config.json"
DESCRIPTION, MATRIX = "ensdiff.json", "code.npy"
"""Files that `save` adds so that `load` can restore the code, schedule and network, and recognise the members."""
MATRIX_LIMIT = 2**28
"""Size in bytes of the largest code matrix that is written."""


def load(
    directory: str | os.PathLike | Sequence[str | os.PathLike],
    code: CodeLike = None,
    *,
    config: dict[str, Any] | None = None,
    image_size: int | None = None,
    schedule: Schedule | None = None,
    classes: int | None = None,
    context_length: int | None = None,
    space: Space | None = None,
) -> Ensemble:
    """Open an ensemble of `UNet2DModel`, `UNet2DConditionModel` or `DiTTransformer2DModel` checkpoints.

    `ensdiff.interop.options` lists every field of the configurations and how it is treated.

    Args:
        directory: a folder of ``Shard0``, ``Shard1``, ... with one checkpoint each, or the members' own folders (or
            files), in the order of the code's columns.
        code: the code, its (N, K) matrix (1 = trained on), or a file that holds one (see `read_code`). By default the
            code that `save` wrote to ``ensdiff.json`` (or, if that is missing, to ``code.npy``); the shards must then
            be those that `save` wrote, in their order. Without either file, unit k stands for member k's own data.
        config: the class's arguments, instead of every ``config.json``. Required if neither the folder nor every
            member has such a file.
        image_size: height and width, if the config has no ``sample_size``.
        schedule: the noise levels that the members were trained with, instead of every ``scheduler_config.json``.
        classes: number of classes of a U-Net whose table (``num_class_embeds``) has one row more, for no class. By
            default each row is a class, and "no class" adds nothing, which such members were not trained for. A DiT's
            table always has a row for no class.
        context_length: number of tokens of each image for a `UNet2DConditionModel`, whose files do not say it; by
            default 77.
        space: how stored values become numbers in model space. By default, images of 1 or 3 channels are pixels in
            [-1, 1], and others are latents as the network receives them: for an autoencoder's own latents, pass
            ``Latents(scale=(0.18215,))`` with its factor.

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
    model, size = _common_config(root, files, config)
    size = image_size if image_size is not None else size
    if size is None:
        raise ValueError("the config has no sample_size: pass image_size=")
    found: list[tuple[str, Schedule]] = []
    digest, sums, described = None, None, None
    if root is not None and (root / DESCRIPTION).exists():
        text = read_sealed(root / DESCRIPTION)
        described = from_description(text, None)
        if code is None:
            _check_matrix(root, described.code)
            code, digest, sums = described.code, described.data_digest, text.get("sums")
        found.append((str(root / DESCRIPTION), schedule_of(scheduler_options(described.schedule))))
        if config is None:
            _same([(str(root / DESCRIPTION), read_config(model_options(described))), (str(files[0].parent), model)])
            model = described.model
    elif code is None and root is not None and len(members) > 1 and (root / MATRIX).exists():
        code = read_code(root / MATRIX)
    if schedule is None:
        schedule = _common_schedule(root, files, found)
        schedule = schedule if described is None else described.schedule  # with what only training needs
    states = [read_weights(file) for file in files]
    if described is None or config is not None:
        model = completed(model, states, classes)
    if context_length is not None:
        model = with_context(model, context_length)
    shape = (*height_and_width(size), model.image_channels)
    if space is None:
        space = PIXELS if shape[2] in (1, 3) else Latents()
        space = space if described is None else described.space
    condition = model.condition
    if described is not None and model == described.model:
        condition = described.condition  # with the names of classes
    params = stack(
        [part_of(model).incoming(state, model, str(file)) for state, file in zip(states, files, strict=True)],
        [str(file) for file in files],
        model,
        naming(model),
        shape,
        code,
        ignored=frozenset({"pos_embed.pos_embed"}),  # fixed sinusoids, in files of some versions
        schedule=schedule,
        space=space,
        condition=condition,
    )
    if sums is not None and root is not None:
        _check_members(root / DESCRIPTION, members, sums["params"], all_sums(params.params))
    return dataclasses.replace(params, data_digest=digest)


def save(
    params: Ensemble,
    directory: str | os.PathLike,
    *,
    format: Format | str = "safetensors",
) -> None:
    """Write every member as a checkpoint of the class of diffusers that makes the same predictions.

    Adapted members are written as whole networks; `ensdiff.interop.lora.save` writes their adapters alone.

    ``Shard{k}`` gets ``config.json`` and the weights: ``UNet2DModel.from_pretrained("DIR/Shard0")`` opens them. The
    folder of the shards also gets ``config.json``, ``scheduler_config.json`` (`ensdiff.interop.schedulers`), the code
    matrix as ``code.npy`` (up to 256 MiB) and ``ensdiff.json``, from which `load` reads the code, the network, the
    schedule, the digest of the training data and a checksum of each member. The last row of a table of classes is that
    of no class.

    Args:
        params: the ensemble; pixels must be those of diffusers, in [-1, 1].
        directory: a new or empty folder.
        format: ``"safetensors"``, or ``"bin"`` for ``pytorch_model.bin``, which counterfactualuniverses reads.

    Raises:
        FileExistsError: the folder is not empty.
        ImportError: the ``torch`` extra is not installed.
        ValueError: the class cannot represent the network, or no scheduler the schedule. The message states what
            differs.
    """
    check_value("format", format, Format)
    params = whole_members(params)
    options, scheduler = model_options(params), scheduler_options(params.schedule)
    root = pathlib.Path(directory)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} already holds files; choose a new folder")
    name = FILES[0] if format == "safetensors" else "pytorch_model.bin"
    text = json.dumps(options, indent=2) + "\n"
    next(state_dicts(params))  # errors come before files
    for k, state in enumerate(state_dicts(params)):
        shard = root / f"Shard{k}"
        shard.mkdir(parents=True)
        write_state_dict(shard / name, state)
        (shard / CONFIG).write_text(text)
    (root / CONFIG).write_text(text)
    (root / NOISE).write_text(json.dumps(scheduler, indent=2) + "\n")
    if params.code.units * params.members <= MATRIX_LIMIT:
        np.save(root / MATRIX, params.code.matrix())
    written = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params.params)
    write_sealed(root / DESCRIPTION, describe(params) | {"sums": {"params": all_sums(written)}})


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
            if type(one) is not type(other):
                raise ValueError(f"{first} and {place} are a {type(one).__name__} and a {type(other).__name__}")
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
    return find_weights((member, member / "unet", member / "transformer"))  # the last two are a pipeline's


def _common_config(
    root: pathlib.Path | None, files: Sequence[pathlib.Path], given: Mapping[str, Any] | None
) -> tuple[Network, Any]:
    """Return the configuration that all members share, and their image size."""
    if given is not None:
        return read_config(given), given.get("sample_size")
    shared = root / CONFIG if root is not None and (root / CONFIG).exists() else None
    places = [] if shared is None else [shared]
    for file in files:
        own = file.with_name(CONFIG)
        if own.exists():
            places.append(own)
        elif shared is None:
            raise FileNotFoundError(f"no {CONFIG} beside {file}: pass config=, the arguments of its class")
    contents = [read_object(place) for place in places]
    configs = [read_config(content, str(place)) for place, content in zip(places, contents, strict=True)]
    _same([(str(place), config) for place, config in zip(places, configs, strict=True)])
    sizes = [content.get("sample_size") for content in contents]
    for place, size in zip(places, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(f"{places[0]} and {place} differ (sample_size: {sizes[0]!r} and {size!r})")
    return configs[0], sizes[0]
