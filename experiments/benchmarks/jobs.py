"""The jobs that are timed: a training step, factual sampling, an exact landscape, the Jacobian and the loss matrix."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import ensdiff
from ensdiff.attribution import differential
from ensdiff.ensemble.members import abstract_params
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.planning.flops import jacobian_step_flops, landscape_step_flops, train_step_flops
from ensdiff.sampling.denoise import Exogenous, Noise, plan, run_states
from ensdiff.training.config import seed_of
from ensdiff.training.step import Batch, init_state, make_train_step

LEVELS = 1000


@dataclasses.dataclass(frozen=True)
class Setting:
    """The sizes of the timed jobs. Steps are the timed steps of the sampler.

    Args:
        members: K.
        channels: width of the U-Net.
        multipliers: widths of its levels as multiples of ``channels``; the second level has attention.
        side: height and width of the images.
        colours: channels of the images.
        batch: training images per member.
        factual: samples of the whole ensemble.
        factual_steps: their steps.
        landscape: (units, samples).
        landscape_steps: steps of every state of the landscape.
        jacobian: samples whose Jacobian is computed.
        jacobian_steps: their steps.
        loss: (images, draws per image).
        conv: how members are computed, as in `ensdiff.UNetConfig`.
        stack: members that are computed together, likewise.
        attention: the order of attention, likewise.
        dtype: dtype of the layers, ``"float32"`` or ``"bfloat16"``.
    """

    members: int = 16
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    side: int = 28
    colours: int = 1
    batch: int = 16
    factual: int = 16
    factual_steps: int = 5
    landscape: tuple[int, int] = (32, 8)
    landscape_steps: int = 1
    jacobian: int = 2
    jacobian_steps: int = 1
    loss: tuple[int, int] = (8, 16)
    conv: str = "auto"
    stack: int = 0
    attention: str = "auto"
    dtype: str = "float32"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        return self.side, self.side, self.colours

    @property
    def model(self) -> ensdiff.UNetConfig:
        """Return a U-Net that `diffusers.UNet2DModel` can also represent.

        The second level, if there is one, has attention, with 8 channels per head.
        """
        return ensdiff.UNetConfig(
            image_channels=self.colours, channels=self.channels, multipliers=self.multipliers,
            attention_levels=(1,) if len(self.multipliers) > 1 else (),
            head_channels=8, norm_groups=16, time_layout="cos_sin", conv=self.conv,  # type: ignore[arg-type]
            stack=self.stack, attention=self.attention,  # type: ignore[arg-type]
            compute_dtype=self.dtype,  # type: ignore[arg-type]
        )  # fmt: skip

    @property
    def train(self) -> ensdiff.TrainConfig:
        """Return training settings of plain Adam, without warm-up or clipping."""
        return ensdiff.TrainConfig(batch_size=self.batch, learning_rate=1e-4, warmup=0, clip=0.0)

    def sampler(self, steps: int) -> ensdiff.SamplerConfig:
        """Return a deterministic sampler without clipping."""
        return ensdiff.SamplerConfig("ddim", steps, clip=False)


NETWORKS = {
    "small": Setting(),
    "cifar": Setting(channels=64, multipliers=(1, 2, 2), side=32, colours=3, batch=64),
    "paper": Setting(members=20, channels=128, multipliers=(1, 2, 2, 2), side=32, colours=3, batch=128),
}
"""The sizes that are compared. "paper" is the network of CIFAR-10 at the scale of the method's papers."""


def ensemble(setting: Setting) -> ensdiff.Ensemble:
    """Return an untrained ensemble, because times do not depend on the weights.

    NumPy draws them, which takes no compilation: those of one member, which the others hold in another order.
    """
    K, weight = setting.members, setting.members // 2
    units = min(setting.landscape[0], math.comb(K, weight))
    code = ensdiff.Code.balanced(K, units, weight) if K > 1 else ensdiff.Code.from_matrix([[1]])
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        one = leaf.shape[1:]
        scale = 1 / math.sqrt(math.prod(one[:-1])) if len(one) > 1 else 0.02
        values = scale * rng.standard_normal(math.prod(one), np.float32) + (path[-1].key == "scale")
        return jnp.asarray(np.stack([np.roll(values, k) for k in range(K)]).reshape(leaf.shape), leaf.dtype)

    shapes = abstract_params(setting.model, setting.image_shape, K)
    params = jax.tree.map_with_path(draw, shapes)
    return ensdiff.Ensemble(params, code, setting.model, ensdiff.Schedule(timesteps=LEVELS), setting.image_shape)


@dataclasses.dataclass(frozen=True)
class Job:
    """A function to time.

    Args:
        call: does the work, waits for it and returns its result.
        flops: floating-point operations of one call; 0 if nobody counted them.
        compile_seconds: compile time, where it is known apart from the first call.
        memory: bytes per device of the program's arguments and temporaries, where they are known.
    """

    call: Callable[[], np.ndarray]
    flops: int = 0
    compile_seconds: float | None = None
    memory: int | None = None


