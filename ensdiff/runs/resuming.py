"""Whether a run may go on in a folder: that it is the same run, and which of its checkpoints are damaged."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ensdiff.files.checksums import DamagedError, warn
from ensdiff.files.writing import make_folder
from ensdiff.runs.checkpoints import folder_of, open_checkpoint, steps_of
from ensdiff.runs.description import brief, decided, differences, read_manifest


def check_same(
    path: pathlib.Path, step: int, before: Mapping[str, Any], now: Mapping[str, Any], data: Any = None
) -> None:
    """Check that a checkpoint is of the run that is resumed: what decides the parameters must be as it was.

    What is logged and kept may change, and what the data are called.

    Args:
        path: the run directory.
        step: of the checkpoint.
        before: the checkpoint's description.
        now: the description of the run that is resumed.
        data: its data (`ensdiff.data.Dataset`), of which items that differ are named.

    Raises:
        ValueError: they differ, or the run was made by forgetting units.
    """
    if "origin" in before:
        raise ValueError(
            f"{path} was made by forgetting units and holds some members only: it cannot be trained on. "
            "Train a run in another folder"
        )
    lines = []
    for field in differences(decided(before), decided(now)):
        why = _data_difference(path, before, data) if field.name == "data" else None
        lines.append(f"{field.name}: {why or f'was {brief(field.one)}, is {brief(field.other)}'}")
    if lines:
        raise ValueError(
            f"{path} cannot be resumed with other settings than those of checkpoint {step}. "
            + "; ".join(lines)
            + ". Use the same, or another folder"
        )


def _data_difference(path: pathlib.Path, before: Mapping[str, Any], data: Any) -> str | None:
    """Which items of the run's data are others, where its manifest is there to say so."""
    try:
        manifest = None if data is None else read_manifest(path, before)
        if manifest is None:
            return None
        data.align(manifest)
    except ValueError as error:
        return str(error)
    return (
        "items are in another order or in other units, or there are more of them; ensdiff.training_data(run, data) "
        "finds the training data of a run among them, by content"
    )


def unreadable(run: pathlib.Path) -> dict[int, str]:
    """Checkpoints that cannot be opened, with what is wrong; of the others the arrays may be damaged."""
    failures = {}
    for step in steps_of(run):
        try:
            open_checkpoint(run, step)
        except DamagedError as error:
            failures[step] = str(error)
    return failures


def set_aside(run: pathlib.Path, failures: Mapping[int, str]) -> bool:
    """Move damaged checkpoints to ``damaged/``, with a warning each, so that their steps can be written again.

    Args:
        run: the run directory.
        failures: what is wrong with each, by step.

    Returns:
        Whether there were any.

    Raises:
        DamagedError: the run has no other checkpoints; they are left where they are.
    """
    if failures and not set(steps_of(run)) - set(failures):
        raise none_good(run, failures)
    for step, failure in failures.items():
        place = make_folder(run / "damaged") / str(step)
        count = 1
        while place.exists():
            count += 1
            place = place.with_name(f"{step}.{count}")
        os.replace(folder_of(run, step), place)
        warn(f"{failure}; moved to {place}")
    return bool(failures)


def none_good(run: pathlib.Path, failures: Mapping[int, str]) -> DamagedError:
    """The error of a run without a good checkpoint."""
    return DamagedError(
        f"{run} has no good checkpoint: {'; '.join(failures.values())}. "
        "Put back a copy of one, or train again in another folder"
    )
