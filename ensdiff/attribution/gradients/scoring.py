"""Gradient scores of many targets by every setting, member by member, so that no (K, B, n) array is ever held.

Of each setting only this is kept: what each member's scores predict for every other member
(`ensdiff.attribution.judging.cross_predictions`), from which the members choose and grade; and sums over members for
each target, three numbers of 8 bytes per query, target and setting, whatever the number of members.

From a store, gradients are cheap to read again. `cross_scores` then returns the first alone, (K, B, K) numbers per
setting, and `score_targets` the sums for the chosen setting. Without a store, gradients cost far more than anything
else, so `score_targets` computes them once and sums for all settings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ensdiff.attribution.conformal import comparable_part, shares_unseen
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
        error_BT: the standard deviation of the members' scores over the square root of their number. Members that saw
            an item score its removal, the others its addition, and the difference between the two kinds is part of the
            spread. Which members saw it is not random, so where the kinds differ, this is larger than the standard
            error of the mean; it covers both readings of what the score of the item is.
        unseen_BT: sums over the target's items, each the mean over the members that did not see the item's unit: (p2),
            or (p3) for groups and sets.
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


def choices_of(methods: Sequence[Method], config: GradientConfig) -> list[Choice]:
    """Return every method with every setting."""
    return [Choice(method, setting) for method in methods for setting in config.settings()]


def query_gradients(
    params: Ensemble, queries: Pictures, methods: Sequence[Method], config: GradientConfig, resources: Resources
) -> dict[Output, np.ndarray]:
    """Return the gradients (K, B, G, D) of the queries that the methods need, by output."""
    shown = _shown(resources, "")
    return {output: projected_gradients(params, queries, output, config, **shown) for output in _outputs(methods)}


def cross_scores(
    params: Ensemble,
    images: Images,
    choices: Sequence[Choice],
    config: GradientConfig,
    kept: Pieces,
    resources: Resources,
    query: Mapping[Output, np.ndarray],
) -> dict[Choice, Float[np.ndarray, "K B K"]]:
    """Return what each member's scores predict for each member, by choice; arguments as in `score_targets`."""
    state = _summed(params, images, choices, config, None, kept, resources, query)
    return dict(zip(choices, state["cross"], strict=True))


def score_targets(
    params: Ensemble,
    images: Images,
    choices: Sequence[Choice],
    config: GradientConfig,
    targets: Targets,
    kept: Pieces,
    resources: Resources,
    query: Mapping[Output, np.ndarray] | None = None,
) -> dict[Choice, TargetScores]:
    """Return the scores of all targets by several choices, member by member.

    Args:
        params: the ensemble.
        images: the queries, the training data, and held-out images if the targets have any.
        choices: the methods and settings.
        config: how gradients are computed.
        targets: the targets.
        kept: the store of the sums over finished members.
        resources: memory budget and progress bars.
        query: `query_gradients`, if they are known.
    """
    K = params.members
    if query is None:
        query = query_gradients(params, images.queries, [choice.method for choice in choices], config, resources)
    state = _summed(params, images, choices, config, targets, kept, resources, query)
    mean, square, unseen = state["sums"][0] / K, state["sums"][1] / K, state["sums"][2]
    error = np.sqrt(np.maximum(square - np.square(mean), 0.0) / max(K - 1, 1))
    if targets.kind in ("groups", "sets"):
        unseen *= state["size"][:, :, None] / K * targets.factor_T
    return {choice: TargetScores(mean[c], error[c], unseen[c], state["cross"][c]) for c, choice in enumerate(choices)}


def members_at_once(members: int) -> int:
    """Return how many members the devices work on at the same time."""
    return make_mesh(members).shape["member"]


