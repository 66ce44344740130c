"""Draws of a noise level t and noise eps, and the members' prediction errors for them.

Draws come in blocks, and each block covers the range of levels by itself. The noise of a draw is a function only of its
number, so all members and all images use the same draws, whatever the batch size.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from ensdiff.diffusion.schedule import Schedule, add_noise, network_inputs, target
from ensdiff.diffusion.weights import vlb_weights
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.members import apply_member, over_members
from ensdiff.ensemble.memory import Resources, images_at_once, least_bytes
from ensdiff.ensemble.mesh import on_mesh
from ensdiff.ensemble.placing import member_specs, place_members
from ensdiff.models.adapters import opened
from ensdiff.models.denoiser import Denoiser
from ensdiff.models.space import Space
from ensdiff.settings import check_fields
from ensdiff.typing import Array, ArrayLike, Key, Params, as_key

Levels = Literal["stratified", "antithetic", "uniform"]
Weighting = Literal["simple", "snr"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the loss (7) is estimated.

    Args:
        draws: draws of (t, eps) per image; rounded up to whole blocks.
        block: draws per block; blocks are independent, and their spread gives the error bar.
        target_error: if given, start with two blocks and add blocks, up to ``max_draws`` draws, until the standard
            error of the scores (root mean square over some units) is at most this for every image. If None, use
            ``draws`` draws.
        max_draws: the most draws if there is a target error.
        levels: how a block draws t. ``"stratified"``: one from each of ``block`` equal parts of the range;
            ``"antithetic"``: pairs that mirror each other in the range; ``"uniform"``: independent.
        first_level: smallest t.
        last_level: largest t; None is T - 1.
        weighting: ``"simple"``: lambda = 1 and the mean over levels. ``"snr"``:
            ``lambda_t = n / 2 (SNR(t-1) / SNR(t) - 1)``, ``SNR = abar / (1 - abar)``, with n levels in the range, and
            0 at t = 0. L is then the part of the variational bound on -log p(x) that belongs to the range, in nats
            (Kingma et al. 2021, arXiv 2107.00630, eq. 14).

    >>> config = ensdiff.LossConfig(draws=64, block=16, weighting="snr")
    >>> config.draw_levels(ensdiff.Schedule(), key=0, block=0).shape
    (16,)
    """

    draws: int = 256
    block: int = 32
    target_error: float | None = None
    max_draws: int = 4096
    levels: Levels = "stratified"
    first_level: int = 0
    last_level: int | None = None
    weighting: Weighting = "simple"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.block < 1:
            raise ValueError(f"block={self.block}: expected at least 1 draw per block")
        if self.draws < 2 * self.block or self.max_draws < 2 * self.block:
            raise ValueError(
                f"draws={self.draws}, max_draws={self.max_draws}: expected at least two blocks of {self.block}, whose "
                "spread is the error bar"
            )
        if self.levels == "antithetic" and self.block % 2:
            raise ValueError(f"block={self.block}: antithetic levels come in pairs, so expected an even number")
        if self.target_error is not None and not self.target_error > 0:
            raise ValueError(f"target_error={self.target_error}: expected a positive number, or None")
        if self.target_error is not None and self.draws > self.max_draws:
            raise ValueError(
                f"draws={self.draws}, but with a target_error at most max_draws={self.max_draws} are made: give "
                f"max_draws={self.draws}"
            )
        if self.first_level < 0 or (self.last_level is not None and self.last_level < self.first_level):
            raise ValueError(
                f"first_level={self.first_level}, last_level={self.last_level}: expected 0 <= first_level <= last_level"
            )

    def level_range(self, schedule: Schedule) -> tuple[int, int]:
        """Return the first level, and one past the last level.

        Raises:
            ValueError: an empty range, or levels outside of the schedule.
        """
        last = schedule.timesteps - 1 if self.last_level is None else self.last_level
        if not 0 <= self.first_level <= last < schedule.timesteps:
            raise ValueError(
                f"levels {self.first_level} .. {last}: expected a range within 0 .. {schedule.timesteps - 1}"
            )
        return self.first_level, last + 1

    def draw_levels(self, schedule: Schedule, key: Key, block: int) -> Int[np.ndarray, " D"]:
        """Return the noise levels of the draws of one block."""
        low, high = self.level_range(schedule)
        place = np.asarray(jax.random.uniform(jax.random.fold_in(as_key(key), block), (self.block,)), np.float64)
        if self.levels == "stratified":
            place = (np.arange(self.block) + place) / self.block
        level = np.minimum(np.floor(place * (high - low)), high - low - 1).astype(np.int32)
        if self.levels == "antithetic":
            level[1::2] = high - low - 1 - level[::2]
        return low + level

    def level_weights(self, schedule: Schedule) -> Float[np.ndarray, " T"]:
        """Return lambda_t, the factor on the squared error at level t in the loss (7), for every t of the schedule."""
        if self.weighting == "simple":
            return np.ones(schedule.timesteps)
        low, high = self.level_range(schedule)
        return vlb_weights(schedule, low, high - 1)

    def draw_block(self, schedule: Schedule, key: Key, block: int, averaged: int) -> "Draws":
        """Return the draws of one block, with the weights that they have in a mean over ``averaged`` draws."""
        t_D = self.draw_levels(schedule, key, block)
        number_D = np.arange(block * self.block, (block + 1) * self.block, dtype=np.int32)
        return Draws(t_D, number_D, (self.level_weights(schedule)[t_D] / averaged).astype(np.float32))


