"""The compiled steps of an ensemble as functions of shapes, without arrays or devices.

`experiments.aot` compiles them for machines that are not present; tests inspect their lowered programs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ensdiff import Code, Ensemble, Schedule, TrainConfig
from ensdiff.attribution import tangents
from ensdiff.attribution.loss import block_step
from ensdiff.codes.permute_jax import wide
from ensdiff.data.splits_jax import Lists
from ensdiff.diffusion.samplers import SamplerConfig, StepRule, rule_of, stages
from ensdiff.ensemble.blending import Rows, blending_step
from ensdiff.ensemble.members import abstract_params
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.mesh import mesh_shape
from ensdiff.models.adapters import Adapted, Shared, network_of
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import Denoiser, initial_shapes
from ensdiff.models.space import PIXELS, Pixels, Space
from ensdiff.planning.flops import averaged_flops, jacobian_step_flops, landscape_step_flops, train_step_flops
from ensdiff.sampling.conditions import Given, Mode
from ensdiff.sampling.denoise import STATES_AT_ONCE, Noise, plan, sampling_step
from ensdiff.sampling.packing import Batches
from ensdiff.training.device import DeviceData, make_device_steps
from ensdiff.training.step import Batch, abstract_state, make_train_step

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
    """A case to compile: a model, its ensemble, and the devices.

    Args:
        model: the network.
        image_shape: (H, W, C).
        members: K.
        units: N.
        schedule: the process.
        train: the training settings.
        mesh: mesh of axes ('member', 'data'), over topology devices or abstract.
        states: number of states in one landscape step; by default `ensdiff.sampling.denoise.STATES_AT_ONCE` per data
            shard.
        samples: number of samples in one Jacobian step; by default one per data shard.
        memory: bytes of memory per device.
        condition: what a conditional network is told about each image.
        space: pixels or latents.
        base_dtype: dtype of the parameters of the base, for adapters.
    """

    model: Denoiser
    image_shape: tuple[int, int, int]
    members: int
    units: int
    schedule: Schedule
    train: TrainConfig
    mesh: Mesh | AbstractMesh
    states: int | None = None
    samples: int | None = None
    memory: int = 16 * GIB
    condition: ConditionSpec | None = None
    space: Space = PIXELS
    base_dtype: str = "float32"

    @property
    def local(self) -> int:
        """Return the number of members on one device."""
        return self.members // self.mesh.shape["member"]

    def array(self, shape: tuple[int, ...], dtype: Any, spec: P | None = None) -> jax.ShapeDtypeStruct:
        """Return the shape of an argument, sharded as ``spec``, or by default replicated."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, P() if spec is None else spec))

    def stacked(self, tree: Any) -> Any:
        """Return shapes whose leading axis, the members, is sharded over the mesh's member axis."""
        return jax.tree.map(lambda leaf: self.array(leaf.shape, leaf.dtype, P("member")), tree)

    def params(self) -> Any:
        """Return the shapes of the parameters of all members; for adapters together with those of their base."""
        stacked = self.stacked(abstract_params(self.model, self.image_shape, self.members, self.condition))
        return Shared(self.base(), stacked) if isinstance(self.model, Adapted) else stacked

    def base(self) -> Any:
        """Return the shapes of the base of adapters, which is on every device."""
        shapes = initial_shapes(self.model.base)  # type: ignore[attr-defined]
        return jax.tree.map(lambda leaf: self.array(leaf.shape, self.base_dtype), shapes)

    def noise(self, count: int) -> Noise:
        """Return the shapes of noise for ``count`` states, drawn from a key."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        index: Any = self.array((count,), jnp.int32, P("data"))
        return Noise(index, self.array(key.shape, key.dtype))  # type: ignore[arg-type]

    @property
    def dtype(self) -> Any:
        """Return the dtype of stored images."""
        return jnp.uint8 if isinstance(self.space, Pixels) else jnp.float16

    @property
    def rule(self) -> StepRule:
        """Return the sampler's settings that a compiled step depends on."""
        return rule_of(self.schedule, SamplerConfig(clip=isinstance(self.space, Pixels)))

    @property
    def mode(self) -> Mode:
        """Return how many predictions sampling needs; guidance is not assumed."""
        return "unconditional" if self.condition is None else "conditional"

    def conditions(self, shape: tuple[int, ...], spec: P | None = None) -> Any:
        """Return the shapes of conditions with these leading axes; None without conditions."""
        if self.condition is None:
            return None
        return jax.tree.map(lambda row: self.array((*shape, *row.shape[1:]), row.dtype, spec), self.condition.null(1))

    def given(self, count: int) -> Given | None:
        """Return the shapes of the conditions of states, each with its own row."""
        if self.condition is None:
            return None
        rows: Any = self.array((count,), jnp.int32, P("data"))
        return Given(self.conditions((count + 1,)), rows, self.array((), jnp.float32))  # type: ignore[arg-type]

    def stage(self) -> Any:
        """Return the shapes of the scalars of one sampling step."""
        return jax.tree.map(lambda a: self.array((), a.dtype), stages(self.schedule, SamplerConfig(steps=1))[0])


