"""What a network computes, read from its abstract evaluation: nothing is compiled and no array is allocated."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from ensdiff.models.adapters import abstract_of, opened
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import Denoiser

PRODUCTS = ("dot_general", "conv_general_dilated", "conv2d")  # the last is of `ensdiff.models.conv`
"""The operations whose operands and results a compiler keeps in memory. It fuses elementwise ones into them."""


@functools.lru_cache(maxsize=64)
def activation_bytes(model: Denoiser, image_shape: tuple[int, int, int], condition: ConditionSpec | None = None) -> int:
    """Return an upper bound on the bytes of activations that one image needs in one member's forward pass.

    It is the sum over the image, the prediction, and the operands and results of all matrix products and convolutions,
    except parameters. A compiler that reuses buffers needs less.

    Args:
        model: the network.
        image_shape: (H, W, C).
        condition: what a conditional network is told about each image.
    """
    params = abstract_of(model)
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    cond = None if condition is None else condition.null(1)

    def run(params, x, t, cond):
        network, member = opened(model, params)
        return network.apply(member, x, t, cond)

    traced = jax.make_jaxpr(run)(params, x, t, cond)
    own = [False] * len(jax.tree.leaves(params))  # parameters, and what is computed from them alone, are no activations
    found: dict[Any, int] = {}
    _products(traced.jaxpr, own + [True] * (len(traced.jaxpr.invars) - len(own)), found)
    return sum(found.values()) + 2 * 4 * math.prod(image_shape)


def _products(jaxpr: Any, depends: list[bool], found: dict[Any, int]) -> list[bool]:
    """Add the sizes of the variables that products read and write and that depend on the images.

    Args:
        jaxpr: the traced function.
        depends: whether each of its arguments depends on the images.
        found: bytes by variable; added to.

    Returns:
        Whether each of its results depends on the images.
    """
    known = dict(zip(jaxpr.invars, depends, strict=True))
    call = object()  # one traced function may be called several times

    def is_known(atom: Any) -> bool:
        return not isinstance(atom, jax.extend.core.Literal) and known.get(atom, False)

    for equation in jaxpr.eqns:
        inside = [is_known(atom) for atom in equation.invars]
        outside = [any(inside)] * len(equation.outvars)
        inner = list(_inner(equation))
        if equation.primitive.name in PRODUCTS:
            for atom in (*equation.invars, *equation.outvars):
                if is_known(atom) or (any(inside) and atom in equation.outvars):
                    found[call, atom] = math.prod(atom.aval.shape) * atom.aval.dtype.itemsize
        for part in inner:
            count = len(part.invars)
            results = _products(part, [False] * max(0, count - len(inside)) + inside[-count:] if count else [], found)
            if len(results) == len(outside) and len(inner) == 1:
                outside = results
        known.update(zip(equation.outvars, outside, strict=True))
    return [is_known(atom) for atom in jaxpr.outvars]


def _inner(equation: Any) -> Iterator[Any]:
    """Yield the functions that an operation calls, such as the body of a loop."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            if isinstance(one, jax.extend.core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, jax.extend.core.Jaxpr):
                yield one


def count_flops(function: Callable, *args: Any) -> int:
    """Return the floating-point operations of all products of a function, from the shapes of its arguments.

    A loop counts as often as it runs where its length is known, and a branch counts as its most expensive one.

    >>> count_flops(jnp.matmul, jnp.zeros((2, 3)), jnp.zeros((3, 5)))
    60
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[spec[0]]
        elif name == "conv2d":
            a, b, out = (atom.aval.shape for atom in (*equation.invars, *equation.outvars))
            image, kernel = {"y": (out, b), "x": (a, b), "k": (b, out)}[equation.params["out"]]
            total += 2 * math.prod(image[:3]) * math.prod(kernel)
        else:
            costs = [_flops(part) for part in _inner(equation)]
            times = equation.params.get("length", 1) if name == "scan" else 1
            total += times * (max(costs, default=0) if name == "cond" else sum(costs))
    return total
