"""Figures of compiled programs that were kept, so that a plan can state them without compiling.

A record belongs to exactly one set of shapes and settings (`identity`): a plan of any other does not take it.
`python -m experiments.plan --config=adapters --compile=h100:1 --out=experiments/compiled/adapters_h100.json` makes one.
"""

import json
import pathlib
from typing import Any

import jax

from ensdiff import Schedule
from ensdiff.ensemble.mesh import mesh_shape
from ensdiff.files.writing import write_atomically
from ensdiff.models.adapters import Adapted
from ensdiff.models.describing import fingerprint_of
from ensdiff.models.space import Space
from ensdiff.planning.estimates import GIB, Study

from .abstract import Case
from .targets import Target

FOLDER = pathlib.Path(__file__).parent / "compiled"


def case_of(study: Study, schedule: Schedule, space: Space, machine: Target) -> Case:
    """Return the case of a study on a machine; without devices, its programs have no place to be compiled for."""
    study = study.on(machine.platform)
    mesh = machine.mesh(*mesh_shape(study.members, study.train.batch_size, machine.total))
    averaged = study.combine == "parameters"
    return Case(
        study.model, study.image_shape, study.members, study.units, schedule, study.train, mesh,
        study.samples if averaged else None, None, machine.capacity or 16 * GIB, study.condition, space,
        study.base_dtype,
    )  # fmt: skip


def identity(case: Case, chip: str) -> dict[str, Any]:
    """Return what decides the memory and the FLOPs of a case's programs on a chip, as JSON has it."""
    condition = None if case.condition is None else jax.tree.map(lambda row: list(row.shape), case.condition.null(1))
    found = {
        "chip": chip,
        "mesh": dict(case.mesh.shape),
        "model": {name: value for name, value in fingerprint_of(case.model).items() if name != "down_seed"},
        "image_shape": case.image_shape,
        "space": type(case.space).__name__,
        "condition": condition,
        "members": case.members,
        "units": None if isinstance(case.model, Adapted) else case.units,  # which batches of a landscape depend on
        "base_dtype": case.base_dtype,
        "batch_size": case.train.batch_size,
        "average": bool(case.train.ema),
        "flip": case.train.flip,
        "condition_dropout": bool(case.train.condition_dropout),
        "states": case.states,
        "sampler": str(case.rule),
    }
    same: dict[str, Any] = json.loads(json.dumps(found))
    return same


def keep(path: str, case: Case, chip: str, steps: list[dict[str, Any]]) -> None:
    """Write the figures that `experiments.aot.inspect` returned."""
    record = {"identity": identity(case, chip), "jax": jax.__version__, "steps": steps}
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def find(case: Case, chip: str, folder: pathlib.Path = FOLDER) -> dict[str, Any] | None:
    """Return the record of a case on a chip, with the name of its file as ``"file"``; None if none was kept."""
    wanted = identity(case, chip)
    for file in sorted(folder.glob("*.json")):
        record: dict[str, Any] = json.loads(file.read_text())
        if record.get("identity") == wanted:
            return record | {"file": file.name}
    return None