class Step(NamedTuple):
    """A program: the function to compile, the shapes of its arguments, its FLOPs on one device, and its workload.

    ``iterations`` is the number of iterations in these FLOPs of a loop whose number of iterations is an argument.
    """

    name: str
    function: Any
    arguments: tuple
    flops: int
    note: str
    iterations: int | None = None


def train_step(case: Case) -> Step:
    """Return the program of one training step of the whole ensemble."""
    batch, mesh = case.train.batch_size, case.mesh
    state = abstract_state(case.model, case.image_shape, case.members, case.train, case.condition)
    place = P("member", "data")
    images = Batch(
        case.array((case.members, batch, *case.image_shape), case.dtype, place),  # type: ignore[arg-type]
        case.array((case.members, batch), jnp.float32, place),  # type: ignore[arg-type]
        case.conditions((case.members, batch), place),
    )
    function = make_train_step(case.model, case.schedule, case.train, mesh, case.space, case.condition)
    share = batch // mesh.shape["data"]
    flops = train_step_flops(case.model, case.image_shape, case.local, share, case.condition)
    base = (case.base(),) if isinstance(case.model, Adapted) else ()
    arguments = (case.stacked(state), images, case.array((), jnp.int32), case.array((), jnp.uint32), *base)
    return Step("train", function, arguments, flops, f"{case.local} members of {share} images per chip")


def train_device_steps(case: Case) -> Step:
    """Return the program of many training steps on data in device memory. The FLOPs are those of one step."""
    K, N, mesh = case.members, case.units, case.mesh
    one = train_step(case)
    lists = Lists(
        case.array((K, N), jnp.int32, P("member")),  # type: ignore[arg-type]
        case.array((K,), jnp.uint32, P("member")),  # type: ignore[arg-type]
        case.array((K, N), jnp.uint8, P("member")),  # type: ignore[arg-type]
        case.array((N,), jnp.int32),  # type: ignore[arg-type]
    )
    data = DeviceData(case.array((N, *case.image_shape), case.dtype), lists, case.conditions((N,)))  # type: ignore[arg-type]
    number = case.array((), jnp.int32)
    seed = jax.tree.map(lambda word: case.array((), word.dtype), wide(case.train.seed))
    function = make_device_steps(case.model, case.schedule, case.train, mesh, case.space, case.condition)
    note = f"{one.note}, {N} images in device memory"
    arguments = one.arguments[0], data, number, number, seed, *one.arguments[4:]
    return Step("train_device", function, arguments, one.flops, note, 1)


