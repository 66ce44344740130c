"""A run directory as the trainer left it, which is what a certificate describes."""

import dataclasses
import functools
import operator
import os
import pathlib
from typing import Any

import jax
import numpy as np

from ensdiff.codes import Code
from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.data.manifest import Manifest
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.checksums import DamagedError, read_sealed
from ensdiff.models.denoiser import Denoiser
from ensdiff.runs.base import NAME as BASE
from ensdiff.runs.base import read_base
from ensdiff.runs.checkpoints import (
    Checkpoint,
    on_host,
    open_checkpoint,
    parts_of,
    read_arrays,
    read_shapes,
    read_state,
    steps_of,
)
from ensdiff.runs.description import from_description, read_manifest
from ensdiff.runs.layout import stored_layout
from ensdiff.runs.logs import ENVIRONMENTS, checked, read_environments
from ensdiff.runs.sums import all_sums
from ensdiff.runs.unit_names import read_names
from ensdiff.training.config import TrainConfig
from ensdiff.training.step import TrainState, abstract_state
from ensdiff.typing import Params


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that `ensdiff.train` or `ensdiff.forget` wrote.

    Members keep their numbers from training, which key their random streams. A run that has forgotten units holds only
    some of the members.

    Args:
        path: the directory.
        description: the content of ``run.json``.
        code: the code over all members that were trained.
        held: the numbers of the members that the run holds.
        forgotten: units that were already forgotten.
        unchecked_before: checkpoints without checksums in the run from which these units were forgotten.
        ensemble: the ensemble that `ensdiff.load` returns, without parameters; its code is that of the held members.
        config: the training settings.
        environments: where and how the run was trained (see `ensdiff.runs.logs`), each with its first step.
    """

    path: pathlib.Path
    description: dict[str, Any]
    code: Code
    held: tuple[int, ...]
    forgotten: tuple[int, ...]
    unchecked_before: tuple[int, ...]
    ensemble: Ensemble
    config: TrainConfig
    environments: tuple[dict[str, Any], ...]

    @classmethod
    def open(cls, path: str | os.PathLike, model: Denoiser | None = None) -> "Run":
        """Read everything except the checkpoints' arrays.

        Args:
            path: the run directory.
            model: the network, if it is one of the caller's own.

        Raises:
            FileNotFoundError: the run does not exist.
            ValueError: a file is damaged, files contradict each other, or the run does not record how it was trained.
                The message names the file.
        """
        path = pathlib.Path(path)
        file = path / "run.json"
        if not file.exists():
            what = "holds no run.json" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"{path} {what}; train with python -m experiments.train --config=... first")
        description = read_sealed(file)
        if not all(isinstance(description.get(name), dict) for name in ("data", "train")):
            raise ValueError(
                f"{file} does not state what the members were trained on: only runs that ensdiff.train wrote can be "
                "certified, not ensembles that were saved or converted"
            )
        try:
            ensemble = from_description(description, None, model)
            origin = description.get("origin")
            code = ensemble.code if origin is None else Code.from_dict(origin["code"])
            held = tuple(range(code.members) if origin is None else map(operator.index, origin["members"]))
            forgotten = () if origin is None else tuple(map(operator.index, origin["forgotten"]))
            code.rows(np.array(forgotten, np.int64))
            unchecked = () if origin is None else tuple(map(operator.index, origin.get("unchecked", ())))
            config = TrainConfig(**description["train"])
            part = code if origin is None else code.only(held)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"{file} is not the description of a run: {error}") from error
        if part.to_dict() != ensemble.code.to_dict():
            raise ValueError(f"{file}: the code is not that of members {list(held)} of the origin's code")
        if ensemble.base_digest is None and (path / BASE).exists():
            raise ValueError(
                f"{path / BASE} does not belong to a run whose members share no start: move it out of the run"
            )
        environments = read_places(path)
        ensemble = dataclasses.replace(ensemble, unit_names=read_names(path, ensemble))
        if (path / "config.json").exists():
            read_sealed(path / "config.json")  # only its own checksum shows whether it is what was written
        if 0 in steps_of(path):
            raise ValueError(
                f"{path / 'checkpoints' / '0'} was not written by training, which keeps nothing before its first step, "
                "so no replay can compare it: move it out of the run"
            )
        return cls(path, description, code, held, forgotten, unchecked, ensemble, config, environments)

    @functools.cached_property
    def steps(self) -> tuple[int, ...]:
        """Steps of the finished checkpoints, in ascending order."""
        return tuple(steps_of(self.path))

    @property
    def last(self) -> int:
        """Step of the newest checkpoint, which is the one that `ensdiff.load` opens."""
        if not self.steps:
            raise FileNotFoundError(f"{self.path} holds no finished checkpoint")
        return self.steps[-1]

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The data manifest.

        Raises:
            FileNotFoundError: the run has no manifest.
            DamagedError: the manifest is damaged, or is not the one that ``run.json`` refers to.
            ValueError: the manifest has more units than the code.
        """
        file = self.path / MANIFEST
        manifest = read_manifest(self.path, self.description)
        if manifest is None:
            raise FileNotFoundError(
                f"{file} does not exist: older versions of ensdiff.train did not write it; train again"
            )
        units = int(manifest.unit_of_item.max()) + 1
        if units > self.code.units:
            raise ValueError(f"{file} has units up to {units - 1}, but the code has {self.code.units} units")
        return manifest

    @functools.cached_property
    def checkpoints(self) -> dict[int, Checkpoint]:
        """Every checkpoint without its arrays, by step.

        Raises:
            DamagedError: a checkpoint cannot be read, is not what was written, or belongs to another step.
        """
        return {step: open_checkpoint(self.path, step) for step in self.steps}

    @property
    def unchecked(self) -> list[int]:
        """Steps whose arrays were saved without checksums, so that later changes cannot be detected."""
        found = [step for step, checkpoint in self.checkpoints.items() if "sums" not in checkpoint.description]
        return sorted({*self.unchecked_before, *found} & set(self.steps))

    def state(self, step: int) -> TrainState:
        """Return the training state of the held members in a checkpoint, as NumPy arrays.

        Raises:
            DamagedError: the checkpoint cannot be read, or does not match its checksums.
            ValueError: the checkpoint holds anything other than the state of the held members after ``step`` steps. The
                message states what.
        """
        checkpoint = self.checkpoints[step]
        wrong = _differences(read_shapes(checkpoint), self._stored(checkpoint))
        if wrong:
            raise ValueError(
                f"checkpoints/{step} is not the state of {len(self.held)} members alone: {'; '.join(wrong[:3])}"
                + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            )
        state = jax.tree.map(np.asarray, read_state(checkpoint, on_host(self._expected)))
        for name, leaf in jax.tree.leaves_with_path(state.opt_state):
            if jax.tree_util.keystr(name).endswith("count") and (leaf != step).any():
                raise ValueError(f"checkpoints/{step} belongs to another step: its optimiser took {leaf.max()} steps")
        return state

    def sums(self, step: int) -> dict[str, list[str]]:
        """Return the checksums of each held member's parts of a checkpoint, in the layout in which it was written.

        Raises:
            DamagedError: the checkpoint has no checksums and cannot be read.
        """
        checkpoint = self.checkpoints[step]
        if "sums" in checkpoint.description:
            return checkpoint.description["sums"]
        arrays = read_arrays(checkpoint, on_host(self._stored(checkpoint)))
        return {part: all_sums(tree) for part, tree in arrays.items()}

    @functools.cached_property
    def base(self) -> Params | None:
        """The parameters that all members started from, compared with their digest; None if they share none."""
        return read_base(self.path, self.ensemble.base_digest)

    @property
    def _expected(self) -> TrainState:
        """The shapes of the state of the held members."""
        one = self.ensemble
        return abstract_state(one.model, one.image_shape, len(self.held), self.config, one.condition)

    def _stored(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the shapes of the state of the held members in the layout of a checkpoint."""
        return stored_layout(parts_of(self._expected), checkpoint.description["format"])


def _differences(found: Any, expected: Any) -> list[str]:
    """Return one line per array of a checkpoint whose name, shape or dtype differs from those of a training state."""
    here, there = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {leaf.shape}"
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (found, expected)
    )
    return [
        f"{name} is {here.get(name, 'missing')}, expected {there.get(name, 'nothing of that name')}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]


def read_places(run: pathlib.Path) -> tuple[dict[str, Any], ...]:
    """Return where a run was trained, from its first step on.

    Raises:
        FileNotFoundError: the run has no record of it.
        DamagedError: part of the record is damaged.
    """
    file = run / ENVIRONMENTS
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: older versions of ensdiff.train did not write it; train again")
    try:
        places = checked(file, read_environments(run))
    except DamagedError as error:
        raise DamagedError(
            f"{error}. Restore the file from a copy, or resume the run, which records from which step on it is unknown "
            "where the members were trained"
        ) from error
    if not places or places[0]["step"] != 0:
        raise DamagedError(f"{file} is damaged: it does not begin with step 0")
    return tuple(places)
