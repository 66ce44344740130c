"""Files of low-rank adapters in the layouts of diffusers, peft and kohya: reading, checking and writing them.

A file holds two factors per module of the network, in torch's layouts. ``lora_A`` (also called ``down``) is (r, C) or
(r, C, h, w), and ``lora_B`` (``up``) is (D, r) or (D, r, 1, 1). The module's weight, (D, C) or (D, C, h, w), gets

(1) ``delta = (alpha / r) * up @ down``.

The names of the tensors are those of the module, with what the writer adds:

- diffusers: ``unet.MODULE.lora_A.weight`` and ``lora_B.weight``; older versions wrote ``lora.down`` and ``lora.up``,
  ``lora_linear_layer.down`` and ``up``, or ``MODULE.processor.to_q_lora.down``. alpha is in the header, else it is r.
- peft: ``base_model.model.MODULE.lora_A.weight``; alpha is in ``adapter_config.json`` beside the file.
- kohya: ``lora_unet_MODULE.lora_down.weight`` and ``lora_up.weight`` with underscores for the dots of the module's
  name, and ``lora_unet_MODULE.alpha``.
"""

import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ensdiff.files.reading import existing_file, installed, open_regular, parse_json, printable, read_object
from ensdiff.interop.lora_config import alpha_rule
from ensdiff.interop.lora_keys import TEXT, few, known_modules, split, underscored
from ensdiff.interop.tensors import read_state_dict

DIFFUSERS, PEFT_WEIGHTS, PEFT_CONFIG = (
    "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json",
)  # fmt: skip
HEADER = 2**24
"""Size in bytes of the largest header that is read."""
RANK = 2**14
"""The largest rank that is read."""
THEIRS, OURS = "lora_adapter_metadata", "ensdiff"
"""Entries of a file's header that diffusers and ensdiff write."""


class Factors(NamedTuple):
    """The adapter of one module, in torch's layouts.

    Args:
        down: ``lora_A``, float32: (r, C) for a dense layer and (r, C, h, w) for a convolution.
        up: ``lora_B``, float32: (D, r) or (D, r, 1, 1).
        alpha: the scale of (1) is ``alpha / r``.

    >>> factors = Factors(np.ones((2, 3), np.float32), np.ones((4, 2), np.float32), alpha=1.0)
    >>> factors.rank, factors.delta().shape
    (2, (4, 3))
    """

    down: Float[np.ndarray, "r C *kernel"]
    up: Float[np.ndarray, "D r *one"]
    alpha: float

    @property
    def rank(self) -> int:
        """The number r of columns of ``up``."""
        return self.down.shape[0]

    def delta(self) -> Float[np.ndarray, "D C *kernel"]:
        """Return what (1) adds to the module's weight, float32; products and sums are float64."""
        up = self.up.reshape(self.up.shape[:2]).astype(np.float64)
        total = up @ self.down.reshape(self.rank, -1).astype(np.float64) * (self.alpha / self.rank)
        return total.reshape(len(up), *self.down.shape[1:]).astype(np.float32)


class AdapterFile(NamedTuple):
    """What `open_adapters` found in a file.

    Args:
        path: the file.
        factors: the adapters by the name of their module.
        facts: what ensdiff wrote into its header; empty for files of other programs.
    """

    path: pathlib.Path
    factors: dict[str, Factors]
    facts: dict[str, Any]


def read(path: str | os.PathLike, modules: Collection[str] | None = None) -> dict[str, Factors]:
    """Return the low-rank adapters in a file, by the name of the torch module that they belong to.

    Args:
        path: a ``.safetensors`` file in the layout of diffusers, peft or kohya, or a folder with one: with
            ``pytorch_lora_weights.safetensors``, ``adapter_model.safetensors`` or a single ``.safetensors`` file.
        modules: names of the network's modules, such as ``"mid_block.attentions.0.to_q"``. They are needed to find the
            dots in kohya's names, which otherwise stay as they are in the file, with underscores. Adapters of other
            modules are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the ``torch`` extra is not installed.
        ValueError: the file is damaged, is no safetensors file, holds something other than pairs of factors of the
            network's modules, such as parts of a text encoder or DoRA, or lacks one half of a pair; a factor has a
            wrong shape or is not finite; or alpha is not stated, or stated twice. The message names the file and key.
    """
    return open_adapters(path, modules).factors


