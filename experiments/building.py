"""Build data, a code, settings and a trained ensemble from a config."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

SECTIONS = ("data", "code", "base", "adapters", "model", "schedule", "train")


def check_config(config: Any) -> None:
    """Check that a config has all required sections, before anything is done.

    Raises:
        ValueError: the config has an unknown section, or a required field is missing.
    """
    _ = getattr(config, "run_dir", None)  # raises the error of a config file that could not be read
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() of the config gave a {type(config).__name__}: expected a ConfigDict")
    known = ("run_dir", "resume", "log", "combine", "scale", *SECTIONS, "aot")
    unknown = [name for name in config if name not in known]
    if unknown:
        raise ValueError(f"config.{unknown[0]}: no such section; expected some of {', '.join(known)}")
    if not isinstance(config.get("run_dir"), str) or not config.run_dir:
        raise ValueError(f"config.run_dir={config.get('run_dir')!r}: expected the folder to write to")
    for name in SECTIONS:
        if name in config and not isinstance(config[name], ConfigDict):
            raise ValueError(f"config.{name}={config[name]!r}: expected a section with fields")
    if not isinstance(config.get("data", ConfigDict()).get("name"), str):
        raise ValueError("config.data.name: expected the name of a data set, such as 'digits' or 'folder'")


def section(config: ConfigDict, name: str) -> dict[str, Any]:
    """Return a section of the config as keyword arguments, with lists as tuples and without unset fields.

    A field is unset if it is None or the text "None", because ``--config.code.groups=None`` may set that text.
    """
    values = config.get(name, ConfigDict()).to_dict()
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v not in (None, "None")}


def build(kind: Callable, name: str, values: dict[str, Any]) -> Any:
    """Return ``kind(**values)``.

    Raises:
        ValueError: a field is unknown or missing; the message names the config section.
    """
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"config.{name}: {error}") from None


def load_data(values: dict[str, Any]) -> Any:
    """Return the training data of a config's ``data`` section.

    The section has ``name``, the reader's options, ``held_out``, ``condition`` (empty, ``"label"`` for the labels of
    the items, or a column that the reader finds), and ``only``, the labels of the items to keep (by default all).

    ``name`` is the name of the reader. The reader `ensdiff.data.tfds` has an option of the same name, which is called
    ``dataset`` in a config. ``held_out`` is the number of items that are chosen at random and left out of training;
    `load_held_out` returns them. The choice depends on the number and order of the items. To find the items that an
    existing run used, call `runs.training_data`.
    """
    everything, held_out = _read_all(values)
    return everything.subset(_split(everything.items, held_out)[0]) if held_out else everything


def run_data(config: ConfigDict) -> Any:
    """Return the data of a config. A resumed run gets the items that it was started with, even if files were renamed.

    Raises:
        ValueError: the run was trained on other items or units, or held out fewer items.

    Warns:
        DataWarning: there are items that the run was not trained on.
    """
    from ensdiff.data.manifest import NAME
    from ensdiff.files.checksums import DamagedError
    from ensdiff.runs.checkpoints import steps_of
    from ensdiff.runs.identity import find_training_data, say_what_was_left_out

    values, run = section(config, "data"), pathlib.Path(config.run_dir)
    if not config.get("resume", False) or not (run / NAME).exists() or not steps_of(run):
        return load_data(values)
    held_out = values.get("held_out", 0)
    everything = load_data({**values, "held_out": 0})
    try:
        found = find_training_data(run, everything)
    except DamagedError:
        return load_data(values)  # resuming reports the damage, and continues if it can
    wrong = list(found.differences)
    if found.others < held_out:
        wrong.append(f"{found.others} of the items were not used to train it, but config.data.held_out={held_out}")
    if wrong:
        raise ValueError(
            f"{run} cannot be resumed with other data: {'; '.join(wrong)}. Use the same data, or another run_dir"
        )
    say_what_was_left_out(found, run, everything.items, held_out)
    return found.data


def load_held_out(values: dict[str, Any]) -> Any:
    """Return the items that `load_data` leaves out."""
    everything, held_out = _read_all(values)
    return everything.subset(_split(everything.items, held_out)[1])


def _read_all(values: dict[str, Any]) -> tuple[Any, int]:
    options = dict(values)
    held_out = options.pop("held_out", 0)
    reader = options.pop("name")
    if "dataset" in options:
        options["name"] = options.pop("dataset")
    return read_items(reader, options), held_out


def read_items(reader: str, options: dict[str, Any]) -> Any:
    """Return the data set of a reader.

    The option ``condition`` may be ``"label"``, for the labels of the items. The option ``only`` keeps the items with
    some labels, in a list, or in a text such as ``"5+6+7"``; classes of a condition keep their ids.

    Raises:
        ValueError: the reader or an option does not exist, the data have no labels, or no item has one of these labels.
    """
    from ensdiff import data

    options = dict(options)
    condition, only = options.pop("condition", ""), options.pop("only", None)
    if condition not in ("", "label"):  # the reader's own: a column, a member or an array
        if "condition" not in data.readers.options_of(reader):
            raise ValueError(f"config.data.condition={condition!r}: {reader} takes none of its own; expected 'label'")
        options["condition"] = condition
    found = data.load(reader, **options)
    for name, value in (("condition", condition if condition == "label" else ""), ("only", only)):
        if value and found.labels is None:
            raise ValueError(
                f"config.data.{name}={value!r}: the data have no labels; name the column of the labels, for example "
                "with config.data.label or config.data.labels, if the reader has one"
            )
    if condition == "label":
        found = found.with_condition(found.labels)
    return found if only is None else _with_labels(found, only)


def _with_labels(data: Any, only: Any) -> Any:
    """Return the items with some labels, each of which must have an item."""
    import numpy as np

    wanted = only.split("+") if isinstance(only, str) else [str(label) for label in only]
    labels = data.labels.astype(str)
    for label in wanted:
        if label not in labels:
            known = ", ".join(map(str, np.unique(data.labels)[:10]))
            raise ValueError(f"config.data.only={only!r}: no item has the label {label!r}; labels are {known}")
    return data.subset(np.isin(labels, wanted))


def data_sections(run: str | os.PathLike, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return versions of the ``data`` section of a run's config, one for each place where its paths may be found.

    Paths are taken relative to the current working directory first, then to that of the training, and then to the run
    directory, which may have been moved together with the data.
    """
    from ensdiff.data.readers import path_options

    section, run = values["data"], pathlib.Path(run).resolve()
    names = [name for name in path_options(section["name"]) if section.get(name) is not None]
    then, run_dir = values.get("working_directory"), values.get("run_dir")

    def places(path: str) -> list[str]:
        found = [path] if then is None else [path, os.path.join(then, path)]
        if isinstance(run_dir, str) and (then is not None or os.path.isabs(path) == os.path.isabs(run_dir)):
            root = then or os.path.abspath(os.sep)
            found.append(os.path.normpath(run / os.path.relpath(os.path.join(root, path), os.path.join(root, run_dir))))
        return found

    out: dict[tuple[str, ...], dict[str, Any]] = {}
    for paths in zip(*(places(str(section[name])) for name in names), strict=True):
        out.setdefault(tuple(map(os.path.abspath, paths)), {**section, **dict(zip(names, paths, strict=True))})
    return list(out.values()) or [section]


