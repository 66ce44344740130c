"""Leave-group-out scoring of any image by the denoising loss.

(7) ``L(w; x) = E_{t,eps} lambda_t |eps - sum_k w_k eps_k(x_t, t)|^2 = w^T R w`` where ``sum w = 1``, with
    ``R_kl = E lambda_t <eps - eps_k, eps - eps_l>``, sums over pixels. One prediction of every member for each draw of
    (t, eps) gives R, and R scores every unit and group: ``score_i = L(w_-i) - L(w)``, positive where removing i makes
    the image less likely.

Draws come in blocks. A block is an unbiased estimate of R by itself, so the spread of the blocks gives the standard
error of every score. All members, and all images, are given the same draws: the scores of an image depend on nothing
but the image, the seed and the number of draws.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int
from tqdm import tqdm

from ensdiff import hosts
from ensdiff.codes import Code
from ensdiff.diffusion.schedule import Schedule, add_noise
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.ensemble import Ensemble, member_weights, to_model
from ensdiff.ensemble.members import apply_member, over_members
from ensdiff.ensemble.memory import images_at_once, least_bytes
from ensdiff.ensemble.mesh import make_mesh, on_mesh, pace
from ensdiff.models.unet import UNetConfig
from ensdiff.runs.pieces import Pieces
from ensdiff.sampling.denoise import memory_budget_default
from ensdiff.settings import check_fields
from ensdiff.typing import Array, ArrayLike, Key, as_key, unmasked

Levels = Literal["stratified", "antithetic", "uniform"]
Weighting = Literal["simple", "snr"]
PROBES = 64
"""Units whose standard errors stand for all when draws are added up to a target."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the loss (7) is estimated.

    Args:
        draws: draws of (t, eps) an image; rounded up to whole blocks.
        block: draws a block; blocks are independent, and their spread is the error bar.
        target_error: add blocks, from two up to ``max_draws`` draws, until the standard error of an image's scores
            (root of the mean square over some units) is at most this for every image; None is ``draws`` and no more.
        max_draws: the most draws when there is a target.
        levels: how a block draws t. ``"stratified"``: one from each of ``block`` equal parts of the range;
            ``"antithetic"``: pairs that mirror each other in the range; ``"uniform"``: independent.
        first_level: smallest t.
        last_level: largest t; None is T - 1.
        weighting: ``"simple"``: lambda = 1 and the mean over levels. ``"snr"``:
            ``lambda_t = n / 2 (SNR(t-1) / SNR(t) - 1)``, ``SNR = abar / (1 - abar)``, n levels in the range, 0 at
            t = 0: L is then the range's part of the variational bound on -log p(x) in nats (Kingma et al. 2021, arXiv
            2107.00630, eq. 14).

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
            raise ValueError(f"block={self.block}: expected at least 1 draw a block")
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
        """First level and one past the last.

        Raises:
            ValueError: an empty range, or levels that the schedule lacks.
        """
        last = schedule.timesteps - 1 if self.last_level is None else self.last_level
        if not 0 <= self.first_level <= last < schedule.timesteps:
            raise ValueError(
                f"levels {self.first_level} .. {last}: expected a range within 0 .. {schedule.timesteps - 1}"
            )
        return self.first_level, last + 1

    def draw_levels(self, schedule: Schedule, key: Key, block: int) -> Int[np.ndarray, " D"]:
        """Noise levels of the draws of one block."""
        low, high = self.level_range(schedule)
        place = np.asarray(jax.random.uniform(jax.random.fold_in(as_key(key), block), (self.block,)), np.float64)
        if self.levels == "stratified":
            place = (np.arange(self.block) + place) / self.block
        level = np.minimum(np.floor(place * (high - low)), high - low - 1).astype(np.int32)
        if self.levels == "antithetic":
            level[1::2] = high - low - 1 - level[::2]
        return low + level

    def level_weights(self, schedule: Schedule) -> Float[np.ndarray, " T"]:
        """lambda_t of every level of the schedule."""
        if self.weighting == "simple":
            return np.ones(schedule.timesteps)
        low, high = self.level_range(schedule)
        snr_T = schedule.abar_T / (1.0 - schedule.abar_T)
        return (high - low) / 2 * np.concatenate([[0.0], snr_T[:-1] / snr_T[1:] - 1.0])


