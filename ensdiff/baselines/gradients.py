"""Random projections of each image's gradient under each member.

(g1) ``g_k(x) = grad_theta (mean over draws of (t, eps) of q(x, t, eps; theta_k))``, where ``q`` is the squared error
``|eps - eps_k(x_t, t)|^2`` (``output="loss"``) or the squared prediction ``|eps_k(x_t, t)|^2`` (``"square"``), summed
over pixels. (g2) ``phi_k(x) = P^T g_k(x) / sqrt(d)``, where P has d columns of random signs, the same for all members
and images, so that ``phi . phi'`` is ``g . g'`` on average, with a relative error of ``1 / sqrt(d)``.

All images use the same draws. P is never stored: its rows are recomputed one block at a time.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from ensdiff import hosts
from ensdiff.attribution import LossConfig
from ensdiff.attribution.draws import draw_noise, model_images
from ensdiff.diffusion.schedule import Schedule, add_noise
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.members import apply_member, over_members, sum_over_micro_batches
from ensdiff.ensemble.memory import Resources, count_micro_batches
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.models.conv import resolve
from ensdiff.models.unet import UNetConfig
from ensdiff.sampling.packing import round_up
from ensdiff.typing import Array, ArrayLike, Key, as_key

Output = Literal["loss", "square"]
ROWS = 8192
"""Rows of the projection in memory at a time."""
IMAGES = 64, 256
"""Smallest and largest number of images per call; numbers are rounded up, so that one program serves many of them."""


def projected_gradients(
    params: Ensemble,
    images: ArrayLike,
    output: Output = "loss",
    key: Key = 0,
    *,
    draws: int = 16,
    dimension: int = 1024,
    members: Sequence[int] | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "K B D"]:
    """Return projected gradients (g2) of images under members.

    Args:
        params: the ensemble.
        images: (B, H, W, C) in [0, 1], or uint8.
        output: the quantity q of (g1), ``"loss"`` or ``"square"``.
        key: int seed or JAX key of the draws and the projection.
        draws: number of draws of (t, eps); the levels are stratified.
        dimension: d of the projection.
        members: numbers of the members; by default all members.
        memory_budget: bytes of gradients that a device may hold.
        progress: show a progress bar.

    Raises:
        ValueError: images whose shape is not the ensemble's or whose values are out of range, unknown members or
            output, or less than one draw or dimension.

    >>> import ensdiff
    >>> model, code = ensdiff.UNetConfig(channels=4, norm_groups=2), ensdiff.Code.balanced(members=4, units=6)
    >>> stacked = ensdiff.ensemble.members.init_params(model, (8, 8, 1), 4, jax.random.key(0))
    >>> params = ensdiff.Ensemble(stacked, code, model, ensdiff.Schedule(), (8, 8, 1))
    >>> projected_gradients(params, np.zeros((2, 8, 8, 1)), draws=2, dimension=5, members=[0, 3]).shape
    (2, 2, 5)
    """
    if output not in ("loss", "square"):
        raise ValueError(f"output={output!r}: expected 'loss' or 'square'")
    if draws < 1 or dimension < 1:
        raise ValueError(f"draws={draws}, dimension={dimension}: expected at least 1")
    x_BHWC = model_images(params, images)
    chosen = np.arange(params.members) if members is None else np.asarray(members)
    if chosen.ndim != 1 or not len(chosen) or not np.isin(chosen, np.arange(params.members)).all():
        raise ValueError(f"members={members}: expected some of 0 .. {params.members - 1}")
    stacked = jax.tree.map(lambda a: a[chosen], hosts.fetch(params.params))
    size = sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(stacked))
    mesh = make_mesh(len(chosen))
    resources = Resources(None, memory_budget, progress)
    least, most = IMAGES
    chunk = int(np.clip(resources.budget() // (4 * 4 * size), 1, min(round_up(len(x_BHWC), least), most)))

    key = as_key(key)
    levels = LossConfig(block=draws, draws=2 * draws, max_draws=2 * draws)
    t_D = levels.draw_levels(params.schedule, key, 0)
    step = _step(params.model, params.schedule, params.image_shape, output, dimension, mesh)
    placed = on_mesh(stacked, mesh)
    shared = [on_mesh(a, mesh, P()) for a in (t_D, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))]
    out = np.empty((len(chosen), len(x_BHWC), dimension), np.float32)
    with hosts.progress_bar(len(x_BHWC), "gradients", "image", shown=resources.progress) as bar:
        for start in range(0, len(x_BHWC), chunk):
            rows = np.minimum(np.arange(start, start + chunk), len(x_BHWC) - 1)
            count = min(chunk, len(x_BHWC) - start)
            phi = hosts.fetch(step(placed, on_mesh(x_BHWC[rows], mesh, P()), np.int32(count), *shared))
            out[:, start : start + count] = phi[:, :count]
            bar.update(count)
    return out


@functools.lru_cache(maxsize=16)
def _step(
    model: UNetConfig,
    schedule: Schedule,
    image_shape: tuple[int, int, int],
    output: Output,
    dimension: int,
    mesh: Mesh,
):
    """Return a compiled ``(params_K, x_CHWC, count, t_D, noise_key, projection_key) -> phi_KCd``.

    It projects the gradients of the first ``count`` images. Each device works on its own members, without a collective.
    """
    model = dataclasses.replace(model, conv=resolve(model.conv))  # as in training, not as in predictions

    def step(params_K, x_CHWC, count, t_D, noise_key, projection_key):
        draws = len(t_D)
        eps_DHWC = draw_noise(noise_key, jnp.arange(draws), image_shape)
        parts = count_micro_batches(model, image_shape, draws, mesh)

        def member(params):
            def quantity(params, x_HWC, t_D, eps_DHWC):
                x_DHWC = add_noise(schedule, jnp.broadcast_to(x_HWC, eps_DHWC.shape), t_D, eps_DHWC)
                predicted = apply_member(model, params, x_DHWC, t_D)
                error = predicted - eps_DHWC if output == "loss" else predicted
                return jnp.square(error).sum() / draws

            def gradient_of(x_HWC):
                return sum_over_micro_batches(
                    functools.partial(jax.grad(quantity), params, x_HWC), parts, t_D, eps_DHWC
                )

            def gradient(numbered):
                number, x_HWC = numbered
                zeros = jax.tree.map(jnp.zeros_like, params)
                found = jax.lax.cond(number < count, lambda: gradient_of(x_HWC), lambda: zeros)
                return ravel_pytree(found)[0]

            gradients_CP = jax.lax.map(gradient, (jnp.arange(len(x_CHWC)), x_CHWC))
            return project(gradients_CP, projection_key, dimension)

        return over_members(model, member, params_K)

    return per_device(step, mesh, (P("member"), P(), P(), P(), P(), P()), P("member"))


def project(rows_CP: Array, key: Array, dimension: int) -> Float[Array, "C d"]:
    """Return ``rows_CP @ P / sqrt(d)`` (g2), where P has random signs and is computed one block of rows at a time."""
    C, size = rows_CP.shape
    width = min(ROWS, size)
    blocks = -(-size // width)
    padded = jnp.pad(rows_CP, ((0, 0), (0, blocks * width - size))).reshape(C, blocks, width).swapaxes(0, 1)

    def add(total_Cd, numbered):
        number, block_CW = numbered
        signs_Wd = jax.random.rademacher(jax.random.fold_in(key, number), (width, dimension), jnp.float32)
        return total_Cd + jnp.matmul(block_CW, signs_Wd, precision="highest"), None

    total, _ = jax.lax.scan(add, jnp.zeros((C, dimension)), (jnp.arange(blocks), padded))
    return total / np.sqrt(dimension).astype(np.float32)
