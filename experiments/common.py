"""What the programs share: start-up of JAX, errors as one line, and building data and codes from a config."""

import ast
import json
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments import processes, usage

flags.adopt_module_key_flags(processes)
flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")
flags.DEFINE_string(
    "cache",
    None,
    "Folder of JAX's persistent compilation cache; 'off' turns it off. Default: $JAX_COMPILATION_CACHE_DIR, or "
    "ensdiff/jax in the user's cache folder.",
)


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
        found = load_data(read_run_config(run_folder())["data"])
    if found is not None and found.units != params.code.units:
        raise ValueError(f"the data have {found.units} units, the code of {run_folder()} has {params.code.units}")
    return found


def all_data() -> Any:
    """The data of --data, or of the config of --run with all that it holds out; None where neither says."""
    if flags.FLAGS.data:
        return _data_flag()
    if not (run_folder() / "config.json").exists():
        return None
    return load_data({**read_run_config(run_folder())["data"], "held_out": 0})


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
    out = pathlib.Path(flags.FLAGS.out) if flags.FLAGS.out else run_folder() / name
    if is_writer():
        out.mkdir(parents=True, exist_ok=True)
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


def start_jax(preemptible: bool = False) -> None:
    """Use every CPU core as a device (unless told otherwise by JAX_NUM_CPU_DEVICES) and cache compilations.

    Of several processes each takes its share of the cores, and meets the others. Must run before any other JAX
    operation.
    """
    import jax

    logging.set_verbosity(logging.WARNING)  # Orbax tells much
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "xla_force_host" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", processes.cpu_devices())
    cache = flags.FLAGS.cache or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache is None:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        cache = str(pathlib.Path(base) / "ensdiff" / "jax")
    if cache != "off":
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if processes.wanted():
        processes.start(preemptible)


def run(
    main: Callable[..., None],
    description: str,
    commands: Sequence[str] = (),
    *,
    optional: str | None = None,
    preemptible: bool = False,
) -> None:
    """Run a program: parse flags, start JAX, and turn errors of the user's making into one line and exit code 1.

    Exit codes: 0 done, 1 an error that the message explains, 2 bad command line, 75 stopped as a signal asked, with a
    checkpoint, 130 interrupted.

    Args:
        main: the program; called with the command where there are ``commands``.
        description: what --help says.
        commands: words of which the command line must hold one.
        optional: what one argument that is no flag means; without it there may be none.
        preemptible: whether one of several processes may pass a SIGTERM on to all, which then save at the same step
            (`ensdiff.preempt.on_signals`); else the signal ends it.
    """
    sys.modules["__main__"].__doc__ = description
    flags.FLAGS.set_gnu_getopt(True)  # options may follow the command

    def parse(argv: list[str]) -> list[str]:
        if usage.wanted(argv):
            print(usage.usage(argv[0], description), end="")
            raise SystemExit(0)
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            _fail(2, str(error), "--help lists the options")
        except Exception as error:  # a config is a program, and may raise anything
            if "--debug" in argv:
                traceback.print_exc()
            _fail(2, _config_error(error), "fields of a config are set with --config.section.field=value")
        words = rest[1:]
        if commands and (not words or words[0] not in commands):
            given = f"unknown command {words[0]!r}" if words else "no command given"
            _fail(2, f"{given}: expected one of {', '.join(commands)}", "--help explains them")
        known = bool(commands) + (optional is not None)
        if len(words) > known:
            extra = words[known]
            _fail(2, f"unexpected argument {extra!r}", "options are written --name=value; --help lists them")
        return rest

    def guarded(rest: list[str]) -> None:
        try:
            start_jax(preemptible)
            main(*rest[1:])
            processes.end()
        except KeyboardInterrupt:
            _fail(130, "interrupted", "")
        except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
            if isinstance(error, RuntimeError):
                _end_if_asked(error)
            if flags.FLAGS.debug:
                traceback.print_exc()
            text = f"out of memory: {error}" if isinstance(error, MemoryError) else str(error) or repr(error)
            _fail(1, text, processes.hint(error))
        except BaseException:
            traceback.print_exc()
            processes.abandon(1)
            raise

    app.run(guarded, flags_parser=parse)


def _end_if_asked(error: RuntimeError) -> None:
    """Where the program stopped because a signal asked it to: say so, and end with the code for that."""
    from ensdiff.preempt import EXIT_CODE, Preempted

    if isinstance(error, Preempted):
        print(f"stopped: {error}", file=sys.stderr)
        processes.end()
        raise SystemExit(EXIT_CODE)


def _fail(code: int, message: str, hint: str) -> None:
    message = " ".join(message.split())
    print(f"error: {message}" + (f" ({hint})" if hint else ""), file=sys.stderr)
    processes.abandon(code)
    raise SystemExit(code)


