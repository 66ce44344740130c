"""Prompts on the command line: --prompt, and the text encoder of the run's captions, --text."""

import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from . import building, runs
from .conditions import Asked, asked


def asked_for(params: Any, count: int, fixed: bool = True, default: str | None = None) -> Asked:
    """Return the conditions of samples that --prompt or --cond ask for (`experiments.conditions.asked`).

    Args:
        params: the ensemble.
        count: number of samples.
        fixed: whether the number was given.
        default: the value of --cond if neither is given.

    Raises:
        ValueError: both are given, --text without --prompt, or what is given does not fit the members.
    """
    f = flags.FLAGS
    if f.prompt and f.cond is not None:
        raise ValueError(f"--prompt={f.prompt[0]} and --cond={f.cond} exclude each other: leave one of them out")
    if f.prompt:
        return prompted(params, f.prompt, count, fixed)
    if f.text:
        raise ValueError(f"--text={f.text} is for --prompt: leave it out, or give a prompt")
    return asked(params.condition, default if f.cond is None else f.cond, count, fixed)


@functools.lru_cache(maxsize=1)
def open_encoder(path: str | pathlib.Path) -> Any:
    """Open the text encoder of a folder."""
    from ensdiff.interop import text_encoder

    return text_encoder(path)


def prompted(params: Any, prompts: Sequence[str], count: int, fixed: bool = True) -> Asked:
    """Return the conditions of samples, embedded from prompts by the encoder of the training captions.

    Args:
        params: the ensemble.
        prompts: one per sample, or one for all.
        count: number of samples.
        fixed: whether the number was given; otherwise there are as many samples as prompts.

    Raises:
        ValueError: the members are not conditioned on embeddings of text, the encoder is another one or not known, the
            number of prompts does not fit, or a prompt is too long.
    """
    spec = params.condition
    if spec is None or len(spec.leaves) != 1 or spec.leaves[0].encoder is None:
        told = "have no condition" if spec is None else "are conditioned on something else"
        raise ValueError(
            f"--prompt={prompts[0]}: the members {told}: expected a run whose captions a text encoder embedded, as "
            "experiments.encode --text does"
        )
    if not fixed and len(prompts) > 1:
        count = len(prompts)
    if len(prompts) not in (1, count):
        raise ValueError(f"{len(prompts)} times --prompt for {count} samples: expected one per sample, or one for all")
    from ensdiff.models.condition import unflatten

    rows = encoder_of(spec).encode(list(prompts))
    rows = np.repeat(rows, count, axis=0) if len(rows) != count else rows
    texts = tuple(prompts) * (count // len(prompts))
    return Asked(unflatten({spec.leaves[0].path: rows}), count, "", texts)


def encoder_of(spec: Any) -> Any:
    """Return the text encoder of --text, or the one that the file of the run's latents names, if it is the same.

    Raises:
        ValueError: it did not embed the captions of the run, or none is known.
    """
    given, expected = flags.FLAGS.text, spec.leaves[0].encoder
    if given:
        found = open_encoder(given)
        if not found.made(spec):
            raise ValueError(
                f"--text={given} is {found.describe()}, but the captions were embedded by {expected}: give the text "
                "encoder of the training captions"
            )
        return found
    for path in named():
        try:
            found = open_encoder(path)
        except (OSError, ValueError, ImportError) as error:
            print(f"text encoder: {path} is left out: {error}")
            continue
        if found.made(spec):
            return found
        print(f"text encoder: {path} is left out: the captions were embedded by another, {expected}")
    raise ValueError(
        f"--prompt needs the text encoder that embedded the captions of the run ({expected}): pass --text=..., a "
        "folder with the folders text_encoder and tokenizer"
    )


def named() -> Iterator[pathlib.Path]:
    """Yield the existing text encoders that the file of latents in the config of --run names, which are beside it."""
    from ensdiff.files.npy import npz_names, read_npz

    run = runs.run_folder()
    if not (run / "config.json").exists():
        return
    for section in building.data_sections(run, building.read_run_config(run)):
        path = pathlib.Path(str(section.get("path")))
        if path.suffix == ".npz" and path.is_file() and "text" in npz_names(path):
            place = pathlib.Path(os.path.normpath(path.parent / str(read_npz(path, ["text"])["text"])))
            if place.exists():
                yield place