class LossMatrix(NamedTuple):
    """Estimates of R (7) of each image, one a block of draws; their mean is the estimate.

    Args:
        blocks_JBKK: R of each block, in units of squared noise summed over pixels (times lambda).
        empty_JB: ``E lambda |eps|^2``, the loss when nothing is predicted (w = 0).
        draws: draws an image in all.
    """

    blocks_JBKK: Float[np.ndarray, "J B K K"]
    empty_JB: Float[np.ndarray, "J B"]
    draws: int

    @property
    def mean_BKK(self) -> Float[np.ndarray, "B K K"]:
        """R, float64."""
        return self.blocks_JBKK.mean(0, dtype=np.float64)

    def loss(self, weights_MK: ArrayLike) -> Float[np.ndarray, "B M"]:
        """``L(w; x) = w^T R w`` of each image under each row of weights; masks of the kept members are averaged.

        Raises:
            ValueError: weights that are no masks and do not sum to 1, for which (7) does not hold.
        """
        w = member_weights(weights_MK, self.blocks_JBKK.shape[-1], "weights_MK")
        return np.einsum("mk,bkl,ml->bm", w, self.mean_BKK, w, optimize=True)

    def score_error(self, weights_MK: ArrayLike, weights_K: ArrayLike) -> Float[np.ndarray, "B M"]:
        """Standard error of ``L(w_m) - L(w)``, from the spread of the blocks."""
        K = self.blocks_JBKK.shape[-1]
        rows, w = member_weights(weights_MK, K, "weights_MK"), member_weights(weights_K, K, "weights_K")
        blocks = self.blocks_JBKK.astype(np.float64)
        score_JBM = np.einsum("mk,jbkl,ml->jbm", rows, blocks, rows, optimize=True)
        score_JBM -= np.einsum("k,jbkl,l->jb", w, blocks, w, optimize=True)[..., None]
        return score_JBM.std(0, ddof=1) / np.sqrt(len(blocks))


