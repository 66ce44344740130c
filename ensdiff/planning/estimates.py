"""Estimates of what a study needs, from shapes alone: parameters, memory per chip, floating-point operations, hours.

No array is allocated and no device is used.

(p1) training:           ``steps * K * batch * train``
(p2) sampling:           ``B * S * K * forward``
(p3) an exact landscape: ``N * B * S * (K - w) * forward``, every unit removed from every sample
(p4) the Jacobian:       ``B * S * K * (forward + recompute + K * tangent)``

with ``forward``, ``train``, ``recompute`` and ``tangent`` of `ensdiff.planning.flops`, K members, N units, B samples,
S sampling steps and code words of weight w. With averaged parameters, every row of weights is one network, which is
made of K members' changes (`ensdiff.planning.flops.AveragedFlops`):

(p5) sampling:           ``K * change + B * S * forward``
(p6) an exact landscape: ``N * (K * change + B * S * forward)``
(p7) the Jacobian:       ``B * S * (forward + recompute + K * (tangent + change))``

Hours are operations divided by a rate. The rate of ``cpu2`` was measured. No accelerator was timed: its rate is the
peak in its data sheet times a share that the caller assumes.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensdiff.codes.errors import fitting_weights, smallest_members
from ensdiff.ensemble.ensemble import Combine
from ensdiff.ensemble.members import group_size
from ensdiff.ensemble.mesh import mesh_shape
from ensdiff.ensemble.tracing import activation_bytes
from ensdiff.models.adapters import Adapted, base_shapes, network_of
from ensdiff.models.attention import resolve_attention
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.conv import resolve
from ensdiff.models.denoiser import Denoiser, check_inputs, initial_shapes
from ensdiff.models.unet import UNetConfig
from ensdiff.planning.flops import averaged_flops, jacobian_step_flops, landscape_step_flops, train_step_flops
from ensdiff.training.config import TrainConfig
from ensdiff.training.step import abstract_state
from ensdiff.typing import Params

JobName = Literal["training", "sampling", "landscape", "jacobian"]
GIB = 2**30


class Accelerator(NamedTuple):
    """A chip to plan for.

    Args:
        platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``.
        memory: bytes per chip; None if machines of this kind differ in memory.
        peak: FLOP/s in the data sheet, by compute dtype; empty if ``measured`` is given.
        measured: FLOP/s of each job, measured by `experiments.benchmark`.
        note: description of the chip.
    """

    platform: str
    memory: int | None
    peak: dict[str, float]
    measured: dict[JobName, float]
    note: str

    def rate(self, job: JobName, compute_dtype: str, share: float) -> float:
        """Return the FLOP/s of one chip: the measured rate, or else ``share`` of the data sheet's peak."""
        return self.measured[job] if self.measured else share * self.peak[compute_dtype]


def _chip(platform: str, memory: int, bfloat16: float, float32: float, note: str) -> Accelerator:
    peak = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    return Accelerator(platform, memory * GIB, peak, {}, note)


