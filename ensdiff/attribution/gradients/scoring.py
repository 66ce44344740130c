"""Gradient scores of many targets by every setting, member by member, so that no (K, B, n) array is ever held.

Of each setting only this is kept: sums over members for each target, and what each member's scores predict for every
other member (`ensdiff.attribution.judging.cross_predictions`), from which the members choose and grade.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.gradients.config import GradientConfig, Output, Setting
from ensdiff.attribution.gradients.features import projected_gradients
from ensdiff.attribution.gradients.kernels import OUTPUTS, Method, stream_scores
from ensdiff.attribution.gradients.stored import GradientStore, StoredGradients
from ensdiff.attribution.gradients.targets import Targets, sums_of
from ensdiff.attribution.judging import cross_predictions
from ensdiff.attribution.pictures import Pictures
from ensdiff.data import Dataset
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.mesh import make_mesh
from ensdiff.runs.pieces import Pieces


class Choice(NamedTuple):
    """A method with one setting; `plain` is what results record."""

    method: Method
    setting: Setting

    @property
    def plain(self) -> dict[str, Any]:
        """Return the choice in Python's own types, which JSON can write."""
        return {"method": self.method, **self.setting._asdict()}


class TargetScores(NamedTuple):
    """The scores of T targets, by one choice.

    Args:
        mean_BT: mean over all members.
        error_BT: its standard error, from the spread of the members.
        unseen_BT: sums over the target's items, each the mean over the members that did not see the item's unit.
        cross_KBK: what each member's scores predict for each member.
    """

    mean_BT: Float[np.ndarray, "B T"]
    error_BT: Float[np.ndarray, "B T"]
    unseen_BT: Float[np.ndarray, "B T"]
    cross_KBK: Float[np.ndarray, "K B K"]


class Images(NamedTuple):
    """The images whose gradients are needed.

    Args:
        queries: what is attributed.
        data: the training data.
        held_out: images that no member saw, or None.
        store: gradients that `experiments.gradients` stored, or None.
        held_out_stored: whether ``held_out`` are the held-out items of the store.
    """

    queries: Pictures
    data: Dataset
    held_out: Pictures | None = None
    store: GradientStore | None = None
    held_out_stored: bool = False


def score_targets(
    params: Ensemble,
    images: Images,
    methods: Sequence[Method],
    config: GradientConfig,
    targets: Targets,
    kept: Pieces,
    resources: Resources,
) -> dict[Choice, TargetScores]:
    """Return the scores of all targets by every method and setting, member by member.

    Args:
        params: the ensemble.
        images: the queries, the training data, and held-out images if the targets have any.
        methods: the methods.
        config: how gradients are computed, and the settings to compare.
        targets: the targets.
        kept: the store of finished members.
        resources: memory budget and progress bars.
    """
    K = params.members
    choices = [Choice(method, setting) for method in methods for setting in config.settings()]
    query = {output: projected_gradients(params, images.queries, output, config, **_shown(resources, "")) for output in
             _outputs(methods)}  # fmt: skip
    total = np.zeros((3, len(choices), len(images.queries), targets.of_items_nT.shape[1]))
    cross_cKBK = np.empty((len(choices), K, len(images.queries), K))
    block = members_at_once(K)
    for first in range(0, K, block):
        members = np.arange(first, min(first + block, K))

        def compute(members: np.ndarray = members) -> dict[str, np.ndarray]:
            return _score_members(params, images, query, choices, config, targets, members, resources)

        found = kept.get_all(compute, "gradient scores", *_identity(images, methods, config, targets), members)
        score_cKBT = found["score"].astype(np.float64)
        total += np.stack(
            [
                score_cKBT.sum(1),
                np.square(score_cKBT).sum(1),
                found["unseen"].sum(1, dtype=np.float64),
            ]
        )
        cross_cKBK[:, members] = found["cross"]
    mean, square = total[0] / K, total[1] / K
    error = np.sqrt(np.maximum(square - np.square(mean), 0.0) / max(K - 1, 1))
    return {choice: TargetScores(mean[c], error[c], total[2, c], cross_cKBK[c]) for c, choice in enumerate(choices)}


