"""Choosing how the members of a device are computed, by timing the training step.

On an accelerator, which form of stacked convolutions is fastest, and for how many members at a time, depends on the
network, the batch and the device. Before the first step, each candidate makes a few steps of the run on a copy of its
state. The fastest becomes the run's `Execution`, which is recorded, so that a resumed run repeats it.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ensdiff import hosts
from ensdiff.ensemble.mesh import platform
from ensdiff.models.conv import STACKED, Strategy
from ensdiff.models.unet import UNetConfig
from ensdiff.runs.directory import RunDirectory
from ensdiff.training.execution import Execution
from ensdiff.training.preemption import Preempted
from ensdiff.training.stepper import Stepper

SECONDS = 2.0
"""How long each candidate is timed, after its first step."""
FEW = 4
"""Most members in a group that is smaller than all of a device's members. A written-out group (``"loop"``) is never
larger, because compiling takes as long as for that many members."""
FORMS: dict[str, tuple[Strategy, ...]] = {"cpu": ("matmul", "loop"), "gpu": STACKED, "tpu": ("matmul", "loop")}
"""Forms of stacked convolutions that are timed. CPUs and TPUs compute grouped convolutions far more slowly."""
NAME = "tuning.json"
"""The file of a run directory that lists what was tried."""
MOST = 200
"""Most steps that a candidate makes when it is timed."""


StepsOf = Callable[[Execution, range], contextlib.AbstractContextManager[Stepper]]
"""Opens the training steps of a range, with an execution (`ensdiff.training.stepper`)."""


class Trial(NamedTuple):
    """What was found about one candidate.

    Args:
        execution: the candidate.
        compile_seconds: time of the first step beyond that of the others, which is spent in the compiler.
        step_seconds: mean time of the steps after that.
        error: the first line of its error; None if it works.
    """

    execution: Execution
    compile_seconds: float | None = None
    step_seconds: float | None = None
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return {**self.execution.record(), **{name: getattr(self, name) for name in self._fields[1:]}}


class Choice(NamedTuple):
    """The fastest execution, the training state with the bits that it had before, and all trials."""

    execution: Execution
    state: Any
    trials: list[Trial]

    def record(self, device: str, step: int) -> dict[str, Any]:
        """Return the content of ``tuning.json``: what was tried, on which device, before which step, and the choice."""
        return {
            "device": device,
            "step": step,
            "chosen": self.execution.record(),
            "trials": [trial.record() for trial in self.trials],
        }


def is_measured(model: UNetConfig, mesh: Mesh) -> bool:
    """Return whether training times the candidates: with ``"measure"``, and with ``"auto"`` on accelerators."""
    return model.conv == "measure" or (model.conv == "auto" and platform(mesh) != "cpu")


def candidates(start: Execution, model: UNetConfig, members: int, platform: str) -> list[Execution]:
    """Return the executions to time, at most six.

    Args:
        start: an execution with everything that is not varied.
        model: the network; ``model.stack`` restricts the sizes of groups.
        members: number of members on one device.
        platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``.

    >>> model = UNetConfig()
    >>> [(c.conv, c.stack) for c in candidates(Execution.of(model), model, 10, "tpu")]
    [('map', 1), ('matmul', 10), ('matmul', 2), ('loop', 2)]
    """
    few = max(size for size in range(1, FEW + 1) if members % size == 0)
    sizes = [model.stack] if model.stack else list(dict.fromkeys([members, few]))
    pairs: list[tuple[Strategy, int]] = [("map", 1)] if min(model.stack, members) <= 1 else []
    if members > 1:
        pairs += [
            (form, size)
            for form in FORMS.get(platform, STACKED)
            for size in sizes
            if size > 1 and (form != "loop" or size <= FEW or model.stack)
        ]
    return [dataclasses.replace(start, conv=conv, stack=stack) for conv, stack in pairs]


def with_fused_attention(execution: Execution, model: UNetConfig, platform: str) -> Execution | None:
    """Return the execution with fused attention, or None where no kernel would serve or another order is given."""
    attends = model.middle_attention or model.attention_levels or model.attention_levels_up
    if platform == "gpu" and model.attention == "auto" and model.compute_dtype == "bfloat16" and attends:
        return dataclasses.replace(execution, attention="fused")
    return None


def choose(
    first: list[Execution],
    then: Callable[[Execution], Execution | None],
    steps_of: StepsOf,
    state: Any,
    step: int,
    *,
    stop: Callable[[int], bool] | None = None,
    progress: bool = False,
) -> Choice:
    """Time candidates and return the fastest. All processes must call it, and choose the same.

    The state waits in host memory meanwhile, so that a device holds one copy of it at a time: its buffers are deleted,
    and the result has new ones with the same bits.

    Args:
        first: the candidates.
        then: from the fastest of them, one more candidate, or None.
        steps_of: opens the training steps.
        state: the training state.
        step: the number of the first step.
        stop: called with this number on every process after each candidate; when it returns True, timing ends.
        progress: show a progress bar.

    Raises:
        RuntimeError: every candidate failed. The message has each candidate's error.
        Preempted: ``stop`` returned True.
    """
    if len(first) == 1 and then(first[0]) is None:
        return Choice(first[0], state, [Trial(first[0])])
    waiting = _Waiting(state)
    trials: list[Trial] = []

    def fastest() -> Execution:
        good = [trial for trial in trials if trial.step_seconds is not None]
        if not good:
            each = "; ".join(f"conv={t.execution.conv}, stack={t.execution.stack}: {t.error}" for t in trials)
            raise RuntimeError(
                f"none of the {len(trials)} ways to compute members works: {each}. If memory is short, give a smaller "
                "batch_size, a smaller network or model.remat=True; else give one model.conv, to see its whole error"
            )
        return min(good, key=lambda trial: trial.step_seconds or 0.0).execution

    label = f"timing {len(first)} ways to compute members"
    with hosts.progress_bar(len(first), label, "way", shown=progress) as bar:
        for execution in first:
            trials.append(_try(execution, steps_of, waiting, step))
            bar.set_postfix_str(_short(trials[-1]), refresh=False)
            bar.update(1)
            if stop is not None and stop(step):
                raise Preempted(
                    f"asked to stop at step {step}, while ways to compute members were timed: no step was made since "
                    f"{'the newest checkpoint' if step else 'the start'}; start the same command again"
                )
        another = then(fastest())
        if another is not None:
            trials.append(_try(another, steps_of, waiting, step))
        bar.set_postfix_str(_short(next(t for t in trials if t.execution == fastest())) + " is the fastest")
    return Choice(fastest(), waiting.restore(), trials)


def tune(
    start: Execution,
    model: UNetConfig,
    members: int,
    mesh: Mesh,
    steps_of: StepsOf,
    state: Any,
    step: int,
    run: RunDirectory,
    *,
    stop: Callable[[int], bool] | None = None,
    progress: bool = False,
) -> tuple[Execution, Any]:
    """Return the fastest execution and the training state, and write ``tuning.json`` into the run directory.

    Args:
        start: the execution that the settings select without timing.
        model: the network.
        members: number of members on one device.
        mesh: the devices.
        steps_of: opens the training steps.
        state: the training state; see `choose`.
        step: the number of the first step.
        run: the run directory.
        stop: called with this number on every process after each candidate; when it returns True, timing ends.
        progress: show a progress bar.

    Raises:
        RuntimeError: every candidate failed. The message has each candidate's error.
        Preempted: ``stop`` returned True.
    """
    kind = platform(mesh)
    first = candidates(start, model, members, kind)
    chosen = choose(
        first, lambda fastest: with_fused_attention(fastest, model, kind), steps_of, state, step, stop=stop,
        progress=progress,
    )  # fmt: skip
    device = mesh.devices.flat[0].device_kind
    run.write_file(NAME, json.dumps(chosen.record(device, step), indent=1).encode() + b"\n")
    return chosen.execution, chosen.state


def _short(trial: Trial) -> str:
    e = trial.execution
    took = "fails" if trial.step_seconds is None else f"{trial.step_seconds * 1e3:.3g} ms"
    return f"{e.conv} x {e.stack}{', fused attention' if e.attention == 'fused' else ''}: {took}"


class _FailedError(Exception):
    """A candidate failed on some process."""


def _agreed(act: Callable[[], float]) -> float:
    """Return the largest result of all processes. If it fails on one of them, it fails on all."""
    mine: tuple[float, str | None]
    try:
        mine = act(), None
    except Exception as error:  # whatever it is, the next candidate may work
        lines = str(error).strip().splitlines()
        mine = 0.0, f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
    every = hosts.exchange(mine)
    for _, wrong in every:
        if wrong is not None:
            raise _FailedError(wrong)
    return max(value for value, _ in every)


def _try(execution: Execution, steps_of: StepsOf, waiting: "_Waiting", step: int) -> Trial:
    """Time one candidate; the slowest process counts."""
    held: dict[str, Any] = {}

    def timed(step: int, count: int) -> float:
        steps, begin = held["steps"], time.perf_counter()
        for start in range(0, count, steps.most):
            held["state"], _ = steps.call(held["state"], step + start, min(steps.most, count - start))
        jax.block_until_ready(held["state"])
        return time.perf_counter() - begin

    with contextlib.ExitStack() as stack:

        def first() -> float:
            held["state"] = waiting.restore()
            held["steps"] = stack.enter_context(steps_of(execution, range(step, step + MOST + 2)))
            return timed(step, 1)

        try:
            compiled = _agreed(first)
            once = _agreed(lambda: timed(step + 1, 1))
            count = int(np.clip(SECONDS / max(once, 1e-6), 1, MOST))
            seconds = _agreed(lambda: timed(step + 2, count)) / count
            return Trial(execution, max(compiled - seconds, 0.0), seconds)
        except _FailedError as error:
            return Trial(execution, error=str(error))
        finally:
            _delete(held.pop("state", None))


def _delete(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not leaf.is_deleted():
            leaf.delete()


class _Waiting:
    """Arrays in host memory, with their shardings. Creating it deletes them from the devices."""

    def __init__(self, tree: Any):
        leaves, self._tree = jax.tree.flatten(tree)
        self._leaves = [(leaf.shape, leaf.sharding, dict(self._shards(leaf))) for leaf in leaves]
        _delete(leaves)

    @staticmethod
    def _shards(leaf: jax.Array) -> Iterator[tuple[Any, np.ndarray]]:
        for shard in leaf.addressable_shards:
            yield _bounds(shard.index, leaf.shape), np.array(shard.data)

    def restore(self) -> Any:
        """Return new arrays with the same bits on the same devices."""

        def array(shape: tuple[int, ...], sharding: Any, shards: dict[Any, np.ndarray]) -> jax.Array:
            # a copy, because a buffer on a CPU may share its memory, and training steps write into it
            return jax.make_array_from_callback(shape, sharding, lambda index: shards[_bounds(index, shape)].copy())

        return jax.tree.unflatten(self._tree, [array(*leaf) for leaf in self._leaves])


def _bounds(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
