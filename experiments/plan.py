"""Estimate, before training, what a study will need: parameters, memory per chip, FLOPs and hours.

Examples:
  python -m experiments.plan --image=32x32x3 --units=50000 --members=20
  python -m experiments.plan --config=cifar10_paper --members=64 --chips=8 --accelerator=v5e,h100
  python -m experiments.plan --config=folder --config.data.path=my_images --config.data.groups=folder
  python -m experiments.plan --config=cifar10_paper --compile=v5e:2x4
  python -m experiments.plan --config=adapters --accelerator=h100   (adapters on Stable Diffusion 1.5, compiled before)

The hours for cpu2 (2 cores) are based on measured rates. Those for accelerators assume a share of the data sheet's peak
(--utilisation): none was timed, and small U-Nets reach less than large ones. --compile=v5e:2x4 or --compile=h100:1
compiles the steps for machines that you do not have (experiments.aot says what that needs) and prints the memory that
the compiler requests. Figures that were kept in experiments/compiled (--out) are shown without compiling.
"""

import dataclasses
import pathlib
import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from tabulate import tabulate

from ensdiff import Schedule
from ensdiff.files.writing import make_folder
from ensdiff.models.adapters import network_of
from ensdiff.models.space import PIXELS, Latents, Space
from ensdiff.planning.estimates import (
    ACCELERATORS,
    GIB,
    Accelerator,
    JobName,
    Study,
    base_count,
    job_flops,
    job_hours,
    parameter_count,
    training_memory,
)

from . import aot, building, common, records
from .abstract import AVERAGED, STEPS
from .bases import base_dtype, planned
from .coding import describe_code, group_weight
from .config import define_config
from .targets import CARDS, Target, nothing_runs_here, target

COMPILED = {"predictions": ("train", "landscape", "jacobian"), "parameters": ("train", "blend", "averaged")}
"""The programs that are compiled, by what the generator combines."""