def open_adapters(path: str | os.PathLike, modules: Collection[str] | None = None) -> AdapterFile:
    """Read a file as `read` does, with what ensdiff wrote into its header."""
    file = find(path)
    header = _header(file)
    state = read_state_dict(file)
    halves: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
    of_peft = False
    known = None if modules is None else known_modules(modules)
    for key, value in state.items():
        module, part = split(key, str(file))
        if known is not None:
            if module not in known:
                raise ValueError(
                    f"{file}: {printable(key)} belongs to {printable(module)}, which the network does not have: the "
                    f"file was made for another base. Its modules are {few(modules or ())}"
                )
            module = known[module]
        of_peft |= key.startswith("base_model.model.")
        found = halves.setdefault(module, {})
        if part in found:
            raise ValueError(f"{file}: {printable(found[part][0])} and {printable(key)} are the same factor twice")
        found[part] = key, value
    if not halves:
        raise ValueError(f"{file} holds no adapter: expected pairs of factors such as unet.MODULE.lora_A.weight")
    stated = _alphas(file, header, of_peft)
    factors = {module: _pair(file, module, found, stated) for module, found in sorted(halves.items())}
    return AdapterFile(file, *_own(file, factors, header))


def find(path: str | os.PathLike) -> pathlib.Path:
    """Return the file of adapters at a path, which is that file or its folder."""
    path = pathlib.Path(path)
    if path.is_dir():
        names = sorted(some.name for some in path.glob("*.safetensors"))
        wanted = next((name for name in (DIFFUSERS, PEFT_WEIGHTS) if name in names), None)
        if wanted is None and len(names) != 1:
            raise FileNotFoundError(
                f"{path} holds {few(names) or 'no .safetensors file'}: expected {DIFFUSERS}, {PEFT_WEIGHTS} or one "
                ".safetensors file. Pass the file"
            )
        path = path / (wanted or names[0])
    path = existing_file(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is a {path.suffix or 'nameless'} file: expected adapters in a .safetensors file. Pickled files "
            "are not read, because a pickle is a program: convert it with safetensors.torch.save_file(torch.load(...))"
        )
    return path


