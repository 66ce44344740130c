"""Measure the compute core: time against PyTorch, compile time, memory, FLOP/s, and how cost grows.

It prints tables and, with --out, writes them as Markdown and JSON. Alternatives take turns, and a reported ratio is the
median of the ratios within each turn. Without PyTorch and diffusers, the comparison is skipped with a note.

Examples:
  python -m experiments.benchmark --quick
  python -m experiments.benchmark --repeats=3 --out=benchmarks
  python -m experiments.benchmark --tables=pytorch --networks=small,cifar --ways=eager,bf16+graph  (on a GPU)
  python -m experiments.benchmark --tables=compilation,devices --members=8 --channels=32
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import resource
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

import ensdiff
from ensdiff.report import Table

from . import common
from .benchmarks.jobs import NETWORKS, Setting
from .benchmarks.tables import (
    Effort,
    against_pytorch,
    batch_sizes,
    compilation,
    devices,
    flop_rates,
    growths,
    layers,
    strategies,
)
from .benchmarks.ways import BY_DEFAULT, choose
from .tables import as_records, markdown


def machine() -> str:
    """Return processor, devices and versions on one line."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores ({platform.machine()}), {len(jax.devices())} {device.platform} devices ({device.device_kind}), "
        f"jax {jax.__version__}, ensdiff {ensdiff.__version__}"
    )


def choose_groups(asked: list[str], quick: bool, missing: list[str]) -> list[str]:
    """Return the groups of tables to make. Without PyTorch, ensdiff's own rates replace the comparison.

    Raises:
        ValueError: a group is unknown, or only the comparison is requested and packages are missing.
    """
    groups = asked or (["pytorch", "compilation"] if quick else list(GROUPS))
    if set(groups) - set(GROUPS):
        raise ValueError(f"--tables={','.join(groups)}: expected some of {', '.join(GROUPS)}")
    if not missing or "pytorch" not in groups:
        return groups
    why = f"{', '.join(missing)} not installed (pip install 'ensdiff[benchmark]')"
    if groups == ["pytorch"]:
        raise ValueError(f"--tables=pytorch: {why}")
    print(f"not compared with PyTorch: {why}")
    return list(dict.fromkeys("rates" if name == "pytorch" else name for name in groups))


def choose_networks(
    names: list[str], channels: list[str], members: int | None, side: int | None, quick: bool
) -> dict[str, Setting]:
    """Return the sizes to measure, by name: named networks, or widths of the small network.

    Raises:
        ValueError: a name is unknown, names and widths are given together, or no network has such sizes.
    """
    if names and channels:
        raise ValueError("--networks and --channels exclude each other: a network has its own width")
    if set(names) - set(NETWORKS):
        raise ValueError(f"--networks={','.join(names)}: expected some of {', '.join(NETWORKS)}")
    if wrong := [c for c in channels if not c.isdecimal()]:
        raise ValueError(
            f"--channels={','.join(channels)}: {wrong[0]!r} is not a width; expected numbers such as 32,64"
        )
    widths = [int(c) for c in channels] or ([32] if quick else [32, 64])
    found = {name: NETWORKS[name] for name in names} or {
        f"{width} channels": dataclasses.replace(NETWORKS["small"], channels=width) for width in widths
    }
    given: dict[str, Any] = {"members": members if members is not None or not quick else 8, "side": side}
    if quick:
        given |= {"factual_steps": 2, "jacobian": 1, "landscape": (8, 8), "loss": (4, 8)}
    changes = {name: value for name, value in given.items() if value is not None}
    found = {name: dataclasses.replace(setting, **changes) for name, setting in found.items()}
    for setting in found.values():
        setting.model.check_image(setting.side, setting.side)  # refuse wrong sizes at once
    return found


def main() -> None:
    """Measure, print and write."""
    f = flags.FLAGS
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory to PyTorch on a GPU
    jax.config.update("jax_enable_compilation_cache", False)  # so that compile times are the compiler's
    missing = [name for name in ("torch", "diffusers", "safetensors") if importlib.util.find_spec(name) is None]
    groups = choose_groups(f.tables, f.quick, missing)
    networks = choose_networks(f.networks, f.channels, f.members, f.side, f.quick)
    setting = next(iter(networks.values()))
    choose("cuda" if jax.default_backend() == "gpu" else "cpu", "train", f.ways)  # refuse unknown ways at once
    effort = Effort(setting, f.repeats or (3 if f.quick else 7), networks, tuple(f.ways), f.quick)
    print(machine(), flush=True)
    for name in groups:
        tables = GROUPS[name](effort)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        head = f"{machine()}; peak memory of the program so far {peak:.1f} GiB; medians of {effort.repeats} timings\n"
        text = "\n".join([head, *map(markdown, tables)])
        print(text, flush=True)
        if f.out:  # write each table as soon as it is ready: all of them take long
            out = pathlib.Path(f.out)
            out.mkdir(parents=True, exist_ok=True)
            record = {"machine": machine(), "tables": [as_records(table) for table in tables]}
            (out / f"{name}.md").write_text(text)
            (out / f"{name}.json").write_text(json.dumps(record, indent=1, default=float) + "\n")
            print(f"wrote {out / name}.md and .json", flush=True)


GROUPS: dict[str, Callable[[Effort], list[Table]]] = {
    "pytorch": against_pytorch,
    "rates": lambda effort: [flop_rates(effort)],
    "compilation": lambda effort: [compilation(effort)],
    "strategies": strategies,
    "growth": growths,
    "batch": lambda effort: [batch_sizes(effort)],
    "layers": lambda effort: [layers(effort)],
    "devices": lambda effort: [devices(effort)],
}


def define_flags() -> None:
    """Define the command line."""
    flags.DEFINE_bool("quick", False, "Under 5 minutes on 2 cores: one width, 8 members, fewer repeats, two tables.")
    flags.DEFINE_integer("members", None, "Members K, at least 1; by default 16 (8 with --quick).", lower_bound=1)
    flags.DEFINE_integer(
        "side",
        None,
        "Height and width of the images; by default that of the network (28).",
        lower_bound=1,
    )
    flags.DEFINE_list("channels", [], "Widths of the small network, by default 32,64 (32 with --quick).")
    flags.DEFINE_list(
        "networks",
        [],
        f"Named networks instead of widths, of {', '.join(NETWORKS)}. All but small are for accelerators.",
    )
    flags.DEFINE_list(
        "ways",
        [],
        f"Ways of PyTorch to compare with; by default {', '.join(BY_DEFAULT['cpu'])} on a CPU, and all on a GPU. "
        "docs/performance.md lists them.",
    )
    flags.DEFINE_integer("repeats", None, "Timings of each alternative; by default 7 (3 with --quick).", lower_bound=1)
    flags.DEFINE_list(
        "tables",
        [],
        f"Tables, of {', '.join(GROUPS)}; by default all, or with --quick pytorch (rates without PyTorch) and "
        "compilation.",
    )
    flags.DEFINE_string("out", None, "Folder to write the tables to, as Markdown and JSON.")
    flags.adopt_module_key_flags(common)


if __name__ == "__main__":
    define_flags()
    common.run(main, __doc__)
