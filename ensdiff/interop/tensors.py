"""Conversion of torch state dicts to stacked parameters: safe reading, and mapping each tensor to its parameter.

A *style* holds the other implementation's names for the parts of the U-Net; `names` lists every tensor that a
configuration requires. Convolutions are (out, in, h, w) there and (h, w, in, out) here; dense layers are (out, in)
there and (in, out) here.
"""

import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ensdiff.codes import Code
from ensdiff.diffusion.schedule import Schedule
from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.members import abstract_params
from ensdiff.files.reading import existing_file, installed
from ensdiff.interop.matrices import read_code
from ensdiff.interop.options import Option, check_options
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.space import PIXELS, Space

CodeLike = Code | np.ndarray | str | os.PathLike | None
_NUMBERS = ("float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64")


class Style(NamedTuple):
    """Names of the parts of a U-Net.

    Blocks, samplers and attention are functions of ('down'|'middle'|'up', level, index). What is inside of a block or
    attention is found by its path, joined by ``/``.
    """

    head: str
    time: tuple[str, str]
    tail: tuple[str, str]
    block: Any
    sample: Any
    attention: Any
    in_block: Mapping[str, str]
    in_attention: Mapping[str, str]
    condition: str = ""


Naming = Style | Callable[[Any], dict[str, tuple[str, ...]]]
"""A style, or a function that does for another network what `names` does for U-Nets."""


def read_state_dict(
    path: str | os.PathLike, key: str | None = None, known: Mapping[str, Option] | None = None
) -> dict[str, np.ndarray]:
    """Return the tensors of a torch or safetensors file as NumPy arrays, without executing anything in the file.

    Floating-point tensors are returned as float32, integers and booleans unchanged.

    Args:
        path: the file: ``.safetensors``, or a file that ``torch.save`` wrote.
        key: the entry that holds the state dict, if the file holds several.
        known: the entries that are allowed beside it; by default any.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: the package that reads it is missing. The message states how to install it.
        ValueError: the file is truncated, is of another kind, is a pickle of more than tensors, or would expand beyond
            its own size; or a tensor is not a plain array of real numbers (it is sparse, quantised, complex, without
            data, or has strides that repeat elements). The message names the tensor.
    """
    path = existing_file(path)
    if path.suffix == ".safetensors":
        with installed("safetensors files need", "torch"):
            from safetensors.numpy import load_file
        try:
            arrays = load_file(path)
        except Exception as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
        return {name: _real(array, f"{path}: {name}") for name, array in arrays.items()}
    with installed("torch checkpoints need", "torch"):
        import torch
    _check_records(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is not a checkpoint of tensors alone, or is damaged; it was not read: {reason}"
        ) from error
    state = content.get(key) if key is not None and isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        where = f" under {key!r}" if key is not None else ""
        raise ValueError(f"{path} holds no state dict{where}: expected names with tensors")
    if known is not None:
        check_options(content, known, str(path))
    return {name: _plain(tensor, f"{path}: {name}") for name, tensor in state.items()}


def _check_records(path: pathlib.Path) -> None:
    """Reject a torch archive with compressed records: torch never compresses, and few bytes could expand to many."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(record.file_size for record in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a checkpoint, or is damaged: {error}") from error
    if claimed > path.stat().st_size:
        raise ValueError(
            f"{path}: its records claim {claimed} bytes, but the file has {path.stat().st_size}. torch.save compresses "
            "nothing, so another program made the file: rewrite it with torch.save"
        )


def _real(array: np.ndarray, name: str) -> np.ndarray:
    """Return floats of any size (including bfloat16) as float32."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"{name} is complex ({array.dtype}): expected real numbers")
    return array.astype(np.float32, copy=False) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _plain(tensor: Any, name: str) -> np.ndarray:
    """Return a torch tensor as an array. Raise ValueError unless it is a plain tensor of real numbers."""
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    fault = None
    if tensor.is_nested:
        fault = "is nested: save the tensors that it holds one by one"
    elif tensor.layout != torch.strided:
        fault = f"is sparse ({str(tensor.layout).removeprefix('torch.')}): save tensor.to_dense()"
    elif tensor.is_quantized:
        fault = f"is quantised ({kind}): save tensor.dequantize()"
    elif tensor.is_complex():
        fault = f"is complex ({kind}): expected real numbers"
    elif tensor.device.type != "cpu":
        fault = f"is on the {tensor.device.type} device, without data: save a model whose weights are in memory"
    elif kind not in _NUMBERS:
        fault = f"has dtype {kind}: expected one of {', '.join(_NUMBERS)}"
    elif _repeats(tensor.shape, tensor.stride()):
        fault = f"of shape {tuple(tensor.shape)} repeats elements by its strides {tensor.stride()}: save tensor.clone()"
    if fault is not None:
        raise ValueError(f"{name} {fault}")
    values = tensor.detach().resolve_neg()
    return (values.float() if values.is_floating_point() else values).numpy()


