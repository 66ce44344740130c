"""In/out contrasts: the losses of members that saw a unit against those of members that did not.

Let ``l_ik`` be the denoising loss of unit i (mean over its items and some draws of (t, eps), summed over pixels) under
member k alone.

(f1) Memorization, Feldman & Zhang 2020 (arXiv 2008.03703): ``mean_{k out} l_ik - mean_{k in} l_ik``; positive if
     members that saw the unit predict it better. Its standard error is that of a difference of two means over members.
(f2) Membership, the likelihood ratio of Carlini et al. 2022 (arXiv 2112.03570), for all members at once: each member is
     the target in turn, and the other members, in and out, are its shadow models. The losses of a unit are modelled as
     normal, with the means of its other in and out members, and one variance for in and one for out, each pooled over
     all units (one unit has too few members to estimate its own):
     ``score_ik = log N(l_ik; mean in, var in) - log N(l_ik; mean out, var out)``.
     Each member's mean loss over all units is subtracted first, so that better members do not seem to have seen
     everything.

One pass over the data computes both for all units, with the same draws for every member.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float
from numpy.typing import ArrayLike

from ensdiff import hosts
from ensdiff.attribution.draws import LossConfig, loss_step, place
from ensdiff.attribution.moments import mean_difference, moments
from ensdiff.codes import Code
from ensdiff.data import Dataset
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.mesh import make_mesh, on_mesh
from ensdiff.files.reading import printable
from ensdiff.metrics.arrays import precision, tied
from ensdiff.runs.identity import check_data
from ensdiff.typing import Key, as_key, unmasked


class Contrast(NamedTuple):
    """Differences between members that saw a unit and members that did not.

    Args:
        loss_NK: mean loss of each unit under each member; NaN for units with absent items.
        memorization_N: (f1), in units of the loss; NaN if all members or no member saw the unit, or if the loss is NaN.
        memorization_error_N: its standard error; NaN if fewer than two members saw the unit, or fewer than two did not.
        membership_NK: (f2), the log likelihood ratio that member k saw unit i; positive is evidence that it did; NaN if
            fewer than two members saw the unit, or fewer than two did not.
        separation_N: mean of (f2) over the members that saw the unit minus its mean over those that did not; NaN where
            (f2) is NaN.
        separation_error_N: its standard error; NaN where (f2) is NaN.
        auc: probability that (f2) of a random seen pair (unit, member) exceeds (f2) of a random unseen pair; 1/2 is no
            better than guessing. NaN if (f2) is NaN for all units.
        notes: one sentence for each reason why a value is NaN; empty if no value is.
    """

    loss_NK: Float[np.ndarray, "N K"]
    memorization_N: Float[np.ndarray, " N"]
    memorization_error_N: Float[np.ndarray, " N"]
    membership_NK: Float[np.ndarray, "N K"]
    separation_N: Float[np.ndarray, " N"]
    separation_error_N: Float[np.ndarray, " N"]
    auc: float
    notes: tuple[str, ...] = ()


def contrast(
    params: Ensemble,
    data: Dataset,
    key: Key = 0,
    config: LossConfig | None = None,
    *,
    memory_budget: int | None = None,
    progress: bool = False,
) -> Contrast:
    """Return memorization and membership scores of all units of the training data, from one pass.

    Args:
        params: the ensemble.
        data: its training data. Units with absent items (`Dataset.absent`) are NaN and do not change other units.
        key: int seed or JAX key of the draws, which are the same for all items and members.
        config: draws, levels and weighting; by default 32 draws per item. A target error is ignored.
        memory_budget: bytes of activations that a device may hold.
        progress: show a progress bar.

    Raises:
        ValueError: the ensemble was not trained on these data (`ensdiff.check_data`).

    >>> found = ensdiff.contrast(params, data, config=ensdiff.LossConfig(draws=4, block=2))
    >>> found.memorization_N.shape, found.membership_NK.shape
    ((40,), (40, 8))
    """
    resources = Resources(None, memory_budget, progress)
    return contrast_losses(unit_losses(params, data, key, config, resources), params.code)


def unit_losses(
    params: Ensemble,
    data: Dataset,
    key: Key = 0,
    config: LossConfig | None = None,
    resources: Resources | None = None,
) -> Float[np.ndarray, "N K"]:
    """Return the mean loss of every unit under every member; arguments as in `contrast`. Absent items give NaN."""
    check_data(params, data)
    config = LossConfig(draws=32, block=16) if config is None else config
    resources = Resources() if resources is None else resources
    key, mesh = as_key(key), make_mesh(params.members)
    shards = mesh.shape["data"]
    placed = place(params, key, mesh, resources)
    size = min(max(1, placed.states // config.block), -(-data.items // shards)) * shards
    blocks = -(-config.draws // config.block)
    step = loss_step(params.model, params.schedule, params.image_shape, params.space, mesh)
    draws = [
        config.draw_block(params.schedule, key, block, config.block * blocks).on_mesh(mesh, P())
        for block in range(blocks)
    ]
    loss_NK = np.zeros((data.units, params.members))
    with hosts.progress_bar(data.items, "losses", "image", shown=resources.progress) as bar:
        for start in range(0, data.items, size):
            items = np.arange(start, min(start + size, data.items))
            padded = np.minimum(np.arange(start, start + size), data.items - 1)
            x = on_mesh(np.asarray(data.images[padded]), mesh, P("data"))
            cond = on_mesh(data.conditions_of(padded), mesh, P("data"))
            parts = [hosts.fetch(step(placed.params_K, x, cond, placed.noise_key, *block)) for block in draws]
            total_KB = np.sum(parts, axis=0, dtype=float)
            np.add.at(loss_NK, data.unit_of_item[items], total_KB[:, : len(items)].T)
            bar.update(len(items))
    loss_NK[data.absent_units] = np.nan
    return loss_NK / np.bincount(data.unit_of_item, minlength=data.units)[:, None]


def contrast_losses(loss_NK: ArrayLike, code: Code) -> Contrast:
    """Return the contrasts (f1) and (f2) of given losses.

    Args:
        loss_NK: (N, K) loss of each unit under each member. A row of NaN is a unit whose loss is unknown: all of its
            contrasts are NaN, and other units have the contrasts that they would have without it.
        code: which member saw which unit.

    Raises:
        ValueError: losses whose shape does not fit the code; losses that are not finite, apart from whole rows of NaN;
            or NaN for all units.

    >>> found = contrast_losses([[1, 2, 3], [4, 1, 4], [5, 5, 2]], ensdiff.Code.from_matrix(np.eye(3)))
    >>> found.memorization_N.tolist(), found.auc, found.notes[-1]
    ([1.5, 3.0, 3.0], nan, 'The AUC is NaN: there is no unit whose membership is known.')
    """
    seen_NK = code.matrix().astype(bool)
    unmasked(loss_NK, "loss_NK")
    loss_NK = np.asarray(loss_NK, np.float64)
    known_N = ~np.isnan(loss_NK).all(1) if loss_NK.shape == seen_NK.shape else np.zeros(0, bool)
    if not known_N.any() or not np.isfinite(loss_NK[known_N]).all():
        raise ValueError(
            f"loss_NK has shape {np.shape(loss_NK)}: expected finite losses of {code.units} units under {code.members} "
            "members, or rows of NaN for some of the units"
        )
    memorization_N, error_N = mean_difference(loss_NK, ~seen_NK, seen_NK)
    membership_NK = _membership(loss_NK - loss_NK[known_N].mean(0), seen_NK)
    separation_N, separation_error_N = mean_difference(membership_NK, seen_NK, ~seen_NK)
    auc = _auc(membership_NK, seen_NK)
    notes = _notes(seen_NK, membership_NK, known_N)
    return Contrast(loss_NK, memorization_N, error_N, membership_NK, separation_N, separation_error_N, auc, notes)


def contrast_table(result: Contrast, names: Sequence[str], top: int = 10) -> str:
    """Return the most memorized units as text: the notes, the AUC, and a line for each unit.

    Args:
        result: the contrasts of all units.
        names: the names of all units.
        top: units to list; units whose memorization is NaN are not listed.
    """
    lines = list(result.notes)
    if np.isfinite(result.auc):
        lines.append(f"membership: AUC {result.auc:.4f} over all pairs of a unit and a member (1/2 is guessing)")
    known = np.flatnonzero(np.isfinite(result.memorization_N))
    order = known[np.argsort(-result.memorization_N[known], kind="stable")][:top]
    if len(order):
        lines.append(
            "most memorized units: excess loss of members that did not see it, and mean log likelihood ratio in - out"
        )
    for i in order:
        memorization = _with_error(result.memorization_N[i], result.memorization_error_N[i], 3)
        separation = _with_error(result.separation_N[i], result.separation_error_N[i], 2)
        lines.append(f"  {printable(names[i])}: {memorization}, {separation}")
    return "\n".join(lines)


def _with_error(value: float, error: float, digits: int) -> str:
    if not np.isfinite(value):
        return "unknown"
    return f"{value:.{digits}f} " + (f"+- {error:.{digits}f}" if np.isfinite(error) else "(error unknown)")


def _notes(seen_NK: np.ndarray, membership_NK: np.ndarray, known_N: np.ndarray) -> tuple[str, ...]:
    """Return the reasons why values are NaN."""
    N = len(known_N)
    few_N = np.minimum(seen_NK.sum(1), (~seen_NK).sum(1))[known_N]  # the members of the rarer kind
    unknown_N = np.isnan(membership_NK).any(1)[known_N]
    notes = []
    if lost := int((~known_N).sum()):
        notes.append(f"Everything is NaN for {lost} of {N} units with absent items: their loss is unknown.")
    if none := int((few_N == 0).sum()):
        notes.append(
            f"Memorization and membership are NaN for {none} of {N} units that all members or no member saw: there is "
            "nothing to compare with."
        )
    if one := int((few_N == 1).sum()):
        notes.append(
            f"Membership, and the standard error of memorization, are NaN for {one} of {N} units that one member saw, "
            "or all but one: a spread needs at least two members of each kind."
        )
    if alike := int((unknown_N & (few_N > 1)).sum()):
        notes.append(f"Membership is NaN for {alike} of {N} units: losses do not vary among members of a kind.")
    if unknown_N.all():
        notes.append("The AUC is NaN: there is no unit whose membership is known.")
    return tuple(notes)


def _membership(value_NK: np.ndarray, seen_NK: np.ndarray) -> np.ndarray:
    """Return (f2), with each member left out of the mean of its own kind (in or out); NaN if a kind has no spread."""
    score_NK = np.zeros(value_NK.shape)
    for chosen_NK, sign in ((seen_NK, 1.0), (~seen_NK, -1.0)):
        found = moments(value_NK, chosen_NK)
        usable_N = (found.count_N > 1) & np.isfinite(found.mean_N)
        # pooled within units, so divided by the sum of (count - 1)
        freedom_N = found.count_N[usable_N] - 1
        variance = (found.variance_N[usable_N] * freedom_N).sum() / freedom_N.sum() if usable_N.any() else np.nan
        if not variance > (precision(1.0) * np.nanmax(np.abs(value_NK))) ** 2:  # zero, or only rounding
            return np.full(value_NK.shape, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            total_N1, count_N1 = (found.mean_N * found.count_N)[:, None], found.count_N[:, None]
            mean_NK = np.where(chosen_NK, (total_N1 - value_NK) / (count_N1 - 1), found.mean_N[:, None])
        # a mean over c members is itself uncertain: a new loss differs from it with variance (1 + 1/c) var
        around_NK = variance * (1 + 1 / np.maximum(np.where(chosen_NK, count_N1 - 1, count_N1), 1))
        score_NK += sign * (-np.square(value_NK - mean_NK) / (2 * around_NK) - np.log(around_NK) / 2)
        score_NK[~usable_N] = np.nan
    return score_NK


def _auc(score_NK: np.ndarray, seen_NK: np.ndarray) -> float:
    from scipy.stats import mannwhitneyu

    known = np.isfinite(score_NK)
    score, seen = score_NK[known], seen_NK[known]
    if seen.all() or not seen.any():
        return float("nan")
    score = tied(score[None], precision(score))[0]
    inside, outside = score[seen], score[~seen]
    return float(mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside)))
