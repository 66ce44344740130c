"""Compile the programs of a config for TPUs or GPUs that you do not have, and report what they need and contain.

Examples:
  python -m experiments.aot --topology=v5e:2x4 --config=cifar10_paper
  python -m experiments.aot --topology=v5e:16x16 --config=cifar10_paper --config.code.members=256 --out=aot.json
  python -m experiments.aot --topology=h100:8 --config=cifar10_paper --config.code.members=16
  python -m experiments.aot --topology=cuda:8 --config=digits --image=8,8,1 --units=1400
    (lowered for GPUs, not compiled; nothing but JAX is needed)

Compiling for TPUs needs libtpu (pip install -e '.[aot]'), and for GPUs JAX's CUDA plugin (pip install -e '.[cuda12]').
All figures are per device (a chip, or half a chip on v4). The memory of GPU programs does not count the workspaces of
cuDNN and cuBLAS, whose algorithms are only chosen on the card. FLOPs count convolutions and matrix products: `analytic`
is computed from the architecture (ensdiff.planning.flops), `lowered` is counted in the program, with each loop as often
as it runs (the compiler's own count takes a loop's body once); of `train_device`, one step is counted.
`--config.train.pipeline` does not matter here.
"""

import dataclasses
import json
import pathlib
import re
import time
from typing import Any

import jax
from absl import flags
from tabulate import tabulate

from ensdiff.ensemble.members import group_size
from ensdiff.models.adapters import network_of
from ensdiff.models.attention import resolve_attention
from ensdiff.models.conv import resolve
from ensdiff.models.describing import fingerprint_of
from ensdiff.models.space import PIXELS, Latents
from ensdiff.models.unet import UNetConfig
from ensdiff.planning.lowering import Program, read_compiled, read_lowered

from . import building, common
from .abstract import AVERAGED, STEPS, Case, Step, abstract_mesh, lower
from .bases import base_dtype, planned
from .config import define_config
from .targets import GIB, Target, nothing_runs_here, target


def inspect(step: Step, platform: str, members: int, capacity: int | None) -> dict[str, Any]:
    """Lower a step and, if the capacity of a device in bytes is given, compile it.

    Args:
        step: the program.
        platform: ``"tpu"`` or ``"gpu"``.
        members: the number of members whose grouped convolutions are counted.
        capacity: bytes of memory of a device.

    Returns:
        Sizes in bytes, FLOPs, times in seconds, and the contents of the programs, as JSON-serialisable values.

    Raises:
        ValueError: the mesh does not use all chips of a TPU slice that needs all.
    """
    start = time.perf_counter()
    lowered = lower(step, "cuda" if platform == "gpu" else platform)
    program = read_lowered(lowered, step.iterations)
    found: dict[str, Any] = {
        "step": step.name,
        "work": step.note,
        "lower_seconds": time.perf_counter() - start,
        "flops": {"analytic": step.flops, "lowered": program.flops},
        "lowered": contents(program, members),
    }
    if capacity is None:
        return found
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "should include all slice devices" in str(error):
            raise ValueError(
                "a program for this TPU slice must use all of its chips: pass --mesh=MxD with M x D chips, where M "
                "divides the members and D the batch, or a smaller slice"
            ) from error
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**found, "fits": False, "error": str(error).splitlines()[0]}
    found["compile_seconds"] = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    sizes["peak"] = sum(sizes.values()) - 2 * sizes["aliased"]
    found["bytes"] = sizes
    found["fits"] = sizes["peak"] <= capacity
    found["compiled"] = contents(read_compiled(compiled.as_text() or ""), members)
    return found


