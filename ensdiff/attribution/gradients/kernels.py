"""From projected gradients to scores under each member: TRAK, D-TRAK and DAS.

(k1) and (k2), the kernel and its leverages, are in `ensdiff.attribution.gradients.member_kernel`. With gradients of the
loss, (k1) is TRAK; with gradients of the squared prediction, it is D-TRAK (Zheng et al. 2024, arXiv 2311.00500). Both
gradients point to a larger loss, so a positive score means that the item's presence lowers the query's loss.

(k3) DAS, after arXiv 2410.18639: the step ``delta_i = A^-1 phi_loss(i)``, divided as in (k2), where A and h are those
of the gradients psi of the output; ``score = mean over parts g of (psi_g(x) . delta_i)^2 >= 0``. It is the size of the
change of the prediction, and has no direction.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from ensdiff.attribution.gradients.config import Output, Setting
from ensdiff.attribution.gradients.member_kernel import MemberKernel, products
from ensdiff.attribution.gradients.reduction import Reduced, select
from ensdiff.settings import check_value
from ensdiff.typing import ArrayLike

Method = Literal["trak", "d-trak", "das"]

Gradients: TypeAlias = Mapping[Any, Any]
"""Projected gradients (K, items, G, D) by output."""

OUTPUTS: dict[str, tuple[Output, ...]] = {"trak": ("loss",), "d-trak": ("square",), "das": ("output", "loss")}
"""The gradients that each method needs: those of its kernel and, for DAS, those of its steps."""


class MemberScores(NamedTuple):
    """Scores under each member; larger means that the item makes the query more likely (for DAS: changes it).

    Args:
        items_KBn: scores of the n training items.
        extra_KBm: scores of the m items outside of training, or None.
    """

    items_KBn: Float[np.ndarray, "K B n"]
    extra_KBm: Float[np.ndarray, "K B m"] | None


class OneScores(NamedTuple):
    """Scores under one member with one setting.

    Args:
        member: number of the member.
        setting: the setting.
        items_Bn: scores of the n training items.
        extra_Bm: scores of the m items outside of training, or None.
    """

    member: int
    setting: Setting
    items_Bn: Float[np.ndarray, "B n"]
    extra_Bm: Float[np.ndarray, "B m"] | None


def stream_scores(
    method: Method,
    query: Gradients,
    train: Gradients,
    seen_nK: ArrayLike | None,
    settings: Iterable[Setting],
    extra: Gradients | None = None,
) -> Iterator[OneScores]:
    """Yield the scores under each member with each setting, member by member; see `member_scores`.

    Settings that differ only by their ridge share a kernel, so asking for all settings at once is much faster than
    asking for one after another.
    """
    check_value("method", method, Method)
    kernel_of, step_of = OUTPUTS[method][0], OUTPUTS[method][-1]
    K, n = _check(OUTPUTS[method], query, train, extra)
    seen = None if seen_nK is None else np.asarray(seen_nK, bool)
    if seen is not None and seen.shape != (n, K):
        raise ValueError(f"seen_nK has shape {seen.shape}: expected {n} items and {K} members")
    alike: dict[Setting, list[Setting]] = {}
    for setting in settings:
        alike.setdefault(setting._replace(ridge=0.0), []).append(setting)
    for k, (common, group) in itertools.product(range(K), alike.items()):
        phi = Reduced(train[kernel_of][k], common)
        ridges = [setting.ridge for setting in group]
        kernel = MemberKernel(phi, None if seen is None else seen[:, k], ridges)
        parts_BGD = select(query[kernel_of][k], common)
        parts_BGD = parts_BGD if method == "das" else parts_BGD.mean(-2, keepdims=True)
        solved_rBGD = kernel.solve_each(parts_BGD, ridges)
        steps = phi if step_of == kernel_of else Reduced(train[step_of][k], common)
        items = _scores(method, solved_rBGD, steps, [kernel.divisors(ridge) for ridge in ridges])
        more: list = [None] * len(group)
        if extra is not None:
            rows = Reduced(extra[kernel_of][k], common)
            divisors = [kernel.divisors_of(rows, ridge) for ridge in ridges]
            more_steps = rows if step_of == kernel_of else Reduced(extra[step_of][k], common)
            more = list(_scores(method, solved_rBGD, more_steps, divisors))
        for setting, items_Bn, extra_Bm in zip(group, items, more, strict=True):
            yield OneScores(k, setting, items_Bn, extra_Bm)


def _scores(
    method: Method, solved_rBGD: np.ndarray, rows_nD: Any, divisors_rn: Sequence[np.ndarray]
) -> Float[np.ndarray, "r B n"]:
    """Return the products of solved queries with items over the divisors (k2), as (k1) or (k3), for several ridges."""
    *shape, D = solved_rBGD.shape
    found = products(solved_rBGD.reshape(-1, D), rows_nD).reshape(*shape, -1)
    found /= np.stack(divisors_rn)[:, None, None]
    return (np.square(found) if method == "das" else found).mean(2).astype(np.float32)


def member_scores(
    method: Method,
    query: Gradients,
    train: Gradients,
    seen_nK: ArrayLike | None,
    setting: Setting,
    extra: Gradients | None = None,
) -> MemberScores:
    """Return the scores of items for queries under each member: ``"trak"`` (k1), ``"d-trak"`` (k1) or ``"das"`` (k3).

    Args:
        method: the method; `OUTPUTS` has the gradients that it needs.
        query: projected gradients (K, B, G, D) of the queries, by output.
        train: projected gradients (K, n, G, D) of all training items, by output. ``train[output][k]`` may be anything
            with a shape that returns an array for a slice of rows, such as a memory-mapped file.
        seen_nK: which member trained on which item. None uses the plain kernel of all items, without leverages (k2).
        setting: ridge, levels, normalize and dimension.
        extra: projected gradients (K, m, G, D) of items outside of training, by output, which are scored as additions.

    Returns:
        Scores in float32. Larger means that the item's presence makes the query more likely; DAS's scores are the size
        of the change instead, and have no sign.

    Raises:
        ValueError: an unknown method, missing gradients, or shapes that do not fit together.

    >>> phi = {"loss": np.eye(3)[None, :, None]}
    >>> found = member_scores("trak", phi, phi, None, Setting(1.0, dimension=3))
    >>> found.items_KBn[0].tolist()
    [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]
    """
    found = list(stream_scores(method, query, train, seen_nK, (setting,), extra))
    return MemberScores(
        np.stack([one.items_Bn for one in found]),
        None if extra is None else np.stack([one.extra_Bm for one in found if one.extra_Bm is not None]),
    )


def over_units(
    scores_KBn: Float[np.ndarray, "K B n"], unit_of_item: Int[np.ndarray, " n"], units: int
) -> Float[np.ndarray, "K B N"]:
    """Return the scores of units, each the sum over its items, in float32; 0 for a unit without items.

    >>> over_units(np.array([[[1.0, 2.0, 4.0]]]), np.array([1, 0, 1]), 3).tolist()
    [[[2.0, 5.0, 0.0]]]
    """
    n = len(unit_of_item)
    if n == units and (unit_of_item == np.arange(n)).all():
        return scores_KBn.astype(np.float32)
    from scipy.sparse import csr_array

    sums = csr_array((np.ones(n), (unit_of_item, np.arange(n))), shape=(units, n))
    flat = scores_KBn.reshape(-1, n).astype(np.float64)
    return (sums @ flat.T).T.reshape(*scores_KBn.shape[:-1], units).astype(np.float32)


def _check(outputs: Sequence[str], query: Gradients, train: Gradients, extra: Gradients | None) -> tuple[int, int]:
    """Check that gradients of all outputs are there and fit together, and return K and n.

    Raises:
        ValueError: they are not, or do not.
    """
    shapes: dict[str, set] = {}
    given_of = {"query": query, "train": train} | ({} if extra is None else {"extra": extra})
    for name, given in given_of.items():
        for output in outputs:
            if output not in given:
                raise ValueError(f"{name} has no gradients of {output!r}: expected {' and '.join(map(repr, outputs))}")
            shapes.setdefault(name, set()).add((len(given[output]), *given[output][0].shape))
    one = {name: next(iter(found)) for name, found in shapes.items() if len(found) == 1}
    fits = len(one) == len(shapes) and all(len(shape) == 4 for shape in one.values())
    if not fits or len({(K, *rest) for K, _, *rest in one.values()}) > 1:
        raise ValueError(
            f"gradients have shapes {shapes}: expected (K, items, G, D) with the same K, G and D, and the same items "
            "for each output"
        )
    return one["train"][0], one["train"][1]