def _summed(
    params: Ensemble,
    images: Images,
    choices: Sequence[Choice],
    config: GradientConfig,
    targets: Targets | None,
    kept: Pieces,
    resources: Resources,
    query: Mapping[Output, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return ``cross`` (c, K, B, K); and of targets ``sums`` (3, c, B, T) over members and ``size`` (c, B).

    The sums are those of scores, of their squares, and of the members' shares in unseen scores.
    """
    K, B = params.members, len(images.queries)
    state = {"cross": np.zeros((len(choices), K, B, K)), "done": np.array(0)}
    if targets is not None:
        state["sums"] = np.zeros((3, len(choices), B, targets.of_items_nT.shape[1]))
        state["size"] = np.zeros((len(choices), B))
    identity = "gradient scores", *_identity(images, choices, config, targets)
    state = kept.last(*identity) or state
    block = members_at_once(K)
    for first in range(int(state["done"]), K, block):
        members = np.arange(first, min(first + block, K))
        _add_members(state, params, images, query, choices, config, targets, members, resources)
        state["done"] = members[-1] + 1
        kept.snapshot(state, *identity)
    return state


def _add_members(
    state: dict[str, np.ndarray],
    params: Ensemble,
    images: Images,
    query: Mapping[Output, np.ndarray],
    choices: Sequence[Choice],
    config: GradientConfig,
    targets: Targets | None,
    members: np.ndarray,
    resources: Resources,
) -> None:
    """Add some members to `_summed`."""
    data, store, extra = images.data, images.store, None
    outputs = _outputs([choice.method for choice in choices])

    def gradients(what: Any, output: Output, name: str) -> Any:
        return projected_gradients(params, what, output, config, members=members.tolist(), **_shown(resources, name))

    def stored(of: Callable[[Output], StoredGradients], output: Output) -> Any:
        return [of(output)[int(k)] for k in members]

    if store is None:
        train = {output: gradients(data, output, "training images") for output in outputs}
    else:
        train = {output: stored(store.train, output) for output in outputs}
    if targets is not None and targets.of_held_mT is not None and targets.words_mK is not None:
        share_mK = shares_unseen(targets.words_mK)
        if store is not None and images.held_out_stored and set(outputs) <= set(store.held_out_outputs):
            extra = {output: stored(store.held_out, output) for output in outputs}
        else:
            extra = {output: gradients(images.held_out, output, "held-out images") for output in outputs}
    code_nK = params.code.matrix()[data.unit_of_item]
    seen_nk = code_nK[:, members] if config.members else None
    share_nK = shares_unseen(code_nK)
    number = {choice: c for c, choice in enumerate(choices)}
    for method in dict.fromkeys(choice.method for choice in choices):
        settings = [choice.setting for choice in choices if choice.method == method]
        of_query = {output: query[output][members] for output in OUTPUTS[method]}
        for one in stream_scores(method, of_query, train, seen_nk, settings, extra):
            c, k = number[Choice(method, one.setting)], int(members[one.member])
            state["cross"][c, k] = cross_predictions(one.items_Bn, code_nK)
            if targets is None:
                continue
            score_BT = sums_of(one.items_Bn, targets.of_items_nT)
            part_Bn = one.items_Bn
            if targets.kind in ("groups", "sets"):
                part_Bn, size_B = comparable_part(one.items_Bn, code_nK[:, k] == 0)
                state["size"][c] += size_B
            state["sums"][2, c] += sums_of(part_Bn * share_nK[:, k], targets.of_items_nT)
            if one.extra_Bm is not None:
                score_BT += sums_of(one.extra_Bm, targets.of_held_mT)
                state["sums"][2, c] += sums_of(one.extra_Bm * share_mK[:, k], targets.of_held_mT)
            state["sums"][0, c] += score_BT
            state["sums"][1, c] += np.square(score_BT)


def _outputs(methods: Sequence[Method]) -> list[Output]:
    return list(dict.fromkeys(output for method in methods for output in OUTPUTS[method]))


def _shown(resources: Resources, name: str) -> dict[str, Any]:
    return {"memory_budget": resources.memory_budget, "progress": resources.progress and bool(name)}


def _identity(
    images: Images, choices: Sequence[Choice], config: GradientConfig, targets: Targets | None
) -> tuple[Any, ...]:
    """Return everything that the sums depend on besides the ensemble, for `Pieces`."""
    stored = "computed" if images.store is None else "stored"  # in fewer digits
    own = (images.queries, images.data.digest(), stored, repr(config), repr(tuple(choices)))
    if targets is None:
        return own
    held_out = np.empty(0) if images.held_out is None else images.held_out
    words = np.empty(0) if targets.words_mK is None else targets.words_mK
    matrices = [m for m in (targets.of_items_nT, targets.of_held_mT) if m is not None]
    sparse = [array for m in matrices for array in (m.data, m.indices, m.indptr)]
    return *own, held_out, words, str(targets.kind), *sparse
