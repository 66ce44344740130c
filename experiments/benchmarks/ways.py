"""The ways in which the PyTorch side runs an ensemble. This module does not import PyTorch."""

import dataclasses
import shutil
from typing import Any

JOBS = ("train", "factual", "landscape", "jacobian", "loss")


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to run the members in PyTorch.

    Args:
        name: its name in tables.
        channels_last: whether images and kernels are channels last in memory.
        bfloat16: whether layers compute in bfloat16 (autocast); parameters and the optimiser stay float32.
        compiled: whether one member's network is compiled by `torch.compile`.
        graph: whether the whole job is recorded as one CUDA graph and replayed.
        stacked: whether parameters are stacked and `torch.func.vmap` runs all members at once; otherwise a Python loop
            runs one after another. The Jacobian batches its tangents instead.
        by_member: whether the landscape passes to each member all the states that keep it at once; otherwise it
            computes one unit after another.
        jobs: the jobs that have this way.
    """

    name: str
    channels_last: bool = False
    bfloat16: bool = False
    compiled: bool = False
    graph: bool = False
    stacked: bool = False
    by_member: bool = False
    jobs: tuple[str, ...] = JOBS


def _by_member(name: str, **options: bool) -> Way:
    return Way(f"{name}+by_member", by_member=True, jobs=("landscape",), **options)


_FAST: Any = {"channels_last": True, "bfloat16": True}
_COMPILED = ("train", "factual", "landscape", "loss")  # torch.compile has no forward-mode derivatives
_STACKED = ("train", "factual", "jacobian", "loss")

CPU = (
    Way("eager"),
    _by_member("eager"),
    Way("channels_last", channels_last=True),
    _by_member("channels_last", channels_last=True),
    Way("compile", channels_last=True, compiled=True, jobs=_COMPILED),
    Way("vmap", stacked=True, jobs=_STACKED),
)
CUDA = (
    Way("bf16+graph", **_FAST, graph=True, jobs=("train", "factual", "loss")),
    Way("bf16+by_member+graph", **_FAST, graph=True, by_member=True, jobs=("landscape",)),
    Way("bf16", **_FAST),
    Way("eager"),
    Way("vmap+bf16", bfloat16=True, stacked=True, jobs=_STACKED),
    Way("bf16+compile+graph", **_FAST, compiled=True, graph=True, by_member=True, jobs=_COMPILED),
    _by_member("bf16", **_FAST),
    Way("channels_last", channels_last=True),
    Way("vmap", stacked=True, jobs=_STACKED),
    Way("bf16+compile", **_FAST, compiled=True, by_member=True, jobs=_COMPILED),
)
"""In the order in which they are tried: if time runs out, the last ones are missing."""

BY_DEFAULT = {"cpu": ("eager", "channels_last"), "cuda": tuple(way.name for way in CUDA)}
"""The ways without a choice of one's own. On CPUs, `torch.compile` and vmap take minutes to start or to run."""


def choose(platform: str, job: str, asked: list[str] | None = None) -> list[Way]:
    """Return the ways to time a job.

    Args:
        platform: ``"cpu"`` or ``"cuda"``.
        job: the job.
        asked: names of ways; a name includes its variants ("eager" also means "eager+by_member"). None or an empty
            list means those that `BY_DEFAULT` lists.

    Raises:
        ValueError: a name is unknown.

    >>> [way.name for way in choose("cpu", "landscape", ["eager"])]
    ['eager', 'eager+by_member']
    """
    every = {"cpu": CPU, "cuda": CUDA}[platform]
    names = tuple(asked or BY_DEFAULT[platform])
    known = [way.name for way in every]
    for name in names:
        if name not in known:
            raise ValueError(f"--ways={','.join(names)}: {name!r} is not one of {', '.join(known)}")
    return [way for way in every if job in way.jobs and any(way.name in (n, f"{n}+by_member") for n in names)]


def missing_compiler(platform: str) -> str:
    """Return why `torch.compile` cannot work here; empty if it may work."""
    if platform == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "no C++ compiler was found"
    return ""
