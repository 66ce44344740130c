"""Random projections of each image's gradient under each member, by noise level.

(g1) ``g_k(x) = grad_theta (mean over draws of (t, eps) of q(x, t, eps; theta_k))``. The quantity q is the squared error
``|eps - eps_k(x_t, t)|^2`` (``output="loss"``), the squared prediction ``|eps_k(x_t, t)|^2`` (``"square"``), or ``v .
eps_k(x_t, t)`` with random signs v (``"output"``), summed over pixels; where members predict something else, that takes
the place of the noise. The draws have ascending noise levels and are divided into G equal parts; each part has a
gradient of its own, and their mean over parts is the gradient of the mean.

(g2) ``phi_k(x) = P^T g_k(x)`` has D numbers, and ``phi . phi'`` is ``g . g'`` on average, with a variance of ``(|g|^2
|g'|^2 + (g . g')^2) / D`` at most. P has either random signs divided by ``sqrt(D)`` (``projection="signs"``), or one
random sign in each row (``"sketch"``): each parameter is added to or subtracted from one of the D numbers.

All images and members share the draws (t, eps, v) and P. P is never stored. The sketch takes rows of D parameters and
shifts each of them by a random number of places: two parameters of different rows meet with a probability of 1 / D, and
two of the same row never do, so that its variance is that of random signs.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from ensdiff import hosts
from ensdiff.attribution.draws import LossConfig, draw_noise
from ensdiff.attribution.gradients.config import GradientConfig, Output
from ensdiff.attribution.pictures import Given, model_images, pictures_of
from ensdiff.diffusion.schedule import Schedule, add_noise, network_inputs, target
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.members import over_members, sum_over_micro_batches
from ensdiff.ensemble.memory import Resources, count_micro_batches
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.ensemble.placing import member_specs, place_stacked
from ensdiff.models.adapters import Adapted, opened
from ensdiff.models.conv import resolve
from ensdiff.models.denoiser import Denoiser
from ensdiff.models.unet import UNetConfig
from ensdiff.sampling.packing import round_up
from ensdiff.settings import check_value
from ensdiff.typing import Array, Params, as_key

ROWS = 8192
"""Rows of the random signs in memory at a time."""
IMAGES = 64, 256
"""Smallest and largest number of images per call; numbers are rounded up, so that one program serves many of them."""


class GradientChunk(NamedTuple):
    """Projected gradients of neighbouring images.

    Args:
        start: index of the first image.
        phi_KCGD: gradients of ``C`` images under each member, by part of the noise levels.
    """

    start: int
    phi_KCGD: Float[np.ndarray, "K C G D"]


def projected_gradients(
    params: Ensemble,
    images: Given,
    output: Output = "loss",
    config: GradientConfig | None = None,
    *,
    cond: Any = None,
    members: Sequence[int] | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "K B G D"]:
    """Return projected gradients (g2) of images under members, by part of the noise levels.

    Args:
        params: the ensemble.
        images: (B, H, W, C) in [0, 1], or uint8, or latents, generated or not; or `Samples`, or a data set.
        output: the quantity q of (g1).
        config: draws, parts, dimension, projection and seed; its other fields are not used here.
        cond: the conditions of an array of images, for conditional members; None is no condition.
        members: numbers of the members; by default all members.
        memory_budget: bytes of gradients that a device may hold.
        progress: show a progress bar.

    Returns:
        Float32. Part g is the mean over its own draws, so the gradient of all draws is the mean over the parts.

    Raises:
        ValueError: images whose shape is not the ensemble's or whose values are out of range, or unknown members or
            output.

    >>> config = GradientConfig(draws=4, parts=2, dimension=32)
    >>> projected_gradients(params, data.images[:3], config=config, members=[0, 3]).shape
    (2, 3, 2, 32)
    """
    chunks = stream_gradients(
        params, images, output, config, cond=cond, members=members, memory_budget=memory_budget, progress=progress
    )
    return np.concatenate([chunk.phi_KCGD for chunk in chunks], axis=1)


def stream_gradients(
    params: Ensemble,
    images: Given,
    output: Output = "loss",
    config: GradientConfig | None = None,
    *,
    cond: Any = None,
    members: Sequence[int] | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Iterator[GradientChunk]:
    """Yield `projected_gradients` of neighbouring images as they are computed, at most 256 images at a time.

    The arguments are those of `projected_gradients`; they are checked when the first chunk is asked for. An image's
    gradients do not depend on the other images.
    """
    check_value("output", output, Output)
    config = GradientConfig() if config is None else config
    pictures = pictures_of(params, images, cond)
    B = len(pictures)
    chosen = np.arange(params.members) if members is None else np.asarray(members)
    if chosen.ndim != 1 or not len(chosen) or not np.isin(chosen, np.arange(params.members)).all():
        raise ValueError(f"members={members}: expected some of 0 .. {params.members - 1}")
    stacked = jax.tree.map(lambda a: a[chosen], hosts.fetch(params.params))
    size = sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(stacked))
    mesh = make_mesh(len(chosen))
    resources = Resources(None, memory_budget, progress)
    chunk = min(round_up(B, IMAGES[0]), IMAGES[1])
    if config.projection == "signs":  # a chunk's gradients are projected together
        chunk = int(np.clip(resources.budget() // (4 * 4 * config.parts * size), 1, chunk))

    key = as_key(config.seed)
    levels = LossConfig(block=config.draws, draws=2 * config.draws, max_draws=2 * config.draws)
    t_R = levels.draw_levels(params.schedule, key, 0)
    step = _step(params.model, params.schedule, params.image_shape, output, Projection.of(config), mesh)
    placed = place_stacked(params, stacked, mesh)
    shared = [on_mesh(a, mesh, P()) for a in (t_R, key)]
    with hosts.progress_bar(B, "gradients", "image", shown=resources.progress, first=hosts.COMPILING) as bar:
        for start in range(0, B, chunk):
            rows = np.minimum(np.arange(start, start + chunk), B - 1)
            count = min(chunk, B - start)
            part = pictures.take(rows)  # only this part becomes float32, because the images may be a memory map
            some = on_mesh((model_images(params, part), part.cond), mesh, P())
            phi = hosts.fetch(step(placed, *some, np.int32(count), *shared))
            yield GradientChunk(start, phi[:, :count])
            bar.update(count)


class Projection(NamedTuple):
    """The settings that the compiled program depends on."""

    parts: int
    dimension: int
    projection: str

    @classmethod
    def of(cls, config: GradientConfig) -> "Projection":
        """Return the settings of a config."""
        return cls(config.parts, config.dimension, config.projection)


@functools.lru_cache(maxsize=16)
def _step(
    model: Denoiser,
    schedule: Schedule,
    image_shape: tuple[int, int, int],
    output: Output,
    projection: Projection,
    mesh: Mesh,
):
    """Return a compiled ``(params_K, x_CHWC, cond_C, count, t_R, key) -> phi_KCGD`` for R draws.

    It projects the gradients of the first ``count`` images. Each device works on its own members, without a collective.
    """
    model = _as_training(model)
    G, D = projection.parts, projection.dimension

    def step(stacked, x_CHWC, cond_C, count, t_R, key):
        network, params_K = opened(model, stacked)
        noise_key, projection_key, sign_key = (jax.random.fold_in(key, use) for use in (1, 2, 3))
        R = len(t_R)
        eps_RHWC = draw_noise(noise_key, jnp.arange(R), image_shape)
        v_RHWC = draw_signs(sign_key, jnp.arange(R), image_shape) if output == "output" else eps_RHWC
        parts = jax.tree.map(lambda a: a.reshape(G, R // G, *a.shape[1:]), (t_R, eps_RHWC, v_RHWC))
        # as many draws at once as have activations that stay in the cache: several parts, or a share of one
        most = max(1, G // count_micro_batches(model, image_shape, R, mesh))
        parts_at_once = max(n for n in range(1, most + 1) if G % n == 0)
        micro_batches = count_micro_batches(model, image_shape, R // G, mesh)
        size = sum(leaf[0].size for leaf in jax.tree.leaves(params_K))
        plan = plan_sketch(projection_key, size, D) if projection.projection == "sketch" else None

        def member(params):
            def quantity(params, x_HWC, cond, t_S, eps_SHWC, v_SHWC):
                clean_SHWC = jnp.broadcast_to(x_HWC, eps_SHWC.shape)
                inputs, time_S = network_inputs(schedule, add_noise(schedule, clean_SHWC, t_S, eps_SHWC), t_S)
                cond_S = jax.tree.map(lambda row: jnp.broadcast_to(row, (len(t_S), *row.shape)), cond)
                predicted = network.apply(params, inputs, time_S, cond_S)
                if output == "output":
                    return (v_SHWC * predicted).sum() * G / R
                error = predicted - target(schedule, clean_SHWC, eps_SHWC, t_S) if output == "loss" else predicted
                return jnp.square(error).sum() * G / R

            def gradients_of(pair):
                def part(draws):
                    gradient = functools.partial(jax.grad(quantity), params, *pair)
                    return flatten(sum_over_micro_batches(gradient, micro_batches, *draws))

                rows_GP = jax.lax.map(part, parts, batch_size=parts_at_once)
                return rows_GP if plan is None else sketch(rows_GP, plan)

            def image(numbered):
                number, *pair = numbered
                zeros = jnp.zeros((G, size if plan is None else D))
                return jax.lax.cond(number < count, gradients_of, lambda _: zeros, pair)

            rows = jax.lax.map(image, (jnp.arange(len(x_CHWC)), x_CHWC, cond_C))
            if plan is None:
                rows = project(rows.reshape(-1, size), projection_key, D)
            return rows.reshape(len(x_CHWC), G, D)

        return over_members(network, member, params_K)

    return per_device(step, mesh, (member_specs(model), P(), P(), P(), P(), P()), P("member"))


def _as_training(model: Denoiser) -> Denoiser:
    """Return the network as training computes it, not as predictions do."""
    if isinstance(model, Adapted):
        return dataclasses.replace(model, base=_as_training(model.base))
    if not isinstance(model, UNetConfig):
        return model
    attention = "auto" if model.attention == "fused" else model.attention
    return dataclasses.replace(model, conv=resolve(model.conv), attention=attention)


def flatten(tree: Params) -> Float[Array, " P"]:
    """Return all arrays of one member as one vector, in the order of `jax.tree.leaves`."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def draw_signs(key: Array, number_R: Array, image_shape: tuple[int, int, int]) -> Float[Array, "R H W C"]:
    """Return the random signs v of each draw, a function only of the key and the draw's number."""

    def one(number):
        return jax.random.rademacher(jax.random.fold_in(key, number), image_shape, jnp.float32)

    return jax.vmap(one)(number_R)