def _split(items: int, held_out: int) -> tuple[Any, Any]:
    import numpy as np

    if not isinstance(held_out, int) or not 0 < held_out < items - 1:
        raise ValueError(f"config.data.held_out={held_out}: expected 0 .. {items - 2} of the {items} items")
    order = np.random.default_rng(0).permutation(items)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def read_run_config(run: str | os.PathLike) -> dict[str, Any]:
    """Return the config that a run was trained with, from its ``config.json``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file names no data.
    """
    path = pathlib.Path(run) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {run} was not written by experiments.train")
    from ensdiff.files.checksums import read_sealed

    values = read_sealed(path)
    if not isinstance(values.get("data"), dict) or "name" not in values["data"]:
        raise ValueError(f"{path} is not the config of a run: it names no data")
    return values


def settings(config: ConfigDict, channels: int, condition: Any = None, /, **model_fields: Any) -> tuple[Any, Any, Any]:
    """Return the network, schedule and training settings of a config.

    Args:
        config: the config. ``model.kind`` is ``"unet"`` (the default) or ``"dit"``.
        channels: number of channels of the images.
        condition: `ConditionSpec` of the data, from which the network gets its number of classes, the width of its
            vectors, or the number and width of its tokens, unless the config sets them; None for data without them.
        **model_fields: fields that override those of the config's ``model`` section.
    """
    import ensdiff
    from ensdiff.models.describing import KINDS

    values = {**section(config, "model"), **model_fields, "image_channels": channels}
    kind = values.pop("kind", "unet")
    if kind not in KINDS:
        raise ValueError(f"config.model.kind={kind!r}: expected one of {', '.join(map(repr, KINDS))}")
    leaf = condition.leaves[0] if condition is not None and len(condition.leaves) == 1 else None
    if leaf is not None and leaf.classes is not None:
        values.setdefault("classes", leaf.classes)
    elif leaf is not None and len(leaf.shape) == 1:
        values.setdefault("condition_width", leaf.shape[0])
    elif leaf is not None and len(leaf.shape) == 2 and kind == "unet":
        values.setdefault("context_length", leaf.shape[0])
        values.setdefault("context_width", leaf.shape[1])
    model = build(KINDS[kind], "model", values)
    schedule = build(ensdiff.Schedule, "schedule", section(config, "schedule"))
    return model, schedule, build(ensdiff.TrainConfig, "train", section(config, "train"))