def contents(program: Program, members: int) -> dict[str, Any]:
    """Return the contents of a program as JSON-serialisable values."""
    return {
        "convolutions": program.convolutions,
        "grouped": program.grouped(members),
        "collectives": {c.kind: {"number": c.number, "bytes": c.bytes} for c in program.collectives},
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a text table, one row per step."""
    header = ["step", "compile s", "args", "out", "temp", "code", "peak GiB", "analytic", "lowered TF"]
    rows = []
    for result in results:
        sizes, flops = result.get("bytes", {}), result["flops"]
        held = result.get("compiled", result["lowered"])
        sent = ", ".join(
            f"{value['number']} {kind} ({value['bytes'] / 2**20:.1f} MiB)"
            for kind, value in held["collectives"].items()
        )
        cells = [f"{sizes[name] / GIB:.3g}" if sizes else "-"
                 for name in ("arguments", "outputs", "temporaries", "code", "peak")]  # fmt: skip
        if result.get("fits") is False:
            cells[-1] = "too much" if not sizes else cells[-1] + " !"
        counts = [f"{flops[name] / 1e12:.4g}" if name in flops else "-" for name in ("analytic", "lowered")]
        seconds = f"{result['compile_seconds']:.0f}" if "compile_seconds" in result else "-"
        rows.append([result["step"], seconds, *cells, *counts, str(result["lowered"]["grouped"]), sent or "none"])
    return tabulate(rows, headers=[*header, "grouped", "collectives"], tablefmt="plain", disable_numparse=True)


def _numbers(text: str, pattern: str, flag: str, example: str) -> tuple[int, ...]:
    if not re.fullmatch(pattern, text):
        raise ValueError(f"--{flag}={text}: expected something like {example}")
    return tuple(int(n) for n in re.findall(r"\d+", text))


def build_case(config: Any, machine: Target) -> Case:
    """Return the case that the config and flags describe.

    Args:
        config: the config.
        machine: what to compile for.

    Raises:
        ValueError: the image size or the number of units is missing, or a flag does not fit.
    """
    f = flags.FLAGS
    known = building.section(config, "aot")
    shape = _numbers(f.image, r"\d+,\d+,\d+", "image", "32,32,3") if f.image else known.get("image_shape")
    units = f.units or known.get("units")
    missing = [flag for flag, value in (("--image=H,W,C", shape), ("--units=N", units)) if value is None]
    if shape is None or units is None:
        raise ValueError(f"the config does not give the size of the data: pass {' and '.join(missing)}")
    model, schedule, train = planned(config, shape[-1], **building.stated_condition(config))
    # "auto" for the machine that will run, not for the host that compiles
    network = network_of(model)
    if isinstance(network, UNetConfig):
        conv, attention = (
            resolve(network.conv, machine.platform),
            resolve_attention(network.attention, machine.platform),
        )
        network = dataclasses.replace(network, conv=conv, attention=attention)
        model = network if network_of(model) is model else dataclasses.replace(model, base=network)
    members = config.code.members
    count = machine.total
    axes = dict(abstract_mesh(members, train.batch_size, count).shape)
    if f.mesh:
        m, d = _numbers(f.mesh, r"\d+x\d+", "mesh", "4x2 (members x data)")
        if m * d > count or members % m or train.batch_size % d:
            raise ValueError(
                f"--mesh={f.mesh}: expected at most {count} devices in all, a divisor of the {members} members and a "
                f"divisor of the {train.batch_size} images in a batch"
            )
        axes = {"member": m, "data": d}
    mesh = machine.mesh(**axes)
    return Case(
        model, tuple(shape), members, units, schedule, train, mesh, f.states, f.samples, machine.capacity or 16 * GIB,
        model.condition, Latents() if known.get("latents") else PIXELS, base_dtype(config),
    )  # fmt: skip


def described(model: Any) -> list[str]:
    """Return how a network is computed, in words."""
    network = network_of(model)
    found = [getattr(network, "compute_dtype", "float32")]
    if isinstance(network, UNetConfig):
        found += [f"conv {network.conv}", *(["rematerialised"] if network.remat else [])]
    return found


def main() -> None:
    """Compile, print a table, and write it as JSON."""
    f = flags.FLAGS
    programs = STEPS | AVERAGED
    wrong = sorted(set(f.programs) - set(programs))
    if wrong:
        raise ValueError(f"--programs={','.join(f.programs)}: expected some of {', '.join(programs)}")
    nothing_runs_here()
    machine = target(f.topology, "topology")
    capacity = machine.capacity
    case = build_case(f.config, machine)
    m, d = case.mesh.shape["member"], case.mesh.shape["data"]
    together = group_size(case.model, case.local)
    room = f" of {capacity / GIB:.3g} GiB" if capacity else ""
    print(
        f"{f.topology}: {machine.total} devices{room}, {m * d} used: {m} (member) x {d} (data); K = {case.members}, "
        f"batch {case.train.batch_size} per member, {', '.join(described(case.model))}, "
        f"{together} of {case.local} members of a device together",
        flush=True,
    )
    results = []
    for name in f.programs:
        step = programs[name](case)
        print(f"{name}: {step.note}", flush=True)
        # where members are computed one by one, a grouped convolution would be an accident of all of them
        groups = case.local if together == 1 else together
        results.append(inspect(step, machine.platform, groups, capacity))
    print(table(results))
    if f.out:
        record = {
            "topology": f.topology,
            "jax": jax.__version__,
            "mesh": {"member": m, "data": d},
            "members": case.members,
            "batch_size": case.train.batch_size,
            "image_shape": case.image_shape,
            "model": fingerprint_of(case.model),
            "steps": results,
        }
        pathlib.Path(f.out).write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote {f.out}")
    check_fit(results, capacity)


def check_fit(results: list[dict[str, Any]], capacity: int | None) -> None:
    """Raise RuntimeError if a program needs more than the bytes of a device; first print what the compiler said."""
    for result in results:
        if "error" in result:
            print(f"{result['step']}: {result['error']}")
    large = [result["step"] for result in results if result.get("fits") is False]
    if large:
        raise RuntimeError(
            f"these steps do not fit in the {(capacity or 0) / GIB:g} GiB of a device: {', '.join(large)}; try "
            "--config.model.remat=True, --config.model.compute_dtype=bfloat16, a smaller --config.train.batch_size, "
            "--states or --samples, or more chips"
        )


def define_flags() -> None:
    """Define the command line, in a function because other programs have flags with these names."""
    flags.DEFINE_string(
        "topology",
        None,
        "TPUs such as v5e:2x4, or GPUs such as h100:8; cuda:8 only lowers.",
    )
    flags.DEFINE_list("programs", list(STEPS), f"Programs to compile, of {', '.join([*STEPS, *AVERAGED])}.")
    flags.DEFINE_string("image", None, "Height, width and channels, if the config's section aot does not give them.")
    flags.DEFINE_integer("units", None, "Training units, if the config's section aot does not give them.")
    flags.DEFINE_string("mesh", None, "Members x data, such as 4x2; by default what ensdiff.make_mesh chooses.")
    flags.DEFINE_integer("states", None, "States of a landscape step; by default 1024 per data shard.")
    flags.DEFINE_integer("samples", None, "Samples of a Jacobian step; by default one per data shard.")
    flags.DEFINE_string("out", None, "JSON file to write the figures to.")
    define_config()
    flags.declare_key_flag("config")
    flags.mark_flags_as_required(["topology", "config"])
    flags.adopt_module_key_flags(common)


if __name__ == "__main__":
    define_flags()
    common.run(main, __doc__)
