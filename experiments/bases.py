"""What the members of a config start from: nothing, or a trained base, with adapters or without.

The section ``base`` of a config names the base in one of three ways:

- ``run``: a run directory, with ``member`` for one of its members. Without it, the run must have one member, or members
  that share a start, which are averaged;
- ``run``, ``data`` and ``train``: the same, but a network of the config's ``model`` and ``schedule`` is first trained
  there on these data, unless the run holds it already;
- ``diffusers``: the folder of a U-Net or of a pipeline that diffusers saved.

``dtype`` is that of the base's stored parameters. With a section ``adapters``, the base stays frozen and members are
adapters on it; without one, members are whole networks that start from the base.
"""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from . import building

COMPUTED = ("compute_dtype", "precision", "remat", "conv", "stack", "attention", "dropout")
"""Fields of ``config.model`` that may be set for a base that was trained elsewhere: how it is computed."""


class Begin(NamedTuple):
    """Arguments of `ensdiff.train` that say what members are, and where they start."""

    model: Any
    config: Any
    schedule: Any
    start: Any
    combine: Any
    scale: float


class Base(NamedTuple):
    """A trained network: the parameters of one member, the schedule that it was trained with, and where it is from."""

    model: Any
    params: Any
    schedule: Any
    source: str


def start_of(config: ConfigDict, data: Any) -> Begin:
    """Return what the members of a config are and start from; a base that is not trained yet is trained first.

    Raises:
        ValueError: the sections do not fit together, or the base does not exist.
    """
    import ensdiff

    given, adapters = building.section(config, "base"), building.section(config, "adapters")
    combine, scale = config.get("combine") or None, config.get("scale")
    scale = 1.0 if scale is None else scale
    if not given:
        if adapters:
            raise ValueError("config.adapters without config.base: adapters need a frozen base; see experiments/bases")
        return Begin(*_own_settings(config, data), None, combine, scale)
    if given.get("data") is not None:
        found = trained_here(config, given, data)
        train = _own_settings(config, data)[1]
    else:
        found = opened(given, data)
        found = found._replace(model=computed(found.model, building.section(config, "model")))
        if building.section(config, "schedule"):
            raise ValueError("config.schedule is set, but the base was trained with its own: leave it out")
        train = building.build(ensdiff.TrainConfig, "train", building.section(config, "train"))
    params = cast(found.params, given.get("dtype", "float32"))
    print(f"base: {found.source}", flush=True)
    if not adapters:
        return Begin(found.model, train, found.schedule, params, combine, scale)
    try:
        model = ensdiff.models.adapted(found.model, params, **adapters)
    except TypeError as error:
        raise ValueError(f"config.adapters: {error}") from None
    return Begin(model, train, found.schedule, None, combine, scale)


def planned(config: ConfigDict, channels: int, /, **fields: Any) -> tuple[Any, Any, Any]:
    """Return the network, schedule and training settings of a config for programs that compute with shapes only.

    Of a base, only the architecture is read: from the folder or run that ``config.base`` names, or if that is not there
    from ``config.aot.unet``, the arguments of its class in diffusers. Adapters on it cannot be trained.

    Args:
        config: the config.
        channels: number of channels of the images.
        **fields: fields that override those of the config's ``model`` section.
    """
    import jax

    import ensdiff

    given, adapters = building.section(config, "base"), building.section(config, "adapters")
    if not given or given.get("data") is not None:
        model, schedule, train = building.settings(config, channels, **fields)
    else:
        model, schedule = _architecture(given, building.section(config, "aot").get("unet"))
        wanted = {**building.section(config, "model"), **fields}
        sizes = ("classes", "condition_width", "context_width", "context_length")  # the base's own
        model = computed(model, {name: value for name, value in wanted.items() if name not in sizes})
        train = building.build(ensdiff.TrainConfig, "train", building.section(config, "train"))
    if not adapters:
        return model, schedule, train
    dtype = given.get("dtype", "float32")
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    return ensdiff.models.adapted(model, shapes, **adapters), schedule, train


