"""What the programs that read a run share: which run, its data, its samples, and where they write."""

import pathlib
import shlex
from collections.abc import Callable, Collection, Sequence
from typing import Any

from absl import flags

from experiments import building

_RUN = flags.DEFINE_string("run", None, "The run directory, as experiments.train wrote it.")


def define_sampling_flags(n: int) -> None:
    """Flags of the programs that sample from a run."""
    flags.DEFINE_integer("step", None, "Step of the checkpoint to use; by default the newest.")
    flags.DEFINE_integer("n", n, "Samples to generate.")
    flags.DEFINE_integer("seed", 0, "Seed of the samples' noise.")
    flags.DEFINE_integer("steps", 50, "Sampling steps.")
    flags.DEFINE_enum(
        "sampler",
        "ddpm",
        ["ddpm", "ddim", "genens", "diffusers"],
        "Ancestral (ddpm), DDIM, or the sampler of a reference implementation, which fixes the number of steps "
        "(genens: 1,000; diffusers, as in counterfactualuniverses: 50).",
    )
    flags.DEFINE_float("eta", 0.0, "Noise of the DDIM sampler, from 0 to 1.")
    flags.DEFINE_string(
        "out",
        None,
        "Folder to write to; by default one inside the run directory. Required for a run that experiments.forget "
        "wrote, because its certificate allows no other files in the run.",
    )


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
        fixed = {"steps": SAMPLERS[f.sampler].steps, "eta": 0.0}
        for name, value in fixed.items():
            if f[name].present and f[name].value != value:
                raise ValueError(f"--{name}={f[name].value}: --sampler={f.sampler} fixes it at {value}; leave it out")
        return ensdiff.sample(params, f.seed, f.n, sampler=SAMPLERS[f.sampler], progress=True)
    return ensdiff.sample(params, f.seed, f.n, steps=f.steps, sampler=f.sampler, eta=f.eta, progress=True)


def sampling_command() -> str:
    """The command that draws the samples of `draw_samples` again."""
    from ensdiff.interop import SAMPLERS

    f = flags.FLAGS
    options = {"run": run_folder(), "n": f.n, "seed": f.seed}
    if f.sampler not in SAMPLERS:
        options["steps"] = f.steps
    options["sampler"] = f.sampler
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
        "The training data, if the run directory does not record where they are: a reader and its options, such as "
        "npz,path=train.npz or folder,path=images,size=32,groups=folder.",
    )


def training_data() -> Any:
    """The training data of --run, found by their content among --data or what its config says; None where neither says.

    Raises:
        ValueError: these are not the data of the run; says which items differ.
        FileNotFoundError: the data are not where the config says; says where they were looked for.
    """
    import ensdiff

    return _accepted(lambda found, held_out: ensdiff.training_data(run_folder(), found, held_out=held_out))


def all_data(absent: Collection[int] = ()) -> Any:
    """All data of --data, or of the config of --run with all that it holds out; None where neither says.

    Of the places where the config's data may be, it is the first that holds the items of the run (but for those of the
    units in ``absent``); where none does, the first that can be read.
    """
    from ensdiff.runs.identity import find_training_data

    def with_items(found: Any, _: int) -> Any:
        find_training_data(run_folder(), found, absent)
        return found

    if not flags.FLAGS.data:
        try:
            return _accepted(with_items)
        except ValueError:
            pass  # what differs is for the caller to say
    return _accepted(lambda found, _: found)


def _accepted(accept: Callable[[Any, int], Any]) -> Any:
    """What ``accept`` makes of --data, or of the first place of the config's data where it raises no ValueError.

    It is called with all items, and how many of them the config holds out.
    """
    from ensdiff.data.manifest import NAME

    run = run_folder()
    config = building.read_run_config(run) if (run / "config.json").exists() else None
    held_out = config["data"].get("held_out", 0) if config is not None else 0
    if flags.FLAGS.data:
        return accept(_data_flag(), held_out)
    if config is None:
        return None
    whole = {"held_out": 0} if (run / NAME).exists() else {}  # without hashes of the items, by number and order
    missing, wrong = [], []
    for section in building.data_sections(run, config):
        try:
            return accept(building.load_data({**section, **whole}), held_out)
        except FileNotFoundError as error:
            missing.append(error)
        except ValueError as error:
            wrong.append(error)
    if wrong:
        raise wrong[0]
    raise FileNotFoundError(
        f"the training data of {run} are not found: {'; '.join(map(str, missing))}. Call the program where training "
        "was started, or give --data=..."
    ) from missing[0]


def announce_units(units: Sequence[int]) -> None:
    """Say which pictures are about to be forgotten, by the names of the code's units or else of the training data.

    Raises:
        ValueError: there are no such units, or no member survives their removal.
    """
    from ensdiff.files.reading import printable
    from ensdiff.runs.checkpoints import run_description
    from ensdiff.runs.description import from_description, read_manifest

    description = run_description(run_folder())
    code = from_description(description, None).code
    code.ablate([list(units)])  # all data are read for names only where the units can be removed
    try:
        names, manifest = code.names, read_manifest(run_folder(), description)
        if names is None or manifest is None:
            data = training_data()
            if data is None:
                print(f"{run_folder()} does not name its training data: --data=... would say which pictures units are")
                return
            names, manifest = data.unit_names, data.manifest()
    except (ValueError, OSError, ImportError) as error:
        print(f"warning: cannot tell which pictures units {', '.join(map(str, units))} are: {printable(error)}")
        return
    for unit in units:
        count = int((manifest.unit_of_item == unit).sum())
        print(f"unit {unit} is {printable(names[unit])}, {count} picture{'' if count == 1 else 's'}", flush=True)


def _data_flag() -> Any:
    from ensdiff.data.readers import load, parse_options

    name, *options = flags.FLAGS.data.split(",")
    pairs = [option.partition("=") for option in options]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError(f"--data={flags.FLAGS.data}: expected a reader and options, as in folder,path=images")
    return load(name, **parse_options(name, {key: value for key, _, value in pairs}))


def output_folder(name: str) -> pathlib.Path:
    """--out, or a folder in the run directory; made by process 0, which alone writes into it.

    Raises:
        ValueError: the run was made by forgetting units, and no --out is given.
    """
    from ensdiff.files.writing import make_folder
    from ensdiff.runs.checkpoints import run_description

    if not flags.FLAGS.out and "origin" in run_description(run_folder()):
        raise ValueError(
            f"{run_folder()} was made by forgetting units, and its certificate allows no other files in it: give "
            "--out=FOLDER"
        )
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
    from ensdiff.files.reading import whole_number

    ids = [whole_number(part.strip(" ")) for part in text.split(",")]
    if None in ids:
        raise ValueError(f"units {text!r}: expected ids joined by commas, such as 3 or 5,8")
    return [unit for unit in ids if unit is not None]


def unit_sets(text: str) -> list[Any]:
    """Units joined by commas; ids joined by + are one set. A list of ids where no entry is a set."""
    entries = [unit_ids(part.replace("+", ",")) for part in text.split(",")]
    return [entry[0] for entry in entries] if all(len(entry) == 1 for entry in entries) else entries


def describe_certificate(certificate: Any) -> None:
    """What a deletion certificate says, and what to keep."""
    from ensdiff.files.reading import printable

    print(printable(certificate.values["claim"]))
    for copy in certificate.values["copies"]:
        print(
            f"warning: item {copy['item']} of unit {copy['unit']}, which survivors saw, is byte for byte an item of "
            f"unit {copy['of_unit']}; forget both to be rid of its content"
        )
    print(f"digest (keep it elsewhere): {printable(certificate.digest)}")


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