def members_at_once(members: int) -> int:
    """Return how many members the devices work on at the same time."""
    return make_mesh(members).shape["member"]


def _score_members(
    params: Ensemble,
    images: Images,
    query: Mapping[Output, np.ndarray],
    choices: Sequence[Choice],
    config: GradientConfig,
    targets: Targets,
    members: np.ndarray,
    resources: Resources,
) -> dict[str, np.ndarray]:
    """Return scores and shares of unseen scores of targets, (c, k, B, T), and `cross_predictions`, (c, k, B, K)."""
    data, outputs = images.data, _outputs([choice.method for choice in choices])

    def gradients(what: Any, output: Output, name: str) -> Any:
        return projected_gradients(params, what, output, config, members=members.tolist(), **_shown(resources, name))

    def stored(of: Callable[[Output], StoredGradients], output: Output) -> Any:
        return [of(output)[int(k)] for k in members]

    store, extra = images.store, None
    if store is None:
        train = {output: gradients(data, output, "training images") for output in outputs}
    else:
        train = {output: stored(store.train, output) for output in outputs}
    if targets.of_held_mT is not None and targets.words_mK is not None:
        share_mK = shares_unseen(targets.words_mK)
        if store is not None and images.held_out_stored and set(outputs) <= set(store.held_out_outputs):
            extra = {output: stored(store.held_out, output) for output in outputs}
        else:
            extra = {output: gradients(images.held_out, output, "held-out images") for output in outputs}
    code_NK = params.code.matrix()
    code_nK = code_NK[data.unit_of_item]
    seen_nk = code_nK[:, members] if config.members else None
    shape = (len(choices), len(members), len(images.queries))
    score, unseen = np.empty((2, *shape, targets.of_items_nT.shape[1]), np.float32)
    share_nK = shares_unseen(code_nK)
    cross = np.empty((*shape, params.members))
    number = {choice: c for c, choice in enumerate(choices)}
    for method in dict.fromkeys(choice.method for choice in choices):
        settings = [choice.setting for choice in choices if choice.method == method]
        of_query = {output: query[output][members] for output in OUTPUTS[method]}
        for one in stream_scores(method, of_query, train, seen_nk, settings, extra):
            c = number[Choice(method, one.setting)]
            score[c, one.member] = sums_of(one.items_Bn, targets.of_items_nT)
            k = int(members[one.member])
            unseen[c, one.member] = sums_of(one.items_Bn * share_nK[:, k], targets.of_items_nT)
            if one.extra_Bm is not None:
                score[c, one.member] += sums_of(one.extra_Bm, targets.of_held_mT)
                unseen[c, one.member] += sums_of(one.extra_Bm * share_mK[:, k], targets.of_held_mT)
            cross[c, one.member] = cross_predictions(one.items_Bn, code_nK)
    return {"score": score, "unseen": unseen, "cross": cross}


def shares_unseen(words_nK: np.ndarray) -> np.ndarray:
    """Return the share of each member in the mean over the members that did not see an item; zeros if all saw it."""
    unseen_nK = words_nK == 0
    return unseen_nK / np.maximum(unseen_nK.sum(1, keepdims=True), 1)


def _outputs(methods: Sequence[Method]) -> list[Output]:
    return list(dict.fromkeys(output for method in methods for output in OUTPUTS[method]))


def _shown(resources: Resources, name: str) -> dict[str, Any]:
    return {"memory_budget": resources.memory_budget, "progress": resources.progress and bool(name)}


def _identity(images: Images, methods: Sequence[Method], config: GradientConfig, targets: Targets) -> tuple[Any, ...]:
    """Return everything that scores of members depend on besides the ensemble, for `Pieces`."""
    matrices = [m for m in (targets.of_items_nT, targets.of_held_mT) if m is not None]
    held_out = np.empty(0) if images.held_out is None else images.held_out
    sparse = [array for m in matrices for array in (m.data, m.indices, m.indptr)]
    stored = "computed" if images.store is None else "stored"  # in fewer digits
    words = np.empty(0) if targets.words_mK is None else targets.words_mK
    return (images.queries, held_out, words, images.data.digest(), stored, repr(config), repr(tuple(methods)), *sparse)
