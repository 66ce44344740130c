"""The contents of a program: its convolutions, its matrix products, and its communication between devices.

`read_lowered` walks StableHLO, the program that JAX passes to the compiler. Each operation counts as often as it runs:
once per call of the function that contains it, and once per iteration of the loop around it (`jax.lax.scan` and
`jax.lax.map` have a constant number of iterations). Inside `jax.shard_map` shapes are those of one device, so the
counts are per device. Only the collectives written in the program are counted.

`read_compiled` reads the text of compiled HLO, which also contains the collectives that the partitioner added. Each is
counted once, however often it runs. On GPUs, compiled convolutions are library calls, which are not counted.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

_STABLEHLO_COLLECTIVES = {
    f"stablehlo.{kind.replace('-', '_')}": kind
    for kind in (
        "all-reduce",
        "all-gather",
        "reduce-scatter",
        "all-to-all",
        "collective-permute",
        "collective-broadcast",
    )
}
_HLO_COLLECTIVE = re.compile(
    # an asynchronous collective is a -start and a -done; the result of the -done is what was sent
    r"^\s*(?:ROOT )?%?[\w.-]+ = (?P<type>\S.*?) (?:ragged-)?(?P<kind>"
    + "|".join(_STABLEHLO_COLLECTIVES.values())
    + r")(?:-done)?\(",
    re.MULTILINE,
)
_HLO_CONVOLUTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = \S+ convolution\(.*$", re.MULTILINE)
_HLO_GROUPS = re.compile(r"(?:feature|batch)_group_count=(\d+)")
_HLO_SHAPE = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


class Collective(NamedTuple):
    """All collectives of one kind in a program.

    Args:
        kind: ``"all-reduce"``, ``"all-gather"``, ...
        number: number of collectives of this kind.
        bytes: total bytes of their results on one device.
    """

    kind: str
    number: int
    bytes: int


class Program(NamedTuple):
    """The contents of a program.

    Args:
        groups: number of groups (of features or of the batch) of each convolution, 1 for an ordinary one. There is one
            entry per convolution in the text, however often it runs.
        collectives: one entry per kind.
        flops: floating-point operations of convolutions and matrix products, with a multiply-add counted as 2; None for
            compiled HLO, where they are not counted. Products with padding zeros count, but not those with the zeros
            between dilated elements. A convolution, its two gradients, and the same convolution as a matrix product
            of patches therefore have equal counts.
        unpadded_flops: the same without products with padding, as XLA's own cost analysis counts.
    """

    groups: tuple[int, ...]
    collectives: tuple[Collective, ...]
    flops: int | None = None
    unpadded_flops: int | None = None

    @property
    def convolutions(self) -> int:
        """Return the number of convolutions in the text of the program."""
        return len(self.groups)

    def grouped(self, groups: int) -> int:
        """Return the number of grouped convolutions whose groups are a multiple of ``groups``.

        A plain `vmap` over K members makes convolutions of K groups, or of a multiple of K.

        >>> Program((1, 4, 8, 6), ()).grouped(4)
        2
        """
        if groups < 2:
            return 0
        return sum(g > 1 and g % groups == 0 for g in self.groups)


def read_lowered(lowered: jax.stages.Lowered, iterations: int | None = None) -> Program:
    """Return the contents of a lowered program (``jax.jit(f).lower(...)``, for any platform).

    Args:
        lowered: the program.
        iterations: the number of iterations to count for loops in which it is not a constant of the program, such as
            an argument; by default these loops may hold no products or collectives.

    Raises:
        ValueError: ``iterations`` is None, and a product or collective is in such a loop.
    """
    module: Any = lowered.compiler_ir("stablehlo")
    functions = {op.attributes["sym_name"].value: op for op in module.body.operations if "sym_name" in op.attributes}
    found = list(_walk(functions["main"].operation, functions, iterations))
    totals: dict[str, list[int]] = {}
    for item in found:
        if item.kind != "product":
            total = totals.setdefault(item.kind, [0, 0])
            total[0] += item.times
            total[1] += item.times * item.size
    groups = {item.place: item.groups for item in found if item.groups}
    return Program(
        tuple(groups.values()),
        tuple(Collective(kind, *total) for kind, total in sorted(totals.items())),
        sum(2 * item.times * item.size for item in found if item.kind == "product"),
        sum(2 * item.times * item.unpadded for item in found if item.kind == "product"),
    )


def read_compiled(text: str) -> Program:
    """Return the contents of compiled HLO, from its text (``compiled.as_text()``), without FLOPs."""
    totals: dict[str, list[int]] = {}
    for match in _HLO_COLLECTIVE.finditer(text):
        total = totals.setdefault(match["kind"], [0, 0])
        total[0] += 1
        total[1] += _hlo_bytes(match["type"])
    lines = [match[0] for match in _HLO_CONVOLUTION.finditer(text)]
    groups = (max((int(g) for g in _HLO_GROUPS.findall(line)), default=1) for line in lines)
    return Program(tuple(groups), tuple(Collective(kind, *total) for kind, total in sorted(totals.items())))


def _hlo_bytes(shapes: str) -> int:
    """Return the bytes of all arrays in an HLO type, such as ``(f32[2,3]{1,0}, bf16[])``."""
    return sum(
        math.ceil(math.prod(int(n) for n in dims.split(",") if n) * (int(bits) if bits else 8) / 8)
        for _, bits, dims in _HLO_SHAPE.findall(shapes)
    )


class _Found(NamedTuple):
    """A counted operation. Its size is the multiply-adds of a product, or the bytes of a collective."""

    kind: str
    place: Any
    times: int
    size: int
    unpadded: int = 0
    groups: int = 0


def _walk(op: Any, functions: dict[str, Any], iterations: int | None) -> Iterator[_Found]:
    """Yield the counted operations inside an operation, with the number of times each runs."""
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _visit(inner.operation, functions, iterations)


def _visit(op: Any, functions: dict[str, Any], iterations: int | None) -> Iterator[_Found]:
    if op.name == "func.call":
        yield from _walk(functions[op.attributes["callee"].value].operation, functions, iterations)
    elif op.name == "stablehlo.while":
        inside = list(_walk(op, functions, iterations))
        rounds = _rounds(op, iterations) if inside else 0
        yield from (item._replace(times=item.times * rounds) for item in inside)
    elif op.name in ("stablehlo.case", "stablehlo.if"):
        branches = [
            [f for b in region.blocks for o in b.operations for f in _visit(o.operation, functions, iterations)]
            for region in op.regions
        ]
        yield from max(branches, key=lambda found: sum(f.times * f.size for f in found))  # the costliest
    elif op.name == "stablehlo.convolution":
        yield _convolution(op)
    elif op.name in ("stablehlo.dot_general", "stablehlo.dot"):
        size = _dot(op)
        yield _Found("product", op, 1, size, size)
    elif op.name in _STABLEHLO_COLLECTIVES:
        yield _Found(_STABLEHLO_COLLECTIVES[op.name], op, 1, sum(_bytes(result.type) for result in op.results))
    else:
        yield from _walk(op, functions, iterations)


def _shape(value: Any) -> list[int]:
    from jax.extend.mlir import ir

    return list(ir.RankedTensorType(value.type).shape)


def _bytes(kind: Any) -> int:
    from jax.extend.mlir import ir

    tensor = ir.RankedTensorType(kind)
    bits = re.search(r"\d+", str(tensor.element_type))
    return math.prod(tensor.shape) * (int(bits[0]) if bits else 8) // 8


def _dot(op: Any) -> int:
    """Return the multiply-adds of a matrix product: elements of the result times the length of the contraction."""
    from jax.extend.mlir.dialects import stablehlo

    left = _shape(op.operands[0])
    if op.name == "stablehlo.dot":
        contracted = [len(left) - 1]
    else:
        contracted = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"]).lhs_contracting_dimensions
    return math.prod(_shape(op.results[0])) * math.prod(left[d] for d in contracted)


def _convolution(op: Any) -> _Found:
    from jax.extend.mlir.dialects import stablehlo

    numbers = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
    x, kernel, y = _shape(op.operands[0]), _shape(op.operands[1]), _shape(op.results[0])
    space = len(numbers.kernel_spatial_dimensions)

    def window(name: str, default: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        if name not in op.attributes:
            return np.full(shape or (space,), default)
        return np.asarray(list(op.attributes[name])).reshape(shape or (space,))

    strides, x_dilation, kernel_dilation = (
        window(name, 1) for name in ("window_strides", "lhs_dilation", "rhs_dilation")
    )
    low = window("padding", 0, (space, 2))[:, 0]
    padded = unpadded = y[numbers.output_batch_dimension] * y[numbers.output_feature_dimension]
    padded *= kernel[numbers.kernel_input_feature_dimension]
    unpadded *= kernel[numbers.kernel_input_feature_dimension]
    for d in range(space):
        out = np.arange(y[numbers.output_spatial_dimensions[d]])[:, None]
        tap = np.arange(kernel[numbers.kernel_spatial_dimensions[d]])
        position = out * strides[d] + tap * kernel_dilation[d] - low[d]
        on_grid = position % x_dilation[d] == 0
        index = position // x_dilation[d]
        padded *= int(on_grid.sum())
        unpadded *= int((on_grid & (index >= 0) & (index < x[numbers.input_spatial_dimensions[d]])).sum())
    groups = max(int(op.attributes[f"{kind}_group_count"].value) for kind in ("feature", "batch"))
    return _Found("product", op, 1, padded, unpadded, groups)


def _rounds(loop: Any, otherwise: int | None) -> int:
    """Return the number of iterations of ``while counter < limit: ...; counter += 1``, the form of a lowered scan.

    If it is not a constant, return ``otherwise``.
    """
    condition, body = (region.blocks[0] for region in loop.regions)
    test = list(condition.operations)[-1].operands[0].owner
    try:
        counter, limit = test.operands
        number = list(condition.arguments).index(counter)
        step = list(body.operations)[-1].operands[number].owner
        direct = test.name == "stablehlo.compare" and "LT" in str(test.attributes["comparison_direction"])
        if direct and step.name == "stablehlo.add" and _constant(step.operands[1]) == 1:
            return max(_constant(limit) - _constant(loop.operands[number]), 0)
    except (AttributeError, ValueError):
        pass  # another kind of condition
    if otherwise is not None:
        return otherwise
    raise ValueError(
        "products or collectives are in a loop whose number of iterations is not a constant of the program; use "
        "jax.lax.scan, or jax.lax.fori_loop with constant bounds"
    )


def _constant(value: Any) -> int:
    return int(np.asarray(value.owner.attributes["value"]).item())
