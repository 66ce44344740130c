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
at all, and says itself when it was changed since (`ensdiff.stored`, `ensdiff.integrity`).

Of several processes each writes and reads its own members' part of a checkpoint; every other file is process 0's. So
the folder must be on a file system that all of them share. One run at a time may write into it.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ensdiff import hosts
from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.ensemble import Ensemble, abstract_params, make_mesh, on_mesh
from ensdiff.files import read_json
from ensdiff.integrity import DamagedError, check_beside, damage, read_lines, read_sealed
from ensdiff.logs import ENVIRONMENTS, METRICS, read_environments, read_metrics
from ensdiff.rundir import RunDirectory
from ensdiff.stored import (
    describe,
    folder_of,
    from_description,
    placeholders,
    read_arrays,
    read_description,
    read_manifest,
    read_members,
    steps_of,
)

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


def check_run(path: str | os.PathLike) -> list[str]:
    """Read everything that has a checksum or a digest in a run directory, and return what is damaged.

    These are the checkpoints, which are loaded whole, one at a time; ``run.json``, ``config.json``, the data manifest,
    every line of ``environment.jsonl`` and ``metrics.jsonl``, and attributions with their arrays. Pictures, pages and
    TensorBoard's files are not read.

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
            if (path / name).exists() and (wrong := damage(read(path))):
                raise DamagedError(f"{path / name} is damaged: {wrong}")
    for file in sorted((path / "attribution").glob("*.json")):
        with _noted(found):
            _check_result(file)
    for step in steps_of(path):
        folder = folder_of(path, step)
        with _noted(found):
            text = read_description(folder)
            read_arrays(folder, placeholders(folder, np.ndarray), text)
    return found


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
