"""Networks of your own as denoisers: a flax linen module, a flax NNX module, or two functions for anything else.

A module predicts for a batch: ``module(x_BHWC, t_B)``, or ``module(x_BHWC, t_B, cond)`` if it takes a condition. Times
are float32. A network that is trained without a condition for some images receives the null row for these
(`ensdiff.models.condition`).

Images must not influence each other, or a counterfactual would depend on its neighbours, and a member would depend on
units that it never saw. Modules with state other than parameters, such as the statistics of batch normalisation, are
therefore refused.

Dropout is drawn with one key per image, so that the draws do not depend on how a batch is divided: while training, the
module runs for one image at a time under `jax.vmap`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jaxtyping import Float

from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import check_inputs
from ensdiff.models.parameters import from_dicts, to_dicts
from ensdiff.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class Functions:
    """A denoiser of two functions; `functions` documents it."""

    initial: Callable
    predict: Callable
    name: str
    stack: int = 1

    def init(self, key: Array) -> Params:
        """Return the initial parameters of one member, as nested dicts."""
        return to_dicts(self.initial(key))

    def apply(
        self, params: Params, x_BHWC: Array, t_B: Array, cond: Any = None, key_B: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Return the prediction, see `ensdiff.models.Denoiser`."""
        return self.predict(from_dicts(params, _abstract(self.initial)), x_BHWC, t_B, cond, key_B)


@functools.lru_cache(maxsize=64)
def _abstract(initial: Callable) -> Any:
    return jax.eval_shape(initial, _key())


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def functions(init: Callable, apply: Callable, *, name: str | None = None, stack: int = 1) -> Functions:
    """Return two pure functions as a denoiser.

    Two results are equal, and share compiled programs, if their functions are the same objects. Define the functions
    once, at the top of a module.

    Args:
        init: ``init(key)`` returns the parameters of one member: any pytree of float32 arrays.
        apply: ``apply(params, x_BHWC, t_B, cond, key_B)`` returns the prediction; `ensdiff.models.Denoiser` documents
            the arguments. ``params`` has the structure that ``init`` returns. Without dropout, ignore ``key_B``.
        name: what messages and runs call the network; by default the name of ``apply``.
        stack: how many members of a device are computed together, see `ensdiff.models.Denoiser`.

    Raises:
        TypeError: an argument is not a function.

    >>> model = functions(lambda key: {"gain": jnp.ones(())}, lambda p, x, t, cond, key: p["gain"] * x, name="scaled")
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 8, 8, 1)), jnp.zeros(2)).shape
    (2, 8, 8, 1)
    """
    for what, function in (("init", init), ("apply", apply)):
        if not callable(function):
            raise TypeError(f"{what}={function!r}: expected a function")
    return Functions(init, apply, name or str(getattr(apply, "__name__", type(apply).__name__)), stack)


