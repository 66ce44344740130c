"""Metrics of a training for trackers such as Weights & Biases or trackio, besides the files that every run has."""

import contextlib
import hashlib
import importlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

TRACKERS = ("wandb", "trackio")
"""Packages that have ``init(project=, name=, config=)``, ``log(values, step=)`` and ``finish()``."""
Metrics = Callable[[int, dict[str, np.ndarray]], None]


def trackers_of(config: ConfigDict) -> list[Any]:
    """Return the imported packages that ``config.log`` names, separated by commas; ``tensorboard`` needs none.

    Raises:
        ValueError: a name is unknown, or its package is not installed.
    """
    names = [name.strip() for name in str(config.get("log") or "tensorboard").split(",")]
    found = []
    for name in names:
        if name == "tensorboard":  # always written
            continue
        if name not in TRACKERS:
            known = ", ".join(("tensorboard", *TRACKERS))
            raise ValueError(f"config.log={name!r}: expected some of {known}, separated by commas")
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            raise ValueError(
                f"config.log={name}: {name} cannot be imported ({error}); pip install {name}, or leave config.log out: "
                "metrics.jsonl and TensorBoard's files are always written"
            ) from None
    return found


@contextlib.contextmanager
def tracked(config: ConfigDict) -> Iterator[Metrics | None]:
    """Yield a function that sends metrics of a training step to the trackers of a config; None if there are none.

    The project is ``ensdiff``, or $WANDB_PROJECT or $TRACKIO_PROJECT; the run is called like the run directory, and a
    resumed run continues there. Training never fails because a tracker does: the first error is a warning, after which
    this tracker gets no more metrics.

    Raises:
        ValueError: see `trackers_of`.
    """
    from ensdiff import hosts

    modules = trackers_of(config)  # on every process, so that all stop alike
    if not modules or not hosts.is_writer():
        yield None
        return
    working: list[Any] = []
    for module in modules:
        with _warned(module, []):
            module.init(**_arguments(module.__name__, config))
            working.append(module)

    def send(step: int, values_K: dict[str, np.ndarray]) -> None:
        values = {}
        for name, value_K in values_K.items():
            tag = name.removesuffix("_K")
            values[f"{tag}/mean"] = float(np.mean(value_K))
            values |= {f"{tag}/member_{k:03d}": float(value) for k, value in enumerate(value_K)}
        for module in list(working):
            with _warned(module, working):
                module.log(values, step=step)

    try:
        yield send
    finally:
        for module in list(working):
            with _warned(module, working):
                module.finish()


def _arguments(name: str, config: ConfigDict) -> dict[str, Any]:
    """Return the arguments of a tracker's ``init``."""
    run_dir = pathlib.Path(config.run_dir).absolute()
    given = {
        "project": os.environ.get(f"{name.upper()}_PROJECT") or "ensdiff",
        "name": run_dir.name,
        "config": config.to_dict(),
        "resume": "allow",
    }
    if name == "wandb":  # it finds runs by ids, trackio by names
        given["id"] = hashlib.sha256(str(run_dir).encode()).hexdigest()[:16]
    return given


@contextlib.contextmanager
def _warned(module: Any, working: list[Any]) -> Iterator[None]:
    """Turn an error of a tracker into a warning, and do without this tracker from then on."""
    from ensdiff import hosts

    try:
        yield
    except Exception as error:
        if module in working:
            working.remove(module)
        hosts.warn(f"{module.__name__} failed and gets no more metrics: {error or type(error).__name__}", stacklevel=3)
