"""Writing a run directory: a single writer, checkpoints in the background, resuming from the newest good one.

`ensdiff.runs` lists the files of a run directory.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ensdiff import hosts
from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.files.checksums import SEAL, DamagedError, read_sealed, seal, warn, write_sealed
from ensdiff.files.writing import (
    FolderInUseError,
    check_folder,
    explain,
    let_go,
    lock,
    log_errors_once,
    make_folder,
    remove_folder,
    sweep,
    write_atomically,
)
from ensdiff.runs.base import holds_base, write_base
from ensdiff.runs.checkpoints import folder_of, open_checkpoint, open_on_all, parts_of, read_state, steps_of
from ensdiff.runs.description import describe
from ensdiff.runs.logs import ENVIRONMENTS, MetricsLog, note_environment
from ensdiff.runs.resuming import check_same, none_good, set_aside, unreadable
from ensdiff.runs.skipped import write_skipped
from ensdiff.runs.sums import all_sums
from ensdiff.runs.unit_names import write_names

FOLDERS = ("checkpoints", "damaged", "samples", "tensorboard")
"""Folders that a run directory may hold."""


class Restored(NamedTuple):
    """The result of `RunDirectory.restore`.

    Args:
        step: number of steps done.
        state: the training state.
        unlogged: the argument ``unlogged`` of `RunDirectory.save`, or None if there was none.
    """

    step: int
    state: Any
    unlogged: dict[str, Any] | None


class RunDirectory:
    """The files of one run. ``RunDirectory.open(None)`` returns one that writes nothing."""

    def __init__(self, path: pathlib.Path | None, keep: int = 1, keep_every: int = 0):
        self.path = path
        self._keep, self._keep_every = keep, keep_every
        self._open = contextlib.ExitStack()
        self._checkpointer: Any = None
        self._log: MetricsLog | None = None
        self._description: dict[str, Any] = {}
        self._damaged = False
        self._writing: int | None = None
        """Step of the newest checkpoint, whose writing may still be in progress."""

    @classmethod
    def open(
        cls, path: str | os.PathLike | None, *, keep: int, keep_every: int = 0, resume: bool = False
    ) -> "RunDirectory":
        """Open or create a run directory as its only writer.

        Args:
            path: the folder; None writes nothing.
            keep: how many of the newest checkpoints are kept.
            keep_every: also keep checkpoints at multiples of this number of steps; 0 keeps no others.
            resume: continue in a folder that holds checkpoints.

        Raises:
            FileExistsError: the folder holds checkpoints, and ``resume`` is not set.
            FolderInUseError: another run is writing into the folder.
            DamagedError: the folder holds checkpoints, but all are damaged.
            NotADirectoryError: the path, or a path in it that must be a folder, is a file.
            OSError: the folder cannot be created or written to.
        """
        if path is None:
            return cls(None)
        path = pathlib.Path(path)
        run = cls(path, keep, keep_every)

        def make() -> None:
            for name in FOLDERS:
                check_folder(path / name)
            steps = steps_of(path)
            if steps and not resume:
                raise FileExistsError(
                    f"{path} holds checkpoints already ({', '.join(map(str, steps))}); set resume to continue, "
                    "or choose another folder"
                )
            try:
                make_folder(path)
                run._open.enter_context(lock(path))
                sweep(path / "checkpoints")
            except FolderInUseError:
                raise
            except OSError as error:
                why = explain(error, next(parent for parent in (path, *path.absolute().parents) if parent.exists()))
                raise OSError(f"{path}: {why}; choose a folder that can be written to") from error
            run._damaged = set_aside(path, unreadable(path))
            run._log = MetricsLog(path)
            run._open.callback(run._log.close)

        def check() -> None:
            if not path.is_dir():
                raise FileNotFoundError(
                    f"process {jax.process_index()} does not see {path.absolute()}, which process 0 created: "
                    "choose a folder on a file system that all processes share"
                )

        try:
            hosts.decide(make)
            hosts.together(check)
            log_errors_once()
            run._checkpointer = ocp.training.Checkpointer(  # it keeps all checkpoints; `_prune` deletes old ones
                (path / "checkpoints").resolve(),
                cleanup_tmp_directories=True,  # left behind by a killed run
            )
        except BaseException:
            run._open.close()
            raise
        return run

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind, *_) -> None:
        with self._open:
            # closing waits for the other processes, which never arrive if only this one failed
            if self._checkpointer is not None and (kind is None or jax.process_count() == 1):
                with self._explained(self._written()) if kind is None else contextlib.suppress(Exception):
                    self._checkpointer.close()
                self._prune()

    @property
    def latest(self) -> int | None:
        """Step of the newest finished checkpoint, or None. Every process must read it."""
        path = self.path
        if path is None:
            return None
        steps = hosts.decide(lambda: steps_of(path))
        return steps[-1] if steps else None

    def begin(self, params: Ensemble, train: Any = None, data: Any = None) -> None:
        """Record what is trained in ``run.json``. When resuming, first check that it is the same run.

        Raises:
            ValueError: the newest checkpoint has another model, code, training settings or data. The message names
                items that differ.
        """
        path = self.path
        if path is None:
            return

        def start() -> dict[str, Any]:
            text = describe(params)
            if train is not None:
                text["train"] = dataclasses.asdict(train)
            manifest = None if data is None else data.manifest()
            if manifest is not None:
                text["data"] = {
                    "name": data.name, "items": data.items, "units": data.units, "digest": manifest.digest()
                }  # fmt: skip
            self._description = json.loads(json.dumps(text))
            steps = steps_of(path)
            if steps:
                before = open_checkpoint(path, steps[-1]).description
                check_same(path, steps[-1], before, self._description, data)
                if data is not None:  # the data may have a new name, but run.json and the checkpoints must agree
                    name = before["data"].get("name", data.name)
                    text["data"]["name"] = self._description["data"]["name"] = name
            elif self._log is not None:
                self._log.drop_after(0)  # left by an attempt that ended before its first checkpoint
            with self._explained("run.json"):
                _report_damage(path / "run.json")
                if manifest is not None:
                    write_atomically(path / MANIFEST, manifest.to_bytes())
                if not steps or not holds_base(path, params):
                    write_base(path, params)
                write_names(path, params, keep=bool(steps))
                write_skipped(path, data)
                write_sealed(path / "run.json", text)
            return self._description

        # only process 0 reads all the data to compute their digest
        self._description = hosts.decide(start)

    def adopt(self, description: Mapping[str, Any]) -> None:
        """Write ``run.json`` from a given description instead of calling `begin`, as forgetting does."""
        assert self.path is not None
        self._description = {name: value for name, value in description.items() if name != SEAL}
        with self._explained("run.json"):
            write_sealed(self.path / "run.json", self._description)

    def note_environment(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the environment in which the steps from ``step`` on are trained, in ``environment.jsonl``."""
        if self.path is None or not hosts.is_writer():
            return
        with self._explained(ENVIRONMENTS):
            note_environment(self.path, step, values)

    def save(self, step: int, state: Any, unlogged: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint of the whole training state of the run given to `begin`, in the background.

        Args:
            step: number of steps done.
            state: the training state.
            unlogged: JSON-able values of earlier steps that the next line of the metrics needs (see `restore`).

        Raises:
            OSError: this checkpoint or the previous one could not be written. The message states which and why, and
                names the newest good checkpoint.
        """
        if self.path is not None:
            self.save_tree(step, parts_of(state), unlogged)

    def save_tree(self, step: int, tree: dict[str, Any], unlogged: Mapping[str, Any] | None = None) -> None:
        """Do what `save` does for any parts of a state, by name."""
        assert self.path is not None
        path = self.path

        def check() -> None:
            if not (path / "run.json").exists():  # Orbax would recreate the folder without the rest of the run
                raise FileNotFoundError(f"{path / 'run.json'} is gone")

        # the previous checkpoint may still be in progress
        sums = {part: all_sums(some) for part, some in tree.items()}
        self.wait()
        with self._explained(f"checkpoint {step}"):
            hosts.decide(check)
            text = {**self._description, "step": step, "average": "ema" in tree, "sums": sums}
            text = seal(text if unlogged is None else {**text, "unlogged": unlogged})
            self._writing = step
            self._checkpointer.save_async(step, tree, force=True, custom_metadata=text)

    def wait(self) -> None:
        """Wait until the newest checkpoint is on disk, then delete those that are not kept.

        Raises:
            OSError: the checkpoint could not be written (see `save`).
        """
        if self._checkpointer is not None:
            with self._explained(self._written()):
                self._checkpointer.wait()
            self._prune()

    def _written(self) -> str:
        return "the newest checkpoint" if self._writing is None else f"checkpoint {self._writing}"

    def _prune(self) -> None:
        """Delete checkpoints that are not kept, after one was written.

        Orbax would delete them file by file under their final names, which is not safe against interruption.
        """
        if self.path is None or self._writing is None or not hosts.is_writer():
            return
        steps = steps_of(self.path)
        for step in steps[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                try:
                    remove_folder(folder_of(self.path, step))
                except OSError as error:  # an extra checkpoint does no harm
                    warn(f"checkpoint {step} of {self.path}, which is no longer kept, could not be deleted: {error}")

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn any failure to write into one clear error."""
        try:
            yield
        except Exception as error:
            assert self.path is not None
            steps = steps_of(self.path) if self.path.exists() else []
            kept = f"checkpoint {steps[-1]} is kept; set resume to continue there" if steps else "no checkpoint is kept"
            why = explain(error, self.path)
            let_go(error)
            raise OSError(f"{what} of {self.path} could not be written: {why}; {kept}") from error

    def restore(self, state: Any) -> Restored:
        """Read the newest good checkpoint onto the shardings of ``state``.

        Newer checkpoints that are damaged are moved to ``damaged/`` with a warning, and their steps are repeated.

        Raises:
            DamagedError: every checkpoint is damaged. The message names each, and none is moved.
            ValueError: the newest good checkpoint does not belong to the run given to `begin`. None is moved.
        """
        path = self.path
        assert path is not None
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
        failures: dict[int, str] = {}
        for step in reversed(hosts.decide(lambda: steps_of(path))):
            try:
                checkpoint = open_on_all(path, step)
                found = read_state(checkpoint, like)
            except DamagedError as error:
                failures[step] = str(error)
                continue
            if self._description:
                check_same(path, step, checkpoint.description, self._description)
            if failures:
                hosts.decide(lambda: set_aside(path, failures))
                self._damaged = True
                self._checkpointer.reload()
            if self._damaged:
                warn(f"resuming at checkpoint {step}, the newest good one")
            if self._log is not None:
                self._log.drop_after(step)
            return Restored(step, found, checkpoint.description.get("unlogged"))
        raise none_good(path, failures)

    def write_metrics(self, step: int, **values_K: np.ndarray) -> None:
        """Append one line to ``metrics.jsonl`` and to TensorBoard. Each value has one number per member."""
        if self._log is not None:
            with self._explained("metrics"):
                self._log.write(step, **values_K)

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file of the run, such as ``samples/step_0000500.png``."""
        if self.path is None or not hosts.is_writer():
            return
        with self._explained(name):
            path = self.path / name
            make_folder(path.parent)
            write_atomically(path, content)


def _report_damage(path: pathlib.Path) -> None:
    """Warn if a file that is about to be rewritten is damaged."""
    if path.exists():
        try:
            read_sealed(path)
        except DamagedError as error:
            warn(f"{error}; it is rewritten")
