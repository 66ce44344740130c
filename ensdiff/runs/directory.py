"""A run directory while it is written: one writer, checkpoints in the background, the newest good one on resuming.

`ensdiff.runs` lists what is in one.
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
from ensdiff.runs.checkpoints import folder_of, open_checkpoint, open_on_all, parts_of, read_state, steps_of
from ensdiff.runs.description import describe
from ensdiff.runs.logs import ENVIRONMENTS, MetricsLog, note_environment
from ensdiff.runs.resuming import check_same, none_good, set_aside, unreadable
from ensdiff.runs.sums import all_sums

FOLDERS = ("checkpoints", "damaged", "samples", "tensorboard")
"""That a run directory may hold."""


class Restored(NamedTuple):
    """What `RunDirectory.restore` read.

    Args:
        step: number of steps done.
        state: the training state.
        unlogged: what `RunDirectory.save` was given beside it; None where it was given nothing.
    """

    step: int
    state: Any
    unlogged: dict[str, Any] | None


class RunDirectory:
    """The files of one run. ``RunDirectory.open(None)`` writes nothing and is otherwise the same."""

    def __init__(self, path: pathlib.Path | None, keep: int = 1, keep_every: int = 0):
        self.path = path
        self._keep, self._keep_every = keep, keep_every
        self._open = contextlib.ExitStack()
        self._checkpointer: Any = None
        self._log: MetricsLog | None = None
        self._description: dict[str, Any] = {}
        self._damaged = False
        self._writing: int | None = None
        """Step of the checkpoint that was written last, perhaps not to its end yet."""

    @classmethod
    def open(
        cls, path: str | os.PathLike | None, *, keep: int, keep_every: int = 0, resume: bool = False
    ) -> "RunDirectory":
        """Open or make a run directory, as its only writer.

        Args:
            path: the folder; None writes nothing.
            keep: the newest checkpoints that are kept.
            keep_every: checkpoints at multiples of so many steps are kept too; 0 is none.
            resume: go on in a folder that holds checkpoints.

        Raises:
            FileExistsError: it holds checkpoints, and ``resume`` is not set.
            FolderInUseError: another run writes into it.
            DamagedError: it holds checkpoints, and none is good.
            NotADirectoryError: it, or what must be a folder in it, is a file.
            OSError: it cannot be made or written to.
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
                    f"process {jax.process_index()} does not see {path.absolute()}, which process 0 made: "
                    "choose a folder on a file system that all processes share"
                )

        try:
            hosts.decide(make)
            hosts.together(check)
            log_errors_once()
            run._checkpointer = ocp.training.Checkpointer(  # it keeps all checkpoints, see `_prune`
                (path / "checkpoints").resolve(),
                cleanup_tmp_directories=True,  # what a killed run had begun to write
            )
        except BaseException:
            run._open.close()
            raise
        return run

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind, *_) -> None:
        with self._open:
            # closing waits for the other processes, and they do not come where only this one failed
            if self._checkpointer is not None and (kind is None or jax.process_count() == 1):
                with self._explained(self._written()) if kind is None else contextlib.suppress(Exception):
                    self._checkpointer.close()
                self._prune()

    @property
    def latest(self) -> int | None:
        """Step of the newest finished checkpoint. Every process must ask."""
        path = self.path
        if path is None:
            return None
        steps = hosts.decide(lambda: steps_of(path))
        return steps[-1] if steps else None

    def begin(self, params: Ensemble, train: Any = None, data: Any = None) -> None:
        """Say what is trained; write ``run.json``. When resuming, check first that it is the same run.

        Raises:
            ValueError: the newest checkpoint is of another model, code, way of training or other data; names items that
                differ.
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
                if data is not None:  # they may be called otherwise; run.json and the checkpoints must agree
                    name = before["data"].get("name", data.name)
                    text["data"]["name"] = self._description["data"]["name"] = name
            elif self._log is not None:
                self._log.drop_after(0)  # of an attempt that was ended before its first checkpoint
            with self._explained("run.json"):
                _report_damage(path / "run.json")
                if manifest is not None:
                    write_atomically(path / MANIFEST, manifest.to_bytes())
                write_sealed(path / "run.json", text)
            return self._description

        # only process 0 reads all the data for their digest
        self._description = hosts.decide(start)

    def adopt(self, description: Mapping[str, Any]) -> None:
        """Instead of `begin`: write a run with a description that is given, as forgetting does."""
        assert self.path is not None
        self._description = {name: value for name, value in description.items() if name != SEAL}
        with self._explained("run.json"):
            write_sealed(self.path / "run.json", self._description)

    def note_environment(self, step: int, values: Mapping[str, Any]) -> None:
        """Keep what the steps from ``step`` on are trained on, in ``environment.jsonl``."""
        if self.path is None or not hosts.is_writer():
            return
        with self._explained(ENVIRONMENTS):
            note_environment(self.path, step, values)

    def save(self, step: int, state: Any, unlogged: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint of the whole training state (of `begin`'s run). It goes on while training does.

        Args:
            step: number of steps done.
            state: the training state.
            unlogged: what the next line of the metrics needs of the steps before, JSON-able (see `restore`).

        Raises:
            OSError: this or the one before could not be written; says which and why, and which checkpoint is the
                newest good one.
        """
        if self.path is not None:
            self.save_tree(step, parts_of(state), unlogged)

    def save_tree(self, step: int, tree: dict[str, Any], unlogged: Mapping[str, Any] | None = None) -> None:
        """`save` of any parts of a state, by name."""
        assert self.path is not None
        path = self.path

        def check() -> None:
            if not (path / "run.json").exists():  # Orbax would make the folder again, without the rest of the run
                raise FileNotFoundError(f"{path / 'run.json'} is gone")

        sums = {part: all_sums(some) for part, some in tree.items()}  # while the one before may be under way
        self.wait()
        with self._explained(f"checkpoint {step}"):
            hosts.decide(check)
            text = {**self._description, "step": step, "average": "ema" in tree, "sums": sums}
            text = seal(text if unlogged is None else {**text, "unlogged": unlogged})
            self._writing = step
            self._checkpointer.save_async(step, tree, force=True, custom_metadata=text)

    def wait(self) -> None:
        """Until the newest checkpoint is on the disk, and those that are not kept are gone.

        Raises:
            OSError: it could not be written, see `save`.
        """
        if self._checkpointer is not None:
            with self._explained(self._written()):
                self._checkpointer.wait()
            self._prune()

    def _written(self) -> str:
        return "the newest checkpoint" if self._writing is None else f"checkpoint {self._writing}"

    def _prune(self) -> None:
        """Once one was written, delete those that are not kept (Orbax does it file by file, under the step's name)."""
        if self.path is None or self._writing is None or not hosts.is_writer():
            return
        steps = steps_of(self.path)
        for step in steps[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                try:
                    remove_folder(folder_of(self.path, step))
                except OSError as error:  # nothing is lost by it
                    warn(f"checkpoint {step} of {self.path}, which is no longer kept, could not be deleted: {error}")

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """One clear error of whatever goes wrong in writing."""
        try:
            yield
        except Exception as error:
            assert self.path is not None
            steps = steps_of(self.path) if self.path.exists() else []
            kept = f"checkpoint {steps[-1]} is kept; set resume to go on there" if steps else "no checkpoint is kept"
            why = explain(error, self.path)
            let_go(error)
            raise OSError(f"{what} of {self.path} could not be written: {why}; {kept}") from error

    def restore(self, state: Any) -> Restored:
        """Read the newest good checkpoint, onto the shardings of ``state``.

        Newer ones that are damaged are moved to ``damaged/``, with a warning, and their steps are taken again.

        Raises:
            DamagedError: no checkpoint is good; names each, and leaves them where they are.
            ValueError: the newest good one is of another run than `begin` was told; all are left where they are.
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
        """Append one line to ``metrics.jsonl`` and to TensorBoard; each value has one number a member."""
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
    """Of a file that is about to be written again."""
    if path.exists():
        try:
            read_sealed(path)
        except DamagedError as error:
            warn(f"{error}; it is written again")