def _repeats(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether two indices of an array may share an element."""
    last = 0
    for stride, count in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride <= last:
            return 0 not in shape
        last += stride * (count - 1)
    return False


def write_state_dict(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Write tensors as ``.safetensors``, or with ``torch.save`` for any other suffix."""
    with installed(f"{path.suffix} files need", "torch"):
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(dict(state), path, metadata={"format": "pt"})
        else:
            import torch

            torch.save({name: torch.from_numpy(value.copy()) for name, value in state.items()}, path)


def names(style: Naming, params: Any) -> dict[str, tuple[str, ...]]:
    """Return the other implementation's tensor name of every parameter, mapped to its path in a member's parameters."""
    if not isinstance(style, Style):
        return style(params)
    return {
        f"{_module_name(style, *path[:-1])}.{'bias' if path[-1] == 'bias' else 'weight'}": path
        for path in flatten_dict(params)
    }


def _module_name(style: Style, module: str, *parts: str) -> str:
    time1, time2 = style.time
    norm, tail = style.tail
    outside = {"head": style.head, "time1": time1, "time2": time2, "tail_norm": norm, "tail": tail}
    if module in outside:
        return outside[module]
    if module == "condition":
        return style.condition
    place, _, rest = module.partition("_")
    kind = place.rstrip("0123456789")
    level = int(place[len(kind) :] or 0)
    if rest == "sample":
        return style.sample(kind, level)
    attention = rest.endswith("_attention")
    index = int(rest.removesuffix("_attention").removeprefix("block"))
    prefix = (style.attention if attention else style.block)(kind, level, index)
    return f"{prefix}.{(style.in_attention if attention else style.in_block)['/'.join(parts)]}"


def convert(tensor: np.ndarray, shape: tuple[int, ...], name: str = "kernel") -> np.ndarray:
    """Return a torch tensor in the layout of a parameter of shape ``shape`` (without the member axis).

    Tables have the same layout in both.
    """
    if name == "table":
        return tensor
    if len(shape) == 4:
        return tensor.transpose(2, 3, 1, 0)
    if len(shape) == 2:  # a dense layer, or a 1x1 convolution that is one
        return tensor.reshape(tensor.shape[:2]).T
    return tensor


def unstack(params: Ensemble, style: Naming) -> Iterator[dict[str, np.ndarray]]:
    """Yield each member's parameters as the other implementation's state dict. This is the inverse of `stack`."""
    table, leaves = names(style, params.params), flatten_dict(params.params)
    for k in range(params.members):
        state = {}
        for name, path in table.items():
            value = np.asarray(leaves[path][k])
            if value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            elif value.ndim == 2 and path[-1] != "table":
                value = value.T
            state[name] = np.ascontiguousarray(value, np.float32)
        yield state


def channels_last(array: Any) -> np.ndarray:
    """Return images or noise of the reference implementations, (..., C, H, W), in ensdiff's layout, (..., H, W, C)."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(array), -3, -1))


def stack(
    states: Sequence[dict[str, np.ndarray]],
    sources: Sequence[str],
    config: Any,
    style: Naming,
    image_shape: tuple[int, int, int],
    code: CodeLike,
    ignored: frozenset[str] = frozenset(),
    schedule: Schedule | None = None,
    space: Space = PIXELS,
    condition: ConditionSpec | None = None,
) -> Ensemble:
    """Return an ensemble of members that were trained elsewhere, with the network ``config``.

    Raises:
        ValueError: a tensor is missing, is not expected, has another shape, or does not hold floating-point numbers
            (the message names it, the file and both shapes); or the code is for another number of members.
    """
    members = len(states)
    code = as_code(code, members)
    if code.members != members:
        raise ValueError(f"the code is for {code.members} members, but {members} checkpoints were given")
    abstract = abstract_params(config, image_shape, 1, condition)
    table = names(style, abstract)
    shapes = {path: leaf.shape[1:] for path, leaf in flatten_dict(abstract).items()}
    leaves: dict[tuple[str, ...], list[np.ndarray]] = {path: [] for path in shapes}
    for state, source in zip(states, sources, strict=True):
        for path, value in member(state, source, config, table, shapes, ignored).items():
            leaves[path].append(value)
    stacked = unflatten_dict({path: jnp.asarray(np.stack(some), jnp.float32) for path, some in leaves.items()})
    return Ensemble(stacked, code, config, schedule or Schedule(), image_shape, space, condition)


def member(
    state: Mapping[str, np.ndarray],
    source: str,
    config: Any,
    table: Mapping[str, tuple[str, ...]],
    shapes: Mapping[tuple[str, ...], tuple[int, ...]],
    ignored: frozenset[str] = frozenset(),
) -> dict[tuple[str, ...], np.ndarray]:
    """Return the parameters of one member by their paths, from its state dict.

    Args:
        state: the state dict.
        source: the file that it is from, for messages.
        config: the network, for messages.
        table: what `names` returns.
        shapes: the shape of each parameter.
        ignored: tensors that may be there, and are not used.

    Raises:
        ValueError: see `stack`.
    """
    extra, missing = sorted(set(state) - set(table) - ignored), sorted(set(table) - set(state))
    if extra or missing:
        raise ValueError(
            f"{source} does not fit {config}: "
            + "; ".join(f"{what} {some[:5]}" for what, some in (("missing", missing), ("extra", extra)) if some)
        )
    found = {}
    for name, path in table.items():
        shape = shapes[path]
        if state[name].dtype.kind != "f":
            raise ValueError(f"{source}: {name} has dtype {state[name].dtype}: expected floating-point weights")
        value = convert(state[name], shape, path[-1]) if _fits(state[name], shape) else None
        if value is None or value.shape != shape:
            raise ValueError(f"{source}: {name} has shape {state[name].shape}, which does not fit {shape} here")
        found[path] = value
    return found


def member_code(members: int) -> Code:
    """Return the code to use when none is given: unit k stands for all data that only member k was trained on."""
    return Code.undivided(1) if members == 1 else Code.from_matrix(np.eye(members, dtype=np.uint8))


def as_code(code: CodeLike, members: int) -> Code:
    """Return a code from a `Code`, a matrix, a file that holds one (see `read_code`), or None."""
    if code is None:
        return member_code(members)
    if isinstance(code, str | os.PathLike):
        return read_code(code)
    return code if isinstance(code, Code) else Code.from_matrix(code)


def _fits(tensor: np.ndarray, shape: tuple[int, ...]) -> bool:
    return tensor.ndim == len(shape) or (len(shape) == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1))
