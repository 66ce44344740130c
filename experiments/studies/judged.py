"""The scores that the studies ``judging`` and ``groups`` compare: every method and setting, for every kind of query."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import ensdiff
from ensdiff.attribution.candidates import Candidates
from ensdiff.attribution.combination import fit_combination
from ensdiff.attribution.gradients.config import GradientConfig, Output
from ensdiff.attribution.gradients.kernels import OUTPUTS, Method
from ensdiff.attribution.gradients.scoring import Choice, Images, choices_of, score_targets
from ensdiff.attribution.gradients.store import write_gradients
from ensdiff.attribution.gradients.targets import targets_of
from ensdiff.attribution.judging import cross_predictions, held_out, without_level
from ensdiff.attribution.pictures import pictures_of
from ensdiff.baselines import baseline_scores
from ensdiff.data import Dataset
from ensdiff.ensemble.memory import Resources
from ensdiff.runs.pieces import Pieces

from .scores import quadratic
from .workshop import Workshop

METHODS: tuple[Method, ...] = ("trak", "d-trak", "das")
MODEL_FREE = ("random", "pixel", "patches", "feature")
MEMBERS_ONLY = ("loss", "contrast", "members only")


class Queries(NamedTuple):
    """Images to attribute.

    Args:
        images: (B, H, W, C) in [0, 1].
        kinds: the rows of each kind: generated, training and held-out images.
        cond: (B,) the classes that conditional members are told; None for others.
    """

    images: np.ndarray
    kinds: Mapping[str, slice]
    cond: np.ndarray | None = None


class Scored(NamedTuple):
    """One way to score units.

    Args:
        name: the method, with its settings if it has any.
        score_BN: scores of units; positive if the unit's presence makes the query more likely.
        cross: what the scores predict for the members' training, see `cross_predictions`.
    """

    name: str
    score_BN: np.ndarray
    cross: np.ndarray


def part_of(scored: Scored, rows: slice) -> Scored:
    """Return the scores of some queries."""
    return Scored(scored.name, scored.score_BN[rows], scored.cross[..., rows, :])


def queries_of(shop: Workshop, study: str, params: ensdiff.Ensemble, data: Dataset, count: int) -> Queries:
    """Return as many generated, training and held-out images; conditional members generate all classes in turn."""
    cond = None
    if data.condition is not None:
        generated_B = np.arange(count) % (np.max(data.condition) + 1)
        cond = np.concatenate([generated_B, data.condition[:count], shop.held_out.condition[:count]])
    made = shop.samples(study, params, count, cond=None if cond is None else cond[:count])
    others = np.concatenate([data.images[:count], shop.held_out.images[:count]]).astype(np.float32) / np.float32(255)
    names = ("generated", "training", "held out")
    kinds = {name: slice(i * count, (i + 1) * count) for i, name in enumerate(names)}
    return Queries(np.concatenate([np.asarray(made.images, np.float32), others]), kinds, cond)


def by_gradients(
    shop: Workshop,
    name: str,
    params: ensdiff.Ensemble,
    data: Dataset,
    queries: Queries,
    *,
    methods: Sequence[Method] = METHODS,
    kernels: Sequence[bool] = (True, False),
    options: Mapping[str, Any] | None = None,
) -> list[Scored]:
    """Return the scores of gradient methods with every setting.

    Args:
        shop: the workshop.
        name: name of the stored gradients and scores; other methods or options need another name.
        params: the ensemble.
        data: its training data.
        queries: the images.
        methods: the gradient methods.
        kernels: True for kernels that know membership, False for plain ones, which DAS does not have.
        options: fields of the gradients' config, in place of those of ``config.gradients``.
    """
    targets = targets_of(params.code, data, Candidates.of(params.code, None), 0, 0, 0)
    outputs: tuple[Output, ...] = tuple(dict.fromkeys(output for method in methods for output in OUTPUTS[method]))
    found = []
    for knows in kernels:
        config = shop.gradients(**{**(options or {}), "members": knows})
        known = [method for method in methods if knows or method != "das"]

        def compute(config: GradientConfig = config, methods: Sequence[Method] = known) -> dict[str, np.ndarray]:
            shown = Resources(progress=shop.progress)
            stored = write_gradients(_store(shop, name), params, data, outputs, config, progress=shop.progress)
            pictures = Images(pictures_of(params, queries.images, queries.cond), data, store=stored)
            scores = score_targets(
                params, pictures, choices_of(methods, config), config, targets, Pieces(None, ""), shown
            )
            return {
                "mean": np.stack([one.mean_BT for one in scores.values()]),
                "cross": np.stack([one.cross_KBK for one in scores.values()]),
            }

        inputs = (params, queries.images, repr(config), *(() if queries.cond is None else (queries.cond,)))
        arrays = shop.kept_all(f"{name}/gradients, members={knows}", compute, *inputs)
        choices = [Choice(method, setting) for method in known for setting in config.settings()]
        for choice, mean, cross in zip(choices, arrays["mean"], arrays["cross"], strict=True):
            found.append(Scored(label(choice, knows), mean, cross))
    return found


def _store(shop: Workshop, name: str) -> pathlib.Path:
    return shop.folder / "gradients" / name.replace("/", " ")


def stored_bytes(shop: Workshop, name: str) -> int:
    """Return the size of the stored gradients of `by_gradients`."""
    return sum(path.stat().st_size for path in _store(shop, name).rglob("*") if path.is_file())


def label(choice: Choice, knows: bool) -> str:
    """Return a choice in words."""
    setting = choice.setting
    return ", ".join(
        [choice.method, f"ridge {setting.ridge:g}", f"{setting.levels} levels"]
        + ["normalized"] * setting.normalize
        + ["plain kernel"] * (not knows)
    )


def without_gradients(
    shop: Workshop, name: str, params: ensdiff.Ensemble, data: Dataset, images: np.ndarray
) -> list[Scored]:
    """Return the scores of the methods that use no model."""
    code_NK, found = params.code.matrix(), []
    for method in MODEL_FREE:

        def compute(method: str = method) -> np.ndarray:
            return baseline_scores(images, data, methods=[method], features=shop.classifier.features)[method]

        score_BN = shop.kept(f"{name}/{method}", compute, data.images, data.unit_of_item, images)
        found.append(Scored(method, score_BN, cross_predictions(without_level(score_BN), code_NK)))
    return found


def from_members(params: ensdiff.Ensemble, products_BKK: np.ndarray) -> list[Scored]:
    """Return the scores that use only the members' losses: `loss`, in/out contrasts, and (10) without a prior."""
    code, factual_K = params.code, params.code.factual()[0]
    code_NK = code.matrix().astype(float)
    outputs_BK = -np.diagonal(products_BKK, axis1=1, axis2=2)
    loss_BN = quadratic(products_BKK, code.ablate(np.arange(code.units))) - quadratic(products_BKK, factual_K[None])
    share_NK = code_NK / code_NK.sum(1, keepdims=True) - (1 - code_NK) / (1 - code_NK).sum(1, keepdims=True)
    alone = fit_combination(np.zeros_like(outputs_BK), outputs_BK, code_NK, level=1.0)
    members_BN = alone.posterior(np.zeros((len(outputs_BK), code.units)), code_NK).mean_BN
    nothing = np.zeros_like(outputs_BK)
    scores = (loss_BN, outputs_BK @ share_NK.T, members_BN)
    return [Scored(name, score_BN, nothing) for name, score_BN in zip(MEMBERS_ONLY, scores, strict=True)]


def combined(params: ensdiff.Ensemble, best: Scored, outputs_BK: np.ndarray) -> tuple[Scored, dict[str, Any]]:
    """Return the combination (10) of a score with the members' losses, and the fit's numbers."""
    code_NK = params.code.matrix()
    fit = fit_combination(held_out(best.cross), outputs_BK, code_NK)
    posterior = fit.posterior(best.score_BN, code_NK)
    numbers = {"beta": fit.beta, "ratio": fit.ratio, "gain": fit.gain, "p_value": fit.p_value}
    return Scored("combined", posterior.mean_BN, fit.held_out()), numbers
