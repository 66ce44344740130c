"""The denoising loss under rows of weights where the generator is one network of averaged parameters (8).

The loss is no quadratic form of the weights then, so each row is evaluated: ``L(w; x) = E_{t,eps} lambda_t |eps -
eps(x_t, t; theta_w)|^2``, one prediction per row, image and draw. The draws are those of `ensdiff.attribution.loss`:
the same for all rows and images, in blocks whose spread gives the standard error.
"""

from typing import Any

import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from ensdiff import hosts
from ensdiff.attribution.draws import LossConfig, loss_step, place
from ensdiff.attribution.pictures import Pictures, model_images
from ensdiff.codes import Code
from ensdiff.ensemble.blending import blend
from ensdiff.ensemble.ensemble import Ensemble, member_weights
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.runs.pieces import Pieces
from ensdiff.sampling.blended import distinct, rows_at_once
from ensdiff.typing import ArrayLike, Key, as_key

PROBES = 16
"""Number of units whose standard errors represent those of all units when draws are added until a target is met."""


class RowLosses:
    """The losses of images under rows of weights, computed when they are asked for, and kept.

    Args:
        params: an ensemble whose parameters are averaged.
        pictures: B images and their conditions.
        key: int seed or JAX key of the draws.
        config: draws, levels, weighting. With a target error, blocks are added until the standard error of the scores
            of some units reaches it.
        resources: memory budget and progress.
        kept: the store of finished parts.
        code: the code whose units' standard errors must reach the target.
    """

    def __init__(
        self,
        params: Ensemble,
        pictures: Pictures,
        key: Key,
        config: LossConfig,
        resources: Resources,
        kept: Pieces,
        code: Code,
    ):
        self._params, self._pictures, self._key, self._config = params, pictures, as_key(key), config
        self._resources, self._kept = resources, kept
        self._x_BHWC = model_images(params, pictures)
        self._found: dict[tuple[int, bytes], np.ndarray] = {}
        self._blocks = -(-config.draws // config.block)
        if config.target_error is not None:
            self._blocks = self._enough(code, config.target_error)

    @property
    def draws(self) -> int:
        """Total draws per image."""
        return self._blocks * self._config.block

    def _enough(self, code: Code, target: float) -> int:
        """Return the number of blocks with which the standard error of the scores of some units reaches the target."""
        rows = code.ablate(np.arange(min(PROBES, code.units)))
        factual_K = np.full((self._params.members,), 1.0 / self._params.members)
        most = -(-self._config.max_draws // self._config.block)
        for self._blocks in range(2, most + 1):
            error_BM = self.score_error(rows, factual_K)
            if np.sqrt(np.square(error_BM).mean(1)).max() <= target:
                break
        return self._blocks

    def loss(self, weights_MK: ArrayLike) -> Float[np.ndarray, "B M"]:
        """Return ``L(w; x)`` of each image under each row of weights; a mask weights its members equally."""
        return self.blocks(weights_MK).mean(0)

    def change(self, weights_MK: ArrayLike) -> Float[np.ndarray, "B M"]:
        """Return ``L(w_m) - L(w)`` with the factual weights; positive if the image is less likely under row m."""
        K = self._params.members
        rows = np.concatenate([np.full((1, K), 1.0 / K), member_weights(weights_MK, K, "weights_MK")])
        loss_BM = self.loss(rows)
        return loss_BM[:, 1:] - loss_BM[:, :1]

    def score_error(self, weights_MK: ArrayLike, weights_K: ArrayLike) -> Float[np.ndarray, "B M"]:
        """Return the standard error of ``L(w_m) - L(w)``, from the spread of the blocks."""
        K = self._params.members
        rows = np.concatenate([member_weights(weights_K, K)[None], member_weights(weights_MK, K, "weights_MK")])
        loss_JBM = self.blocks(rows)
        return (loss_JBM[:, :, 1:] - loss_JBM[:, :, :1]).std(0, ddof=1) / np.sqrt(len(loss_JBM))

    def score_error_of_each(self, weights_BTK: Float[np.ndarray, "B T K"], weights_K: ArrayLike) -> np.ndarray:
        """Return the `score_error` (B, T) of each image, under a different set of weight rows for each image."""
        return np.stack([self.score_error(rows, weights_K)[b] for b, rows in enumerate(weights_BTK)])

    def blocks(self, weights_MK: ArrayLike) -> Float[np.ndarray, "J B M"]:
        """Return the mean loss over each block of draws, float64."""
        rows_MK = member_weights(weights_MK, self._params.members, "weights_MK").astype(np.float32)
        numbers = range(self._blocks)
        missing = [row for row in rows_MK if any((j, row.tobytes()) not in self._found for j in numbers)]
        most = rows_at_once(self._params, self._resources)
        rows = np.unique(np.reshape(np.asarray(missing, np.float32), (-1, self._params.members)), axis=0)
        with hosts.progress_bar(len(rows), "loss", "ablation", shown=self._resources.progress) as bar:
            for first in range(0, len(rows), most):
                self._compute(rows[first : first + most], most)
                bar.update(len(rows[first : first + most]))
        return np.stack([np.stack([self._found[j, row.tobytes()] for row in rows_MK], axis=-1) for j in numbers])

    def _compute(self, rows_UK: np.ndarray, most: int) -> None:
        """Compute the losses of some different rows, in all blocks."""
        params, config, pictures = self._params, self._config, self._pictures
        padded_UK, place_U = distinct(rows_UK, most)
        identity = [part for part in (pictures.images, pictures.cond) if part is not None]
        alike = repr((config.block, config.levels, config.first_level, config.last_level, config.weighting))
        networks: Any = None
        for block in range(self._blocks):
            if all((block, row.tobytes()) in self._found for row in rows_UK):
                continue

            def compute(block: int = block) -> np.ndarray:
                nonlocal networks
                networks = blend(params, padded_UK) if networks is None else networks
                return self._losses(networks, block)

            loss_UB = self._kept.get(compute, "row losses", padded_UK, block, self._key, alike, *identity)
            for row, u in zip(rows_UK, place_U, strict=True):
                self._found[block, row.tobytes()] = loss_UB[u]

    def _losses(self, networks: Ensemble, block: int) -> Float[np.ndarray, "U B"]:
        """Return the mean loss of every image under every network over one block of draws."""
        config, B = self._config, len(self._x_BHWC)
        mesh = make_mesh(networks.members)
        shards = mesh.shape["data"]
        placed = place(networks, self._key, mesh, self._resources)
        size = min(max(1, placed.states // config.block), -(-B // shards)) * shards
        draws = config.draw_block(networks.schedule, self._key, block, config.block).on_mesh(mesh, P())
        step = loss_step(networks.model, networks.schedule, networks.image_shape, None, mesh)
        parts = []
        for start in range(0, B, size):
            index = np.minimum(np.arange(start, start + size), B - 1)
            x = on_mesh(self._x_BHWC[index], mesh, P("data"))
            cond = on_mesh(self._pictures.take(index).cond, mesh, P("data"))
            parts.append(hosts.fetch(step(placed.params_K, x, cond, placed.noise_key, *draws))[:, : B - start])
        return np.concatenate(parts, axis=1).astype(np.float64)