ACCELERATORS: dict[str, Accelerator] = {
    "cpu2": Accelerator(
        "cpu",
        None,
        {},
        {"training": 161e9, "sampling": 234e9, "landscape": 234e9, "jacobian": 140e9},
        "2 CPU cores, 28x28 images and 32 channels in float32 (python -m experiments.benchmark); 8x8 "
        "images and 16 channels trained at a quarter of that rate",
    ),
    "t4": _chip("gpu", 15, 8.1, 8.1, "NVIDIA T4; it has no bfloat16 units: float32's peak"),
    "a100": _chip("gpu", 80, 312, 156, "NVIDIA A100 80 GB; float32 as TF32"),
    "h100": _chip("gpu", 80, 989, 494, "NVIDIA H100 SXM; float32 as TF32"),
    "h200": _chip("gpu", 141, 989, 494, "NVIDIA H200 SXM; float32 as TF32"),
    # TPUs multiply float32 in bfloat16 at JAX's default precision
    "v4": _chip("tpu", 32, 275, 275, "TPU v4"),
    "v5e": _chip("tpu", 16, 197, 197, "TPU v5e"),
    "v5p": _chip("tpu", 95, 459, 459, "TPU v5p"),
    "v6e": _chip("tpu", 32, 918, 918, "TPU v6e"),
}
"""Chips by name, with the memory and dense peaks of their data sheets, or measured rates. Only ``cpu2`` was timed."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A planned study.

    Args:
        model: the network.
        image_shape: (H, W, C).
        members: K.
        units: N.
        weight: w, the number of members that see a unit.
        train: training settings; only the steps, the batch size and the average matter.
        samples: B, the number of images that are sampled and attributed.
        sampling_steps: S.
        condition: what a conditional network is told about each image.
        combine: what the generator combines.
        base_dtype: dtype of the parameters of the base, for adapters; of other members, the start is not counted.
    """

    model: Denoiser
    image_shape: tuple[int, int, int]
    members: int
    units: int
    weight: int
    train: TrainConfig
    samples: int = 16
    sampling_steps: int = 50
    condition: ConditionSpec | None = None
    combine: Combine = "predictions"
    base_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("members", "units", "samples", "sampling_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.members < 2 or not 1 <= self.weight < self.members:
            raise ValueError(
                f"members={self.members}, weight={self.weight}: expected at least 2 members and a weight of 1 .. K - 1"
            )
        check_inputs(self.model, self.image_shape, self.condition)

    def on(self, platform: str) -> "Study":
        """Return the study with the model's ``"auto"`` settings replaced by those of training on this platform.

        Predictions may use fewer products (`ensdiff.models.conv.AUTO_PREDICTING`). Counted operations ignore this, but
        measured rates include it.
        """
        network: Any = network_of(self.model)
        if not isinstance(network, UNetConfig):
            return self
        conv, attention = resolve(network.conv, platform), resolve_attention(network.attention, platform)
        network = dataclasses.replace(network, conv=conv, attention=attention)
        if isinstance(self.model, Adapted):
            network = dataclasses.replace(self.model, base=network)
        return dataclasses.replace(self, model=network)


def parameter_count(model: Denoiser) -> int:
    """Return the number of parameters of one member.

    >>> parameter_count(UNetConfig(channels=8, multipliers=(1,), middle_attention=False))
    10289
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(initial_shapes(model)))


def base_count(model: Denoiser) -> int:
    """Return the number of parameters of the base of adapters, which all members share; 0 for other networks."""
    if not isinstance(model, Adapted):
        return 0
    return sum(math.prod(shape) for shape, _ in base_shapes(model.base).values())


class TrainingMemory(NamedTuple):
    """Bytes of memory on one chip during training.

    On a CPU, a step of members that are computed one by one writes their next state beside the present one, which is
    not counted: at most as much as `state`.

    Args:
        params: parameters of the chip's members.
        optimizer: Adam's two moments of these members, and step counts.
        average: moving average of these members; 0 without one.
        gradients: gradients of the members that are computed together (`ensdiff.ensemble.members.group_size`).
        activations: operands and results of all products, for the chip's share of the batch of each member that is
            computed at the same time. ``remat``, which is not counted, needs less.
        base: parameters of the frozen base, of which every chip holds one; 0 without adapters.
    """

    params: int
    optimizer: int
    average: int
    gradients: int
    activations: int
    base: int = 0

    @property
    def state(self) -> int:
        """Return the bytes held between steps: parameters, optimiser state, average and base."""
        return self.params + self.optimizer + self.average + self.base

    @property
    def total(self) -> int:
        """Return the sum of all parts, in bytes."""
        return sum(self)


def training_memory(study: Study, chips: int = 1) -> TrainingMemory:
    """Return the memory on each of ``chips`` chips that train the study, on the mesh that `ensdiff.make_mesh` makes.

    Raises:
        ValueError: ``chips`` is less than 1.
    """
    _check_chips(chips)
    model, shape, config = study.model, study.image_shape, study.train
    state = abstract_state(model, shape, 1, config, study.condition)
    members, data = mesh_shape(study.members, config.batch_size, chips)
    local, images = study.members // members, config.batch_size // data
    together = group_size(model, local)
    params = _bytes(state.params)
    return TrainingMemory(
        local * params,
        local * _bytes(state.opt_state),
        local * _bytes(state.ema),
        together * params,
        together * images * activation_bytes(model, shape, study.condition),
        base_count(model) * np.dtype(jnp.dtype(study.base_dtype)).itemsize,
    )


def _check_chips(chips: int) -> None:
    if chips < 1:
        raise ValueError(f"chips={chips}: expected at least one chip")


def _bytes(tree: Params) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def job_flops(study: Study) -> dict[JobName, int]:
    """Return the total floating-point operations of each job, (p1) to (p7), summed over all chips."""
    model, shape, K, condition = study.model, study.image_shape, study.members, study.condition
    runs = study.samples * study.sampling_steps
    training = study.train.steps * train_step_flops(model, shape, K, study.train.batch_size, condition)
    if study.combine == "parameters":
        one = averaged_flops(model, shape, condition)
        row = K * one.change + runs * one.forward
        carried = K * (one.tangent + one.change)
        return {
            "training": training,
            "sampling": row,
            "landscape": study.units * row,
            "jacobian": runs * (one.forward + one.recompute + carried),
        }
    return {
        "training": training,
        "sampling": landscape_step_flops(model, shape, runs * K, condition),
        "landscape": landscape_step_flops(model, shape, study.units * runs * (K - study.weight), condition),
        "jacobian": jacobian_step_flops(model, shape, K, K, runs, condition),
    }


def job_hours(study: Study, accelerator: Accelerator, chips: int = 1, share: float = 0.2) -> dict[JobName, float]:
    """Return the expected hours of each job: operations divided by the total rate of the chips that share the work.

    Args:
        study: the planned study.
        accelerator: one of `ACCELERATORS`.
        chips: number of chips; ``cpu2`` always counts as one machine.
        share: assumed fraction of the data sheet's peak; it does not apply to measured rates.

    Raises:
        ValueError: ``chips`` is less than 1, or the share is outside (0, 1].
    """
    _check_chips(chips)
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: expected a share of the peak in (0, 1]")
    study = study.on(accelerator.platform)
    batch: dict[JobName, int | None] = {"training": study.train.batch_size, "jacobian": study.samples}
    hours: dict[JobName, float] = {}
    # an own network is planned as one that computes in float32
    dtype = getattr(network_of(study.model), "compute_dtype", "float32")
    for job, flops in job_flops(study).items():
        used = 1 if accelerator.platform == "cpu" else math.prod(mesh_shape(study.members, batch.get(job), chips))
        hours[job] = flops / (used * accelerator.rate(job, dtype, share)) / 3600
    return hours


class CodeEstimate(NamedTuple):
    """The limits of attribution with a balanced code.

    Args:
        words: number of distinct code words, C(K, w), which is also the largest number of units.
        survivors: number of members left when one unit is removed, K - w.
        null: number of words that no unit owns, which is the largest number of null ablations.
        p: smallest possible p-value, of a unit that exceeds all null ablations, 1 / (1 + null).
        q: smallest q-value that a single such unit can reach among all N, min(1, N p).
        warning: problem with these choices, or None.
    """

    words: int
    survivors: int
    null: int
    p: float
    q: float
    warning: str | None


def code_estimate(members: int, weight: int, units: int, level: float = 0.1) -> CodeEstimate:
    """Return the limits of attribution with K members, weight w and N units, before anything is trained.

    >>> code_estimate(16, 8, 1400).q  # no single digit of 1,400 can be attributed at level 0.1
    0.12204690088048122
    """
    words = math.comb(members, weight)
    null = max(0, words - units)
    p = 1 / (1 + null)
    q = min(1.0, units * p)
    warning = None
    if units > words:
        warning = (
            f"{units} units, but {members} members of weight {weight} have only {words} code words; the smallest "
            f"number of members that fits is {smallest_members(units)}" + fitting_weights(members, units)
        )
    elif q > level:
        K = smallest_members(math.ceil(units / level) + units)
        warning = (
            f"one unit alone cannot be attributed at level {level:g}: its q is at least {q:.2g} with the {null:,} "
            f"words that no unit owns. Use {K} members, or larger units (groups)"
        )
    return CodeEstimate(words, members - weight, null, p, q, warning)
