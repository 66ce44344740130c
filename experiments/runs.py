"""What the programs that read a run share: which run, its data, its samples, and where they write."""

import pathlib
import shlex
from typing import Any

from absl import flags

from experiments import building

_RUN = flags.DEFINE_string("run", None, "The run directory, as experiments.train wrote it.")


def define_sampling_flags(n: int) -> None:
    """Flags of the programs that sample from a run."""
    flags.DEFINE_integer("step", None, "Which checkpoint; by default the newest.")
    flags.DEFINE_integer("n", n, "Samples to generate.")
    flags.DEFINE_integer("seed", 0, "Seed of the samples' noise.")
    flags.DEFINE_integer("steps", 50, "Sampling steps.")
    flags.DEFINE_enum(
        "sampler",
        "ddpm",
        ["ddpm", "ddim", "genens", "diffusers"],
        "Ancestral, DDIM, or one of the reference implementations' samplers (GenEns: 1,000 steps; "
        "counterfactualuniverses' diffusers: 50), which fix the steps.",
    )
    flags.DEFINE_float("eta", 0.0, "Noise of DDIM, 0 to 1.")
    flags.DEFINE_string("out", None, "Folder to write to; by default one inside the run directory.")


def set_run(folder: str) -> None:
    """Take a run given as an argument for --run."""
    if _RUN.value and _RUN.value != folder:
        raise ValueError(f"two runs given, {folder} and --run={_RUN.value}: expected one")
    flags.FLAGS["run"].value = folder


def run_folder() -> pathlib.Path:
    """--run."""
    if not _RUN.value:
        raise ValueError("no run given; try --run=runs/quickstart")
    return pathlib.Path(_RUN.value)


def load_run() -> Any:
    """The ensemble of --run."""
    import ensdiff

    params = ensdiff.load(run_folder(), flags.FLAGS.step)
    print(params, flush=True)
    return params


def draw_samples(params: Any) -> Any:
    """Samples as the sampling flags say."""
    import ensdiff
    from ensdiff.interop import SAMPLERS

    f = flags.FLAGS
    if f.sampler in SAMPLERS:
        return ensdiff.sample(params, f.seed, f.n, sampler=SAMPLERS[f.sampler], progress=True)
    return ensdiff.sample(params, f.seed, f.n, steps=f.steps, sampler=f.sampler, eta=f.eta, progress=True)


def sampling_command() -> str:
    """The command that draws the samples of `draw_samples` again."""
    f = flags.FLAGS
    options = {"run": run_folder(), "n": f.n, "seed": f.seed, "steps": f.steps, "sampler": f.sampler}
    if f.eta:
        options["eta"] = f.eta
    if f.step is not None:
        options["step"] = f.step
    return " ".join(["python -m experiments.sample", *(shlex.quote(f"--{k}={v}") for k, v in options.items())])


def define_data_flag() -> None:
    """The flag that `training_data` reads."""
    flags.DEFINE_string(
        "data",
        None,
        "The training data, where the run directory does not know them: a reader and its options, such as "
        "npz,path=train.npz or folder,path=images,size=32,groups=folder.",
    )


def training_data(params: Any) -> Any:
    """The training data of --run: --data, or what its config says; None where neither says.

    Of a run that has forgotten units, whose pictures may have been deleted, the items are found by their content.
    """
    from ensdiff.certificate.run import Run

    if _forgetful():
        run, found = Run.open(run_folder()), all_data()
        return None if found is None else found.align(run.manifest, absent=run.forgotten)
    found = _data_flag() if flags.FLAGS.data else None
    if found is None and (run_folder() / "config.json").exists():
        found = building.load_data(building.read_run_config(run_folder())["data"])
    if found is not None and found.units != params.code.units:
        raise ValueError(f"the data have {found.units} units, the code of {run_folder()} has {params.code.units}")
    return found


def all_data() -> Any:
    """The data of --data, or of the config of --run with all that it holds out; None where neither says."""
    if flags.FLAGS.data:
        return _data_flag()
    if not (run_folder() / "config.json").exists():
        return None
    return building.load_data({**building.read_run_config(run_folder())["data"], "held_out": 0})


def _data_flag() -> Any:
    from ensdiff import data

    name, *options = flags.FLAGS.data.split(",")
    pairs = [option.partition("=") for option in options]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError(f"--data={flags.FLAGS.data}: expected a reader and options, as in folder,path=images")
    return data.load(name, **{key: int(value) if value.isdigit() else value for key, _, value in pairs})


def _forgetful() -> bool:
    """Whether --run was made by forgetting units."""
    file = run_folder() / "run.json"
    from ensdiff.files import read_json

    return file.is_file() and "origin" in read_json(file)


def output_folder(name: str) -> pathlib.Path:
    """--out, or a folder in the run directory; made by process 0, which alone writes into it."""
    from ensdiff.storage import make_folder

    out = pathlib.Path(flags.FLAGS.out) if flags.FLAGS.out else run_folder() / name
    if is_writer():
        make_folder(out)
    return out


def is_writer() -> bool:
    """Whether this process writes the files: of several, process 0."""
    from ensdiff import hosts

    return hosts.is_writer()


def unit_ids(text: str) -> list[int]:
    """Unit ids joined by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"units {text!r}: expected ids joined by commas, such as 3 or 5,8") from None


def unit_sets(text: str) -> list[Any]:
    """Units joined by commas; ids joined by + are one set. A list of ids where no entry is a set."""
    entries = [unit_ids(part.replace("+", ",")) for part in text.split(",")]
    return [entry[0] for entry in entries] if all(len(entry) == 1 for entry in entries) else entries


def describe_certificate(certificate: Any) -> None:
    """What a deletion certificate says, and what to keep."""
    print(certificate.values["claim"])
    for copy in certificate.values["copies"]:
        print(
            f"warning: item {copy['item']} of unit {copy['unit']}, which survivors saw, is byte for byte an item of "
            f"unit {copy['of_unit']}; forget both to be rid of its content"
        )
    print(f"digest (keep it elsewhere): {certificate.digest}")


def facts(params: Any, data: Any) -> list[tuple[str, str]]:
    """What a report says about an ensemble."""
    shares, weight = params.code.shares(), params.code.weight
    if weight is None:
        weights = sorted({int(n) for _, words in params.code.chunks() for n in words.sum(1)})
        weight = f"{weights[0]} to {weights[-1]}"
    return [
        ("training images", f"{data.items:,} of {'x'.join(map(str, data.shape))}"),
        ("training units", f"{data.units:,}"),
        ("members", f"{params.members}, each sees {shares.min():,} to {shares.max():,} units"),
        ("code word", f"{weight} of {params.members} members see a unit"),
    ]
