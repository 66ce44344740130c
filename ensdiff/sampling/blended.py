"""Sampling many states under rows of weights, whatever the weights combine (`ensdiff.ensemble.ensemble.Combine`).

With averaged parameters (8), each row of weights is one network (`ensdiff.ensemble.blending`), and a state needs one
prediction per step. Neighbouring states are taken together as long as their rows are few enough for the memory budget.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from ensdiff import hosts
from ensdiff.diffusion.samplers import SamplerConfig
from ensdiff.ensemble.blending import blend, bytes_of
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.sampling.denoise import Exogenous, run_states
from ensdiff.sampling.packing import round_up
from ensdiff.typing import Array, ArrayLike

ROWS = 64
"""Most rows of weights whose networks are in memory at once."""
FEW_ROWS = 8
"""Numbers of rows are rounded up to at least this, and to powers of two, so that many calls share one program."""


def generate(
    params: Ensemble,
    config: SamplerConfig,
    start: Exogenous,
    weights_RK: ArrayLike,
    resources: Resources,
    *,
    what: str = "denoise",
) -> Iterator[tuple[slice, Array]]:
    """Denoise any number of states in chunks that fit in memory; arguments and results are those of `run_states`."""
    if params.combine == "predictions":
        yield from run_states(params, config, start, weights_RK, resources, what=what)
        return
    weights_RK = np.asarray(weights_RK, np.float32)
    most = rows_at_once(params, resources)
    with hosts.progress_bar(len(weights_RK), what, "image", shown=resources.progress, first=hosts.COMPILING) as bar:
        for part in segments(weights_RK, most):
            rows_UK, row_R = distinct(weights_RK[part], most)
            one_hot_RU = np.eye(len(rows_UK), dtype=np.float32)[row_R]
            inside = Resources(resources.chunk, resources.memory_budget)
            states = start.take(np.arange(part.start, part.stop))
            for place, images in run_states(blend(params, rows_UK), config, states, one_hot_RU, inside, what=what):
                yield slice(part.start + place.start, part.start + place.stop), images
                bar.update(place.stop - place.start)


def rows_at_once(params: Ensemble, resources: Resources) -> int:
    """Return how many rows' networks may be in memory at once: they take half of the memory budget, or one network."""
    return int(max(1, min(ROWS, resources.budget() // 2 // bytes_of(params))))


def segments(weights_RK: Float[np.ndarray, "R K"], most: int) -> Iterator[slice]:
    """Yield the longest runs of neighbouring states that have at most ``most`` different rows of weights.

    >>> list(segments(np.repeat(np.eye(3), 2, axis=0), 2))
    [slice(0, 4, None), slice(4, 6, None)]
    """
    first, seen = 0, set[bytes]()
    for r, row in enumerate(weights_RK):
        if len(seen) == most and row.tobytes() not in seen:
            yield slice(first, r)
            first, seen = r, set()
        seen.add(row.tobytes())
    yield slice(first, len(weights_RK))


def distinct(weights_RK: Float[np.ndarray, "R K"], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the different rows, padded with the first one up to a common number, and the number of each state's."""
    rows_UK, row_R = np.unique(weights_RK, axis=0, return_inverse=True)
    count = 1 if len(rows_UK) == 1 else min(most, round_up(len(rows_UK), FEW_ROWS))
    return np.concatenate([rows_UK, np.repeat(rows_UK[:1], count - len(rows_UK), axis=0)]), row_R.reshape(-1)