def _architecture(given: dict[str, Any], options: dict[str, Any] | None) -> tuple[Any, Any]:
    """Return the network and the schedule of a base, without its parameters."""
    import ensdiff
    from ensdiff.files.reading import read_object
    from ensdiff.interop.networks import read_config
    from ensdiff.runs.checkpoints import run_description
    from ensdiff.runs.description import from_description

    if given.get("run") is not None:
        described = from_description(run_description(pathlib.Path(given["run"])), None)
        return getattr(described.model, "base", described.model), described.schedule
    folder = pathlib.Path(str(given.get("diffusers")))
    files = [file for file in (folder / "config.json", folder / "unet" / "config.json") if file.is_file()]
    if files:
        return read_config(read_object(files[0]), str(files[0])), ensdiff.Schedule()
    if options is None:
        raise ValueError(
            f"config.base.diffusers={folder} holds no config.json, and config.aot.unet is not set: pass one"
        )
    print(f"{folder} does not exist here: planned for the network of config.aot.unet", flush=True)
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return read_config(lists, "config.aot.unet"), ensdiff.Schedule()


def _own_settings(config: ConfigDict, data: Any) -> tuple[Any, Any, Any]:
    model, schedule, train = building.settings(config, data.shape[-1], data.condition_spec)
    return model, train, schedule


def base_dtype(config: ConfigDict) -> Any:
    """Return the dtype of the stored parameters of a config's base; float32 without one."""
    return building.section(config, "base").get("dtype", "float32")


def cast(params: Any, dtype: str) -> Any:
    """Return parameters as float32 or bfloat16.

    Raises:
        ValueError: the dtype is another one.
    """
    import jax
    import jax.numpy as jnp

    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"config.base.dtype={dtype!r}: expected 'float32' or 'bfloat16'")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def computed(model: Any, values: dict[str, Any]) -> Any:
    """Return a base with other settings of how it is computed.

    Raises:
        ValueError: a setting would make another network of it, or does not exist.
    """
    for name in values:
        if name not in COMPUTED:
            raise ValueError(
                f"config.model.{name} is set, but the network is the base's: expected some of {', '.join(COMPUTED)}"
            )
    return building.build(lambda **fields: dataclasses.replace(model, **fields), "model", values)


def opened(given: dict[str, Any], data: Any) -> Base:
    """Return the base that ``config.base`` names by a run or a folder of diffusers.

    Raises:
        ValueError: it names none or two, a field is unknown, or the base does not fit the data.
    """
    fields = ("run", "member", "diffusers", "dtype")
    unknown = [name for name in given if name not in fields]
    if unknown or (given.get("run") is None) == (given.get("diffusers") is None):
        wrong = f"config.base.{unknown[0]}: no such field" if unknown else f"config.base={given}"
        raise ValueError(f"{wrong}; expected run= or diffusers=, and optionally member= (of a run) and dtype=")
    if given.get("diffusers") is not None:
        if "member" in given:
            raise ValueError("config.base.member is for a run; a folder of diffusers holds one network: leave it out")
        return of_diffusers(pathlib.Path(given["diffusers"]), data)
    return of_run(pathlib.Path(given["run"]), given.get("member"), data)


def of_diffusers(folder: pathlib.Path, data: Any) -> Base:
    """Return the U-Net of a folder, and the schedule of its ``scheduler_config.json``.

    Prints a warning if it is part of a pipeline whose encoders are not those of the data.

    Raises:
        ValueError: it attends to captions, and the data have none.
    """
    import ensdiff
    from ensdiff.interop.diffusers import load_unet
    from ensdiff.interop.schedulers import read_schedule

    tokens = [leaf.shape[0] for leaf in data.condition_spec.leaves if len(leaf.shape) == 2] if _spec(data) else []
    loaded = load_unet(folder, context_length=tokens[0] if tokens else None)
    width = getattr(loaded.model, "context_width", None)
    if width is not None and not tokens:
        raise ValueError(
            f"the U-Net of {folder} attends to captions (tokens of width {width}), and the data have none: encode them "
            "with experiments.encode --pipeline=... (or --text=...)"
        )
    name = "scheduler_config.json"
    places = (folder / "scheduler" / name, folder.parent / "scheduler" / name, folder / name)
    found = [place for place in places if place.is_file()]
    schedule = read_schedule(found[0]) if found else ensdiff.Schedule()
    told = f"schedule of {found[0]}" if found else f"no {name}, so the noise levels are 1,000 linear ones"
    for pipeline in (folder, folder.parent):
        if (pipeline / "model_index.json").is_file():
            for sentence in other_encoders(pipeline, data):
                print(f"warning: {sentence}", flush=True)
    return Base(loaded.model, loaded.params, schedule, f"the U-Net of {folder}, {told}")