def landscape_step(case: Case) -> Step:
    """Return the program of one sampling step of states, each without the members that saw one unit."""
    code = Code.balanced(members=case.members, units=case.units)
    shards, states = case.mesh.shape["data"], case.states
    states = STATES_AT_ONCE * shards if states is None else -(-states // shards) * shards
    weights_RK = code.ablate([r % case.units for r in range(states)])
    return _states_step("landscape", case, case.params(), code, weights_RK)


def _states_step(name: str, case: Case, params: Any, code: Any, weights_RK: np.ndarray) -> Step:
    """Return the program of one sampling step of states under rows of weights."""
    shards, states = case.mesh.shape["data"], len(weights_RK)
    ensemble = Ensemble({}, code, case.model, case.schedule, case.image_shape, case.space, case.condition)
    chunks = plan(ensemble, weights_RK, case.mesh, Resources(states, case.memory // 2))
    function = sampling_step(case.model, case.image_shape, case.rule, case.mesh, case.mode)
    lists, split = (shards, case.mesh.shape["member"], chunks.number), P("data", "member")
    places = *lists, chunks.together, chunks.places
    arguments = (
        params,
        case.array((states, *case.image_shape), jnp.float32, P("data")),
        None,
        case.noise(states),
        Batches(
            case.array(lists, jnp.int32, split),  # type: ignore[arg-type]
            case.array(places, jnp.int32, split),  # type: ignore[arg-type]
            case.array(places, jnp.float32, split),  # type: ignore[arg-type]
        ),
        case.given(states),
        case.stage(),
    )
    batch = chunks.together * chunks.places
    flops = landscape_step_flops(case.model, case.image_shape, chunks.number * batch, case.condition)
    note = f"{states} states, {chunks.number} batches of {batch} predictions per chip"
    return Step(name, function, arguments, flops, note)


def jacobian_step(case: Case) -> Step:
    """Return the program of one sampling step of samples and their K tangents."""
    shards, K = case.mesh.shape["data"], case.members
    samples = shards if case.samples is None else -(-case.samples // shards) * shards
    function = tangents.tangent_step(case.model, case.image_shape, case.rule, case.mesh, mode=case.mode)
    arguments = (
        case.params(),
        tangents.State(case.array((samples, *case.image_shape), jnp.float32, P("data"))),  # type: ignore[arg-type]
        tangents.State(case.array((K, samples, *case.image_shape), jnp.float32, P(None, "data"))),  # type: ignore[arg-type]
        case.noise(samples),
        case.given(samples),
        case.array((K,), jnp.float32, P("member")),
        case.stage(),
    )
    share = samples // shards
    flops = jacobian_step_flops(case.model, case.image_shape, case.local, K, share, case.condition)
    return Step("jacobian", function, arguments, flops, f"{share} samples, {K} tangents, {case.local} members per chip")


def loss_step(case: Case) -> Step:
    """Return the program that adds some draws of (t, eps) for one image to the loss matrix R, see `LossMatrix`."""
    shards, K = case.mesh.shape["data"], case.members
    draws = 32 * shards
    function = block_step(case.model, case.schedule, case.image_shape, case.mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        case.params(),
        case.array((K, 1, K), jnp.float32, P("member")),
        case.array((1,), jnp.float32),
        case.array((1, *case.image_shape), jnp.float32),
        case.conditions((1,)),
        case.array(key.shape, key.dtype),
        case.array((draws,), jnp.int32, P("data")),
        case.array((draws,), jnp.int32, P("data")),
        case.array((draws,), jnp.float32, P("data")),
    )
    pixels = math.prod(case.image_shape)
    flops = landscape_step_flops(case.model, case.image_shape, case.local * draws // shards, case.condition)
    flops += 2 * case.local * K * (draws // shards) * pixels  # inner products of the members' errors
    return Step("loss", function, arguments, flops, f"1 image, {draws // shards} draws, {case.local} members per chip")


def blend_step(case: Case) -> Step:
    """Return the program that makes one network of all members: averaged parameters under one row of weights.

    Raises:
        ValueError: the members are no adapters.
    """
    if not isinstance(case.model, Adapted):
        raise ValueError(
            "programs blend and averaged are compiled for adapters only: the config has no section adapters"
        )
    weights: Any = case.array((1, case.members), jnp.float32, P(None, "member"))
    arguments = case.params(), case.base(), weights
    flops = case.local * averaged_flops(case.model, case.image_shape, case.condition).change
    return Step("blend", blending_step(case.model, case.mesh), arguments, flops, f"{case.local} members per chip")


def averaged_step(case: Case) -> Step:
    """Return the program of one sampling step of states under the network that `blend_step` makes."""
    averaged = jax.eval_shape(blend_step(case).function, *blend_step(case).arguments)
    axes = {"member": 1, "data": case.mesh.size}
    devices = case.mesh.devices.reshape(1, -1) if isinstance(case.mesh, Mesh) else None
    kinds = (AxisType.Auto,) * 2
    mesh = (
        AbstractMesh((1, case.mesh.size), tuple(axes), axis_types=kinds)
        if devices is None
        else Mesh(devices, tuple(axes), axis_types=kinds)
    )
    whole = dataclasses.replace(case, model=network_of(case.model), members=1, mesh=mesh)
    states = -(-(case.states or 1) // mesh.size) * mesh.size
    return _states_step("averaged", whole, whole.stacked(averaged), Rows(1), np.ones((states, 1), np.float32))


STEPS: dict[str, Callable[[Case], Step]] = {
    "train": train_step,
    "train_device": train_device_steps,
    "landscape": landscape_step,
    "jacobian": jacobian_step,
    "loss": loss_step,
}
"""The programs that every ensemble has, by name."""

AVERAGED: dict[str, Callable[[Case], Step]] = {"blend": blend_step, "averaged": averaged_step}
"""The programs of averaged parameters of adapters."""


def lower(step: Step, platform: str) -> jax.stages.Lowered:
    """Lower a step for a platform: ``"tpu"``, ``"cuda"`` or ``"cpu"``."""
    return step.function.trace(*step.arguments).lower(lowering_platforms=(platform,))


def abstract_mesh(members: int, batch: int, devices: int) -> AbstractMesh:
    """Return the mesh that `make_mesh` would make for this number of devices, without devices."""
    return AbstractMesh(mesh_shape(members, batch, devices), ("member", "data"), axis_types=(AxisType.Auto,) * 2)
