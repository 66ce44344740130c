"""Whether a run may be resumed in a folder: whether it is the same run, and which checkpoints are damaged."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ensdiff.files.checksums import DamagedError, warn
from ensdiff.files.writing import make_folder
from ensdiff.runs.checkpoints import folder_of, open_checkpoint, steps_of
from ensdiff.runs.description import MISSING, brief, decided, differences, read_manifest

CHOSEN: Mapping[str, Any] = {"combine": "predictions", "scale": 1.0}
"""Fields of a description that say how trained members are used, and what they are where they are not written."""


def check_same(
    path: pathlib.Path, step: int, before: Mapping[str, Any], now: Mapping[str, Any], data: Any = None
) -> None:
    """Check that a checkpoint belongs to the resumed run: everything that determines the parameters must be unchanged.

    The settings for logging and for keeping checkpoints may change, and so may the name of the data. With a constant
    learning rate, the number of steps may grow.

    Args:
        path: the run directory.
        step: the step of the checkpoint.
        before: the checkpoint's description.
        now: the description of the run that is resumed.
        data: the data of the resumed run (`ensdiff.data.Dataset`), used to name items that differ.

    Raises:
        ValueError: the descriptions differ, the checkpoint is of a later step than the last one of the resumed run,
            or the run was made by forgetting units.
    """
    if "origin" in before:
        raise ValueError(
            f"{path} was made by forgetting units and holds only some members: it cannot be trained further. "
            "Train a run in another folder"
        )
    lines = []
    found = differences(decided(before), decided(now))
    names = {field.name for field in found}
    for field in found:
        if field.name == "train.steps" and "train.decay" in names:
            continue  # which of both settings determine the parameters differs; the other line says enough
        if field.name in CHOSEN:
            one, other = ((CHOSEN[field.name] if value is MISSING else value) for value in (field.one, field.other))
            lines.append(
                f"{field.name}: was {one!r}, is {other!r} (members do not depend on it: leave it as it was, and choose "
                f"another when the run is loaded, with --{field.name}={other} or ensdiff.load(run, {field.name}="
                f"{other!r}))"
            )
            continue
        why = _data_difference(path, before, data) if field.name == "data" else None
        lines.append(f"{field.name}: {why or f'was {brief(field.one)}, is {brief(field.other)}'}")
        if field.name == "train.steps":
            lines[-1] += (
                " (with decay='cosine' the number of steps shapes the learning rate of every step, so that a run of "
                "another length is another run; only runs with decay='constant' can be made longer)"
            )
    if lines:
        raise ValueError(
            f"{path} cannot be resumed with settings that differ from those of checkpoint {step}. "
            + "; ".join(lines)
            + ". Use the same settings, or another folder"
        )
    wanted = (now.get("train") or {}).get("steps", step)
    if step > wanted:
        raise ValueError(
            f"{path} is trained for {step} steps already, more than steps={wanted}: give at least {step}, or another "
            "folder"
        )


def _data_difference(path: pathlib.Path, before: Mapping[str, Any], data: Any) -> str | None:
    """Describe which items differ from the run's data, or return None if the run has no manifest to compare with."""
    try:
        manifest = None if data is None else read_manifest(path, before)
        if manifest is None:
            return None
        data.align(manifest)
    except ValueError as error:
        return str(error)
    return (
        "items are in another order or in other units, or there are additional items; ensdiff.training_data(run, data) "
        "selects the run's training data from them by content"
    )


def unreadable(run: pathlib.Path) -> dict[int, str]:
    """Return the error of each checkpoint that cannot be opened, by step. The arrays of the others are not checked."""
    failures = {}
    for step in steps_of(run):
        try:
            open_checkpoint(run, step)
        except DamagedError as error:
            failures[step] = str(error)
    return failures


def set_aside(run: pathlib.Path, failures: Mapping[int, str]) -> bool:
    """Move damaged checkpoints to ``damaged/`` so that their steps can be rewritten, with one warning per checkpoint.

    Args:
        run: the run directory.
        failures: what is wrong with each damaged checkpoint, by step.

    Returns:
        Whether any checkpoint was moved.

    Raises:
        DamagedError: the run has no other checkpoints. Nothing is moved.
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
    """Return the error for a run without a good checkpoint."""
    return DamagedError(
        f"{run} has no good checkpoint: {'; '.join(failures.values())}. "
        "Restore one from a copy, or train again in another folder"
    )
