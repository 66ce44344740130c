"""Loading an ensemble from a run directory onto the available devices, and saving one as a run directory."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from ensdiff import hosts
from ensdiff.ensemble.ensemble import Combine, Ensemble, check_scale
from ensdiff.ensemble.members import abstract_params
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.files.checksums import DamagedError, read_sealed, warn
from ensdiff.models.denoiser import Denoiser
from ensdiff.runs.base import read_base
from ensdiff.runs.checkpoints import Checkpoint, left_on_disk, open_on_all, read_arrays, read_members, steps_of
from ensdiff.runs.description import Undefined, foreign, from_description
from ensdiff.runs.directory import RunDirectory
from ensdiff.runs.unit_names import known_names
from ensdiff.settings import check_value


def load(
    path: str | os.PathLike,
    step: int | None = None,
    *,
    average: bool = True,
    members: Sequence[int] | None = None,
    model: Denoiser | None = None,
    combine: Combine | None = None,
    scale: float | None = None,
) -> Ensemble:
    """Load an ensemble from a run directory onto all available devices of all processes.

    Only parameters are read, never the optimiser's state, and they are compared with their checksums.

    Args:
        path: the run directory, for example ``"runs/digits"``.
        step: the step of the checkpoint; by default the newest one.
        average: use the moving average of the parameters if the run kept one.
        members: load only these members, 0 .. K - 1, in this order. The result is an ensemble of them, whose code has
            only their columns. A few arrays are read at a time, so that the remaining members need no memory.
        model: the network, for runs that were trained with one of your own. Its parameters must have the names and
            shapes that the run recorded.
        combine: what the generator combines, see `ensdiff.ensemble.ensemble.Combine`; by default what the run was
            trained with. ``"parameters"`` needs members that share their start.
        scale: the factor of averaged changes with ``"parameters"``; by default what the run was trained with.

    Returns:
        The ensemble.

    Raises:
        FileNotFoundError: the run or the checkpoint does not exist. The message lists the run's checkpoints.
        DamagedError: the checkpoint is not what was written. The message lists the run's other checkpoints.
        ValueError: the run was written by a newer version, does not have these members, or its network is one of your
            own and ``model`` is missing or another one; or its members do not share the start that ``combine`` needs.

    Warns:
        DamageWarning: ``run.json`` is damaged, or the checkpoint belongs to another run than ``run.json``. The warning
            names the fields that differ.

    >>> ensdiff.load("runs/tiny")
    Ensemble(8 members, 40 units, 8x8x1 images, ... parameters per member)
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
    try:
        checkpoint = open_on_all(path, step)
        if wrong := hosts.decide(lambda: _not_of(path, checkpoint)):
            warn(wrong)
        params = from_description(checkpoint.description, None, model)
        if isinstance(params.model, Undefined):
            raise ValueError(params.model.why)
        shapes = abstract_params(params.model, params.image_shape, params.members, params.condition)
        if combine is not None:
            check_value("combine", combine, Combine)
            params = dataclasses.replace(params, combine=combine)
        if scale is not None:
            params = dataclasses.replace(params, scale=check_scale(scale))
            if params.combine != "parameters":
                raise ValueError(f'scale={scale} is for combine="parameters", and {path} averages predictions')
        params = dataclasses.replace(params, unit_names=known_names(path, params))
        base = read_base(path, params.base_digest)
        if base is None and params.combine == "parameters":
            raise ValueError(
                f'combine="parameters" needs members that share their start, and those of {path} do not: leave it out'
            )
        if base is not None:
            params = dataclasses.replace(params, base=on_mesh(base, make_mesh(params.members), P()))
        part = "ema" if average and checkpoint.description.get("average") else "params"
        if members is not None:
            code = params.code.only(members)
            some = read_members(checkpoint, part, shapes, members)
            return dataclasses.replace(params, params=on_mesh(some, make_mesh(code.members)), code=code)
        abstract = {**left_on_disk(checkpoint), part: _on_devices(shapes, params.members)}
        return dataclasses.replace(params, params=read_arrays(checkpoint, abstract)[part])
    except DamagedError as error:
        others = [str(other) for other in steps if other != step]
        more = f"the run also has checkpoint {', '.join(others)} (step=...)" if others else "it has no other"
        raise DamagedError(f"{error}; {more}") from error


def _on_devices(abstract: Any, members: int) -> Any:
    """Return shapes with the sharding that the available devices allow."""
    mesh = make_mesh(members)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("member"))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract)


def save(params: Ensemble, path: str | os.PathLike, step: int = 0) -> None:
    """Write an ensemble as a run directory with one checkpoint, without optimiser state.

    Raises:
        FileExistsError: the folder already holds checkpoints.
        OSError: the run could not be written. The message states why.

    >>> ensdiff.save(params, "runs/copy")
    >>> ensdiff.load("runs/copy").code == params.code
    True
    """
    with RunDirectory.open(path, keep=1, resume=False) as run:
        run.begin(params)
        members = on_mesh(params.params, make_mesh(params.members)) if jax.process_count() > 1 else params.params
        run.save_tree(step, {"params": members})


def _not_of(path: pathlib.Path, checkpoint: Checkpoint) -> str:
    """Call `foreign` for a run that may have no ``run.json``, because a checkpoint alone can be loaded."""
    if not (path / "run.json").is_file():
        return ""
    try:
        return foreign(checkpoint.folder, checkpoint.description, read_sealed(path / "run.json"))
    except DamagedError as error:
        return f"{error}; so {checkpoint.folder} could not be compared with it"
