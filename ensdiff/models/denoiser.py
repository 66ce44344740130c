"""The one seam between the library and a network: a `Denoiser`, for one member, and its check."""

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ensdiff.models.condition import ConditionSpec, Leaf
from ensdiff.typing import Array, Params


@runtime_checkable
class Denoiser(Protocol):
    """A network of one member: two pure functions and a size. It must be hashable, and equal to an equal network.

    `UNetConfig` and `DiTConfig` are denoisers, and so are the results of `linen`, `nnx` and `functions`. Training,
    sampling, attribution, certificates and planning know nothing else about a network.

    Attributes:
        stack: how many members of one device are computed together (`jax.vmap`); 1 computes one after another, and 0
            computes all together. It may change results by rounding only.

    >>> isinstance(ensdiff.UNetConfig(), ensdiff.models.Denoiser)
    True
    """

    @property
    def stack(self) -> int:
        """The number of members of one device that are computed together; 0 is all of them."""
        ...

    def __hash__(self) -> int:
        """Return the hash."""
        ...

    def init(self, key: Array) -> Params:
        """Return the initial parameters of one member, a pytree of float32 arrays."""
        ...

    def apply(
        self, params: Params, x_BHWC: Array, t_B: Array, cond: Any = None, key_B: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Return the prediction for noisy images.

        Images must not influence each other, or a counterfactual would depend on its neighbours.

        Args:
            params: the parameters.
            x_BHWC: noisy images in model space, times the process's scale of inputs.
            t_B: float32, the time of each image as the process defines it (`ensdiff.Schedule`): for variance
                preserving processes the number of its noise level.
            cond: the condition tree of the images (`ensdiff.models.condition`); None for an unconditional model. The
                id that stands for no class is the number of classes, so a table of embeddings needs one row more than
                there are classes: JAX reads the last row, without an error, where an id is too large.
            key_B: one key per image for dropout while training; None otherwise.
        """
        ...


@runtime_checkable
class SelfChecking(Protocol):
    """A denoiser that knows which images it takes, as the built-in ones do."""

    def check_image(self, height: int, width: int, channels: int | None = None) -> None:
        """Raise ValueError unless it takes images of this size."""
        ...


def check_inputs(model: Any, image_shape: tuple[int, int, int], condition: ConditionSpec | None = None) -> None:
    """Check that a denoiser works for images of a shape and a condition, before anything is computed with it.

    The condition is compared with the denoiser's own, if it has an attribute ``condition``, as built-in networks and
    wrapped modules have. Built-in networks are also compared with the shape; others are evaluated abstractly for two
    images, with and without keys.

    Args:
        model: the denoiser.
        image_shape: (H, W, C).
        condition: what is static about the condition of the data; None for data without one.

    Raises:
        TypeError: it is not a denoiser, or cannot be hashed.
        ValueError: it does not fit the shape or the condition; its parameters are not float32 arrays; or its prediction
            does not have the shape of the images, or is not of floating-point numbers.

    >>> check_inputs(ensdiff.UNetConfig(multipliers=(1, 2)), (7, 8, 1))
    Traceback (most recent call last):
    ValueError: images of 7x8 do not fit a U-Net of 2 levels: height and width must be multiples of 2; ...
    >>> check_inputs(ensdiff.UNetConfig(), (8, 8, 1)) is None
    True
    """
    name, checked = name_of(model), model
    if not isinstance(model, Denoiser):
        missing = [part for part in ("init", "apply", "stack") if not hasattr(model, part)]
        raise TypeError(
            f"{name} is not a denoiser: it has no {' and no '.join(missing)}. For a network of your own, see "
            "ensdiff.models.linen, nnx and functions"
        )
    try:
        hash(model)
    except TypeError as error:
        raise TypeError(f"{name} cannot be hashed ({error}): give it tuples instead of lists and arrays") from error
    if not isinstance(model.stack, int) or model.stack < 0:
        raise ValueError(f"{name} has stack={model.stack}: expected a number of members, or 0 for all")
    if hasattr(model, "condition"):
        _check_condition(name, model.condition, condition)
    if isinstance(model, SelfChecking):
        model.check_image(*image_shape)
    else:
        _check_abstractly(checked, tuple(image_shape), condition)


def name_of(model: Any) -> str:
    """Return the name of a denoiser in messages: its ``name``, or its class."""
    name = getattr(model, "name", None)
    return name if isinstance(name, str) and name else type(model).__name__


def check_null(model: Any, image_shape: tuple[int, int, int], condition: ConditionSpec | None) -> None:
    """Check that a network of one's own takes the ids that stand for no class, by applying it once.

    JAX fills rows with NaN, or takes the last row, where an id is too large for a table. The first is found here.

    Raises:
        ValueError: the prediction is not finite.
    """
    if condition is None or isinstance(model, SelfChecking) or all(leaf.classes is None for leaf in condition.leaves):
        return
    params = jax.jit(model.init)(jax.random.key(0))
    x_BHWC, t_B = jnp.zeros((1, *image_shape)), jnp.zeros((1,))
    found = jax.jit(lambda params: model.apply(params, x_BHWC, t_B, condition.null(1), None))(params)
    if not bool(jnp.isfinite(found).all()):
        ids = " and ".join(str(leaf.classes) for leaf in condition.leaves if leaf.classes is not None)
        raise ValueError(
            f"{name_of(model)} predicts NaN or infinity for the id {ids}, which stands for no class: give its table of "
            "embeddings one row more than there are classes"
        )


def initial_shapes(model: Denoiser) -> Params:
    """Return the shapes and dtypes of one member's initial parameters, as `jax.ShapeDtypeStruct`.

    Networks that differ only in how they are computed (``stored``, see `ensdiff.models.UNetConfig`) are traced once.
    """
    return jax.tree.map(lambda shape: shape, _initial_shapes(getattr(model, "stored", model)))


@functools.lru_cache(maxsize=64)
def _initial_shapes(model: Denoiser) -> Params:
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))


def _check_condition(name: str, takes: ConditionSpec | None, given: ConditionSpec | None) -> None:
    if takes is None and given is None:
        return
    fix = "make the network for the condition of the data (classes=, condition_width=, context_width= or condition=)"
    if takes is None:
        raise ValueError(f"{name} takes no condition, and the data have {_words(given)}: {fix}")
    if given is None:
        raise ValueError(f"{name} takes {_words(takes)}, and the data have no condition: {fix}")
    if [_essence(leaf) for leaf in takes.leaves] != [_essence(leaf) for leaf in given.leaves]:
        raise ValueError(f"{name} takes {_words(takes)}, and the data have {_words(given)}: {fix}")


def _essence(leaf: Leaf) -> tuple:
    return leaf.path, leaf.shape, leaf.dtype, leaf.classes


def _words(spec: ConditionSpec | None) -> str:
    texts = []
    for leaf in spec.leaves if spec is not None else ():
        kind = f"{leaf.dtype} of shape {leaf.shape} per image" if leaf.classes is None else f"{leaf.classes} classes"
        texts.append(f"{kind} called {leaf.path!r}" if leaf.path else kind)
    return " and ".join(texts)


@functools.lru_cache(maxsize=64)
def _check_abstractly(model: Any, image_shape: tuple[int, int, int], condition: ConditionSpec | None) -> None:
    name = name_of(model)
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0)))
    x_BHWC = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    t_B = jax.ShapeDtypeStruct((2,), jnp.float32)
    cond = None if condition is None else condition.null(2)
    given = f"images of shape {x_BHWC.shape}" + (f" and {_words(condition)}" if condition is not None else "")
    try:
        params = jax.eval_shape(model.init, key)
    except Exception as error:
        raise ValueError(f"{name}: its init failed: {error}") from error
    for path, leaf in jax.tree.leaves_with_path(params):
        if leaf.dtype != jnp.float32:
            raise ValueError(
                f"{name}: its parameter {jax.tree_util.keystr(path)} is {leaf.dtype}: expected float32. A network may "
                "compute in another dtype, but its parameters and their updates are float32"
            )
    for keys in (None, keys_B):
        try:
            found = jax.eval_shape(model.apply, params, x_BHWC, t_B, cond, keys)
        except Exception as error:
            with_keys = "" if keys is None else ", with a key per image"
            hint = (
                "" if condition is not None else ". For a network with conditions, give condition=data.condition_spec"
            )
            raise ValueError(f"{name}: its apply failed for {given}{with_keys}: {error}{hint}") from error
        array = hasattr(found, "dtype")
        if not array or found.shape != x_BHWC.shape or not jnp.issubdtype(found.dtype, jnp.floating):
            returned = f"{found.dtype} of shape {found.shape}" if array else f"a {type(found).__name__}"
            raise ValueError(f"{name} returned {returned} for {given}: expected floats of the images' shape")
