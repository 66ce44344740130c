"""Ensembles of low-rank adapters from files, and files of adapters for diffusers and kohya's tools.

`ensdiff.interop.lora_files` documents the layouts. Members that were trained elsewhere on one base, each on the units
that a known code gives it, are an ensemble (`load`). Members that were trained here, or an average of those that saw
none of some units, are adapters for a pipeline of diffusers (`save`): the average of parameters

(8) ``theta_w = theta_0 + sum_k w_k (theta_k - theta_0)``

is the base with one adapter.
"""

import hashlib
import math
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from ensdiff.codes import Code
from ensdiff.ensemble.ensemble import Combine, Ensemble, member_weights
from ensdiff.files.checksums import DamagedError, file_sum, read_sealed, write_sealed
from ensdiff.files.reading import whole_number
from ensdiff.interop.lora_average import compress, weighted_sum
from ensdiff.interop.lora_files import DIFFUSERS, Factors, open_adapters, read, write
from ensdiff.interop.lora_keys import few
from ensdiff.interop.lora_members import check_fits, modules_of, padded, stacked_factors, targets_for
from ensdiff.interop.tensors import CodeLike, as_code
from ensdiff.models.adapters import Adapted, adapted
from ensdiff.models.denoiser import name_of
from ensdiff.models.dit import DiTConfig
from ensdiff.models.parameters import mapped, named, nested
from ensdiff.settings import check_value

Layout = Literal["diffusers", "kohya"]
DESCRIPTION = "ensdiff.json"
"""The file that `save` adds so that `load` can restore the code and recognise the members."""


class Saved(NamedTuple):
    """What `save` wrote.

    Args:
        files: the files of adapters: one for each member, or that of the average.
        relative_error: Frobenius norm of what a smaller rank lost of all changes of the base, relative to that of all
            changes; 0 where nothing was lost but the rounding of float32.
    """

    files: list[pathlib.Path]
    relative_error: float = 0.0


def load(
    base: Ensemble,
    files: str | os.PathLike | Sequence[str | os.PathLike],
    code: CodeLike = None,
    *,
    modules: Mapping[str, str] | None = None,
    combine: Combine = "parameters",
) -> Ensemble:
    """Return the ensemble of a frozen base and adapters that were trained on it elsewhere.

    Each file may have its own ranks and alphas, and adapt other modules: smaller factors are padded with zeros, and
    modules that only some files adapt get zeros in the others. Where all adapters have one scale ``alpha / r``, it is
    the ensemble's, and no factor is rounded; otherwise each scale is multiplied into its ``up``.

    Args:
        base: the network that all members were trained on: an ensemble of one member, such as
            ``interop.diffusers.load(["unet"])``. Its schedule, image shape, space and condition become the members'.
            For Stable Diffusion, give the condition with the empty prompt's embedding,
            ``dataclasses.replace(base, condition=pipe.condition)``: otherwise no condition means zeros.
        files: a folder that `save` wrote; or the members' files or their folders, in the order of the code's columns.
            They are read as `read` does.
        code: the code, its (N, K) matrix (1 = trained on), or a file that holds one. By default the one that `save`
            wrote; otherwise unit k stands for member k's own data.
        modules: the name of the torch module of each adapted kernel, by the kernel's path in the base's parameters. By
            default those of diffusers' class for the base.
        combine: what weights of members combine, see `ensdiff.Ensemble`.

    Returns:
        An ensemble of adapted members (`ensdiff.models.adapted`); its ``data_digest`` is None.

    Raises:
        FileNotFoundError, ImportError: see `read`.
        ValueError: the base is no single member; `read` refuses a file; a module or a shape is not the base's; one of
            several files is an average, or a file that `save` wrote was made on another base; or the code is for
            another number of members. The message names the file.
        DamagedError: without ``code``, the files in a folder are not those that `save` wrote.
    """
    if base.members != 1 or isinstance(base.model, Adapted):
        raise ValueError(f"base={base}: expected the ensemble of one member that all adapters were trained on")
    start = mapped(lambda _, leaf: leaf[0], base.params)
    table = modules_of(base.model) if modules is None else dict(modules)
    paths = {name: path for path, name in table.items()}
    if isinstance(files, str | os.PathLike):
        places, found = _written(pathlib.Path(files), checked=code is None)
        code = found if code is None else code
    else:
        places = [pathlib.Path(file) for file in files]
    if not places:
        raise ValueError("no file given: expected the members' files, in the order of the code's columns")
    opened = [open_adapters(place, paths) for place in places]
    code = as_code(code, len(opened))
    if code.members != len(opened):
        raise ValueError(f"the code is for {code.members} members, but {len(opened)} files were given")
    shapes = {path: leaf.shape for path, leaf in named(start).items()}
    for file in opened:
        if file.facts.get("kind") == "average" and len(opened) > 1:
            raise ValueError(f"{file.path} is an average of several members: expected the adapter of one member")
        for name in file.factors:
            check_fits(file, name, shapes[paths[name]])
    every = [one for file in opened for one in file.factors.values()]
    rank = max(one.rank for one in every)
    alpha, scale = next(one.alpha for one in every if one.rank == rank), 1.0
    if len({one.alpha / one.rank for one in every}) == 1 and alpha > 0:
        scale = alpha / rank
    else:
        alpha = float(rank)
    chosen = sorted({name for file in opened for name in file.factors}, key=lambda name: paths[name])
    targets = targets_for([paths[name] for name in chosen], shapes)
    network = adapted(base.model, start, rank=rank, alpha=alpha, targets=targets)
    for file in opened:
        if file.facts.get("base") not in (None, network.digest):
            raise ValueError(
                f"{file.path} was made on another base: the digest of its base's parameters is {file.facts['base']!r}, "
                f"and that of these is {network.digest!r} (it depends on their dtype too)"
            )
    flat: dict[str, Any] = {}
    for name in chosen:
        path = paths[name]
        halves = [padded(file.factors.get(name), shapes[path], rank, scale) for file in opened]
        flat |= {f"{path}/{half}": jnp.asarray(np.stack([own[half] for own in halves])) for half in ("down", "up")}
    return Ensemble(
        nested(flat), code, network.without_base(), base.schedule, base.image_shape, base.space, base.condition,
        base=network.base_params, combine=combine, base_digest=network.digest,
    )  # fmt: skip