def train_job(setting: Setting, params: ensdiff.Ensemble, mesh: Mesh | None = None) -> Job:
    """Build the job of one training step of all members, which returns their losses."""
    mesh = make_mesh(setting.members, setting.batch) if mesh is None else mesh
    state = init_state(setting.model, setting.image_shape, setting.members, setting.train)
    held = [on_mesh(state._replace(params=jax.tree.map(jnp.copy, params.params)), mesh)]
    shape = setting.members, setting.batch
    images = np.random.default_rng(0).integers(0, 256, (*shape, *setting.image_shape), np.uint8)
    batch = on_mesh(Batch(images, np.ones(shape, np.float32)), mesh, P("member", "data"))
    step: Any = make_train_step(setting.model, params.schedule, setting.train, mesh)
    start = time.perf_counter()
    compiled = step.lower(held[0], batch, np.int32(0), seed_of(setting.train)).compile()
    seconds = time.perf_counter() - start

    def call():
        held[0], metrics = compiled(held[0], batch, np.int32(0), seed_of(setting.train))
        jax.block_until_ready(held[0])
        return np.asarray(metrics.loss_K)

    memory: Any = compiled.memory_analysis()
    used = None if memory is None else memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return Job(call, train_step_flops(setting.model, setting.image_shape, *shape), seconds, used)


def start_noise(setting: Setting, count: int, steps: int) -> np.ndarray:
    """Return (S + 1, B, H, W, C) noise for both libraries; DDIM uses only the first step's."""
    return np.random.default_rng(1).normal(size=(steps + 1, count, *setting.image_shape)).astype(np.float32)


def factual_job(setting: Setting, params: ensdiff.Ensemble) -> Job:
    """Build the job that samples the whole ensemble."""
    noise = start_noise(setting, setting.factual, setting.factual_steps)
    sampler = setting.sampler(setting.factual_steps)

    def call():
        return np.asarray(ensdiff.sample(params, noise=noise, sampler=sampler).images)

    evaluations = setting.members * setting.factual * setting.factual_steps
    return Job(call, landscape_step_flops(setting.model, setting.image_shape, evaluations))


def landscape_job(setting: Setting, params: ensdiff.Ensemble) -> Job:
    """Build the job that computes every sample without each unit, (units * samples) images."""
    units, samples = params.code.units, setting.landscape[1]
    array = jnp.asarray(start_noise(setting, samples, setting.landscape_steps))
    start = Exogenous(Noise(jnp.tile(jnp.arange(samples), units), array=array))
    weights = np.repeat(params.code.ablate(np.arange(units)), samples, axis=0)
    sampler = setting.sampler(setting.landscape_steps)

    def call():
        return np.concatenate(
            [np.asarray(images) for _, images in run_states(params, sampler, start, weights, Resources())]
        )

    evaluations = int(np.count_nonzero(weights)) * setting.landscape_steps
    return Job(call, landscape_step_flops(setting.model, setting.image_shape, evaluations))


def padding(setting: Setting, params: ensdiff.Ensemble) -> float:
    """Return the landscape's executed U-Net evaluations divided by its necessary ones (those of survivors)."""
    units, samples = params.code.units, setting.landscape[1]
    weights = np.repeat(params.code.ablate(np.arange(units)), samples, axis=0)
    mesh = make_mesh(setting.members)
    chunks = plan(params, weights, mesh, Resources())
    parts = -(-len(weights) // chunks.states)
    return parts * chunks.number * chunks.together * chunks.places * mesh.size / np.count_nonzero(weights)


def jacobian_job(setting: Setting, params: ensdiff.Ensemble) -> Job:
    """Build the job that computes derivatives of samples with respect to the weight of each member."""
    noise = start_noise(setting, setting.jacobian, setting.jacobian_steps)
    samples = ensdiff.sample(params, noise=noise, sampler=setting.sampler(setting.jacobian_steps))
    K = setting.members
    flops = setting.jacobian_steps * jacobian_step_flops(setting.model, setting.image_shape, K, K, setting.jacobian)
    return Job(lambda: differential.jacobian(params, samples), flops)


def loss_images(setting: Setting) -> np.ndarray:
    """Return the images (B, H, W, C) whose loss matrix is computed, in [0, 1]."""
    return np.random.default_rng(2).random((setting.loss[0], *setting.image_shape), np.float32)


def loss_draws(setting: Setting) -> ensdiff.LossConfig:
    """Return the draws of the loss matrix, in two blocks."""
    return ensdiff.LossConfig(draws=setting.loss[1], block=setting.loss[1] // 2)


def loss_job(setting: Setting, params: ensdiff.Ensemble) -> Job:
    """Build the job that computes the loss matrix R of each image, (B, K, K)."""
    images, draws = loss_images(setting), loss_draws(setting)
    evaluations = setting.members * setting.loss[0] * setting.loss[1]
    flops = landscape_step_flops(setting.model, setting.image_shape, evaluations)
    return Job(lambda: ensdiff.loss_matrix(params, images, 0, draws).mean_BKK, flops)


JOBS = {
    "train": train_job,
    "factual": factual_job,
    "landscape": landscape_job,
    "jacobian": jacobian_job,
    "loss": loss_job,
}