def loss_matrix(
    params: Ensemble,
    images: ArrayLike,
    key: Key = 0,
    config: LossConfig | None = None,
    *,
    code: Code | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
    kept: Pieces | None = None,
) -> LossMatrix:
    """R of any images (7), generated here or not: K predictions for each draw of (t, eps).

    Args:
        params: the ensemble.
        images: (B, H, W, C) in [0, 1], or uint8.
        key: int seed or JAX key of the draws.
        config: draws, levels, weighting.
        code: whose units' standard errors are brought to ``target_error``; by default the ensemble's.
        memory_budget: bytes of activations a device may hold.
        progress: show a progress bar.
        kept: where finished blocks of draws are kept for a call that is interrupted.

    Raises:
        ValueError: images of another shape or range.

    >>> estimate = ensdiff.loss_matrix(params, data.images[:3], 0, ensdiff.LossConfig(draws=4, block=2))
    >>> estimate.mean_BKK.shape
    (3, 8, 8)
    """
    config = LossConfig() if config is None else config
    x_BHWC = model_images(params, images)
    key = as_key(key)
    K, B = params.members, len(x_BHWC)
    mesh = make_mesh(K, config.block)
    shards = mesh.shape["data"]
    budget = memory_budget_default() if memory_budget is None else memory_budget
    states = images_at_once(params.model, params.image_shape, mesh, K, budget) * shards
    if states < 1:
        need = least_bytes(params.model, params.image_shape, mesh, K)
        raise ValueError(
            f"memory_budget={budget} bytes: one draw of one image needs up to {need} bytes on a device; give at least "
            "that"
        )
    draws = max(
        d for d in range(shards, config.block + 1, shards) if config.block % d == 0 and (d <= states or d == shards)
    )
    group = min(B, max(1, states // draws))

    step = block_step(params.model, params.schedule, params.image_shape, mesh)
    stacked, noise_key = on_mesh(params.params, mesh), on_mesh(jax.random.fold_in(key, 2**31 - 1), mesh, P())
    weight_T = config.level_weights(params.schedule)
    groups = [np.minimum(np.arange(b, b + group), B - 1) for b in range(0, B, group)]
    images_of = [on_mesh(x_BHWC[index], mesh, P()) for index in groups]

    def one_block(block: int) -> tuple[np.ndarray, np.ndarray]:
        t_D = config.draw_levels(params.schedule, key, block)
        number_D = np.arange(block * config.block, (block + 1) * config.block, dtype=np.int32)
        weight_D = (weight_T[t_D] / config.block).astype(np.float32)
        parts = []
        for x in images_of:
            total = on_mesh(jnp.zeros((K, group, K)), mesh, P("member")), on_mesh(jnp.zeros(()), mesh, P())
            for d in range(0, config.block, draws):
                of_draw = (on_mesh(a[d : d + draws], mesh, P("data")) for a in (t_D, number_D, weight_D))
                total = pace(step(stacked, *total, x, noise_key, *of_draw), mesh)
            loss_KBK, empty = hosts.fetch(total)
            parts.append((loss_KBK.transpose(1, 0, 2), np.broadcast_to(empty, (group,))))
        loss_BKK, empty_B = (np.concatenate(part)[:B] for part in zip(*parts, strict=True))
        return (loss_BKK + loss_BKK.transpose(0, 2, 1)) / 2, empty_B

    def kept_block(block: int) -> tuple[np.ndarray, np.ndarray]:
        if kept is None:
            return one_block(block)

        def both() -> np.ndarray:
            loss_BKK, empty_B = one_block(block)
            return np.concatenate([loss_BKK.reshape(B, K * K), empty_B[:, None]], axis=1)

        # a block depends on how many draws it has, not on how many blocks there will be
        of = dataclasses.replace(config, draws=2 * config.block, max_draws=2 * config.block, target_error=None)
        packed = kept.get(both, "loss", block, key, repr(of), images)
        return packed[:, :-1].reshape(B, K, K), packed[:, -1]

    most = config.max_draws if config.target_error is not None else config.draws
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    code = params.code if code is None else code
    probe_MK = None if config.target_error is None else code.ablate(np.arange(min(PROBES, code.units)))
    factual_K = np.full((K,), 1.0 / K)
    with tqdm(
        total=-(-most // config.block), desc="loss", unit="block", disable=not (progress and hosts.is_writer())
    ) as bar:
        while len(blocks) * config.block < most:
            blocks.append(kept_block(len(blocks)))
            bar.update()
            if probe_MK is not None and len(blocks) > 1:
                error_BM = _gather(blocks, config).score_error(probe_MK, factual_K)
                if np.sqrt(np.square(error_BM).mean(1)).max() <= config.target_error:
                    break
    return _gather(blocks, config)


def _gather(blocks: list[tuple[np.ndarray, np.ndarray]], config: LossConfig) -> LossMatrix:
    loss_J, empty_J = zip(*blocks, strict=True)
    return LossMatrix(np.stack(loss_J), np.stack(empty_J), len(blocks) * config.block)


def model_images(params: Ensemble, images: ArrayLike) -> Float[Array, "B H W C"]:
    """Images from anywhere, checked and in model space.

    Raises:
        ValueError: another shape than the ensemble's, or values further outside of [0, 1] than rounding explains.
    """
    array = np.asarray(unmasked(images, "the images"))
    if array.ndim != 4 or array.shape[1:] != tuple(params.image_shape) or not len(array):
        raise ValueError(
            f"the images have shape {array.shape}: expected (B, {', '.join(map(str, params.image_shape))}), "
            "channels last"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"the images have dtype {array.dtype}: expected uint8, or floats in [0, 1]")
    rounding = 0 if array.dtype == np.uint8 else 1e-6 + 2 * float(np.finfo(array.dtype).eps)
    if array.dtype != np.uint8 and not (array.min() >= -rounding and array.max() <= 1 + rounding):  # true of NaN too
        within = (array >= -rounding) & (array <= 1 + rounding)
        wrong = np.flatnonzero(~within.reshape(len(array), -1).all(1))[0]
        raise ValueError(
            f"image {wrong} holds {'NaN' if np.isnan(array[wrong]).any() else 'values outside of [0, 1]'}: expected "
            "floats in [0, 1], or uint8"
        )
    array = array if array.dtype == np.uint8 else np.clip(array, 0, 1)
    return to_model(jnp.asarray(array), params.value_range)


@functools.lru_cache(maxsize=16)
def block_step(model: UNetConfig, schedule: Schedule, image_shape: tuple[int, int, int], mesh: Mesh):
    """The compiled step ``(params_K, loss_KBK, empty, x_BHWC, key, t_D, number_D, weight_D) -> (loss_KBK, empty)``.

    It adds some draws of all images of a group to R, each device the rows of its own members; the sums are donated.
    """
    summed = mesh.shape["data"] > 1

    def step(params_K, loss_KBK, empty, x_BHWC, key, t_D, number_D, weight_D):
        eps_DHWC = draw_noise(key, number_D, image_shape)
        error_KBDF = member_errors(model, schedule, params_K, x_BHWC, t_D, eps_DHWC)
        all_LBDF = jax.lax.all_gather(error_KBDF, "member", axis=0, tiled=True)
        more = jnp.einsum("kbdf,lbdf,d->kbl", error_KBDF, all_LBDF, weight_D, precision="highest")
        nothing = jnp.einsum("dhwc,dhwc,d->", eps_DHWC, eps_DHWC, weight_D, precision="highest")
        if summed:
            more, nothing = jax.lax.psum((more, nothing), "data")
        return loss_KBK + more, empty + nothing

    in_specs = P("member"), P("member"), P(), P(), P(), P("data"), P("data"), P("data")
    return per_device(step, mesh, in_specs, (P("member"), P()), donate=(1, 2))


def draw_noise(key: Array, number_D: Array, image_shape: tuple[int, int, int]) -> Float[Array, "D H W C"]:
    """eps of each draw, a function of its number alone."""
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), image_shape))(number_D)


def member_errors(model, schedule, params_K, x_BHWC, t_D, eps_DHWC) -> Float[Array, "K B D F"]:
    """``eps - eps_k(x_t, t)`` of every member, image and draw, pixels flat."""
    B, D = len(x_BHWC), len(t_D)
    t_R = jnp.tile(t_D, B)
    eps_R = jnp.tile(eps_DHWC, (B, 1, 1, 1))
    x_R = add_noise(schedule, jnp.repeat(x_BHWC, D, axis=0), t_R, eps_R)
    local = jax.tree.leaves(params_K)[0].shape[0]
    predicted_KR = over_members(model, lambda params: apply_member(model, params, x_R, t_R), params_K)
    return (eps_R[None] - predicted_KR).reshape(local, B, D, -1)