def save(
    params: Ensemble,
    folder: str | os.PathLike,
    *,
    removed: Collection[int | str] = (),
    code: Code | None = None,
    members: Iterable[int] | None = None,
    format: Layout | str = "diffusers",
    average: bool = False,
    weights: Any = None,
    rank: int | None = None,
    modules: Mapping[str, str] | None = None,
) -> Saved:
    """Write adapters for other programs: one file for each member that saw none of some units, or their average.

    ``pipe.load_lora_weights("FOLDER/member3")`` opens member 3 in a pipeline of diffusers, and
    ``pipe.load_lora_weights("FOLDER")`` the average. kohya's files are ``member3.safetensors`` and
    ``average.safetensors``. Their headers hold digests of the code and of the base, the removed units and the members.

    diffusers takes alpha for the rank unless it is told otherwise in a way that its versions before 0.34 do not know.
    In its format the scale ``alpha / r`` is therefore multiplied into ``up``, which rounds to float32 unless the scale
    is a power of two; then `load` undoes it. kohya's format holds alpha.

    Args:
        params: an ensemble of adapted members.
        folder: a new or empty folder.
        removed: ids or names of units that no written member has seen.
        code: another code over the same members, such as ``params.code.group_code()``, whose units are removed.
        members: only these members; by default all that saw none of the removed units.
        format: ``"diffusers"`` or ``"kohya"``.
        average: write the average of the members' parameters (8) as one file, multiplied by ``params.scale``. Its rank
            is the number of members times their rank, and nothing is lost, unless ``rank`` says otherwise. If
            ``params.combine`` is ``"predictions"``, this is not what the ensemble itself generates with.
        weights: with ``average``, weights of all K members that sum to 1, or a mask. Members that saw a removed unit
            must have weight 0.
        rank: with ``average``, a smaller rank: each module's change of the base gets its closest one of this rank.
        modules: as in `load`.

    Returns:
        The files and the relative error of a smaller rank.

    Raises:
        FileExistsError: the folder is not empty.
        ImportError: the ``torch`` extra is not installed.
        NoSurvivorError: every member saw a removed unit.
        ValueError: the members are not adapted, or train arrays that have no place in such files; a chosen member saw a
            removed unit; or a parameter of the base has no counterpart in diffusers.
    """
    check_value("format", format, Layout)
    model = params.model
    if not isinstance(model, Adapted):
        raise ValueError(
            f"the members are {name_of(model)}, not adapters: use ensdiff.interop.diffusers.save, or train them with "
            "ensdiff.models.adapted"
        )
    if not average and (weights is not None or rank is not None):
        raise ValueError("weights= and rank= are for an average: pass average=True")
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: expected a positive number")
    ids = params.ids_of(list(removed), code)
    row_K = _row(params, ids, code, members, weights)
    stacked = stacked_factors(params, modules_of(model.base) if modules is None else modules)
    root = pathlib.Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} already holds files; choose a new folder")
    facts: dict[str, Any] = {
        "base": model.digest,
        "code": _digest(params.code),
        "removed": sorted(int(i) for i in ids),
        **({} if code is None else {"removed_code": _digest(code)}),
    }
    prefix = "transformer" if isinstance(model.base, DiTConfig) else "unet"
    chosen = np.flatnonzero(row_K).tolist()
    if average:
        lost = total = 0.0
        out = {}
        for name, own_K in stacked.items():
            mean = weighted_sum(own_K, row_K.tolist())
            out[name] = mean._replace(alpha=mean.alpha * params.scale)
            if rank is not None and rank < out[name].rank:
                found = compress(out[name], rank)
                out[name], lost, total = found.factors, lost + found.lost, total + found.total
        error = math.sqrt(lost / total) if total else 0.0
        one = next(iter(out.values()))
        facts |= {"kind": "average", "weights": {str(k): float(row_K[k]) for k in chosen}, "relative_error": error}
        place = root / (DIFFUSERS if format == "diffusers" else "average.safetensors")
        write(place, out, format, {**facts, "alpha": one.alpha, "rank": one.rank}, prefix)
        return Saved([place], error)
    places = [root / (f"member{k}/{DIFFUSERS}" if format == "diffusers" else f"member{k}.safetensors") for k in chosen]
    facts |= {"kind": "member", "alpha": model.alpha, "rank": model.rank}
    for k, place in zip(chosen, places, strict=True):
        write(place, {name: own_K[k] for name, own_K in stacked.items()}, format, {**facts, "member": k}, prefix)
    sums = {place.relative_to(root).as_posix(): file_sum(place) for place in places}
    kept = params.code if len(chosen) == params.members else params.code.only(chosen)
    write_sealed(root / DESCRIPTION, {"code": kept.to_dict(), "members": chosen, "sums": sums})
    return Saved(places)


