"""torch state dicts to stacked parameters: reading them safely, and moving each tensor to its place.

A *style* says what the other implementation calls the parts of the U-Net; `names` lists, for a configuration, every
tensor it must hold. Convolutions are (out, in, h, w) there and (h, w, in, out) here, dense layers (out, in) there and
(in, out) here.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensdiff.codes import Code
from ensdiff.ensemble import Ensemble, abstract_params
from ensdiff.interop.matrices import read_code
from ensdiff.schedule import Schedule
from ensdiff.unet import UNetConfig

CodeLike = Code | np.ndarray | str | os.PathLike | None


class Style(NamedTuple):
    """Names of the parts; blocks, samplers and attention are functions of ('down'|'middle'|'up', level, index)."""

    head: str
    time: tuple[str, str]
    tail: tuple[str, str]
    block: Any
    sample: Any
    attention: Any
    in_block: Mapping[str, str]
    in_attention: Mapping[str, str]


def read_state_dict(path: str | os.PathLike, key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a torch or safetensors file as NumPy arrays; nothing in the file is executed.

    Args:
        path: the file; ``.safetensors``, else what ``torch.save`` wrote.
        key: the entry that holds the state dict, where the file holds more.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the package that reads it is missing; says how to install it.
        ValueError: truncated, foreign, or a pickle of more than tensors.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError as error:
            raise ImportError("safetensors files need: pip install 'ensdiff[torch]'") from error
        try:
            return dict(load_file(path))
        except Exception as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        import torch
    except ImportError as error:
        raise ImportError("torch checkpoints need: pip install 'ensdiff[torch]'") from error
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
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def write_state_dict(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Write tensors as ``.safetensors``, or else as ``torch.save`` does."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file
        else:
            import torch
    except ImportError as error:
        raise ImportError(f"{path.suffix} files need: pip install 'ensdiff[torch]'") from error
    if path.suffix == ".safetensors":
        save_file(dict(state), path, metadata={"format": "pt"})
    else:
        torch.save({name: torch.from_numpy(value.copy()) for name, value in state.items()}, path)


def names(config: UNetConfig, style: Style, params: Any) -> dict[str, tuple[str, ...]]:
    """The other implementation's tensor name of every parameter: name -> path in one member's parameters."""
    table: dict[str, tuple[str, ...]] = {style.head: ("head",), style.time[0]: ("time1",), style.time[1]: ("time2",)}
    table |= {style.tail[0]: ("tail_norm",), style.tail[1]: ("tail",)}
    for module in params:
        place, _, rest = module.partition("_")
        kind = "middle" if place == "middle" else place.rstrip("0123456789")
        if kind not in ("down", "middle", "up"):
            continue
        level = int(place[len(kind) :] or 0)
        if rest == "sample":
            table[style.sample(kind, level)] = (module,)
            continue
        attention = rest.endswith("_attention")
        index = int(rest.removesuffix("_attention").removeprefix("block"))
        prefix = (style.attention if attention else style.block)(kind, level, index)
        inner = style.in_attention if attention else style.in_block
        for part in params[module]:
            table[f"{prefix}.{inner[part]}"] = (module, part)
    out: dict[str, tuple[str, ...]] = {}
    for name, path in table.items():
        leaves = params
        for part in path:
            leaves = leaves[part]
        for leaf in leaves:
            out[f"{name}.{'bias' if leaf == 'bias' else 'weight'}"] = (*path, leaf)
    return out


def convert(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One torch tensor in the layout of a parameter of this shape (without the member axis)."""
    if len(shape) == 4:
        return tensor.transpose(2, 3, 1, 0)
    if len(shape) == 2:  # a dense layer, or a 1x1 convolution that is one
        return tensor.reshape(tensor.shape[:2]).T
    return tensor


def unstack(params: Ensemble, style: Style) -> Iterator[dict[str, np.ndarray]]:
    """Each member's parameters as the other implementation's state dict: the reverse of `stack`."""
    table = names(params.model, style, params.params)
    for k in range(params.members):
        state = {}
        for name, path in table.items():
            value = np.asarray(_leaf(params.params, path)[k])
            if value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            elif value.ndim == 2:
                value = value.T
            state[name] = np.ascontiguousarray(value, np.float32)
        yield state


def channels_last(array: Any) -> np.ndarray:
    """Images or noise of the references, (..., C, H, W), in ensdiff's layout, (..., H, W, C)."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(array), -3, -1))


def stack(
    states: Sequence[dict[str, np.ndarray]],
    sources: Sequence[str],
    config: UNetConfig,
    style: Style,
    image_shape: tuple[int, int, int],
    code: CodeLike,
    ignored: frozenset[str] = frozenset(),
    schedule: Schedule | None = None,
) -> Ensemble:
    """An ensemble of members trained elsewhere.

    Raises:
        ValueError: a tensor is missing, extra or of another shape (names it, the file and both shapes); the code is
            for another number of members.
    """
    members = len(states)
    code = as_code(code, members)
    if code.members != members:
        raise ValueError(f"the code is for {code.members} members, {members} checkpoints were given")
    abstract = abstract_params(config, image_shape, 1)
    table = names(config, style, abstract)
    leaves: dict[tuple[str, ...], list[np.ndarray]] = {path: [] for path in table.values()}
    for state, source in zip(states, sources, strict=True):
        extra, missing = sorted(set(state) - set(table) - ignored), sorted(set(table) - set(state))
        if extra or missing:
            raise ValueError(
                f"{source} does not fit {config}: "
                + "; ".join(f"{what} {some[:5]}" for what, some in (("missing", missing), ("extra", extra)) if some)
            )
        for name, path in table.items():
            shape = _leaf(abstract, path).shape[1:]
            value = convert(state[name], shape) if _fits(state[name], shape) else None
            if value is None or value.shape != shape:
                raise ValueError(f"{source}: {name} has shape {state[name].shape}, which does not fit {shape} here")
            leaves[path].append(value)
    stacked = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(np.stack(leaves[tuple(key.key for key in path)]), jnp.float32), abstract
    )
    return Ensemble(stacked, code, config, schedule or Schedule(), image_shape)


def member_code(members: int) -> Code:
    """The code where nothing is known of the training: unit k stands for all that member k alone was trained on."""
    return Code.undivided(1) if members == 1 else Code.from_matrix(np.eye(members, dtype=np.uint8))


def as_code(code: CodeLike, members: int) -> Code:
    """The code of a caller who gave a `Code`, a matrix, a file of one (see `read_code`), or nothing."""
    if code is None:
        return member_code(members)
    if isinstance(code, str | os.PathLike):
        return read_code(code)
    return code if isinstance(code, Code) else Code.from_matrix(code)


def _fits(tensor: np.ndarray, shape: tuple[int, ...]) -> bool:
    return tensor.ndim == len(shape) or (len(shape) == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1))


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree
