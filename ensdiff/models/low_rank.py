"""Layers that add the product with low-rank factors to their own product, while the network itself stays as it is.

The layers are linen modules: those of `ensdiff.models.blocks`, and flax's own ``Dense`` and ``Conv``. linen lets a
function see every call of a module, so that no network has to know about adapters.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ensdiff.models import blocks
from ensdiff.models.denoiser import Denoiser
from ensdiff.typing import Array


def product_of(module: nn.Module) -> Callable[[Array, Array], Array] | None:
    """Return a layer's product as a function of its input and a kernel of any width, or None for other modules.

    Subclasses may compute something else, so that they are other modules.
    """
    if type(module) is blocks.Conv:
        # narrow kernels of several members, which are stacked even where the base's kernel is not
        return functools.partial(module.product, strategy="matmul")
    if type(module) is blocks.Dense:
        return module.product
    if type(module) is nn.Dense:
        return functools.partial(_flax_product, module)
    if type(module) is nn.Conv and module.feature_group_count == 1 and len(_sizes(module)) == 2:
        return functools.partial(_flax_product, module)
    return None


def _sizes(module: nn.Conv) -> tuple[int, ...]:
    size = module.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def _flax_product(module: Any, x: Array, kernel: Array) -> Array:
    alone = module.clone(features=kernel.shape[-1], use_bias=False, parent=None, name=None)
    found: Array = alone.apply({"params": {"kernel": kernel}}, x)
    return found


@functools.lru_cache(maxsize=16)
def places(base: Denoiser) -> frozenset[str]:
    """Return the paths of the kernels whose layers can add a low-rank product; none for networks other than linen's.

    Layers inside of a wrapper that changes their kernel, such as ``nn.WeightNorm``, cannot: their parent is no module.
    """
    found = set()

    def see(following: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        inside = isinstance(module.parent, nn.Module) or not module.path
        if context.method_name == "__call__" and inside and product_of(module) is not None:
            found.add(_path(module))
        return following(*args, **kwargs)

    with nn.intercept_methods(see):
        jax.eval_shape(base.init, jax.eval_shape(lambda: jax.random.key(0)))
    return frozenset(found)


def _path(module: nn.Module) -> str:
    return "/".join((*module.path, "kernel"))


@contextlib.contextmanager
def added(factors: Mapping[str, Mapping[str, Array]], scale: float) -> Iterator[None]:
    """Let every layer that has factors add ``scale * up(down(x))`` to its output, within the context.

    Args:
        factors: ``down`` and ``up`` by the path of the kernel; all of `places`.
        scale: the factor of the product.
    """

    def add(following: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        y = following(*args, **kwargs)
        if context.method_name != "__call__":
            return y
        product = product_of(context.module)
        parts = None if product is None else factors.get(_path(context.module))
        if product is None or parts is None:
            return y
        low = product(args[0] if args else next(iter(kwargs.values())), parts["down"])
        return y + (scale * jnp.einsum("...r,rd->...d", low, parts["up"].astype(low.dtype))).astype(y.dtype)

    with nn.intercept_methods(add) if factors else contextlib.nullcontext():
        yield
