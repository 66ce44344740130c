"""Reading a checkpoint: its description, and all or some of its arrays, compared with their checksums.

Orbax writes the arrays, and renames the folder to its step number when it is complete. Beside the arrays it keeps our
description: a sealed value (`ensdiff.files.checksums`) with everything static about the ensemble, and one SHA-256 for
each member's part of the parameters, of the optimiser state and of the average. Description and arrays appear together
or not at all. The loaded values are compared with those that were in memory when the checkpoint was saved, so faults of
the disk, the network or the file format are detected.
"""

import datetime
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ensdiff import hosts
from ensdiff.files.checksums import SEAL, DamagedError, check_seal, read_sealed
from ensdiff.files.reading import parse_json, read_bytes, whole_number
from ensdiff.files.writing import log_errors_once
from ensdiff.runs.description import check_format
from ensdiff.runs.layout import current_layout, stored_layout
from ensdiff.runs.sums import member_sums
from ensdiff.typing import Params

METADATA = "_CHECKPOINT_METADATA"
"""Orbax's metadata file of a checkpoint, which holds our description."""


GROUP = 2**28
"""Bytes of arrays that are read together when only some members are loaded."""


def steps_of(run: pathlib.Path) -> list[int]:
    """Return the step numbers of a run's finished checkpoints in ascending order."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    numbers = (whole_number(p.name) for p in folder.iterdir() if p.is_dir())
    return sorted(number for number in numbers if number is not None)


def run_description(run: pathlib.Path) -> dict[str, Any]:
    """Return the description of a run from ``run.json`` or, if that is missing, from its newest checkpoint.

    Raises:
        FileNotFoundError: neither exists.
        DamagedError: the description is not what was written.
    """
    file = run / "run.json"
    if file.is_file():
        return read_sealed(file)
    steps = steps_of(run)
    if not steps:
        raise FileNotFoundError(f"{run} holds no run: expected run.json or a finished checkpoint")
    return open_checkpoint(run, steps[-1]).description


def folder_of(run: pathlib.Path, step: int) -> pathlib.Path:
    """Return the absolute path of a checkpoint, as Orbax requires. Links above the step's folder are followed."""
    return (run / "checkpoints").resolve() / str(step)


class Checkpoint(NamedTuple):
    """A checkpoint without its arrays.

    Args:
        folder: its path.
        description: its description (`ensdiff.runs.description`), with its checksums under ``sums``.
        shapes: the tree of its arrays as `jax.ShapeDtypeStruct`; None if it could not be read.
    """

    folder: pathlib.Path
    description: dict[str, Any]
    shapes: dict[str, Any] | None


def open_checkpoint(run: pathlib.Path, step: int) -> Checkpoint:
    """Read the description of a checkpoint, but not its arrays, which may be damaged.

    Raises:
        DamagedError: the description cannot be read, is not what was written, or was written for another step.
        ValueError: a newer version wrote the checkpoint.
    """
    folder = folder_of(run, step)
    try:
        parse_json(read_bytes(folder / METADATA))  # rejects repeated fields, of which Orbax takes the last
        found = ocp.metadata(folder)
        text = dict(found.custom_metadata or {})
        # Orbax will convert it to a date
        datetime.datetime.fromtimestamp((found.commit_timestamp_nsecs or 0) / 1e9)
    except Exception as error:  # damaged bytes can raise anything
        raise DamagedError(f"{folder} is damaged: its metadata cannot be read ({_brief(error)})") from error
    sealed = SEAL in text
    if sealed:
        text = check_seal(text, folder)
    if text:
        check_format(text)
    if not text or (text["format"] > 1 and not (sealed and "sums" in text and "step" in text)):
        raise DamagedError(
            f"{folder} is damaged: its description or its checksum is missing (or it was not written by ensdiff)"
        )
    if "sums" in text:
        _check_sums(folder, text)
    said = text.get("step")  # ensembles saved in format 1 have no step
    if said is not None and repr(said) != str(step):
        raise DamagedError(
            f"{folder} is damaged: it holds step {said!r}, but the folder is named {step}. A checkpoint must not be "
            f"renamed: rename the folder back to {said!r}, or restore the checkpoint of step {step}"
        )
    try:
        shapes = _shapes(found)
    except Exception:  # `read_shapes` says why
        shapes = None
    return Checkpoint(folder, text, shapes)


def open_on_all(run: pathlib.Path, step: int) -> Checkpoint:
    """Call `open_checkpoint` on the first process and return its result on all. All processes must call it."""
    found = hosts.decide(lambda: open_checkpoint(run, step))
    return found._replace(folder=folder_of(run, step))  # each process may reach it by a different path