def other_encoders(pipeline: pathlib.Path, data: Any) -> list[str]:
    """Return one sentence per encoder of the data whose files differ from those of a pipeline.

    A different encoder may be intended, so this is not an error. Encoders that the data do not name, or that the
    pipeline lacks or that ensdiff cannot read, are skipped.
    """
    from ensdiff.files.reading import printable
    from ensdiff.interop.text import description_of as description_of_text
    from ensdiff.interop.vae import description_of as description_of_vae

    sentences = []
    of_images = {getattr(data.space, "encoder", None)}
    of_captions = {leaf.encoder for leaf in data.condition_spec.leaves} if _spec(data) else set()
    for what, found, part, own_description in (
        ("latents", of_images, "vae", lambda: description_of_vae(pipeline / "vae")),
        ("captions", of_captions, "text_encoder", lambda: description_of_text(pipeline)),
    ):
        names = sorted(filter(None, found))
        if names and (pipeline / part).is_dir():
            try:
                own = own_description()
            except (OSError, ValueError):  # parts of another kind, or without weights: only the U-Net is needed
                continue
            if not any(own in name for name in names):
                sentences.append(
                    f"the {what} were encoded with other files ({printable(', '.join(names))}) than those of "
                    f"{pipeline / part} ({own}). The same weights in another file format differ too. Otherwise encode "
                    f"the {what} again: experiments.encode --pipeline={pipeline}"
                )
    return sentences


def _spec(data: Any) -> bool:
    return data.condition_spec is not None


def of_run(run: pathlib.Path, member: int | None, data: Any) -> Base:
    """Return one member of a run, or the average of members that share a start.

    Raises:
        ValueError: the run has no such member, no single network, or was trained on values of another space.
    """
    import jax
    import numpy as np

    import ensdiff
    from ensdiff.ensemble.blending import blend

    params = ensdiff.load(run, members=None if member is None else [member])
    if data is not None and params.space != data.space:
        raise ValueError(f"config.base.run={run} was trained on {params.space}, and the data are {data.space}")
    if params.members > 1 and params.base is None:
        raise ValueError(
            f"config.base.run={run} has {params.members} members, which share no start and so cannot be averaged: pass "
            f"config.base.member, 0 .. {params.members - 1}"
        )
    source = f"{run}, member {member}" if member is not None else f"{run}, the average of {params.members} members"
    if params.base is not None:
        if member is not None or params.combine == "predictions":
            params = dataclasses.replace(params, scale=1.0)  # the scale belongs to the average that the run generates
        params = blend(params, np.full((1, params.members), 1 / params.members, np.float32))
    elif member is None:
        source = f"{run}"
    return Base(params.model, jax.tree.map(lambda leaf: leaf[0], params.params), params.schedule, source)


def trained_here(config: ConfigDict, given: dict[str, Any], data: Any) -> Base:
    """Return the base that a config describes; it is trained, or its training is finished, if that is not done yet.

    Raises:
        ValueError: a field is unknown, or ``base.run`` holds another base.
    """
    from ensdiff import hosts
    from ensdiff.files.checksums import read_sealed
    from ensdiff.runs.checkpoints import steps_of
    from ensdiff.runs.description import differences

    unknown = [name for name in given if name not in ("run", "data", "train", "dtype")]
    if unknown or not given.get("run"):
        wrong = f"config.base.{unknown[0]}: no such field" if unknown else "config.base.run is missing"
        raise ValueError(f"{wrong}; a base that is trained first has run=, data=, train= and optionally dtype=")
    own = config_of_base(config)
    run = pathlib.Path(own.run_dir)

    def finished() -> bool:
        steps = steps_of(run)
        if not steps:
            return False
        stored = read_sealed(run / "config.json") if (run / "config.json").is_file() else {}
        wanted = json.loads(own.to_json())
        names = ("data", "code", "model", "schedule", "train")
        wrong = [field.name for name in names for field in differences(stored.get(name), wanted[name], name)]
        if wrong:
            raise ValueError(
                f"config.base.run={run} holds another base: {', '.join(wrong[:5])} differ. Pass another "
                "--config.base.run, or delete that folder"
            )
        return bool(steps[-1] >= own.train.steps)

    if not hosts.decide(finished):
        print(f"training the base first: {run}", flush=True)
        building.train_from_config(own)
    return of_run(run, None, data)


def config_of_base(config: ConfigDict) -> ConfigDict:
    """Return the config with which the base is trained: the same network and schedule, other data, one member."""
    given = config.base
    return ConfigDict(
        {
            "run_dir": given.run,
            "resume": True,
            "data": given.data.to_dict(),
            "code": {"members": 1},
            "model": config.model.to_dict(),
            "schedule": config.schedule.to_dict(),
            "train": {**config.train.to_dict(), **given.get("train", ConfigDict()).to_dict()},
        }
    )