def stated_condition(config: ConfigDict) -> dict[str, Any]:
    """Return the fields of the network's condition that the config's section ``aot`` states, for programs without data.

    Raises:
        ValueError: the data have a condition of which neither ``aot`` nor ``model`` states the size.
    """
    names = ("classes", "condition_width", "context_width", "context_length")
    found = {name: value for name, value in section(config, "aot").items() if name in names}
    named = section(config, "data").get("condition")
    if named and not found and not any(name in section(config, "model") for name in names):
        raise ValueError(
            f"config.data.condition={named!r}, but the number of classes is not known without the data: pass "
            "--config.model.classes=10 (or --config.model.condition_width=..., for vectors, or context_width and "
            "context_length, for tokens)"
        )
    return found


def train_from_config(config: ConfigDict) -> Any:
    """Train according to a config, store the config in the run directory, and return the Ensemble.

    On SIGTERM or SIGINT, training writes a checkpoint and raises `ensdiff.Preempted`.

    Raises:
        ValueError: the config is incomplete, or the run cannot be resumed with it.
        Preempted: a signal ended training.
    """
    import ensdiff
    from ensdiff import hosts
    from ensdiff.files.checksums import write_sealed
    from ensdiff.training.preemption import on_signals

    from .bases import start_of
    from .card import write_card
    from .coding import build_code
    from .trackers import tracked, trackers_of

    check_config(config)
    trackers_of(config)  # before anything takes time
    data = run_data(config)
    code = build_code(section(config, "code"), data)
    begin = start_of(config, data)
    shares = code.shares()
    print(f"{data}\n{code}: members see {shares.min()} to {shares.max()} units", flush=True)
    run_dir = pathlib.Path(config.run_dir)

    def keep_config() -> None:
        if hosts.is_writer():
            # relative paths in the config start from the working directory
            write_sealed(run_dir / "config.json", {**json.loads(config.to_json()), "working_directory": os.getcwd()})

    with on_signals() as stop, tracked(config) as on_metrics:
        params = ensdiff.train(
            data,
            code,
            **begin._asdict(),
            run_dir=run_dir,
            resume=config.get("resume", False),
            on_open=keep_config,
            on_metrics=on_metrics,
            stop=stop,
        )
    if hosts.is_writer():
        write_card(run_dir)
    return params


def train_single(config: ConfigDict, data: Any) -> Any:
    """Train one model of the config's size and steps on all the data, as the ordinary alternative to an ensemble."""
    import ensdiff

    from .bases import start_of

    begin = start_of(config, data)._replace(combine=None, scale=1.0)
    return ensdiff.train(data, ensdiff.Code.undivided(data.units), **begin._asdict())


def gradient_config(entries: list[str], base: Any = None) -> Any:
    """Return the settings of gradient methods that entries such as ``"ridge=0.01"`` describe; the rest are of ``base``.

    Raises:
        ValueError: an entry is not NAME=VALUE, or a setting is unknown or wrong.
    """
    import ensdiff

    pairs = [entry.partition("=") for entry in entries]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError(f"--gradients={','.join(entries)}: expected settings such as draws=32,ridge=0.01")
    known = {} if base is None else vars(base)
    return build(ensdiff.GradientConfig, "gradients", {**known, **{name: _literal(text) for name, _, text in pairs}})


def _literal(text: str) -> Any:
    """Return the number or truth value that a text stands for, or else the text."""
    import ast

    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text