def _check_sums(folder: pathlib.Path, text: Mapping[str, Any]) -> None:
    """Raise DamagedError unless a description has a checksum for each member of each part."""
    try:
        members = text["code"]["members"]
        found = {str(part): len(sums) for part, sums in text["sums"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{folder} is damaged: its description is not that of an ensemble ({error!r})") from error
    if "params" not in found or set(found.values()) != {members}:
        raise DamagedError(f"{folder} is damaged: it holds {members} members, but the numbers of checksums are {found}")


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def read_shapes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the tree of a checkpoint's arrays, as `jax.ShapeDtypeStruct`.

    Raises:
        DamagedError: the checkpoint cannot be read, or some arrays have no checksums.
    """
    folder, text, shapes = checkpoint
    if shapes is None:
        try:
            shapes = _shapes(ocp.metadata(folder))
        except Exception as error:  # as in `open_checkpoint`
            raise DamagedError(f"{folder} is damaged: it cannot be read ({_brief(error)})") from error
    if "sums" in text and set(text["sums"]) != set(shapes):
        raise DamagedError(
            f"{folder} is damaged: it holds {', '.join(shapes)}, but has checksums of {', '.join(text['sums'])}"
        )
    return shapes


def _shapes(found: Any) -> dict[str, Any]:
    """Return the shapes in what Orbax knows of a checkpoint, which takes it a tenth of a second to read."""
    shapes: dict[str, Any] = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(found.metadata)
    )
    return shapes


def left_on_disk(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the tree of a checkpoint's arrays with a placeholder for each, so that none is read.

    Raises:
        DamagedError: as for `read_shapes`.
    """
    return jax.tree.map(lambda _: ocp.PLACEHOLDER, read_shapes(checkpoint))


def read_arrays(checkpoint: Checkpoint, abstract: dict[str, Any]) -> dict[str, Any]:
    """Read arrays and compare them with their checksums. All processes must call it; each reads its own part.

    Args:
        checkpoint: the checkpoint that holds them.
        abstract: shapes with shardings (`jax.ShapeDtypeStruct`), and the placeholders of `left_on_disk` for arrays
            that are not to be read.

    Raises:
        DamagedError: some process could not read its part, or its values differ from those that were saved. The error
            is raised on every process.
    """
    tree: Any = None
    failure = None
    try:
        tree = _load_alone(checkpoint.folder, abstract)
        failure = _difference(tree, checkpoint.description)
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # damaged bytes can raise anything
        failure = f"it cannot be read ({_brief(error)})"
    failures = [found for found in hosts.exchange(failure) if found]
    if failures:
        raise DamagedError(f"{checkpoint.folder} is damaged: {failures[0]}")
    return tree


def parts_of(state: Any) -> dict[str, Any]:
    """Return the parts of a training state that a checkpoint holds: parameters, optimiser state and any average."""
    return {name: part for name, part in state._asdict().items() if part is not None}


def read_state(checkpoint: Checkpoint, like: Any) -> Any:
    """Read a training state in the current layout and compare it with its checksums.

    All processes must call it; each reads its own part.

    Args:
        checkpoint: the checkpoint that holds it.
        like: a state (`ensdiff.training.step.TrainState`) of shapes with shardings (see `read_arrays`).

    Raises:
        DamagedError: as for `read_arrays`.
    """
    parts = parts_of(like)
    found = read_arrays(checkpoint, stored_layout(parts, checkpoint.description["format"]))
    return like._replace(**current_layout(found, parts))


def on_host(shapes: Any) -> Any:
    """Return shapes sharded onto the host, so that arrays are read the way `ensdiff.load` reads them onto devices.

    Orbax's reader of NumPy arrays does not open all the files that loading needs. Arrays that can be read with these
    shapes can also be loaded.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was configured to use an accelerator only
        device = jax.local_devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)


def _load_alone(folder: pathlib.Path, abstract: Any) -> Any:
    """Load with Orbax so that no process waits for another one that has failed."""
    log_errors_once()
    me = jax.process_index()
    context = ocp.Context()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
    context.multiprocessing.barrier_sync_key_prefix = f"process{me}"
    with context:
        return ocp.load(folder, abstract)


def _difference(tree: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the parts of a checkpoint that were read, or None."""
    for part, arrays in tree.items():
        leaves = jax.tree.leaves(arrays, is_leaf=lambda leaf: leaf is ocp.PLACEHOLDER)
        if any(leaf is ocp.PLACEHOLDER for leaf in leaves) or not leaves:
            continue
        if failure := _wrong_members(part, member_sums(arrays), text):
            return failure
    return None


def _wrong_members(part: str, found: Mapping[int, str], text: Mapping[str, Any]) -> str | None:
    """Return which members' checksums differ from a description, or None. Format 1 has no checksums to compare."""
    if "sums" not in text:
        return None
    expected = text["sums"].get(part)
    if expected is None:
        return f"{part} have no checksums"
    wrong = [k for k, value in sorted(found.items()) if value != expected[k]]
    return f"{part} of members {', '.join(map(str, wrong))} do not match their checksums" if wrong else None


def _in_groups(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Yield slices of neighbours whose sizes add up to at most a limit. A slice holds at least one entry."""
    first, total = 0, 0
    for i, size in enumerate(sizes):
        if i > first and total + size > limit:
            yield slice(first, i)
            first, total = i, 0
        total += size
    yield slice(first, len(sizes))


def read_members(checkpoint: Checkpoint, part: str, shapes: Params, members: Sequence[int]) -> Params:
    """Read one part of the state of some members, as NumPy arrays stacked in the order of ``members``.

    Only a few arrays are read at a time (up to `GROUP` bytes, or a single array), and only the members' rows are kept.

    Raises:
        DamagedError: the part cannot be read, or the values of some of these members differ from those that were saved.
    """
    rows = list(members)
    left = left_on_disk(checkpoint)
    abstract, tree = jax.tree.flatten(shapes)
    taken: list[np.ndarray] = []
    try:
        for some in _in_groups([leaf.size * leaf.dtype.itemsize for leaf in abstract], GROUP):
            leaves: list[Any] = [ocp.PLACEHOLDER] * len(abstract)
            leaves[some] = [np.ndarray] * (some.stop - some.start)
            loaded = _load_alone(checkpoint.folder, {**left, part: jax.tree.unflatten(tree, leaves)})
            taken += [np.array(leaf[rows]) for leaf in jax.tree.leaves(loaded[part])[some]]
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        raise DamagedError(f"{checkpoint.folder} is damaged: it cannot be read ({_brief(error)})") from error
    params = jax.tree.unflatten(tree, taken)
    found = dict(zip(rows, member_sums(params).values(), strict=True))
    if failure := _wrong_members(part, found, checkpoint.description):
        raise DamagedError(f"{checkpoint.folder} is damaged: {failure}")
    return params
