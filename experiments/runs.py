"""Functions shared by all programs that read a run: to find the run, its data, its samples and the output folder."""

import pathlib
import shlex
from collections.abc import Callable, Collection
from typing import Any

from absl import flags

from . import building
from .commands import command

_RUN = flags.DEFINE_string("run", None, "The run directory, as experiments.train wrote it.")


def define_sampling_flags(n: int) -> None:
    """Define the flags of programs that sample from a run."""
    flags.DEFINE_integer("step", None, "Step of the checkpoint to use; by default the newest.")
    flags.DEFINE_enum(
        "combine",
        None,
        ["predictions", "parameters"],
        "What weights of members average: their predictions, or their parameters, which needs members that share their "
        "start, as adapters do. By default what the run was trained with.",
    )
    flags.DEFINE_float(
        "scale", None, "Factor of the members' averaged changes with --combine=parameters; by default the run's, 1."
    )
    flags.DEFINE_integer("n", n, "Samples to generate.")
    flags.DEFINE_integer("seed", 0, "Seed of the samples' noise.")
    flags.DEFINE_integer("steps", 50, "Sampling steps.")
    flags.DEFINE_enum(
        "sampler",
        "ddpm",
        ["ddpm", "ddim", "euler", "heun", "dpm++2m", "genens", "diffusers"],
        "Ancestral (ddpm), DDIM, Euler, Heun, DPM-Solver++(2M), or the sampler of a reference implementation, which "
        "fixes the number of steps (genens: 1,000; diffusers, as in counterfactualuniverses: 50).",
    )
    flags.DEFINE_float("eta", 0.0, "Noise of the DDIM sampler, from 0 to 1.")
    flags.DEFINE_string(
        "cond",
        None,
        "The conditions of samples of a conditional run: ids or names of classes separated by commas, one per sample "
        "or one for all, or none. By default the classes take turns.",
    )
    flags.DEFINE_multi_string(
        "prompt",
        [],
        "A prompt, for a run whose conditions are embeddings of captions: once for all samples, or once per "
        "sample. By default samples have no condition.",
    )
    flags.DEFINE_string(
        "text",
        None,
        "Folder with the folders text_encoder and tokenizer that embedded the captions of the run, for --prompt; by "
        "default the one that the file of the training latents names.",
    )
    flags.DEFINE_float("guidance", None, "Scale of classifier-free guidance; by default 1, the condition alone.")
    flags.DEFINE_string(
        "decode",
        None,
        "Decoder with which latents are shown: the folder of an AutoencoderKL, or the .pca.npz file of "
        "experiments.encode; by default the one that the file of the training latents names.",
    )
    flags.DEFINE_string(
        "out",
        None,
        "Folder to write to; by default one inside the run directory. Required for a run that experiments.forget "
        "wrote, because its certificate allows no other files in the run.",
    )


def set_run(folder: str) -> None:
    """Set --run to a run given as an argument.

    Raises:
        ValueError: --run names another run.
    """
    if _RUN.value and _RUN.value != folder:
        raise ValueError(f"two runs given, {folder} and --run={_RUN.value}: expected one")
    flags.FLAGS["run"].value = folder


def run_folder() -> pathlib.Path:
    """Return the folder of --run.

    Raises:
        ValueError: no run is given.
    """
    if not _RUN.value:
        raise ValueError("no run given; try --run=runs/quickstart")
    return pathlib.Path(_RUN.value)


def load_run() -> Any:
    """Load the ensemble of --run, and print it."""
    import ensdiff

    given: Any = {name: flags.FLAGS[name].value for name in ("combine", "scale") if name in flags.FLAGS}
    params = ensdiff.load(run_folder(), flags.FLAGS.step, **given)
    print(params, flush=True)
    warn_of_unfinished(run_folder(), flags.FLAGS.step)
    return params


def warn_of_unfinished(run: pathlib.Path, step: int | None) -> None:
    """Say it if the checkpoint that is used is not the last step of the training that its config asked for."""
    from ensdiff.runs.checkpoints import steps_of

    from . import building
    from .commands import command

    try:
        wanted = building.read_run_config(run).get("train", {}).get("steps")
    except (OSError, ValueError):  # a run without the programs' config, or with a damaged one
        return
    used = max(steps_of(run), default=None) if step is None else step
    if isinstance(wanted, int) and used is not None and used < wanted:
        go_on = f"{command('train')} with the same options and --config.resume=True goes on"
        print(f"warning: this is step {used:,} of {wanted:,} of {run}: samples may be noise ({go_on})", flush=True)


def draw_samples(params: Any) -> Any:
    """Draw the samples that the sampling flags describe.

    Raises:
        ValueError: a flag contradicts the settings that --sampler fixes.
    """
    import ensdiff
    from ensdiff.interop import SAMPLERS

    from .prompts import asked_for

    f = flags.FLAGS
    conditions = asked_for(params, f.n, f["n"].present > 0)
    f["n"].value = conditions.samples
    if conditions.told:
        print(conditions.told, flush=True)
    given: dict[str, Any] = {"cond": conditions.cond, "guidance": f.guidance, "captions": conditions.captions}
    given["progress"] = True
    if f.sampler in SAMPLERS:
        fixed = {"steps": SAMPLERS[f.sampler].steps, "eta": 0.0}
        for name, value in fixed.items():
            if f[name].present and f[name].value != value:
                raise ValueError(f"--{name}={f[name].value}: --sampler={f.sampler} fixes it at {value}; leave it out")
        return ensdiff.sample(params, f.seed, f.n, sampler=SAMPLERS[f.sampler], **given)
    return ensdiff.sample(params, f.seed, f.n, steps=f.steps, sampler=f.sampler, eta=f.eta, **given)


