"""Leave-group-out scoring of any image by the denoising loss.

(7) ``L(w; x) = E_{t,eps} lambda_t |eps - sum_k w_k eps_k(x_t, t)|^2 = w^T R w`` if ``sum w = 1``, with
    ``R_kl = E lambda_t <eps - eps_k, eps - eps_l>``, sums over pixels. One prediction of every member for each draw of
    (t, eps) gives R, and R scores every unit and group: ``score_i = L(w_-i) - L(w)``, positive if removing i makes the
    image less likely. Where members predict something else than the noise (`ensdiff.Schedule`), that takes its place.

Draws come in blocks. Each block alone gives an unbiased estimate of R, so the spread of the blocks gives the standard
error of every score. All members and all images use the same draws: the scores of an image depend only on the image,
the seed and the number of draws.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from ensdiff import hosts
from ensdiff.attribution.draws import LossConfig, draw_noise, member_errors, place
from ensdiff.attribution.pictures import Given, Pictures, model_images, pictures_of
from ensdiff.codes import Code
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.ensemble import Ensemble, member_weights
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.mesh import make_mesh, on_mesh, pace
from ensdiff.ensemble.placing import member_specs
from ensdiff.models.denoiser import Denoiser
from ensdiff.runs.pieces import Pieces
from ensdiff.typing import ArrayLike, Key, as_key

PROBES = 64
"""Number of units whose standard errors represent those of all units when draws are added until a target is met."""


class LossMatrix(NamedTuple):
    """Estimates of R (7) for each image, one per block of draws; their mean is the final estimate.

    Args:
        blocks_JBKK: R of each block, in units of what is predicted, squared and summed over pixels (times lambda).
        empty_JB: ``E lambda |eps|^2``, the loss when 0 is predicted (w = 0).
        draws: total draws per image.
    """

    blocks_JBKK: Float[np.ndarray, "J B K K"]
    empty_JB: Float[np.ndarray, "J B"]
    draws: int

    @property
    def mean_BKK(self) -> Float[np.ndarray, "B K K"]:
        """Return R, the mean over the blocks, in float64."""
        return self.blocks_JBKK.mean(0, dtype=np.float64)

    def loss(self, weights_MK: ArrayLike) -> Float[np.ndarray, "B M"]:
        """Return ``L(w; x) = w^T R w`` of each image under each row of weights; a mask weights its members equally.

        Raises:
            ValueError: weights that are not masks and do not sum to 1, for which (7) does not hold.
        """
        w = member_weights(weights_MK, self.blocks_JBKK.shape[-1], "weights_MK")
        return np.einsum("mk,bkl,ml->bm", w, self.mean_BKK, w, optimize=True)

    def score_error(self, weights_MK: ArrayLike, weights_K: ArrayLike) -> Float[np.ndarray, "B M"]:
        """Return the standard error of ``L(w_m) - L(w)``, from the spread of the blocks."""
        K = self.blocks_JBKK.shape[-1]
        rows, w = member_weights(weights_MK, K, "weights_MK"), member_weights(weights_K, K, "weights_K")
        blocks = self.blocks_JBKK.astype(np.float64)
        score_JBM = np.einsum("mk,jbkl,ml->jbm", rows, blocks, rows, optimize=True)
        score_JBM -= np.einsum("k,jbkl,l->jb", w, blocks, w, optimize=True)[..., None]
        return score_JBM.std(0, ddof=1) / np.sqrt(len(blocks))

    def score_error_of_each(self, weights_BTK: Float[np.ndarray, "B T K"], weights_K: ArrayLike) -> np.ndarray:
        """Return the `score_error` (B, T) of each image, under a different set of weight rows for each image."""
        parts = [self._replace(blocks_JBKK=self.blocks_JBKK[:, b : b + 1]) for b in range(len(weights_BTK))]
        return np.stack([part.score_error(rows, weights_K)[0] for part, rows in zip(parts, weights_BTK, strict=True)])


def loss_matrix(
    params: Ensemble,
    images: Given,
    key: Key = 0,
    config: LossConfig | None = None,
    *,
    cond: Any = None,
    code: Code | None = None,
    memory_budget: int | None = None,
    progress: bool = False,
    kept: Pieces | None = None,
) -> LossMatrix:
    """Return R (7) of any images, generated or not, from K predictions for each draw of (t, eps).

    Args:
        params: the ensemble.
        images: (B, H, W, C) in [0, 1], or uint8, or latents; or `Samples`, or a data set.
        key: int seed or JAX key of the draws.
        config: draws, levels, weighting.
        cond: the conditions of an array of images, for conditional members; None is no condition.
        code: the code whose units' standard errors must reach ``target_error``; by default the ensemble's code.
        memory_budget: bytes of activations that a device may hold.
        progress: show a progress bar.
        kept: the store of finished blocks of draws, from which an interrupted call continues.

    Raises:
        ValueError: images whose shape is not the ensemble's, or whose values are out of range; or the ensemble
            averages parameters, where (7) does not hold.

    >>> estimate = ensdiff.loss_matrix(params, data.images[:3], 0, ensdiff.LossConfig(draws=4, block=2))
    >>> estimate.mean_BKK.shape
    (3, 8, 8)
    """
    if params.combine == "parameters":
        raise ValueError(
            'the loss under averaged parameters (combine="parameters") is no quadratic form of the weights: use '
            "ensdiff.attribute(..., method='loss'), which evaluates every row of weights"
        )
    config = LossConfig() if config is None else config
    key, kept = as_key(key), Pieces(None, "") if kept is None else kept
    pictures = pictures_of(params, images, cond)
    compute = _block_losses(params, pictures, key, config, Resources(None, memory_budget, progress))
    identity = [part for part in (pictures.images, pictures.cond) if part is not None]
    # a block depends on its number of draws, not on the number of blocks
    alike = dataclasses.replace(config, draws=2 * config.block, max_draws=2 * config.block, target_error=None)

    def block_of(number: int) -> _Block:
        # in older versions, pieces of a single array were named "loss"
        return _Block(**kept.get_all(lambda: compute(number)._asdict(), "losses", number, key, repr(alike), *identity))

    most = config.max_draws if config.target_error is not None else config.draws
    code = params.code if code is None else code
    probe_MK = None if config.target_error is None else code.ablate(np.arange(min(PROBES, code.units)))
    factual_K = np.full((params.members,), 1.0 / params.members)
    blocks: list[_Block] = []
    with hosts.progress_bar(-(-most // config.block), "loss", "block", shown=progress, first=hosts.COMPILING) as bar:
        for number in range(-(-most // config.block)):
            blocks.append(block_of(number))
            bar.update()
            if probe_MK is not None and number > 0:
                error_BM = _gather(blocks, config).score_error(probe_MK, factual_K)
                if np.sqrt(np.square(error_BM).mean(1)).max() <= config.target_error:
                    break
    return _gather(blocks, config)


class _Block(NamedTuple):
    """Estimates from one block of draws: R of every image, and its loss when nothing is predicted."""

    loss_BKK: Float[np.ndarray, "B K K"]
    empty_B: Float[np.ndarray, " B"]


def _block_losses(
    params: Ensemble, pictures: Pictures, key: Key, config: LossConfig, resources: Resources
) -> Callable[[int], _Block]:
    """Return a function from a block's number to the estimates from its draws."""
    x_BHWC = model_images(params, pictures)
    K, B = params.members, len(x_BHWC)
    mesh = make_mesh(K, config.block)
    shards = mesh.shape["data"]
    placed = place(params, key, mesh, resources)
    states = placed.states * shards
    together = max(
        d for d in range(shards, config.block + 1, shards) if config.block % d == 0 and (d <= states or d == shards)
    )
    size = min(B, max(1, states // together))
    step = block_step(params.model, params.schedule, params.image_shape, mesh)
    chunks = [np.minimum(np.arange(b, b + size), B - 1) for b in range(0, B, size)]
    inputs = [(on_mesh(x_BHWC[index], mesh, P()), on_mesh(pictures.take(index).cond, mesh, P())) for index in chunks]

    def compute(block: int) -> _Block:
        draws = config.draw_block(params.schedule, key, block, config.block)
        parts = []
        for x, cond in inputs:
            total = on_mesh(jnp.zeros((K, size, K)), mesh, P("member")), on_mesh(jnp.zeros((size,)), mesh, P())
            for start in range(0, config.block, together):
                some = draws.part(start, start + together).on_mesh(mesh, P("data"))
                total = pace(step(placed.params_K, *total, x, cond, placed.noise_key, *some), mesh)
            loss_KBK, empty_B = hosts.fetch(total)
            parts.append(_Block(loss_KBK.transpose(1, 0, 2), empty_B))
        loss_BKK = np.concatenate([part.loss_BKK for part in parts])[:B]
        return _Block(
            (loss_BKK + loss_BKK.transpose(0, 2, 1)) / 2, np.concatenate([part.empty_B for part in parts])[:B]
        )

    return compute


def _gather(blocks: list[_Block], config: LossConfig) -> LossMatrix:
    loss_JBKK, empty_JB = (np.stack(arrays) for arrays in zip(*blocks, strict=True))
    return LossMatrix(loss_JBKK, empty_JB, len(blocks) * config.block)


@functools.lru_cache(maxsize=16)
def block_step(model: Denoiser, schedule: Schedule, image_shape: tuple[int, int, int], mesh: Mesh):
    """Return a compiled function that adds one block of draws of noise for a group of images to their losses.

    It is ``(params_K, loss_KBK, empty_B, x_BHWC, cond_B, key, t_D, number_D, weight_D) -> (loss_KBK, empty_B)``, with
    the matrices R and the losses of predicting 0. Each device adds the rows of its own members. The sums are donated.
    """
    summed = mesh.shape["data"] > 1

    def step(params_K, loss_KBK, empty_B, x_BHWC, cond_B, key, t_D, number_D, weight_D):
        eps_DHWC = draw_noise(key, number_D, image_shape)
        error_KBDF, target_BDF = member_errors(model, schedule, params_K, x_BHWC, cond_B, t_D, eps_DHWC)
        all_LBDF = jax.lax.all_gather(error_KBDF, "member", axis=0, tiled=True)
        more = jnp.einsum("kbdf,lbdf,d->kbl", error_KBDF, all_LBDF, weight_D, precision="highest")
        nothing = jnp.einsum("bdf,bdf,d->b", target_BDF, target_BDF, weight_D, precision="highest")
        if summed:
            more, nothing = jax.lax.psum((more, nothing), "data")
        return loss_KBK + more, empty_B + nothing

    in_specs = member_specs(model), P("member"), P(), P(), P(), P(), P("data"), P("data"), P("data")
    return per_device(step, mesh, in_specs, (P("member"), P()), donate=(1, 2))
