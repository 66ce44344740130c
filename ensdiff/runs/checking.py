"""`check_run`: check that everything in a run directory is as it was written."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.ensemble.members import abstract_params
from ensdiff.files.checksums import DamagedError, check_beside, read_lines, read_sealed
from ensdiff.files.reading import read_json
from ensdiff.runs.checkpoints import Checkpoint, on_host, open_checkpoint, read_arrays, read_shapes, steps_of
from ensdiff.runs.description import Undefined, foreign, from_description, read_manifest
from ensdiff.runs.logs import ENVIRONMENTS, METRICS, checked, read_environments
from ensdiff.runs.skipped import NAME as SKIPPED
from ensdiff.runs.unit_names import NAME as NAMES
from ensdiff.runs.unit_names import read_names


def check_run(path: str | os.PathLike) -> list[str]:
    """Read everything that has a checksum or a digest in a run directory, and return what is damaged.

    This covers the checkpoints (each is loaded completely, one at a time), ``run.json``, ``config.json``, the data
    manifest, the names of units, every line of ``environment.jsonl`` and ``metrics.jsonl``, and attributions with their
    arrays. Pictures, pages and TensorBoard's files are not read. Every checkpoint must belong to the run that
    ``run.json`` describes. A checkpoint that passes can be loaded.

    Returns:
        One line per damaged or missing file, which names the file. The list is empty if all are good.

    Raises:
        FileNotFoundError: the folder does not exist.

    >>> ensdiff.check_run("runs/tiny")
    []
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not a run directory: it {'is a file' if path.exists() else 'does not exist'}"
        )
    found: list[str] = []
    description: dict[str, Any] = {}
    with _noted(found):
        description = read_sealed(path / "run.json")
    with _noted(found):
        _check_manifest(path, description)
    for name in ("config.json", SKIPPED):
        if (path / name).exists():
            with _noted(found):
                read_sealed(path / name)
    with _noted(found):
        _check_names(path, description)
    for name, read in ((METRICS, lambda run: read_lines(run / METRICS)), (ENVIRONMENTS, read_environments)):
        with _noted(found):
            if (path / name).exists():
                checked(path / name, read(path))
    if "train" in description and not (path / ENVIRONMENTS).exists():
        found.append(f"{path / ENVIRONMENTS} is missing: training writes one")
    for file in sorted((path / "attribution").glob("*.json")):
        with _noted(found):
            _check_result(file)
    for step in steps_of(path):
        with _noted(found):
            _check_checkpoint(open_checkpoint(path, step), description)
    return found


def _check_checkpoint(checkpoint: Checkpoint, description: Mapping[str, Any]) -> None:
    folder, text = checkpoint.folder, checkpoint.description
    shapes = read_shapes(checkpoint)
    try:
        params = from_description(text, None)
        own = isinstance(params.model, Undefined)  # then only the checksums can be compared
        expected = None if own else abstract_params(params.model, params.image_shape, params.members, params.condition)
    except ValueError as error:
        raise DamagedError(f"{folder} is damaged: {error}") from error
    known = {} if expected is None else {part: expected for part in ("params", "ema") if part in shapes}
    read_arrays(checkpoint, on_host({**shapes, **known}))
    if description and (wrong := foreign(folder, text, description)):
        raise DamagedError(wrong)


def _check_result(file: pathlib.Path) -> None:
    try:
        is_object = isinstance(read_json(file), dict)  # older versions wrote lists too
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if is_object:
        check_beside(file, read_sealed(file))


def _check_manifest(path: pathlib.Path, description: Any) -> None:
    expected = (description.get("data") or {}).get("digest")
    # an ensemble written by `ensdiff.save` has the digest of its data but no manifest
    if expected is not None and read_manifest(path, description) is None and "train" in description:
        raise FileNotFoundError(f"{path / MANIFEST} is missing: run.json has its checksum")


def _check_names(path: pathlib.Path, description: Mapping[str, Any]) -> None:
    if not (path / NAMES).exists():
        return
    try:
        params = from_description(description, None) if description else None
    except ValueError as error:
        raise DamagedError(f"{path / 'run.json'} is damaged: {error}") from error
    read_sealed(path / NAMES) if params is None else read_names(path, params)


@contextlib.contextmanager
def _noted(found: list[str]) -> Iterator[None]:
    try:
        yield
    except (DamagedError, FileNotFoundError) as error:
        found.append(str(error))