@dataclasses.dataclass(frozen=True)
class Linen:
    """A linen module as a denoiser; `linen` documents it."""

    module: nn.Module
    image_shape: tuple[int, int, int]
    condition: ConditionSpec | None = None
    stack: int = 1

    @property
    def name(self) -> str:
        """The name of the module's class."""
        return type(self.module).__name__

    @property
    def described(self) -> str:
        """The module with its fields, as a run records it."""
        return " ".join(repr(self.module).split())

    @property
    def _trains(self) -> bool:
        """Whether the module computes something else while training."""
        return "train" in inspect.signature(type(self.module).__call__).parameters

    def init(self, key: Array) -> Params:
        """Return the initial parameters of one member."""
        return to_dicts(self.variables(key)["params"])

    def variables(self, key: Array) -> dict[str, Any]:
        """Return all that the module keeps, by collections; a denoiser may only have the collection "params"."""
        inputs = _inputs(self.condition, jnp.zeros((1, *self.image_shape)), jnp.zeros((1,)), None)
        return nn.meta.unbox(unfreeze(self.module.init(key, *inputs, **self._mode(False))))

    def apply(
        self, params: Params, x_BHWC: Array, t_B: Array, cond: Any = None, key_B: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Return the prediction, see `ensdiff.models.Denoiser`."""
        inputs = _inputs(self.condition, x_BHWC, t_B, cond)
        if key_B is None or not self._trains:
            predicted: Any = self.module.apply({"params": params}, *inputs, **self._mode(False))
            return predicted

        def one(key: Array, *inputs_1: Any) -> Any:
            return self.module.apply({"params": params}, *inputs_1, rngs={"dropout": key}, **self._mode(True))

        return _one_by_one(one, key_B, inputs)

    def _mode(self, training: bool) -> dict[str, Any]:
        return {"train": training} if self._trains else {}


def linen(
    module: nn.Module, image_shape: tuple[int, int, int], condition: ConditionSpec | None = None, *, stack: int = 1
) -> Linen:
    """Return a flax linen module as a denoiser.

    Two results are equal if their modules, image shapes and conditions are.

    Args:
        module: called as ``module(x_BHWC, t_B)``, or ``module(x_BHWC, t_B, cond)`` with a condition. If ``__call__``
            has an argument called ``train``, it is True while training, and there is a "dropout" key for each image.
        image_shape: (H, W, C), for which the parameters are made.
        condition: what is static about the condition; None for an unconditional network.
        stack: how many members of a device are computed together, see `ensdiff.models.Denoiser`.

    Raises:
        TypeError: it is not a linen module, or cannot be hashed: its fields must be numbers, texts, tuples, functions
            or modules.
        ValueError: the module keeps something else than parameters, such as statistics of batches; it fails for such
            images; its prediction does not have their shape; or it has an argument ``deterministic`` or ``training``.

    >>> class Pixelwise(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x_BHWC, t_B):
    ...         level = jnp.broadcast_to(t_B[:, None, None, None] / 1000.0, x_BHWC.shape)
    ...         return nn.Dense(x_BHWC.shape[-1])(jnp.concatenate([x_BHWC, level], -1))
    >>> linen(Pixelwise(), (8, 8, 1)).name
    'Pixelwise'
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module={module!r}: expected a flax linen module; for others, see ensdiff.models.functions")
    other = {"deterministic", "training"} & set(inspect.signature(type(module).__call__).parameters)
    if other:
        raise ValueError(
            f"{type(module).__name__}.__call__ has an argument {other.pop()!r}, which nothing sets, so that it would "
            "train as it predicts: call it train, which is True while training"
        )
    model = Linen(module, _shape(image_shape), condition, stack)
    found = _evaluated(model, model.variables)
    _refuse_state(model.name, [collection for collection in found if collection != "params"])
    check_inputs(model, model.image_shape, condition)
    return model


@dataclasses.dataclass(frozen=True)
class Nnx:
    """An NNX module as a denoiser; `nnx` documents it."""

    make: Callable
    image_shape: tuple[int, int, int]
    condition: ConditionSpec | None = None
    stack: int = 1
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The name of the function or class that makes the module."""
        return getattr(self.make, "__name__", type(self.make).__name__)

    @property
    def described(self) -> str:
        """The settings of the module, as a run records them."""
        return repr(self.settings)

    def split(self, key: Array) -> tuple[Any, Any, Any, Any]:
        """Return a new module's definition, parameters, random state, and all other state."""
        from flax import nnx

        module = self.make(**dict(self.settings), rngs=nnx.Rngs(key))
        return nnx.split(module, nnx.Param, nnx.RngState, ...)  # type: ignore[return-value]

    def init(self, key: Array) -> Params:
        """Return the initial parameters of one member, as nested dicts."""
        return to_dicts(self.split(key)[1])

    def apply(
        self, params: Params, x_BHWC: Array, t_B: Array, cond: Any = None, key_B: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Return the prediction, see `ensdiff.models.Denoiser`."""
        from flax import nnx

        definition, template, random, _ = _abstract_parts(self)
        inputs = _inputs(self.condition, x_BHWC, t_B, cond)

        def predict(key: Array, training: bool, *inputs: Any) -> Any:
            module = nnx.merge(definition, from_dicts(params, template), _reseeded(random, key))
            module.train() if training else module.eval()
            return module(*inputs)

        if key_B is None or not jax.tree.leaves(random):
            return predict(jax.random.key(0), False, *inputs)
        return _one_by_one(lambda key, *inputs_1: predict(key, True, *inputs_1), key_B, inputs)


@functools.lru_cache(maxsize=64)
def _abstract_parts(model: Nnx) -> tuple[Any, Any, Any, Any]:
    from flax import nnx

    module = nnx.eval_shape(lambda: model.make(**dict(model.settings), rngs=nnx.Rngs(0)))
    return nnx.split(module, nnx.Param, nnx.RngState, ...)  # type: ignore[return-value]


def _reseeded(random: Any, key: Array) -> Any:
    """Return random state in which every stream starts from its own key."""
    leaves, structure = jax.tree.flatten(random)
    new = [
        jax.random.fold_in(key, i) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros((), leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, new)


def nnx(
    make: Callable,
    image_shape: tuple[int, int, int],
    condition: ConditionSpec | None = None,
    *,
    stack: int = 1,
    **settings: Any,
) -> Nnx:
    """Return a flax NNX module as a denoiser.

    Two results are equal if ``make`` is the same object and all other arguments are equal.

    Args:
        make: the module's class, or a function: ``make(rngs=nnx.Rngs(...), **settings)`` returns the module. The module
            is called as ``module(x_BHWC, t_B)``, or ``module(x_BHWC, t_B, cond)`` with a condition. While training,
            its layers are in the mode of ``module.train()`` if it has random state, such as dropout; otherwise, in that
            of ``module.eval()``.
        image_shape: (H, W, C), for which the module is checked.
        condition: what is static about the condition; None for an unconditional network.
        stack: how many members of a device are computed together, see `ensdiff.models.Denoiser`.
        settings: hashable arguments of ``make``.

    Raises:
        TypeError: ``make`` is not a function, or a setting cannot be hashed.
        ValueError: the module keeps something else than `nnx.Param` and random state, such as statistics of batches; it
            fails for such images; or its prediction does not have their shape.

    >>> from flax import nnx as flax_nnx
    >>> class Pixelwise(flax_nnx.Module):
    ...     def __init__(self, width, rngs):
    ...         self.inside = flax_nnx.Linear(1, width, rngs=rngs)
    ...         self.out = flax_nnx.Linear(width, 1, rngs=rngs)
    ...
    ...     def __call__(self, x_BHWC, t_B):
    ...         return self.out(jnp.tanh(self.inside(x_BHWC)))
    >>> nnx(Pixelwise, (8, 8, 1), width=4).name
    'Pixelwise'
    """
    if not callable(make):
        raise TypeError(f"make={make!r}: expected the class of an NNX module, or a function that makes one")
    model = Nnx(make, _shape(image_shape), condition, stack, tuple(sorted(settings.items())))
    _, _, _, other = _evaluated(model, lambda _: _abstract_parts(model))
    _refuse_state(model.name, [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(other)])
    check_inputs(model, model.image_shape, condition)
    return model


def _evaluated(model: Linen | Nnx, initial: Callable) -> Any:
    """Return what ``initial`` returns for a key, as shapes, after checking that the network can be hashed.

    Raises:
        TypeError: it cannot be hashed.
        ValueError: ``initial`` fails.
    """
    try:
        hash(model)
    except TypeError as error:
        raise TypeError(
            f"{model.name} cannot be hashed: {error}. Give it numbers, texts, tuples and functions instead of lists, "
            "dicts and arrays"
        ) from error
    try:
        return initial(_key()) if isinstance(model, Nnx) else jax.eval_shape(initial, _key())
    except Exception as error:
        raise ValueError(f"{model.name} cannot be made for images of shape {model.image_shape}: {error}") from error


def _shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(image_shape) != 3:
        raise ValueError(f"image_shape={image_shape!r}: expected height, width and channels")
    H, W, C = map(int, image_shape)
    return H, W, C


def _refuse_state(name: str, found: list[str]) -> None:
    if found:
        raise ValueError(
            f"{name} keeps {', '.join(found)} beside its parameters. Such state, for example the statistics "
            "of batch normalisation, lets images influence each other: expected parameters only, for example with "
            "group or layer normalisation"
        )


def _inputs(condition: ConditionSpec | None, x_BHWC: Array, t_B: Array, cond: Any) -> tuple:
    """Return what a module is called with: a conditional one also gets the condition, by default null rows."""
    if condition is None:
        if cond is not None:
            raise ValueError("a condition was given, but the network takes none: pass condition= when you wrap it")
        return x_BHWC, t_B
    return x_BHWC, t_B, jax.tree.map(jnp.asarray, condition.null(len(x_BHWC)) if cond is None else cond)


def _one_by_one(predict: Callable, key_B: Array, inputs: tuple) -> Any:
    """Apply a function of a key and a batch of one image to each image of a batch."""

    def one(key: Array, *inputs_1: Any) -> Any:
        return predict(key, *jax.tree.map(lambda a: a[None], inputs_1))[0]

    return jax.vmap(one)(key_B, *inputs)
