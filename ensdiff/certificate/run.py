"""A run directory as the trainer left it: what a certificate is about."""

import dataclasses
import functools
import hashlib
import operator
import os
import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ensdiff.checkpoint import from_description
from ensdiff.codes import Code
from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.data.manifest import Manifest
from ensdiff.ensemble import Ensemble
from ensdiff.files import read_json
from ensdiff.integrity import DamagedError, damage
from ensdiff.logs import read_environments
from ensdiff.train import TrainConfig

FILES = ("run.json", "config.json", MANIFEST, "environment.jsonl")
"""What is certified beside the checkpoints; ``config.json`` is there when experiments.train wrote the run."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that `ensdiff.train` wrote, or `ensdiff.forget`.

    Members have the numbers that they were trained under, which key their random streams; a run that has forgotten
    units holds only some.

    Args:
        path: the directory.
        description: ``run.json``.
        code: the code over all members that were trained.
        held: the numbers of the members that the run holds.
        forgotten: units that were forgotten before.
        ensemble: what `ensdiff.load` gives, without parameters; its code is that of the held members.
        config: how it was trained.
        environments: where, see `ensdiff.environment`; each with its first step.
    """

    path: pathlib.Path
    description: dict[str, Any]
    code: Code
    held: tuple[int, ...]
    forgotten: tuple[int, ...]
    ensemble: Ensemble
    config: TrainConfig
    environments: tuple[dict[str, Any], ...]

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Run":
        """Read everything but the checkpoints' arrays.

        Raises:
            FileNotFoundError: no such run.
            ValueError: a file is damaged, files contradict each other, or nothing says how the run was trained; names
                the file.
        """
        path = pathlib.Path(path)
        file = path / "run.json"
        description = _read_description(file)
        if "data" not in description or "train" not in description:
            raise ValueError(
                f"{file} does not say what the members were trained on: only runs that ensdiff.train wrote can be "
                "certified, not ensembles that were saved or converted"
            )
        try:
            ensemble = from_description(description, None)
            origin = description.get("origin")
            code = ensemble.code if origin is None else Code.from_dict(origin["code"])
            held = tuple(range(code.members) if origin is None else map(operator.index, origin["members"]))
            forgotten = () if origin is None else tuple(map(operator.index, origin["forgotten"]))
            code.rows(np.array(forgotten, np.int64))
            config = TrainConfig(**description["train"])
            part = code if origin is None else code.only(held)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file} is not the description of a run: {error}") from error
        if part.to_dict() != ensemble.code.to_dict():
            raise ValueError(f"{file}: the code is not that of members {list(held)} of the origin's code")
        environments = _read_lines(path / "environment.jsonl")
        return cls(path, description, code, held, forgotten, ensemble, config, environments)

    @functools.cached_property
    def steps(self) -> tuple[int, ...]:
        """The finished checkpoints, ascending."""
        folder = self.path / "checkpoints"
        found = folder.iterdir() if folder.is_dir() else ()
        return tuple(sorted(int(p.name) for p in found if p.name.isdigit() and p.is_dir()))

    @property
    def last(self) -> int:
        """The newest checkpoint: what `ensdiff.load` opens."""
        if not self.steps:
            raise FileNotFoundError(f"{self.path} holds no finished checkpoint")
        return self.steps[-1]

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The data manifest.

        Raises:
            FileNotFoundError: the run has none.
            ValueError: damaged, or another one than ``run.json`` says.
        """
        file = self.path / MANIFEST
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: runs have one since ensdiff.train writes it; train again")
        content = file.read_bytes()
        try:
            manifest = Manifest.from_bytes(content)
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        found, said = hashlib.sha256(content).hexdigest(), self.description["data"].get("digest")
        if found != said:
            raise ValueError(f"{file} has SHA-256 {found}, run.json says {said}")
        units = int(manifest.unit_of_item.max()) + 1
        if units > self.code.units:
            raise ValueError(f"{file} has units up to {units - 1}, the code has {self.code.units}")
        return manifest

    def folder(self, step: int) -> pathlib.Path:
        """Of a checkpoint, absolute."""
        return (self.path / "checkpoints" / str(step)).resolve()

    @functools.cached_property
    def metadata(self) -> Any:
        """Orbax's metadata of the newest checkpoint: shapes, and the description it was written with.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            return ocp.metadata(self.folder(self.last))
        except Exception as error:  # what a damaged checkpoint raises is not limited
            raise ValueError(f"checkpoints/{self.last} cannot be read: {first_line(error)}") from error

    def arrays(self) -> dict[str, Any]:
        """The newest checkpoint as written: dicts and lists of NumPy arrays, by params, opt_state and ema.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            shapes = dict(self.metadata.metadata)
            return ocp.load(self.folder(self.last), jax.tree.map(lambda a: np.empty(a.shape, a.dtype), shapes))
        except Exception as error:
            raise ValueError(f"checkpoints/{self.last} cannot be read: {first_line(error)}") from error


def file_hashes(path: pathlib.Path) -> dict[str, str]:
    """SHA-256 of the certified files of a run directory: `FILES`, and all in finished checkpoints."""
    files = [path / name for name in FILES]
    for folder in sorted((path / "checkpoints").glob("*")):
        if folder.name.isdigit():
            files += sorted(file for file in folder.rglob("*") if file.is_file())
    out = {}
    for file in files:
        if file.is_file():
            with open(file, "rb") as stream:
                out[file.relative_to(path).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return out


def member_hashes(tree: Any, members: int) -> list[str]:
    """SHA-256 of each member's part of a tree of stacked arrays: names, shapes, types and bytes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    states = [hashlib.sha256() for _ in range(members)]
    for name, leaf in leaves:
        if leaf.shape[:1] != (members,):
            raise ValueError(f"{jax.tree_util.keystr(name)} has shape {leaf.shape}: expected {members} members")
        for k, state in enumerate(states):
            state.update(f"{jax.tree_util.keystr(name)} {leaf.shape[1:]} {leaf.dtype.str}\n".encode())
            state.update(np.ascontiguousarray(leaf[k]).tobytes())
    return [state.hexdigest() for state in states]


def first_line(error: Exception) -> str:
    """Of its message, which may be long."""
    return (str(error).strip().splitlines() or [repr(error)])[0]


def _read_description(file: pathlib.Path) -> dict[str, Any]:
    if not file.is_file():
        what = "holds no run.json" if file.parent.is_dir() else "does not exist"
        raise FileNotFoundError(f"{file.parent} {what}; train with python -m experiments.train --config=... first")
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} is not the description of a run: it holds a {type(values).__name__}")
    return values


def _read_lines(file: pathlib.Path) -> tuple[dict[str, Any], ...]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: runs have one since ensdiff.train writes it; train again")
    lines = read_environments(file.parent)
    if wrong := damage(lines):
        raise DamagedError(
            f"{file} is damaged: {wrong}. Put back a copy, or resume the run: it then says from which step on it is "
            "unknown where the members were trained"
        )
    places = tuple(line for line in lines if line is not None)
    steps = [line["step"] for line in places]
    if steps[:1] != [0] or steps != sorted(set(steps)):
        raise ValueError(f"{file} is damaged: its lines are about steps {steps}: expected 0, and then larger ones")
    return places