def _header(path: pathlib.Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file, whose size is checked before it is read."""
    size = path.stat().st_size
    with open_regular(path) as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, HEADER):
            raise ValueError(
                f"{path} is not a readable safetensors file: its first 8 bytes state a header of {length} bytes; "
                f"expected at most {HEADER}, and less than the file's {size}"
            )
        try:
            values = parse_json(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is not a readable safetensors file: in its header {error}") from error
    texts = values.get("__metadata__", {}) if isinstance(values, dict) else None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{path} is not a readable safetensors file: expected texts in its header's __metadata__")
    return texts


def _pair(
    path: pathlib.Path,
    module: str,
    found: Mapping[str, tuple[str, np.ndarray]],
    stated: Callable[[str, int], float | None],
) -> Factors:
    """Return the checked factors of a module."""
    for half, other in (("down", "up"), ("up", "down")):
        if half not in found:
            key = found[other][0] if other in found else found["alpha"][0]
            raise ValueError(
                f"{path}: {printable(key)} is there, but {printable(module)} has no {half} factor "
                f"({'lora_A or lora_down' if half == 'down' else 'lora_B or lora_up'}): the file is incomplete"
            )
        key, value = found[half]
        if value.dtype.kind != "f":
            raise ValueError(f"{path}: {printable(key)} has dtype {value.dtype}: expected floating-point factors")
        if not np.isfinite(value).all():
            raise ValueError(f"{path}: {printable(key)} holds NaN or infinity: expected finite numbers")
    down, up = found["down"][1], found["up"][1]
    fits = down.ndim == up.ndim and up.ndim in (2, 4) and up.shape[2:] in ((), (1, 1)) and down.shape[0] == up.shape[1]
    if not fits or 0 in down.shape or 0 in up.shape:
        raise ValueError(
            f"{path}: the factors of {printable(module)} have shapes {down.shape} and {up.shape}: expected (r, C) and "
            "(D, r), or (r, C, h, w) and (D, r, 1, 1), with equal r"
        )
    rank = down.shape[0]
    if rank > RANK:
        raise ValueError(f"{path}: {printable(module)} has rank {rank}: expected at most {RANK}")
    entry = found.get("alpha")
    alpha, rule = None if entry is None else _number(path, *entry), stated(module, rank)
    if alpha is not None and rule is not None and not math.isclose(alpha, rule, rel_tol=1e-6):
        raise ValueError(
            f"{path}: alpha of {printable(module)} is {alpha:g} in its own entry and {rule:g} in the configuration: "
            "expected one value"
        )
    alpha = next((value for value in (alpha, rule) if value is not None), float(rank))
    if alpha == 0 or not math.isfinite(alpha):
        raise ValueError(
            f"{path}: alpha of {printable(module)} is {alpha:g}: expected a finite number other than 0, which some "
            "programs take for 0 and others for the rank"
        )
    return Factors(np.asarray(down, np.float32), np.asarray(up, np.float32), alpha)


def _number(path: pathlib.Path, key: str, value: np.ndarray) -> float:
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise ValueError(f"{path}: {printable(key)} has shape {value.shape} and dtype {value.dtype}: expected a number")
    return float(value.reshape(()))


def _alphas(path: pathlib.Path, header: Mapping[str, str], of_peft: bool) -> Callable[[str, int], float | None]:
    """Return the function that tells a module's alpha by the configuration with the file, or None without one."""
    place = path.with_name(PEFT_CONFIG)
    if THEIRS in header:
        source = f"{path}: {THEIRS}"
        try:
            config = parse_json(header[THEIRS].encode(), finite=True)
        except ValueError as error:
            raise ValueError(f"{source} is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{source} holds a {type(config).__name__}: expected an object with named values")
        if any(name.startswith(TEXT) for name in config):
            raise ValueError(f"{source} configures a text encoder, whose adapters are not supported")
        config = {name.removeprefix("unet.").removeprefix("transformer."): value for name, value in config.items()}
    elif of_peft or (path.name == PEFT_WEIGHTS and place.exists()):
        if not place.exists():
            raise ValueError(
                f"{path}: peft keeps alpha in {PEFT_CONFIG}, which is missing beside the file: copy it there"
            )
        source, config = str(place), read_object(place, finite=True)
    else:
        return lambda module, rank: None
    return alpha_rule(config, source)


def _own(
    path: pathlib.Path, factors: dict[str, Factors], header: Mapping[str, str]
) -> tuple[dict[str, Factors], dict[str, Any]]:
    """Return the factors as they were before `write` folded alpha into them, and what ensdiff wrote about them.

    Folding is undone only where this changes no product: by powers of two.
    """
    if OURS not in header:
        return factors, {}
    try:
        facts = parse_json(header[OURS].encode(), finite=True)
    except ValueError as error:
        raise ValueError(f"{path}: {OURS} in its header is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: {OURS} in its header holds a {type(facts).__name__}: expected an object")
    alpha = facts.get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha == 0:
        return factors, facts
    for module, (down, up, stated) in factors.items():
        scale = alpha / down.shape[0]
        if stated == down.shape[0] and scale > 0 and math.frexp(scale)[0] == 0.5:
            with np.errstate(over="ignore"):
                original = (up.astype(np.float64) / scale).astype(np.float32)
            if np.array_equal(original.astype(np.float64) * scale, up):
                factors[module] = Factors(down, original, float(alpha))
        elif np.float32(alpha) == np.float32(stated):
            factors[module] = Factors(down, up, float(alpha))
    return factors, facts


def write(
    path: pathlib.Path, factors: Mapping[str, Factors], layout: str, facts: Mapping[str, Any], prefix: str = "unet"
) -> None:
    """Write adapters in the layout ``"diffusers"`` or ``"kohya"``, with facts about them in the header.

    diffusers takes alpha for the rank unless the header says something else, which versions before 0.34 do not read.
    So alpha is folded into ``up`` there, which rounds unless alpha / r is a power of two.
    """
    state: dict[str, np.ndarray] = {}
    for module, (down, up, alpha) in factors.items():
        if layout == "kohya":
            name = f"lora_{prefix}_{underscored(module)}"
            halves = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            halves[f"{name}.alpha"] = np.array(alpha, np.float32)
        else:
            scale = alpha / down.shape[0]
            folded = up if scale == 1 else (up.astype(np.float64) * scale).astype(np.float32)
            halves = {f"{prefix}.{module}.lora_A.weight": down, f"{prefix}.{module}.lora_B.weight": folded}
        state |= {name: np.ascontiguousarray(value, np.float32) for name, value in halves.items()}
    with installed(".safetensors files need", "torch"):
        from safetensors.numpy import save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"format": "pt", OURS: json.dumps(facts, sort_keys=True)})
