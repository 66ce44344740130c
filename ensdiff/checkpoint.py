"""Run directories: what a training run writes, and how to load it elsewhere.

```
runs/digits/
  run.json               version, model, schedule, code, data and training settings
  data.manifest          unit and content hash of every training item; its SHA-256 is run.json's data.digest
  environment.jsonl      devices and versions, one line a start; each holds from its step to the next line's
  checkpoints/<step>/    Orbax: parameters, optimiser state and average; run.json's content as its metadata
  metrics.jsonl          one line a logged step: loss and gradient norm of each member
  tensorboard/           the same for TensorBoard
  samples/step_<n>.png   sample grids
```
A checkpoint alone is enough to load an ensemble: its metadata hold everything static.

Of several processes each writes and reads its own members' part of a checkpoint; every other file is process 0's. So
the folder must be on a file system that all of them share.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ensdiff import hosts
from ensdiff._version import __version__
from ensdiff.codes import Code
from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.ensemble import Ensemble, abstract_params, make_mesh, on_mesh
from ensdiff.schedule import Schedule
from ensdiff.typing import Params
from ensdiff.unet import UNetConfig

FORMAT = 1


def describe(params: Ensemble) -> dict[str, Any]:
    """Everything static about an ensemble, as JSON-able values; `from_description` reads it."""
    return {
        "format": FORMAT,
        "ensdiff": __version__,
        "model": dataclasses.asdict(params.model),
        "schedule": dataclasses.asdict(params.schedule),
        "code": params.code.to_dict(),
        "image_shape": list(params.image_shape),
        "value_range": list(params.value_range),
    }


def from_description(text: Mapping[str, Any], params: Params) -> Ensemble:
    """An ensemble from `describe`'s values and a parameter pytree (or its shapes)."""
    if text.get("format") != FORMAT:
        raise ValueError(
            f"this run has format {text.get('format')!r} (written by ensdiff {text.get('ensdiff', 'unknown')}); "
            f"ensdiff {__version__} reads format {FORMAT}. Upgrade ensdiff, or write the run again"
        )
    model: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in text["model"].items()}
    H, W, C = text["image_shape"]
    low, high = text["value_range"]
    return Ensemble(
        params,
        Code.from_dict(text["code"]),
        UNetConfig(**model),
        Schedule(**text["schedule"]),
        (H, W, C),
        (low, high),
    )


def _on_devices(abstract: Any, members: int) -> Any:
    """Shapes with the sharding that the devices allow."""
    mesh = make_mesh(members)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("member"))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract)


def _write_atomically(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _steps(checkpoints: pathlib.Path) -> list[int]:
    """Numbers of the finished checkpoints, ascending; Orbax renames a folder to its number only when it is whole."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit() and p.is_dir())


def load(path: str | os.PathLike, step: int | None = None, *, average: bool = True) -> Ensemble:
    """Load an ensemble from a run directory onto the devices there are, of all processes.

    Args:
        path: the run directory, for example ``"runs/digits"``.
        step: which checkpoint; by default the newest.
        average: use the moving average of the parameters where the run kept one.

    Raises:
        FileNotFoundError: no such run, or no such checkpoint; says which there are.
        ValueError: the run was written by an incompatible version.
    """
    path = pathlib.Path(path)
    steps = hosts.decide(lambda: _steps(path / "checkpoints"))
    if not steps:
        what = "holds no finished checkpoint" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; train with python -m experiments.train --config=... first")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise FileNotFoundError(f"{path} has no checkpoint {step}; it has {', '.join(map(str, steps))}")
    folder = (path / "checkpoints" / str(step)).resolve()
    metadata = ocp.metadata(folder)
    if not metadata.custom_metadata:
        raise ValueError(f"{folder} is an Orbax checkpoint without ensdiff's description; was it written by ensdiff?")
    params = from_description(metadata.custom_metadata, None)
    shapes = abstract_params(params.model, params.image_shape, params.members)
    part = "ema" if average and metadata.custom_metadata.get("average") else "params"
    # every other part of the checkpoint is left on disk
    abstract = jax.tree.map(lambda _: ocp.PLACEHOLDER, dict(metadata.metadata))
    abstract[part] = _on_devices(shapes, params.members)
    restored = ocp.load(folder, abstract)
    return dataclasses.replace(params, params=restored[part])


def save(params: Ensemble, path: str | os.PathLike, step: int = 0) -> None:
    """Write an ensemble as a run directory with one checkpoint, without optimiser state.

    Raises:
        FileExistsError: the folder holds checkpoints already.
    """
    with RunDirectory.open(path, keep=1, resume=False) as run:
        run.begin(params)
        members = on_mesh(params.params, make_mesh(params.members)) if jax.process_count() > 1 else params.params
        run._checkpointer.save(step, {"params": members}, custom_metadata=run._description)


def _tree(state: Any) -> dict[str, Any]:
    """What a checkpoint holds of a training state."""
    tree = {"params": state.params, "opt_state": state.opt_state}
    return tree if state.ema is None else {**tree, "ema": state.ema}


class RunDirectory:
    """The files of one run. ``RunDirectory.open(None)`` writes nothing and is otherwise the same."""

    def __init__(self, path: pathlib.Path | None, keep: int):
        self.path = path
        self._checkpointer: Any = None
        self._board: Any = None
        self._description: dict[str, Any] = {}
        if path is not None:
            policy = ocp.training.preservation_policies.LatestN(keep)
            self._checkpointer = ocp.training.Checkpointer(
                (path / "checkpoints").resolve(), preservation_policy=policy, cleanup_tmp_directories=True
            )

    @classmethod
    def open(cls, path: str | os.PathLike | None, *, keep: int, resume: bool) -> "RunDirectory":
        """Open or make a run directory; refuse one that holds checkpoints unless resuming."""
        if path is None:
            return cls(None, keep)
        path = pathlib.Path(path)

        def make() -> None:
            steps = _steps(path / "checkpoints")
            if steps and not resume:
                raise FileExistsError(
                    f"{path} holds checkpoints already ({', '.join(map(str, steps))}); set resume to continue, "
                    "or choose another folder"
                )
            path.mkdir(parents=True, exist_ok=True)

        def check() -> None:
            if not path.is_dir():
                raise FileNotFoundError(
                    f"process {jax.process_index()} does not see {path.absolute()}, which process 0 made: "
                    "choose a folder on a file system that all processes share"
                )

        hosts.decide(make)
        hosts.together(check)
        return cls(path, keep)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind, *_) -> None:
        if self._board is not None:
            self._board.close()
        # closing waits for the other processes, and they do not come where only this one failed
        if self._checkpointer is not None and (kind is None or jax.process_count() == 1):
            self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest finished checkpoint. Every process must ask."""
        if self._checkpointer is None:
            return None
        steps = hosts.decide(lambda: [found.step for found in self._checkpointer.checkpoints])
        return steps[-1] if steps else None

    def begin(self, params: Ensemble, train: Any = None, data: Any = None) -> None:
        """Say what is trained; write ``run.json``. When resuming, check first that it is the same run.

        Raises:
            ValueError: the newest checkpoint is of another model, code, data set or way of training.
        """
        path = self.path
        if path is None:
            return
        latest = self.latest
        before = None if latest is None else self._checkpointer.metadata(latest).custom_metadata or {}

        def start() -> dict[str, Any]:
            text = describe(params)
            if train is not None:
                text["train"] = dataclasses.asdict(train)
            if data is not None:
                manifest = data.manifest()
                text["data"] = {
                    "name": data.name, "items": data.items, "units": data.units, "digest": manifest.digest()
                }  # fmt: skip
            self._description = json.loads(json.dumps(text))
            if before is not None:
                self._check_same(before)
            if data is not None:
                _write_atomically(path / MANIFEST, manifest.to_bytes().decode())
            _write_atomically(path / "run.json", json.dumps(text, indent=1) + "\n")
            return self._description

        # only process 0 reads all the data for their digest
        self._description = hosts.decide(start)

    def adopt(self, description: Mapping[str, Any]) -> None:
        """Instead of `begin`: write a run with a description that is given, as forgetting does."""
        assert self.path is not None
        self._description = dict(description)
        _write_atomically(self.path / "run.json", json.dumps(self._description, indent=1) + "\n")

    def note_environment(self, step: int, values: Mapping[str, Any]) -> None:
        """Keep what the steps from ``step`` on are trained on, in ``environment.jsonl``."""
        if self.path is None or not hosts.is_writer():
            return
        file = self.path / "environment.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] < step]  # later ones are trained again
        _write_atomically(file, "".join([*kept, json.dumps({"step": step, **values}) + "\n"]))

    def _check_same(self, before: Mapping[str, Any]) -> None:
        """Everything that decides the parameters at a step must be as it was; what is logged may change."""
        if "origin" in before:
            raise ValueError(
                f"{self.path} was made by forgetting units and holds some members only: it cannot be trained on. "
                "Train a run in another folder"
            )
        pairs = {
            name: (before.get(name), self._description.get(name)) for name in ("model", "schedule", "code", "data")
        }
        old, new = before.get("train") or {}, self._description.get("train") or {}
        free = {"log_every", "checkpoint_every", "sample_every", "keep"}
        if old.get("decay") == new.get("decay") == "constant":
            free.add("steps")  # with cosine decay the number of steps shapes the learning rate
        pairs.update({f"train.{name}": (old.get(name), new.get(name)) for name in {*old, *new} - free})
        changed = {name: pair for name, pair in sorted(pairs.items()) if pair[0] != pair[1]}
        if changed:
            lines = [f"{name}: was {was!r}, is {now!r}" for name, (was, now) in changed.items()]
            raise ValueError(
                f"{self.path} cannot be resumed with other settings. "
                + "; ".join(lines)
                + ". Use the same, or another folder"
            )

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint of the whole training state (of `begin`'s run)."""
        if self._checkpointer is None:
            return
        description = {**self._description, "step": step, "average": state.ema is not None}
        self._checkpointer.save(step, _tree(state), custom_metadata=description)

    def restore(self, state: Any) -> tuple[int, Any]:
        """The newest checkpoint's step and state, onto the shardings of ``state``."""
        step = self.latest
        assert step is not None
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _tree(state))
        tree = self._checkpointer.load(step, abstract)
        if hosts.is_writer():
            self._drop_metrics_after(step)
        return step, type(state)(tree["params"], tree["opt_state"], tree.get("ema"))

    def write_metrics(self, step: int, **values_K: np.ndarray) -> None:
        """Append one line to ``metrics.jsonl`` and to TensorBoard; each value has one number a member."""
        if self.path is None or not hosts.is_writer():
            return
        line = {"step": step, "time": time.time(), **{k: [float(x) for x in v] for k, v in values_K.items()}}
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is None:
            from tensorboardX import SummaryWriter  # slow to import

            self._board = SummaryWriter(str(self.path / "tensorboard"))
        for name, value_K in values_K.items():
            tag = name.removesuffix("_K")
            self._board.add_scalar(f"{tag}/mean", float(np.mean(value_K)), step)
            for k, value in enumerate(value_K):
                self._board.add_scalar(f"{tag}/member_{k:03d}", float(value), step)

    def _drop_metrics_after(self, step: int) -> None:
        """A killed run may have logged steps that it will take again."""
        path = self.path / "metrics.jsonl" if self.path else None
        if path is not None and path.exists():
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            _write_atomically(path, "".join(line + "\n" for line in kept))

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file of the run, such as ``samples/step_0000500.png``."""
        if self.path is None or not hosts.is_writer():
            return
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The lines of a run's ``metrics.jsonl``, oldest first; an unfinished last line is left out."""
    file = pathlib.Path(path) / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
