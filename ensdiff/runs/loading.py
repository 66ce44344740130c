"""Run directories: what a training run writes, and how to load it elsewhere.

```
runs/digits/
  run.json               version, model, schedule, code, data and training settings
  data.manifest          unit and content hash of every training item; its SHA-256 is run.json's data.digest
  environment.jsonl      devices and versions, one line per start; each holds from its step to the next line's
  checkpoints/<step>/    Orbax: parameters, optimiser state and average; run.json's content and checksums beside them
  metrics.jsonl          one line per logged step: each member's mean loss since the line before, and gradient norm
  tensorboard/           the same for TensorBoard
  samples/step_<n>.png   sample grids
  damaged/               checkpoints that did not match their checksums when the run was resumed
```
A checkpoint alone is enough to load an ensemble: its metadata hold everything static. Every file appears whole or not
at all, and says itself when it was changed since (`ensdiff.runs.stored`, `ensdiff.files.checksums`).

Of several processes each writes and reads its own members' part of a checkpoint; every other file is process 0's. So
the folder must be on a file system that all of them share. One run at a time may write into it.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ensdiff import hosts
from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.members import abstract_params
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.files.checksums import DamagedError, check_beside, damage, read_lines, read_sealed, warn
from ensdiff.files.reading import read_json
from ensdiff.runs.directory import RunDirectory
from ensdiff.runs.logs import ENVIRONMENTS, METRICS, read_environments, read_metrics
from ensdiff.runs.stored import (
    describe,
    folder_of,
    from_description,
    placeholders,
    read_arrays,
    read_description,
    read_manifest,
    read_members,
    read_metadata,
    read_on_host,
    steps_of,
)
from ensdiff.training.config import TrainConfig, decisive

__all__ = ["RunDirectory", "check_run", "describe", "from_description", "load", "read_metrics", "save"]


def load(
    path: str | os.PathLike, step: int | None = None, *, average: bool = True, members: Sequence[int] | None = None
) -> Ensemble:
    """Load an ensemble from a run directory onto the devices there are, of all processes.

    Only parameters are read, never the optimiser's state, and they are compared with their checksums.

    Args:
        path: the run directory, for example ``"runs/digits"``.
        step: which checkpoint; by default the newest.
        average: use the moving average of the parameters where the run kept one.
        members: load only these members, 0 .. K - 1, in this order: an ensemble of them, whose code has their columns.
            A few arrays are read at a time, so that the others need no memory.

    Raises:
        FileNotFoundError: no such run, or no such checkpoint; says which there are.
        DamagedError: the checkpoint is not what was written; says which others there are.
        ValueError: the run was written by a newer version, or there are no such members.

    Warns:
        DamageWarning: ``run.json`` is damaged, or the checkpoint is of another run than it says; names the fields.

    >>> ensdiff.load("runs/tiny")
    Ensemble(8 members, 40 units, 8x8x1 images, ... parameters a member)
    >>> ensdiff.load("runs/tiny", members=[0, 3]).members
    2
    """
    path = pathlib.Path(path)
    steps = hosts.decide(lambda: steps_of(path))
    if not steps:
        what = "holds no finished checkpoint" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; train with python -m experiments.train --config=... first")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise FileNotFoundError(f"{path} has no checkpoint {step}; it has {', '.join(map(str, steps))}")
    folder = folder_of(path, step)
    try:
        text = hosts.decide(lambda: read_description(folder))
        if wrong := hosts.decide(lambda: _not_of(path, folder, text)):
            warn(wrong)
        params = from_description(text, None)
        shapes = abstract_params(params.model, params.image_shape, params.members)
        part = "ema" if average and text.get("average") else "params"
        if members is not None:
            chosen = _check_members(members, params.members)
            some = read_members(folder, part, shapes, chosen, text)
            code = params.code.only(chosen)
            return dataclasses.replace(params, params=on_mesh(some, make_mesh(len(chosen))), code=code)
        abstract = {**placeholders(folder), part: _on_devices(shapes, params.members)}
        return dataclasses.replace(params, params=read_arrays(folder, abstract, text)[part])
    except DamagedError as error:
        others = [str(other) for other in steps if other != step]
        more = f"the run also has checkpoint {', '.join(others)} (step=...)" if others else "the run has no other"
        raise DamagedError(f"{error}; {more}") from error


def _check_members(members: Sequence[int], count: int) -> list[int]:
    chosen = np.asarray(members)
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu" or len(set(chosen.tolist())) < len(chosen):
        raise ValueError(f"members={members!r}: expected distinct numbers, 0 .. {count - 1}")
    if chosen.min() < 0 or chosen.max() >= count:
        raise ValueError(f"members={chosen.tolist()}: the run has members 0 .. {count - 1}")
    return chosen.tolist()


def _on_devices(abstract: Any, members: int) -> Any:
    """Shapes with the sharding that the devices allow."""
    mesh = make_mesh(members)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("member"))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract)


def save(params: Ensemble, path: str | os.PathLike, step: int = 0) -> None:
    """Write an ensemble as a run directory with one checkpoint, without optimiser state.

    Raises:
        FileExistsError: the folder holds checkpoints already.
        OSError: it could not be written; says why.

    >>> ensdiff.save(params, "runs/copy")
    >>> ensdiff.load("runs/copy").code == params.code
    True
    """
    with RunDirectory.open(path, keep=1, resume=False) as run:
        run.begin(params)
        members = on_mesh(params.params, make_mesh(params.members)) if jax.process_count() > 1 else params.params
        run.save_tree(step, {"params": members})


def decided(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the parameters at a step, of a run's or a checkpoint's description.

    Fields that older versions did not write have their defaults, so that two versions' descriptions can be compared.

    Raises:
        ValueError: it is not what `describe` gives, or written by a newer version.
        TypeError: the training settings are none.
    """
    static = describe(from_description(text, None))
    train = text.get("train")
    return {
        **{name: value for name, value in static.items() if name not in ("format", "ensdiff", "data")},
        "train": None if train is None else decisive(dataclasses.asdict(TrainConfig(**train))),
        "data": static.get("data", {}).get("digest"),
        "origin": text.get("origin"),
    }