class SketchPlan(NamedTuple):
    """The random choices of a sketch, for rows of D parameters.

    Args:
        sign_RD: the sign with which each parameter is added; 0 past the last parameter.
        source_RD: the column of each row whose parameter is added to each of the D numbers.
    """

    sign_RD: Float[Array, "R D"]
    source_RD: Int[Array, "R D"]


def plan_sketch(key: Array, size: int, dimension: int) -> SketchPlan:
    """Draw the signs, and a shift of each row, for ``size`` parameters and ``dimension`` numbers."""
    rows = -(-size // dimension)
    shift_R = jax.random.randint(jax.random.fold_in(key, 0), (rows,), 0, dimension)
    sign_RD = jax.random.rademacher(jax.random.fold_in(key, 1), (rows, dimension), jnp.float32)
    used = jnp.arange(rows * dimension).reshape(rows, dimension) < size
    return SketchPlan(jnp.where(used, sign_RD, 0.0), (jnp.arange(dimension)[None] - shift_R[:, None]) % dimension)


def sketch(rows_CP: Float[Array, "C P"], plan: SketchPlan) -> Float[Array, "C D"]:
    """Return ``rows_CP @ P`` (g2), where P has one random sign in each row."""
    R, D = plan.sign_RD.shape
    padded = jnp.pad(rows_CP, ((0, 0), (0, R * D - rows_CP.shape[1]))).reshape(-1, R, D)
    signed = padded * plan.sign_RD[None]
    return jax.vmap(lambda row_RD: jnp.take_along_axis(row_RD, plan.source_RD, axis=1).sum(0))(signed)


def project(rows_CP: Float[Array, "C P"], key: Array, dimension: int) -> Float[Array, "C D"]:
    """Return ``rows_CP @ P`` (g2), where P has signs over ``sqrt(D)`` and is computed one block of rows at a time."""
    C, size = rows_CP.shape
    width = min(ROWS, size)
    blocks = -(-size // width)
    padded = jnp.pad(rows_CP, ((0, 0), (0, blocks * width - size))).reshape(C, blocks, width).swapaxes(0, 1)

    def add(total_CD, numbered):
        number, block_CW = numbered
        signs_WD = jax.random.rademacher(jax.random.fold_in(key, number), (width, dimension), jnp.float32)
        return total_CD + jnp.matmul(block_CW, signs_WD, precision="highest"), None

    total, _ = jax.lax.scan(add, jnp.zeros((C, dimension)), (jnp.arange(blocks), padded))
    return total / np.sqrt(dimension).astype(np.float32)
