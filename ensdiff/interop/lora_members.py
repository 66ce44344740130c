"""Adapters of members between torch's layouts and those of `ensdiff.models.adapted`, and the names of their modules.

A dense kernel is (C, D) here and (D, C) in torch, a convolution's (h, w, C, D) and (D, C, h, w). ``down`` is (C, r) or
(h, w, C, r) here, and ``up`` (r, D).
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.interop.lora_files import AdapterFile, Factors
from ensdiff.interop.lora_keys import few
from ensdiff.interop.networks import names_of
from ensdiff.models.dit import DiTConfig
from ensdiff.models.factors import factors_of


def modules_of(model: Any) -> dict[str, str]:
    """Return the torch module of each kernel that adapters in files can change, by the kernel's path.

    Raises:
        ValueError: the network has no counterpart in diffusers.

    >>> model = ensdiff.UNetConfig(channels=4, multipliers=(1,), norm_groups=2)
    >>> modules_of(model)["middle_block0_attention/out/kernel"]
    'mid_block.attentions.0.to_out.0'
    """
    return dict(_modules_of(model))


@functools.lru_cache(maxsize=16)
def _modules_of(model: Any) -> Mapping[str, str]:
    table = names_of(model)
    if not isinstance(model, DiTConfig):
        return table
    shared = model.embedding == "shared"  # one array here, and one per block there
    return {p: n for p, n in table.items() if p != "patches/kernel" and not (shared and p.startswith("embedding"))}


def targets_for(chosen: Collection[str], paths: Iterable[str]) -> str:
    """Return a regular expression that is found in exactly these of all paths, a short one if there is one.

    >>> targets_for(["a/q/kernel", "b/q/kernel"], ["a/q/kernel", "b/q/kernel", "a/v/kernel"])
    '(^|/)(q)/kernel$'
    """
    wanted, paths = set(chosen), list(paths)
    kinds = sorted({re.escape(path.split("/")[-2]) for path in wanted if "/" in path})
    for short in ("kernel$", f"(^|/)({'|'.join(kinds)})/kernel$"):
        if {path for path in paths if re.search(short, path)} == wanted:
            return short
    return f"^({'|'.join(map(re.escape, sorted(wanted)))})$"


def check_fits(file: AdapterFile, module: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the adapter of a module changes a kernel of this shape, (C, D) or (h, w, C, D)."""
    factors = file.factors[module]
    theirs = (len(factors.up), *factors.down.shape[1:])
    ours = (shape[-1], shape[-2], *shape[:-2])
    if theirs[:2] != ours[:2] or (theirs[2:] or (1, 1)) != (ours[2:] or (1, 1)):
        raise ValueError(
            f"{file.path}: the adapter of {module} is for a weight of shape {theirs}, and the base's is {ours}: it was "
            "trained on another base"
        )


def padded(factors: Factors | None, shape: tuple[int, ...], rank: int, scale: float) -> dict[str, np.ndarray]:
    """Return the factors of a kernel, for a rank and a scale ``alpha / r``; zeros where there is no adapter."""
    down, up = np.zeros((*shape[:-1], rank), np.float32), np.zeros((rank, shape[-1]), np.float32)
    if factors is not None:
        own = factors.alpha / factors.rank / scale
        theirs = factors.down.transpose(*range(2, factors.down.ndim), 1, 0)
        down[..., : factors.rank] = theirs.reshape(*shape[:-1], factors.rank)
        half = factors.up.reshape(len(factors.up), factors.rank).T
        up[: factors.rank] = half if own == 1 else half.astype(np.float64) * own
    return {"down": down, "up": up}


def check_modules(paths: Iterable[str], modules: Mapping[str, str]) -> None:
    """Raise ValueError unless each of some adapted kernels belongs to a torch module."""
    unnamed = sorted(set(paths) - set(modules))
    if unnamed:
        raise ValueError(f"{few(unnamed)} have no counterpart in diffusers: train with targets= that leave them out")


def stacked_factors(params: Ensemble, modules: Mapping[str, str]) -> dict[str, list[Factors]]:
    """Return the factors of all members in torch's layouts, by module.

    Raises:
        ValueError: members train arrays that have no place in files of adapters, or kernels of no module.
    """
    flat, out = factors_of(params.params), {}
    trained = sorted(path for path, parts in flat.items() if "delta" in parts)
    if trained:
        raise ValueError(
            f"{few(trained)} are trained as a whole (train_also), which has no place in files of low-rank adapters: "
            "use ensdiff.interop.diffusers.save, which writes whole networks"
        )
    check_modules(flat, modules)
    for path, parts in sorted(flat.items()):
        down, up = np.asarray(parts["down"]), np.asarray(parts["up"]).swapaxes(1, 2)
        if down.ndim == 5:
            down, up = down.transpose(0, 4, 3, 1, 2), up[..., None, None]
        else:
            down = down.swapaxes(1, 2)
        out[modules[path]] = [Factors(a, b, params.model.alpha) for a, b in zip(down, up, strict=True)]
    return out