def read_study(config: ConfigDict | None) -> tuple[Study, Schedule]:
    """Return the study and schedule that the config and flags describe; flags override the config.

    If they leave the size of the data open, it is found by reading the data (`size_of_data`).

    Raises:
        ValueError: the size of the data is missing, the data cannot be read, or a flag has a bad value.
    """
    f = flags.FLAGS
    config = ConfigDict() if config is None else config
    known = building.section(config, "aot")  # this section of a config gives the size of its data
    shape = known.get("image_shape")
    if f.image:
        if not re.fullmatch(r"\d+[x,]\d+[x,]\d+", f.image):
            raise ValueError(f"--image={f.image}: expected height, width and channels, such as 32x32x3")
        shape = tuple(int(n) for n in re.findall(r"\d+", f.image))
    units = known.get("units") if f.units is None else f.units
    if (shape is None or units is None) and "data" in config:
        read_shape, read_units = size_of_data(building.section(config, "data"))
        shape, units = shape or read_shape, read_units if units is None else units
    missing = [flag for flag, value in (("--image=HxWxC", shape), ("--units=N", units)) if value is None]
    if shape is None or units is None:
        raise ValueError(f"the size of the data is not given: pass {' and '.join(missing)}")
    values = building.stated_condition(config) | ({} if f.channels is None else {"channels": f.channels})
    if f.multipliers:
        try:
            values["multipliers"] = tuple(float(m) for m in f.multipliers)
        except ValueError:
            raise ValueError(f"--multipliers={','.join(f.multipliers)}: expected numbers, such as 1,2,2") from None
    model, schedule, train = planned(config, shape[-1], **values)
    changes = {name: value for name, value in (("steps", f.steps), ("batch_size", f.batch)) if value is not None}
    code = building.section(config, "code")
    members = code.get("members", 16) if f.members is None else f.members
    weight = code.get("weight") if f.weight is None else f.weight
    of_groups = group_weight(code, members)
    if of_groups is not None:  # as `ensdiff.Code.hierarchical` chooses and checks them
        weight = max(1, of_groups // 2) if weight is None else weight
        if not 1 <= weight < of_groups < members:
            raise ValueError(
                f"weight={weight}, group_weight={of_groups}: expected 1 <= weight < group_weight < {members} members"
            )
    study = Study(
        model,
        tuple(shape),
        members,
        units,
        members // 2 if weight is None else weight,
        dataclasses.replace(train, **changes),
        f.samples,
        f.sampling_steps,
        model.condition,
        config.get("combine") or "predictions",
        base_dtype(config),
    )
    return study, schedule


def size_of_data(values: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    """Return the shape of the images and the number of units of the data of a config's ``data`` section.

    Pictures of a folder are counted, and at most the first is decoded. Data of other readers are read.
    """
    from ensdiff.data.decoding import decode_picture
    from ensdiff.data.pictures import find_pictures
    from ensdiff.files.reading import open_regular

    path, size = values.get("path"), values.get("size")
    if values.get("name") != "folder" or path is None or values.get("only") is not None:
        data = building.load_data(values)
        return data.shape, data.units
    names = find_pictures(path)
    shape: tuple[Any, ...] = (size, size, 1 if values.get("mode") == "L" else 3)
    if size is None:
        with open_regular(pathlib.Path(path) / names[0]) as stream:
            shape = decode_picture(stream, None, values.get("mode", "RGB")).pixels.shape
    if values.get("groups"):
        return shape, len({pathlib.PurePath(name).parts[0] for name in names})
    return shape, len(names) - values.get("held_out", 0)


def chosen() -> dict[str, Accelerator]:
    """Return the accelerators named by --accelerator.

    Raises:
        ValueError: an accelerator is unknown, or none is named.
    """
    names = flags.FLAGS.accelerator
    unknown = sorted(set(names) - {*ACCELERATORS, "all"})
    if unknown or not names:
        raise ValueError(f"--accelerator={','.join(names)}: expected all, or some of {', '.join(ACCELERATORS)}")
    return ACCELERATORS if "all" in names else {name: ACCELERATORS[name] for name in names}


def table(study: Study, accelerators: dict[str, Accelerator], chips: int, share: float) -> str:
    """Return the whole plan as one table, with a column of requirements and one column per accelerator."""
    count, model = parameter_count(study.model), study.model
    K, w, N, B, S = study.members, study.weight, study.units, study.samples, study.sampling_steps
    base = base_count(model)
    rows = [
        ["parameters per member", f"{count:,}"],
        [f"parameters of all {K} members", f"{K * count:,}"],
        *([["parameters of the frozen base, once", f"{base:,}"]] if base else []),
        ["memory per chip in training, GiB", ""],
        *([[f"- base, {study.base_dtype}", ""]] if base else []),
        ["- parameters, optimiser, average", ""],
        ["- gradients", ""],
        ["- activations (estimate)", ""],
    ]
    first = 3 if base else 2
    for accelerator in accelerators.values():
        cpu = accelerator.platform == "cpu"
        memory = training_memory(study.on(accelerator.platform), 1 if cpu else chips)
        room = "" if accelerator.memory is None else f" of {accelerator.memory / GIB:g}"
        over = " !" if accelerator.memory is not None and memory.total > accelerator.memory else ""
        parts = [memory.state - memory.base, memory.gradients, memory.activations]
        parts = [memory.base, *parts] if base else parts
        cells = [f"{memory.total / GIB:.2f}{room}{over}", *(f"{part / GIB:.2f}" for part in parts)]
        for row, cell in zip(rows[first:], cells, strict=True):
            row.append(cell)
    flops = job_flops(study.on("gpu"))
    hours = [job_hours(study, accelerator, chips, share) for accelerator in accelerators.values()]
    works: dict[JobName, str] = {
        "training": f"training, {study.train.steps:,} steps of {study.train.batch_size} images per member",
        "sampling": f"sampling {B} images, {S} steps",
        "landscape": f"exact landscape, {N:,} units x {B} samples, "
        + (f"{K - w} members each" if study.combine == "predictions" else "one averaged network each"),
        "jacobian": f"Jacobian of {B} samples",
    }
    for job, work in works.items():
        rows.append([work, f"{flops[job]:.3g} FLOP", *(duration(all_hours[job]) for all_hours in hours)])
    heads = [f"{name} x {1 if a.platform == 'cpu' else chips}" for name, a in accelerators.items()]
    title = f"{'x'.join(map(str, study.image_shape))}, {getattr(network_of(model), 'compute_dtype', 'float32')}"
    return tabulate(rows, headers=[title, "", *heads], tablefmt="github", disable_numparse=True)


def duration(hours: float) -> str:
    """Return a duration as text in hours, minutes or seconds.

    >>> [duration(hours) for hours in (1234.0, 1.5, 0.01, 0.0001)]
    ['1,234 h', '1.5 h', '36 s', '0.36 s']
    """
    if hours >= 1:
        return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.3g} h"
    return f"{60 * hours:.2g} min" if hours >= 1 / 60 else f"{3600 * hours:.2g} s"


def notes(accelerators: dict[str, Accelerator], share: float) -> str:
    """Return the notes that explain where the hours come from."""
    lines = [f"  {name}: {accelerator.note}" for name, accelerator in accelerators.items()]
    head = (
        f"Hours on accelerators assume {share:.0%} of the data sheet's peak (--utilisation); no accelerator was timed. "
        "Hours on cpu2 use measured rates. Reading data and compiling are not included. Memory is an estimate, which a "
        "compiler may exceed (--compile). ! marks memory that does not fit."
    )
    return "\n".join([head, *lines])


def compile_for(text: str, study: Study, schedule: Schedule, space: Space = PIXELS, out: str | None = None) -> None:
    """Compile the steps, and print their memory and contents as `experiments.aot` does.

    Args:
        text: the machine.
        study: the study.
        schedule: the process.
        space: pixels or latents.
        out: file for the figures, see `experiments.records`.

    Raises:
        ValueError: figures of programs that are only lowered are to be written.
        RuntimeError: a program does not fit in the memory of a device.
    """
    nothing_runs_here()
    machine = target(text, "compile")
    if out and machine.capacity is None:
        raise ValueError(f"--out={out}: {text} only lowers the programs; name a machine, such as --compile=h100:1")
    if out:
        make_folder(pathlib.Path(out).absolute().parent)
    case = records.case_of(study, schedule, space, machine)
    results = []
    for name in COMPILED[study.combine]:
        step = (STEPS | AVERAGED)[name](case)
        print(f"compiling for {text}: {name}, {step.note}", flush=True)
        results.append(aot.inspect(step, machine.platform, case.local, machine.capacity))
    print(aot.table(results), flush=True)
    if out:
        records.keep(out, case, text.partition(":")[0], results)
    aot.check_fit(results, machine.capacity)


def kept(name: str, chips: int, study: Study, schedule: Schedule, space: Space, share: float) -> str | None:
    """Return the kept figures of the study's programs, compiled for an accelerator; None if none were kept."""
    accelerator = ACCELERATORS[name]
    if accelerator.platform == "cpu":
        return None
    memory = (CARDS[name].memory if name in CARDS else accelerator.memory) or 16 * GIB
    case = records.case_of(study, schedule, space, Target(accelerator.platform, chips, memory))
    record = records.find(case, name)
    if record is None:
        return None
    flops = {step["step"]: step["flops"]["lowered"] for step in record["steps"]}
    dtype = getattr(network_of(study.model), "compute_dtype", "float32")

    def line(what: str, job: JobName, total: float) -> str:
        return f"{what} {total:.3g} FLOP per chip, {duration(total / accelerator.rate(job, dtype, share) / 3600)}"

    lines = [line(f"training, {study.train.steps:,} steps:", "training", study.train.steps * flops["train"])]
    if "blend" in flops:
        row = flops["blend"] + study.sampling_steps * flops["averaged"]
        work = f"{study.samples} images without a unit, {study.sampling_steps} steps"
        lines += [
            line(f"{work}:", "landscape", row),
            line(f"the same without each of {study.units:,} units:", "landscape", study.units * row),
        ]
    told = "\n".join(f"  {text}" for text in lines)
    return (
        f"Compiled for {name} x {case.mesh.size} without one "
        f"(JAX {record['jax']}, experiments/compiled/{record['file']}):\n"
        f"{aot.table(record['steps'])}\n"
        f"By these programs, at {share:.0%} of the data sheet's peak:\n{told}"
    )


def main() -> None:
    """Print the plan."""
    f = flags.FLAGS
    if f.out and not f.compile:
        raise ValueError(f"--out={f.out} keeps the figures of --compile: pass --compile=h100:1 or another machine too")
    accelerators = chosen()
    study, schedule = read_study(f.config)
    print(table(study, accelerators, f.chips, f.utilisation))
    print(notes(accelerators, f.utilisation))
    print(describe_code(study, group_weight(building.section(f.config or ConfigDict(), "code"), study.members)))
    latents = f.config is not None and building.section(f.config, "aot").get("latents")
    space = Latents() if latents else PIXELS
    if f.compile:
        compile_for(f.compile, study, schedule, space, f.out)
        return
    for name in accelerators:
        compiled = kept(name, f.chips, study, schedule, space, f.utilisation)
        if compiled:
            print(compiled)


def define_flags() -> None:
    """Define the command line. This is a function because other programs have flags with the same names."""
    flags.DEFINE_string("image", None, "Height, width and channels, such as 32x32x3.")
    flags.DEFINE_integer("units", None, "Training units N.")
    flags.DEFINE_integer("members", None, "Members K; by default the config's, or 16.")
    flags.DEFINE_integer("weight", None, "Members that see a unit; by default the config's, or half of them.")
    flags.DEFINE_integer("channels", None, "Width of the U-Net.")
    flags.DEFINE_list("multipliers", [], "Width of each level as a multiple of --channels, such as 1,2,2.")
    flags.DEFINE_integer("steps", None, "Training steps.")
    flags.DEFINE_integer("batch", None, "Images per member and step.")
    flags.DEFINE_integer("samples", 16, "Images to sample and attribute.")
    flags.DEFINE_integer("sampling_steps", 50, "Steps of the sampler.")
    flags.DEFINE_integer("chips", 1, "Accelerator chips.")
    flags.DEFINE_list("accelerator", ["all"], f"all, or some of {', '.join(ACCELERATORS)}.")
    flags.DEFINE_float("utilisation", 0.2, "Assumed share of the data sheet's peak.")
    flags.DEFINE_string("compile", None, "Also compile for such machines: v5e:2x4, h100:1 (cuda:8 counts FLOPs only).")
    flags.DEFINE_string("out", None, "JSON file for the figures of --compile.")
    define_config()
    flags.declare_key_flag("config")
    flags.adopt_module_key_flags(common)


if __name__ == "__main__":
    define_flags()
    common.run(main, __doc__)
