"""Adapters: low-rank changes of a frozen base network, which are all that a member trains and stores.

(a1) A member's kernel is ``W_0 + (alpha / r) down @ up`` (Hu et al. 2021, arXiv 2106.09685), with ``W_0`` the base's.
     For a convolution, ``down`` is a convolution of the same size to r channels and ``up`` a 1x1 convolution. ``down``
     starts at random and ``up`` at zero, so that every member starts as the base.
(a2) Other parameters of the base may be trained too. A member stores their change, which starts at zero.

The parameters of a member (its *factors*) are nested dicts that mirror the base's tree. In place of a dense kernel
(C, D) there is ``{"down": (C, r), "up": (r, D)}``, in place of a convolution's kernel (h, w, C, D) there is
``{"down": (h, w, C, r), "up": (r, D)}``, and in place of another trained array ``{"delta": its shape}``. Arrays that do
not change are left out.

The base is one read-only tree for all members. `Adapted` is the network without it, hashable; `bind` joins both.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ensdiff.models import low_rank
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import Denoiser, SelfChecking, initial_shapes, name_of
from ensdiff.models.factors import change, factors_of
from ensdiff.models.parameters import check_paths, digest_of, mapped, nested, shapes_of
from ensdiff.settings import check_value
from ensdiff.typing import Array, Params

TARGETS = r"kernel$"
"""The kernels of dense and convolution layers."""


class Shared(NamedTuple):
    """The parameters of adapted members: the base, of which there is one, and the stacked factors of all members."""

    base: Params
    members: Params


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A base network with adapters, as a denoiser; `adapted` makes one and documents the fields.

    Args:
        base: the network that is adapted.
        rank: r.
        alpha: the factors are scaled by ``alpha / rank``.
        targets: which kernels have low-rank factors.
        train_also: which other arrays are trained.
        stack: how many members of a device are computed together, see `ensdiff.models.Denoiser`.
        digest: SHA-256 of the base's parameters; empty where only their shapes are known.
        down_seed: the seed from which every member draws the same ``down``; None if each member draws its own.
        base_params: the base's parameters, which `ensdiff.train` moves into `ensdiff.Ensemble.base`; None after that.
            They are compared by their digest.

    >>> ensdiff.models.adapted(params.model, jax.eval_shape(params.model.init, jax.random.key(0)), rank=2).name
    'adapted UNetConfig'
    """

    base: Any
    rank: int
    alpha: float
    targets: str
    train_also: str | None
    stack: int
    digest: str
    down_seed: int | None = None
    base_params: Any = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the base."""
        return f"adapted {name_of(self.base)}"

    @property
    def condition(self) -> ConditionSpec | None:
        """The condition that the base takes; None if it takes none, or does not say."""
        found: ConditionSpec | None = getattr(self.base, "condition", None)
        return found

    def check_image(self, height: int, width: int, channels: int | None = None) -> None:
        """Raise ValueError unless the base takes images of this size."""
        if isinstance(self.base, SelfChecking):
            self.base.check_image(height, width, channels)

    def without_base(self) -> "Adapted":
        """Return the same network without the base's parameters, so that nothing else keeps them in memory."""
        return self if self.base_params is None else dataclasses.replace(self, base_params=None)

    def init(self, key: Array) -> Params:
        """Return the factors of one member, with which it predicts what the base predicts."""
        key = key if self.down_seed is None else jax.random.key(self.down_seed)
        flat: dict[str, Any] = {}
        for number, (path, (shape, _)) in enumerate(sorted(base_shapes(self.base).items())):
            if self._is_low_rank(path):
                if self.rank:
                    fan_in = math.prod(shape[:-1])
                    own = jax.random.fold_in(key, number)
                    flat[f"{path}/down"] = jax.random.normal(own, (*shape[:-1], self.rank)) / math.sqrt(fan_in)
                    flat[f"{path}/up"] = jnp.zeros((self.rank, shape[-1]))
            elif self._is_trained(path):
                flat[f"{path}/delta"] = jnp.zeros(shape)
        return nested(flat)

    def apply(
        self, params: Params, x_BHWC: Array, t_B: Array, cond: Any = None, key_B: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Return the prediction of one member, see `ensdiff.models.Denoiser`.

        Raises:
            ValueError: the base's parameters are not held here: `bind` gives them.
        """
        if self.base_params is None:
            raise ValueError(f"{self.name} does not hold the parameters of its base: use bind(base_params).apply")
        return self.bind(self.base_params).apply(params, x_BHWC, t_B, cond, key_B)

    def bind(self, base_params: Params) -> "Bound":
        """Return the network with the base's parameters, which may be traced."""
        return Bound(self, base_params)

    @property
    def scale(self) -> float:
        """The factor of the product of the low-rank factors."""
        return self.alpha / self.rank if self.rank else 0.0

    def _is_low_rank(self, path: str) -> bool:
        return re.search(self.targets, path) is not None and not self._is_trained(path)

    def _is_trained(self, path: str) -> bool:
        return self.train_also is not None and re.search(self.train_also, path) is not None


@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """An adapted network with its base's parameters, as compiled programs use it: it is made inside of them."""

    adapted: Adapted
    base_params: Params

    @property
    def base(self) -> Any:
        """The network that is adapted."""
        return self.adapted.base

    @property
    def stack(self) -> int:
        """How many members of a device are computed together."""
        return self.adapted.stack

    def over(self, base: Denoiser) -> "Bound":
        """Return the same network with another form of its base."""
        return Bound(dataclasses.replace(self.adapted, base=base), self.base_params)

    def init(self, key: Array) -> Params:
        """Return the factors of one member."""
        return self.adapted.init(key)

    def apply(
        self, params: Params, x_BHWC: Array, t_B: Array, cond: Any = None, key_B: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Return the prediction of one member, see `ensdiff.models.Denoiser`.

        Where layers can, they add the products with the factors to their own, so that the base's kernels are multiplied
        once for all members that are computed together. Other kernels are merged first.
        """
        flat = factors_of(params)
        beside = {path: parts for path, parts in flat.items() if path in low_rank.places(self.base)}
        beside = {path: parts for path, parts in beside.items() if "down" in parts}
        merged = merge(self.adapted, self.base_params, {path: flat[path] for path in flat if path not in beside})
        with low_rank.added(beside, self.adapted.scale):
            found: Float[Array, "B H W C"] = self.base.apply(merged, x_BHWC, t_B, cond, key_B)
        return found


def adapted(
    base: Denoiser,
    base_params: Params,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: str = TARGETS,
    train_also: str | None = None,
    down_seed: int | None = None,
    stack: int | None = None,
) -> Adapted:
    """Return a frozen base network with low-rank adapters as a denoiser (a1): only the adapters are trained.

    Args:
        base: the network, any denoiser.
        base_params: its parameters, the same for all members: float32, or bfloat16 to halve their memory. Shapes alone
            (`jax.ShapeDtypeStruct`) make a network to plan with, which cannot be trained.
        rank: r of the adapters; 0 for none, where only ``train_also`` is trained.
        alpha: the adapters are scaled by ``alpha / rank``; by default by 1.
        targets: a regular expression that is searched in the path of each array, such as
            ``"middle_block0/conv1/kernel"``. Arrays in which it is found must have 2 axes (dense) or 4 (convolution).
        train_also: the same for arrays that are trained as a whole, such as ``"bias$"``; it takes precedence.
        down_seed: a seed, 0 .. 2^32 - 1, from which every member draws the same ``down``; by default each member
            draws its own from the seed of training.
        stack: how many members of a device are computed together. The base is multiplied once for these. By default all
            of them on accelerators, and 1 on CPUs.

    Raises:
        TypeError: the base is not a denoiser.
        ValueError: the parameters are not those of the base, or are neither float32 nor bfloat16; nothing would be
            trained; an expression is not valid or finds nothing; or a target has no low-rank form.

    >>> theta = jax.jit(params.model.init)(jax.random.key(0))
    >>> model = ensdiff.models.adapted(params.model, theta, rank=2, targets="conv1/kernel")
    >>> jax.tree.map(jnp.shape, jax.jit(model.init)(jax.random.key(1)))["middle_block0"]
    {'conv1': {'kernel': {'down': (3, 3, 4, 2), 'up': (2, 4)}}}
    """
    if not isinstance(base, Denoiser):
        raise TypeError(f"base={name_of(base)}: expected a denoiser, such as ensdiff.UNetConfig(...)")
    if isinstance(base, Adapted | Bound):
        raise TypeError("base is adapted itself: merge its factors first (ensdiff.models.adapters.merge)")
    check_value("rank", rank, int)
    alpha = float(rank) if alpha is None else alpha
    check_value("alpha", alpha, float)
    if rank < 0 or not alpha >= 0 or (rank and not alpha):
        raise ValueError(
            f"rank={rank}, alpha={alpha}: expected numbers of at least 0, and a positive alpha with a rank"
        )
    if down_seed is not None:
        check_value("down_seed", down_seed, int)
        if not 0 <= down_seed < 2**32:
            raise ValueError(f"down_seed={down_seed}: expected None or an integer of 0 .. 2^32 - 1")
    check_start(base, base_params)
    if stack is None:
        stack = 1 if jax.default_backend() == "cpu" else 0
    check_value("stack", stack, int)
    given = None if _is_abstract(base_params) else jax.tree.map(jnp.asarray, base_params)
    digest = "" if given is None else digest_of(given)
    model = Adapted(base, rank, alpha, targets, train_also, stack, digest, down_seed, given)
    _check_choice(model)
    return model


def _is_abstract(params: Params) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))


def check_start(base: Denoiser, base_params: Params) -> None:
    """Raise ValueError unless these are parameters of a network: float32 or bfloat16 arrays of its names and shapes."""
    check_paths(base_params)
    expected, given = base_shapes(base), shapes_of(base_params)
    faults = [f"{path} is missing" for path in expected if path not in given]
    faults += [f"{path} is not a parameter of it" for path in given if path not in expected]
    for path in expected:
        shape, dtype = given.get(path, (None, ""))
        if shape is not None and shape != expected[path][0]:
            faults.append(f"{path} has shape {shape} and not {expected[path][0]}")
        elif shape is not None and dtype not in ("float32", "bfloat16"):
            faults.append(f"{path} is {dtype} and not float32 or bfloat16")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"these are not parameters of {name_of(base)}: {'; '.join(faults[:3])}{more}")


def _check_choice(model: Adapted) -> None:
    shapes = base_shapes(model.base)
    chosen: dict[str, list[str]] = {}
    for name in ("targets", "train_also"):
        pattern = getattr(model, name)
        if pattern is None:
            continue
        try:
            chosen[name] = [path for path in shapes if re.search(pattern, path)]
        except (re.error, TypeError) as error:
            raise ValueError(f"{name}={pattern!r} is not a regular expression: {error}") from error
        if not chosen[name]:
            some = ", ".join(sorted(shapes)[:3])
            raise ValueError(f"{name}={pattern!r} is found in no parameter of {name_of(model.base)}, such as {some}")
    if not model.rank and model.train_also is None:
        raise ValueError("rank=0 and no train_also: nothing would be trained; give a rank of at least 1, or train_also")
    wrong = [path for path in shapes if model._is_low_rank(path) and len(shapes[path][0]) not in (2, 4)]
    if wrong and model.rank:
        told = ", ".join(f"{path} of shape {shapes[path][0]}" for path in wrong[:3])
        raise ValueError(
            f"targets={model.targets!r} also finds {told}: low-rank factors need 2 axes (dense) or 4 (convolution); "
            "give targets that leave them out, or name them in train_also"
        )


@functools.lru_cache(maxsize=16)
def base_shapes(base: Denoiser) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and dtype of each parameter of a network by its path, joined by ``/``."""
    return shapes_of(initial_shapes(base))


def merge(model: Adapted, base_params: Params, factors: Params | dict[str, dict[str, Array]]) -> Params:
    """Return a member's parameters of the base network: the base plus the member's changes (a1), (a2).

    Args:
        model: the adapted network.
        base_params: the base's parameters.
        factors: the member's factors, or those by path (`factors_of`).

    Returns:
        Changed arrays are float32; others are the base's own.
    """
    by_path = all(not isinstance(leaf, Mapping) for parts in factors.values() for leaf in parts.values())
    flat = factors if by_path else factors_of(factors)

    def leaf(path: str, base: Array) -> Array:
        return base.astype(jnp.float32) + change(flat[path], model.scale) if path in flat else base

    return mapped(leaf, base_params)


def opened(model: Any, params: Params | Shared) -> tuple[Any, Params]:
    """Return the network and the members' parameters of a program's arguments; adapters are bound to their base."""
    if isinstance(params, Shared):
        return model.bind(params.base), params.members
    return model, params


def abstract_of(model: Denoiser) -> Params | Shared:
    """Return the shapes of one member's parameters, for an adapted network together with the base's, for `opened`."""
    if isinstance(model, Adapted):
        return Shared(initial_shapes(model.base), initial_shapes(model))
    return initial_shapes(model)


def network_of(model: Any) -> Any:
    """Return the network that computes: the base of an adapted network, or the network itself."""
    return model.base if isinstance(model, Adapted | Bound) else model


def changes(model: Adapted, factors: Params) -> dict[str, Array]:
    """Return what a member's factors add to the base, by path."""
    return {path: change(parts, model.scale) for path, parts in factors_of(factors).items()}
