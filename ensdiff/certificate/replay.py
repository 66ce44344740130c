"""Retraining the last steps of a run and comparing the result bit for bit.

A member's parameters are a function of its own data, number and keys, but their *bits* also depend on the compiled
program. The replay therefore runs the same program: all members that were trained, in the same positions of a mesh of
the same shape, with the recorded execution (`ensdiff.training.execution`).

Placeholders with initial parameters replace the members that the run no longer holds. Members that saw the forgotten
units may still be in the run. They are retrained too, but not compared, because the data may lack those units. Neither
kind affects the members that are compared: members share nothing.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from ensdiff.certificate.run import Run
from ensdiff.data import Dataset, Splits
from ensdiff.ensemble.mesh import on_mesh
from ensdiff.models.adapters import network_of
from ensdiff.models.unet import UNetConfig
from ensdiff.runs.description import from_description
from ensdiff.runs.environment import environment
from ensdiff.runs.layout import ROWS
from ensdiff.training.execution import Execution
from ensdiff.training.step import TrainState, init_state
from ensdiff.training.stepper import stepper


def start_of_replay(run: Run, steps: int) -> int:
    """Return the oldest checkpoint at most ``steps`` steps before the newest. Step 0 is the initialisation.

    Raises:
        ValueError: no checkpoint is that near.
    """
    starts = [step for step in (0, *run.steps) if step < run.last]
    near = [step for step in starts if run.last - step <= steps]
    if not near:
        raise ValueError(
            f"--replay={steps}: the run keeps checkpoints {', '.join(map(str, run.steps))}, so at least "
            f"{run.last - max(starts)} steps must be retrained"
        )
    return min(near)


def replay(run: Run, aligned: Dataset, members: list[int], steps: int) -> tuple[int, list[str]]:
    """Retrain from an earlier checkpoint to the newest, and compare the state at each checkpoint on the way.

    Args:
        run: the run.
        aligned: its training data, in the manifest's order.
        members: the numbers of the members to compare.
        steps: the maximum number of steps to retrain.

    Returns:
        The step at which the replay began, and one line per member and part of its state that differs.

    Raises:
        ValueError: no checkpoint is near enough, there are too few devices, or this version cannot repeat the recorded
            execution.
    """
    start = start_of_replay(run, steps)
    aligned = dataclasses.replace(aligned, space=run.ensemble.space)
    splits = Splits.build(aligned, run.code)
    state, differences = None, []
    for first, last, place in _segments(run, start):
        mesh = _mesh(place)
        model, schedule, config = run.ensemble.model, run.ensemble.schedule, run.config
        execution, whole = _execution(run, first, place), range(first, last)
        state = _state(run, start, mesh) if state is None else on_mesh(state, mesh)
        step = first
        with stepper(aligned, splits, model, schedule, config, mesh, execution, whole, run.base) as (call, most):
            while step < last:
                kept = min(kept for kept in run.steps if kept > step)
                count = min(most, kept - step, last - step)
                state, _ = call(state, step, count)
                step += count
                if step in run.steps:
                    differences += _compare(run, step, state, members)
        other = [
            f"{name}: {place.get(name)!r}, here {value!r}"
            for name, value in environment(mesh).items()
            if name != "mesh" and value != place.get(name)
        ]
        oldest = min(run.checkpoints[step].description["format"] for step in run.steps if step > first)
        if oldest < ROWS:
            other.append(f"format of checkpoints: {oldest}, whose optimiser rounded differently from that of {ROWS}")
        elif "execution" not in place:  # the checkpoints may be gone, or rewritten by forgetting
            other.append("version: one that did not record executions, whose optimiser rounded differently")
        if differences and other:
            differences.append(
                "equal bits can be expected only in the environment of the training, and this one differs: "
                + "; ".join(other)
            )
    return start, differences


def _segments(run: Run, start: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield the steps from ``start`` to the newest checkpoint, split by where they were trained."""
    bounds = [place["step"] for place in run.environments[1:]] + [run.last]
    for place, end in zip(run.environments, bounds, strict=True):
        first, last = max(start, place["step"]), min(end, run.last)
        if first < last:
            if "unknown" in place:
                raise ValueError(
                    f"steps {first} to {last} cannot be replayed, because it is unknown where they were trained: "
                    f"{place['unknown']}"
                )
            yield first, last, place


def _execution(run: Run, first: int, place: dict[str, Any]) -> Execution:
    """Return how the steps from ``first`` on were executed.

    Older versions recorded this only as the model's settings. A later resumption may have changed these in
    ``run.json``, but not in a checkpoint of these steps.
    """
    description = run.checkpoints[min(step for step in run.steps if step > first)].description
    model = run.ensemble.model
    if isinstance(network_of(model), UNetConfig):
        model = from_description(description, None).model
    return Execution.from_record(place, model)


def _mesh(place: dict[str, Any]) -> Mesh:
    m, d = place["mesh"]["member"], place["mesh"]["data"]
    devices = jax.local_devices()
    if len(devices) < m * d:
        raise ValueError(
            f"the run was trained on {m * d} devices ({m} member shards, {d} data shards), but this process has "
            f"{len(devices)}: the replay needs as many; on a CPU set JAX_NUM_CPU_DEVICES={m * d}"
        )
    grid = np.array(devices[: m * d], dtype=object).reshape(m, d)
    return Mesh(grid, ("member", "data"), axis_types=(AxisType.Auto,) * 2)


def _state(run: Run, step: int, mesh: Mesh) -> TrainState:
    """Return all members' state at a step: the checkpoint's state for held members, the initial one for the others."""
    one = run.ensemble
    initial = init_state(one.model, one.image_shape, run.code.members, run.config, mesh, one.condition, run.base)
    if step == 0:
        return initial

    def place(leaf: jax.Array, held: np.ndarray) -> np.ndarray:
        whole = np.array(leaf)
        whole[list(run.held)] = held
        return whole

    return on_mesh(jax.tree.map(place, initial, run.state(step)), mesh)


def _compare(run: Run, step: int, state: TrainState, members: list[int]) -> list[str]:
    """Return one line per member and part of the state whose bits differ from the checkpoint's."""
    stored, out = run.state(step), []
    for part in TrainState._fields:
        mine, theirs = jax.tree.leaves(getattr(state, part)), jax.tree.leaves(getattr(stored, part))
        for k in members:
            here = run.held.index(k)
            pairs = [(np.asarray(a)[k], b[here]) for a, b in zip(mine, theirs, strict=True)]
            if any(a.tobytes() != b.tobytes() for a, b in pairs):
                largest = max(float(np.max(np.abs(a.astype(np.float64) - b))) for a, b in pairs)
                out.append(f"replay: {part} of member {k} at step {step} differs, by up to {largest:.3g}")
    return out