def _foreign(folder: pathlib.Path, text: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """How a checkpoint's description differs from that of its run, in words; nothing where it does not."""
    try:
        here, there = decided(text), decided(said)
    except (TypeError, ValueError) as error:
        return f"{folder} cannot be compared with run.json: {error}"
    names = []
    for name in here:
        one, other = here[name], there[name]
        if isinstance(one, dict) and isinstance(other, dict):
            inside = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
            names += [f"{name}.{key}" for key in inside]
        elif one != other:
            names.append(name)
    return f"{folder} is of another run than run.json says: other {', '.join(names)}" if names else ""


def _not_of(path: pathlib.Path, folder: pathlib.Path, text: Mapping[str, Any]) -> str:
    """`_foreign`, of a run that may have no ``run.json``: a checkpoint alone can be loaded."""
    if not (path / "run.json").is_file():
        return ""
    try:
        return _foreign(folder, text, read_sealed(path / "run.json"))
    except DamagedError as error:
        return f"{error}; so {folder} could not be compared with it"


def check_run(path: str | os.PathLike) -> list[str]:
    """Read everything that has a checksum or a digest in a run directory, and return what is damaged.

    These are the checkpoints, which are loaded whole, one at a time; ``run.json``, ``config.json``, the data manifest,
    every line of ``environment.jsonl`` and ``metrics.jsonl``, and attributions with their arrays. Pictures, pages and
    TensorBoard's files are not read. A checkpoint must be of the run that ``run.json`` describes. What is good here can
    be loaded.

    Returns:
        A line for each damaged or missing file, which names it; nothing where all are good.

    Raises:
        FileNotFoundError: no such folder.

    >>> ensdiff.check_run("runs/tiny")
    []
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no run directory: {'it is a file' if path.exists() else 'it is not there'}")
    found: list[str] = []
    description: dict[str, Any] = {}
    with _noted(found):
        description = read_sealed(path / "run.json")
    with _noted(found):
        _check_manifest(path, description)
    if (path / "config.json").exists():
        with _noted(found):
            read_sealed(path / "config.json")
    for name, read in ((METRICS, lambda run: read_lines(run / METRICS)), (ENVIRONMENTS, read_environments)):
        with _noted(found):
            if not (path / name).exists():
                continue
            lines = read(path)
            if wrong := damage(lines) or _disorder(lines):
                raise DamagedError(f"{path / name} is damaged: {wrong}")
    if "train" in description and not (path / ENVIRONMENTS).exists():
        found.append(f"{path / ENVIRONMENTS} is missing: training writes one")
    for file in sorted((path / "attribution").glob("*.json")):
        with _noted(found):
            _check_result(file)
    for step in steps_of(path):
        folder = folder_of(path, step)
        with _noted(found):
            _check_checkpoint(folder, description)
    return found


def _check_checkpoint(folder: pathlib.Path, description: Mapping[str, Any]) -> None:
    text, shapes = read_metadata(folder)
    try:
        params = from_description(text, None)
        expected = abstract_params(params.model, params.image_shape, params.members)
    except ValueError as error:
        raise DamagedError(f"{folder} is damaged: {error}") from error
    read_on_host(folder, {**shapes, **{part: expected for part in ("params", "ema") if part in shapes}}, text)
    if description and (wrong := _foreign(folder, text, description)):
        raise DamagedError(wrong)


def _disorder(lines: Sequence[Any]) -> str:
    """Which of a file's lines is not about a later step than the one before, in words; nothing where all are."""
    steps = [line.get("step") for line in lines]
    for number, step in enumerate(steps, start=1):
        if type(step) is not int or (number > 1 and step <= steps[number - 2]):
            return f"its steps are not ascending at line {number}, which is of step {step}"
    return ""


def _check_result(file: pathlib.Path) -> None:
    try:
        is_object = isinstance(read_json(file), dict)  # older versions wrote lists too
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if is_object:
        check_beside(file, read_sealed(file))


def _check_manifest(path: pathlib.Path, description: Any) -> None:
    expected = (description.get("data") or {}).get("digest")
    # an ensemble that was saved knows the digest of its data, and has no manifest
    if expected is not None and read_manifest(path, description) is None and "train" in description:
        raise FileNotFoundError(f"{path / MANIFEST} is missing: run.json has its checksum")


@contextlib.contextmanager
def _noted(found: list[str]) -> Iterator[None]:
    try:
        yield
    except (DamagedError, FileNotFoundError) as error:
        found.append(str(error))
