"""The four jobs that are timed: a training step, factual sampling, an exact landscape and the Jacobian."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import ensdiff
from ensdiff.attribution import differential
from ensdiff.ensemble.members import init_params
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.planning.flops import jacobian_step_flops, landscape_step_flops, train_step_flops
from ensdiff.sampling.denoise import Noise, plan, run_states
from ensdiff.training.config import seed_of
from ensdiff.training.step import Batch, init_state, make_train_step

LEVELS = 1000


@dataclasses.dataclass(frozen=True)
class Setting:
    """The sizes of the timed jobs. ``landscape`` is (units, samples); steps are the timed steps of the sampler."""

    members: int = 16
    channels: int = 32
    side: int = 28
    batch: int = 16
    factual: int = 16
    factual_steps: int = 5
    landscape: tuple[int, int] = (32, 8)
    landscape_steps: int = 1
    jacobian: int = 2
    jacobian_steps: int = 1
    conv: str = "auto"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        return self.side, self.side, 1

    @property
    def model(self) -> ensdiff.UNetConfig:
        """Return a U-Net that `diffusers.UNet2DModel` can also represent.

        It has two levels, with attention in the lower one and 8 channels per head.
        """
        return ensdiff.UNetConfig(
            channels=self.channels, multipliers=(1, 2), attention_levels=(1,), head_channels=8, norm_groups=16,
            time_layout="cos_sin", conv=self.conv,  # type: ignore[arg-type]
        )  # fmt: skip

    @property
    def train(self) -> ensdiff.TrainConfig:
        """Return training settings of plain Adam, without warm-up or clipping."""
        return ensdiff.TrainConfig(batch_size=self.batch, learning_rate=1e-4, warmup=0, clip=0.0)

    def sampler(self, steps: int) -> ensdiff.SamplerConfig:
        """Return a deterministic sampler without clipping."""
        return ensdiff.SamplerConfig("ddim", steps, clip=False)


def ensemble(setting: Setting) -> ensdiff.Ensemble:
    """Return an untrained ensemble, because times do not depend on the weights."""
    K, weight = setting.members, setting.members // 2
    units = min(setting.landscape[0], math.comb(K, weight))
    code = ensdiff.Code.balanced(K, units, weight) if K > 1 else ensdiff.Code.from_matrix([[1]])
    params = init_params(setting.model, setting.image_shape, setting.members, 0)
    # the last layer is initialised to zero: add noise, so that comparing results is meaningful
    noisy = jax.tree.map(lambda a: a + 0.02 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    return ensdiff.Ensemble(noisy, code, setting.model, ensdiff.Schedule(timesteps=LEVELS), setting.image_shape)


@dataclasses.dataclass(frozen=True)
class Job:
    """A function to time, which returns its result, and its number of floating-point operations."""

    call: Callable[[], np.ndarray]
    flops: int


def train_job(setting: Setting, params: ensdiff.Ensemble, mesh: Mesh | None = None) -> Job:
    """Build the job of one training step of all members, which returns their losses."""
    mesh = make_mesh(setting.members, setting.batch) if mesh is None else mesh
    state = init_state(setting.model, setting.image_shape, setting.members, setting.train)
    held = [on_mesh(state._replace(params=jax.tree.map(jnp.copy, params.params)), mesh)]
    shape = setting.members, setting.batch
    images = np.random.default_rng(0).integers(0, 256, (*shape, *setting.image_shape), np.uint8)
    batch = on_mesh(Batch(images, np.ones(shape, np.float32)), mesh, P("member", "data"))
    step = make_train_step(setting.model, params.schedule, setting.train, mesh)

    def call():
        held[0], metrics = step(held[0], batch, np.int32(0), seed_of(setting.train))
        jax.block_until_ready(held[0])
        return np.asarray(metrics.loss_K)

    return Job(call, train_step_flops(setting.model, setting.image_shape, *shape))


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
    noise = Noise(jnp.tile(jnp.arange(samples), units), array=array)
    weights = np.repeat(params.code.ablate(np.arange(units)), samples, axis=0)
    sampler = setting.sampler(setting.landscape_steps)

    def call():
        return np.concatenate(
            [np.asarray(images) for _, images in run_states(params, sampler, noise, weights, Resources())]
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


JOBS = {"train": train_job, "factual": factual_job, "landscape": landscape_job, "jacobian": jacobian_job}
