"""Where diffusers keeps the weights of a network: one file or several with an index, of one precision or another."""

import pathlib
import re
from collections.abc import Sequence

import numpy as np

from ensdiff.files.reading import read_object
from ensdiff.interop.tensors import read_state_dict

STEM = "diffusion_pytorch_model"
FILES = (f"{STEM}.safetensors", f"{STEM}.bin", "pytorch_model.bin", "model.safetensors")
INDEX = f"{STEM}.safetensors.index.json"
"""The file that says which tensor is in which of several files of weights."""


def find_weights(folders: Sequence[pathlib.Path], variant: str | None = None) -> pathlib.Path:
    """Return the file of weights, or the index of several, in the first folder that has one.

    Args:
        folders: where to look.
        variant: what diffusers calls another form of the same weights, such as ``"fp16"``. By default that without a
            name, or else the only one that is there.

    Raises:
        FileNotFoundError: no folder holds weights of this variant.
        ValueError: there are several variants, and none was asked for.

    >>> find_weights([pathlib.Path("models")])
    Traceback (most recent call last):
    FileNotFoundError: models holds none of diffusion_pytorch_model.safetensors, ...
    """
    if variant is None:
        names: tuple[str, ...] = (*FILES, INDEX)
    else:
        names = (f"{STEM}.{variant}.safetensors", f"{STEM}.safetensors.index.{variant}.json")
    for folder in folders:
        found = next((folder / name for name in names if (folder / name).exists()), None)
        if found is not None:
            return found
    for folder in folders if variant is None else ():
        variants = {}
        for path in sorted(folder.glob(f"{STEM}.*")):
            match = re.fullmatch(rf"{STEM}\.(?:([\w-]+)\.safetensors|safetensors\.index\.([\w-]+)\.json)", path.name)
            if match and not re.search(r"-\d+-of-\d+$", match[1] or ""):
                variants[match[1] or match[2]] = path
        if len(variants) > 1:
            raise ValueError(f"{folder} holds the variants {', '.join(variants)}: pass variant=, one of these")
        for path in variants.values():
            return path
    raise FileNotFoundError(f"{folders[0]} holds none of {', '.join(names)}")


def read_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file of weights, or of all files that an index lists, as `read_state_dict` does.

    Raises:
        FileNotFoundError, ImportError: see `read_state_dict`.
        ValueError: the same, or the index and its files do not hold the same tensors.
    """
    if path.suffix != ".json":
        return read_state_dict(path)
    listed = read_object(path).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{path}: expected a weight_map, from each tensor to its file")
    state: dict[str, np.ndarray] = {}
    for name in sorted(set(listed.values())):
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(f"{path}: the file {name[:80]!r} is not a safetensors file beside it")
        part = read_state_dict(path.with_name(name))
        wrong = sorted({tensor for tensor, file in listed.items() if file == name} ^ set(part))
        if wrong:
            raise ValueError(f"{path} and {name} disagree about the tensors {', '.join(wrong[:5])}")
        state |= part
    return state