def _config_error(error: Exception) -> str:
    """ml_collections' error without its wrapping: the first line that says something."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    while text[:1] in ("'", '"') and text[-1:] == text[:1]:  # quoted once for each error that it went through
        try:
            text = str(ast.literal_eval(text))
        except (SyntaxError, ValueError):
            break
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    known = (AttributeError, KeyError, TypeError, ValueError, OSError)
    kind = "" if isinstance(error, known) and lines else f"{type(error).__name__}: "
    return kind + (" ".join(lines[:2]) if lines else repr(error))


SECTIONS = ("data", "code", "model", "schedule", "train")


def check_config(config: Any) -> None:
    """Check what a config must have, before anything is done.

    Raises:
        ValueError: it has an unknown section or lacks one that is needed.
    """
    _ = getattr(config, "run_dir", None)  # a file that could not be read raises here what was wrong with it
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() of the config gave a {type(config).__name__}: expected a ConfigDict")
    known = ("run_dir", "resume", *SECTIONS, "aot")
    unknown = [name for name in config if name not in known]
    if unknown:
        raise ValueError(f"config.{unknown[0]}: no such section; expected some of {', '.join(known)}")
    if not isinstance(config.get("run_dir"), str) or not config.run_dir:
        raise ValueError(f"config.run_dir={config.get('run_dir')!r}: expected the folder to write to")
    for name in SECTIONS:
        if name in config and not isinstance(config[name], ConfigDict):
            raise ValueError(f"config.{name}={config[name]!r}: expected a section with fields")
    if not isinstance(config.get("data", ConfigDict()).get("name"), str):
        raise ValueError("config.data.name: expected the name of a data set, such as 'digits' or 'folder'")


def section(config: ConfigDict, name: str) -> dict[str, Any]:
    """A section of the config as keyword arguments, lists as tuples; unset (None) fields are left out."""
    values = config.get(name, ConfigDict()).to_dict()
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}


def build(kind: Callable, name: str, values: dict[str, Any]) -> Any:
    """``kind(**values)``, with an unknown field reported by its place in the config."""
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"config.{name}: {error}") from None


def load_data(values: dict[str, Any]) -> Any:
    """The data set of a config's ``data`` section: ``name``, the reader's options, and ``held_out``.

    ``name`` is the reader; of the reader `ensdiff.data.tfds`, which has an option of that name too, ``dataset`` is the
    data set. ``held_out`` items, chosen at random, are left out of training; `held_out_data` gives them.
    """
    everything, held_out = _read_all(values)
    return everything.subset(_split(everything.items, held_out)[0]) if held_out else everything


def held_out_data(values: dict[str, Any]) -> Any:
    """The items that `load_data` left out."""
    everything, held_out = _read_all(values)
    return everything.subset(_split(everything.items, held_out)[1])


def _read_all(values: dict[str, Any]) -> tuple[Any, int]:
    from ensdiff import data

    options = dict(values)
    held_out = options.pop("held_out", 0)
    reader = options.pop("name")
    if "dataset" in options:
        options["name"] = options.pop("dataset")
    return data.load(reader, **options), held_out


def _split(items: int, held_out: int) -> tuple[Any, Any]:
    import numpy as np

    if not isinstance(held_out, int) or not 0 < held_out < items - 1:
        raise ValueError(f"config.data.held_out={held_out}: expected 0 .. {items - 2} of the {items} items")
    order = np.random.default_rng(0).permutation(items)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def read_run_config(run: str | os.PathLike) -> dict[str, Any]:
    """The config that a run was trained with, from its ``config.json``."""
    path = pathlib.Path(run) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: {run} was not written by experiments.train")
    from ensdiff.integrity import read_sealed

    values = read_sealed(path)
    if not isinstance(values.get("data"), dict) or "name" not in values["data"]:
        raise ValueError(f"{path} is not the config of a run: it names no data")
    return values


def settings(config: ConfigDict, data: Any) -> tuple[Any, Any, Any]:
    """The U-Net, schedule and training settings of a config, for the data's channels."""
    import ensdiff

    model = build(ensdiff.UNetConfig, "model", {**section(config, "model"), "image_channels": data.shape[-1]})
    schedule = build(ensdiff.Schedule, "schedule", section(config, "schedule"))
    return model, schedule, build(ensdiff.TrainConfig, "train", section(config, "train"))


def build_code(values: dict[str, Any], data: Any) -> Any:
    """The code of a config's ``code`` section; with ``groups=label``, hierarchical: items inside their classes."""
    import ensdiff

    if "groups" not in values:
        return build(ensdiff.Code.balanced, "code", {**values, "units": data.units})
    if values["groups"] != "label":
        raise ValueError(f"config.code.groups={values['groups']!r}: expected 'label', the class of each item")
    if data.labels is None or data.units != data.items:
        raise ValueError("config.code.groups='label': the data need a label an item, and units that are items")
    return build(ensdiff.Code.hierarchical, "code", {**values, "groups": data.labels})


def train_from_config(config: ConfigDict) -> Any:
    """Train as a config says, and keep the config beside the run. Returns the Ensemble.

    SIGTERM and SIGINT write a checkpoint and end training with `ensdiff.Preempted`.
    """
    import ensdiff
    from ensdiff.integrity import write_sealed
    from ensdiff.preempt import on_signals

    check_config(config)
    data = load_data(section(config, "data"))
    code = build_code(section(config, "code"), data)
    model, schedule, train_config = settings(config, data)
    shares = code.shares()
    print(f"{data}\n{code}: members see {shares.min()} to {shares.max()} units", flush=True)
    run_dir = pathlib.Path(config.run_dir)

    def keep_config() -> None:
        if is_writer():
            write_sealed(run_dir / "config.json", json.loads(config.to_json()))

    with on_signals() as stop:
        return ensdiff.train(
            data,
            code,
            model,
            train_config,
            schedule=schedule,
            run_dir=run_dir,
            resume=config.get("resume", False),
            on_open=keep_config,
            stop=stop,
        )


def train_single(config: ConfigDict, data: Any) -> Any:
    """One model of the config's size and steps, trained on all the data: the ordinary alternative to an ensemble."""
    import ensdiff

    model, schedule, train_config = settings(config, data)
    return ensdiff.train(data, ensdiff.Code.undivided(data.units), model, train_config, schedule=schedule)