class Draws(NamedTuple):
    """Draws of (t, eps).

    Args:
        t_D: noise levels.
        number_D: numbers of the draws, which determine their noise (`draw_noise`).
        weight_D: lambda_t (`LossConfig.level_weights`) divided by the number of draws in the mean.
    """

    t_D: Int[ArrayLike, " D"]
    number_D: Int[ArrayLike, " D"]
    weight_D: Float[ArrayLike, " D"]

    def part(self, start: int, stop: int) -> "Draws":
        """Return the draws from ``start`` up to ``stop``."""
        return Draws(*(a[start:stop] for a in self))

    def on_mesh(self, mesh: Mesh, spec: P) -> "Draws":
        """Return the same draws on a mesh."""
        return Draws(*(on_mesh(a, mesh, spec) for a in self))


class Placed(NamedTuple):
    """An ensemble on a mesh, ready for passes over draws.

    Args:
        mesh: the devices.
        params_K: the members on the mesh.
        noise_key: key of the draws' noise, on the mesh.
        states: pairs of an image and a draw that one device can process at once.
    """

    mesh: Mesh
    params_K: Params
    noise_key: Array
    states: int


def place(params: Ensemble, key: Array, mesh: Mesh, resources: Resources) -> Placed:
    """Place an ensemble on a mesh for passes over draws under a key.

    Raises:
        ValueError: the memory budget is too small for one draw of one image.
    """
    budget = resources.budget()
    states = images_at_once(params, mesh, budget)
    if states < 1:
        need = least_bytes(params, mesh)
        raise ValueError(
            f"memory_budget={budget} bytes: one draw of one image needs up to {need} bytes on a device; give at least "
            "that"
        )
    noise_key = on_mesh(jax.random.fold_in(key, 2**31 - 1), mesh, P())
    return Placed(mesh, place_members(params, mesh), noise_key, states)


def draw_noise(key: Array, number_D: Array, image_shape: tuple[int, int, int]) -> Float[Array, "D H W C"]:
    """Return the noise eps of each draw, a function only of the key and the draw's number."""
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), image_shape))(number_D)


class Errors(NamedTuple):
    """Errors of predictions, in the space of what the members predict, with pixels flattened.

    Args:
        error_KBDF: the target minus each member's prediction.
        target_BDF: the target, which is the error of predicting 0.
    """

    error_KBDF: Float[Array, "K B D F"]
    target_BDF: Float[Array, "B D F"]


def member_errors(
    model: Denoiser, schedule: Schedule, params_K: Params, x_BHWC: Array, cond_B: Any, t_D: Array, eps_DHWC: Array
) -> Errors:
    """Return the error of every member for every image and draw. Each image has its own condition."""
    B, D = len(x_BHWC), len(t_D)
    t_R = jnp.tile(t_D, B)
    eps_R = jnp.tile(eps_DHWC, (B, 1, 1, 1))
    clean_R = jnp.repeat(x_BHWC, D, axis=0)
    inputs_R, time_R = network_inputs(schedule, add_noise(schedule, clean_R, t_R, eps_R), t_R)
    cond_R = jax.tree.map(lambda rows: jnp.repeat(rows, D, axis=0), cond_B)
    network, members = opened(model, params_K)
    local = jax.tree.leaves(members)[0].shape[0]
    predicted_KR = over_members(
        network, lambda params: apply_member(network, params, inputs_R, time_R, cond_R), members
    )
    target_R = jnp.asarray(target(schedule, clean_R, eps_R, t_R))
    return Errors((target_R[None] - predicted_KR).reshape(local, B, D, -1), target_R.reshape(B, D, -1))


@functools.lru_cache(maxsize=16)
def loss_step(
    model: Denoiser, schedule: Schedule, image_shape: tuple[int, int, int], space: Space | None, mesh: Mesh
) -> Callable[..., Float[Array, "K B"]]:
    """Return a compiled step ``(params_K, image_BHWC, cond_B, key, t_D, number_D, weight_D) -> loss_KB``.

    It computes the loss of each image under each member, summed over one block of draws, without a collective. Images
    are as the training data store them, or in model space if ``space`` is None.
    """

    def step(params_K, image_BHWC, cond_B, key, t_D, number_D, weight_D):
        eps_DHWC = draw_noise(key, number_D, image_shape)
        x_BHWC = image_BHWC if space is None else space.to_model(image_BHWC)
        error_KBDF = member_errors(model, schedule, params_K, x_BHWC, cond_B, t_D, eps_DHWC).error_KBDF
        return jnp.einsum("kbdf,kbdf,d->kb", error_KBDF, error_KBDF, weight_D, precision="highest")

    return per_device(step, mesh, (member_specs(model), P("data"), P("data"), P(), P(), P(), P()), P("member", "data"))