def sampling_command() -> str:
    """Return the command that draws the same samples as `draw_samples`."""
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
    given = ("combine", "scale", "cond", "text", "guidance", "decode")
    options |= {name: f[name].value for name in given if f[name].value is not None}
    pairs = [*options.items(), *(("prompt", prompt) for prompt in f.prompt)]
    return " ".join([command("sample"), *(shlex.quote(f"--{k}={v}") for k, v in pairs)])


def define_data_flag() -> None:
    """Define the flag that `training_data` reads."""
    flags.DEFINE_string(
        "data",
        None,
        "The training data, if the run directory does not record where they are: a reader and its options, such as "
        "npz,path=train.npz or folder,path=images,size=32,groups=folder.",
    )


def training_data(required: bool = True) -> Any:
    """Return the training data of --run, found by their content in --data or in the data that its config names.

    Returns None if neither --data nor a config names the data and they are not ``required``.

    Raises:
        ValueError: the data are not those of the run, and the message lists the items that differ; or nothing names
            required data.
        FileNotFoundError: the data are not where the config places them; the message lists the places searched.
    """
    import ensdiff

    if not required and not flags.FLAGS.data and not (run_folder() / "config.json").exists():
        return None
    return _accepted(lambda found, held_out: ensdiff.training_data(run_folder(), found, held_out=held_out))


def unseen_data() -> Any:
    """Return the items of --data, or of the data that the config of --run names, that the run was not trained on.

    They are found by content. Returns None if there are none.
    """
    from ensdiff.runs.identity import other_items

    return other_items(run_folder(), all_data())


def all_data(absent: Collection[int] = ()) -> Any:
    """Return all data of --data or of the config of --run, including held-out items.

    If the config's data may be in several places, the first place that holds the items of the run (except those of the
    units in ``absent``) is used, or else the first that can be read.
    """
    from ensdiff.runs.identity import find_training_data

    def with_items(found: Any, _: int) -> Any:
        find_training_data(run_folder(), found, absent)
        return found

    if not flags.FLAGS.data:
        try:
            return _accepted(with_items)
        except ValueError:
            pass  # the caller reports the differences
    return _accepted(lambda found, _: found)


def _accepted(accept: Callable[[Any, int], Any]) -> Any:
    """Return ``accept(data, held_out)`` for --data, or for the first place of the config's data that it accepts.

    ``accept`` is called with all items and the number that the config holds out. A place is skipped if its data are
    missing or ``accept`` raises a ValueError.

    Raises:
        ValueError: no place has the right data, or neither --data nor a config names them.
        FileNotFoundError: no place has data.
    """
    from ensdiff.data.manifest import NAME

    run = run_folder()
    config = building.read_run_config(run) if (run / "config.json").exists() else None
    held_out = config["data"].get("held_out", 0) if config is not None else 0
    if flags.FLAGS.data:
        condition = "" if config is None else config["data"].get("condition", "")
        return accept(read_data(flags.FLAGS.data, condition=condition), held_out)
    if config is None:
        raise ValueError(f"{run} does not name its training data: pass --data=..., such as --data=npz,path=train.npz")
    whole = {"held_out": 0} if (run / NAME).exists() else {}  # without hashes, number and order of the items decide
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
        f"the training data of {run} were not found: {'; '.join(map(str, missing))}. Run the program in the directory "
        "where training was started, or pass --data=..."
    ) from missing[0]


def read_data(text: str, expected: str = "a reader and options, as in folder,path=images", condition: str = "") -> Any:
    """Return the data set of a reader and its options, such as ``folder,path=images``.

    Args:
        text: the name of the reader and its options; ``condition=label`` conditions on the labels.
        expected: what the text must be, for the message.
        condition: the condition if ``text`` gives none.

    Raises:
        ValueError: an option is not NAME=VALUE, or the reader or an option does not exist.
    """
    from ensdiff.data.readers import parse_options

    name, *options = text.split(",")
    pairs = [option.partition("=") for option in options]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError(f"{text}: expected {expected}")
    values = {"condition": condition, **{key: value for key, _, value in pairs}}
    return building.read_items(name, parse_options(name, values))


def output_folder(name: str) -> pathlib.Path:
    """Return --out, or a folder in the run directory. Process 0, the only one that writes, creates the folder.

    Raises:
        ValueError: the run was made by forgetting units, and no --out is given.
    """
    from ensdiff.files.writing import make_folder
    from ensdiff.runs.checkpoints import run_description

    if not flags.FLAGS.out and "origin" in run_description(run_folder()):
        raise ValueError(
            f"{run_folder()} was made by forgetting units, and its certificate allows no other files in it: pass "
            "--out=FOLDER"
        )
    out = pathlib.Path(flags.FLAGS.out) if flags.FLAGS.out else run_folder() / name
    if is_writer():
        make_folder(out)
    return out


def is_writer() -> bool:
    """Return whether this process writes the files; among several processes, only process 0 does."""
    from ensdiff import hosts

    return hosts.is_writer()


def null_value(text: str) -> Any:
    """Return the value of --null, a number, "all" or "auto".

    Raises:
        ValueError: it is something else.
    """
    if text in ("all", "auto"):
        return text
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"--null={text}: expected a number of null ablations, all or auto")
    return int(text)