def _digest(code: Code) -> str:
    """Return the SHA-256 of a code's matrix, eight entries per byte, as hexadecimal digits."""
    state = hashlib.sha256(f"{code.units} {code.members} ".encode())
    for _, words in code.chunks():
        state.update(np.packbits(words, axis=1).tobytes())
    return state.hexdigest()


def _written(root: pathlib.Path, checked: bool) -> tuple[list[pathlib.Path], Code | None]:
    """Return the files of a folder that `save` wrote, and their code if they are to be checked."""
    found = {}
    for path in root.glob("member*"):
        k = whole_number(path.name.removeprefix("member").removesuffix(".safetensors"))
        if k is not None:
            found[k] = path / DIFFUSERS if path.is_dir() else path
    if not found:
        raise FileNotFoundError(
            f"{root} holds no members such as member0/{DIFFUSERS} or member0.safetensors: pass a list of the members' "
            "files, in the order of the code's columns"
        )
    places = [found[k] for k in sorted(found)]
    if not checked or not (root / DESCRIPTION).exists():
        return places, None
    values = read_sealed(root / DESCRIPTION)
    sums = {place.relative_to(root).as_posix(): file_sum(place) for place in places if place.is_file()}
    stated = values.get("sums")
    if sums != stated:
        wrong = sorted(name for name in {*sums, *(stated or {})} if not stated or sums.get(name) != stated.get(name))
        raise DamagedError(
            f"{root / DESCRIPTION} describes other files: {few(wrong)} differ, or are missing. Its code may be wrong "
            "for these. Restore them, or pass code= for the members as they are"
        )
    return places, Code.from_dict(values["code"])


def _row(params: Ensemble, removed: Collection[int], code: Code | None, members: Any, weights: Any) -> np.ndarray:
    """Return the weights of the members to write, (K,), which sum to 1."""
    if weights is not None and members is not None:
        raise ValueError("members= and weights= both choose members: pass one of them")
    asked = params.candidate_code(code)
    survives_K = asked.ablate([list(removed)])[0] > 0 if len(removed) else np.ones(params.members, bool)
    chosen_K = survives_K
    if members is not None:
        numbers = [int(k) for k in members]
        if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(params.members)):
            raise ValueError(f"members={numbers}: expected distinct member numbers, 0 .. {params.members - 1}")
        chosen_K = np.isin(np.arange(params.members), numbers)
    row_K = member_weights(chosen_K if weights is None else weights, params.members)
    if row_K.ndim != 1:
        raise ValueError(f"weights have shape {row_K.shape}: expected one row, ({params.members},)")
    saw = np.flatnonzero((row_K != 0) & ~survives_K)
    if len(saw):
        raise ValueError(f"members {few(map(str, saw))} saw units that are removed: leave them out")
    return row_K


__all__ = ["Factors", "Saved", "load", "modules_of", "read", "save"]
