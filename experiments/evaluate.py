"""Evaluate attribution methods against ground truth: train the models, compute every method, and write tables.

A config names the studies. Each study trains its models as stacked ensembles, and stores them in config.run_dir with
all computed results. You can stop at any moment; the same command continues. Every study writes NAME.md, NAME.json and
figures; results.md contains the results of all studies.

Examples:
  python -m experiments.evaluate --config=evaluate_smoke
  python -m experiments.evaluate --config=evaluate_digits --only=size,lds
"""

import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from . import common
from .config import config_path, define_config

SHARED = ("data", "model", "schedule", "train", "sampler", "run_dir")


def check_config(config: Any, known: tuple[str, ...]) -> list[str]:
    """Return the names of the studies in a config.

    Raises:
        ValueError: the config has no studies, lacks a required section, or has an unknown one.
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() of the config gave a {type(config).__name__}: expected a ConfigDict")
    found = [name for name in known if name in config]
    missing = [name for name in SHARED if name not in config]
    if missing or not found:
        what = f"no {missing[0]}" if missing else f"no study ({', '.join(known)})"
        raise ValueError(
            f"the config has {what}: expected a config of studies; try --config=evaluate_smoke, or see "
            f"{config_path('evaluate_digits')}"
        )
    sections = (*SHARED, "gradients", *known)
    unknown = [name for name in config if name not in sections]
    if unknown:
        raise ValueError(f"config.{unknown[0]}: no such section; expected some of {', '.join(sections)}")
    return found


def main() -> None:
    """Run the studies one after another, and write each as soon as it is finished."""
    import time

    from ensdiff.ensemble.mesh import make_mesh
    from ensdiff.files.writing import lock, write_atomically
    from ensdiff.runs.environment import environment

    from .studies import STUDIES
    from .studies.workshop import Workshop

    f, config = flags.FLAGS, flags.FLAGS.config
    if config is None:
        raise ValueError("no config given; try --config=evaluate_smoke")
    studies = check_config(config, tuple(STUDIES))
    unknown = sorted(set(f.only) - set(studies))
    if unknown:
        raise ValueError(
            f"--only={','.join(f.only)}: the config has no study {unknown[0]!r}, only {', '.join(studies)}"
        )
    folder = pathlib.Path(config.run_dir)
    out = pathlib.Path(f.out) if f.out else folder / "results"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        shop = Workshop(folder, config)
        for name in [study for study in studies if study in f.only or not f.only]:
            print(f"\n{name}", flush=True)
            begin = time.perf_counter()
            findings = STUDIES[name](shop)
            seconds = shop.seconds(name)
            record = {
                "study": name,
                "config": config[name].to_dict(),
                "seconds": round(seconds),
                "environment": environment(make_mesh(1)),
            }
            findings.write(out, name, record)
            print(findings.markdown(), flush=True)
            print(f"{name}: {seconds:.0f} s of work in total, {time.perf_counter() - begin:.0f} s now", flush=True)
        parts = [out / f"{name}.md" for name in studies if (out / f"{name}.md").exists()]
        write_atomically(out / "results.md", "\n".join(part.read_text() for part in parts))
    print(f"\nresults: {out / 'results.md'}\nnumbers: {out}/*.json\nmodels: {folder / 'models'}")


def define_flags() -> None:
    """Define the command line."""
    define_config(studies=True)
    flags.declare_key_flag("config")
    flags.DEFINE_list("only", [], "Studies of the config to run; by default all.")
    flags.DEFINE_string("out", None, "Folder for tables, numbers and figures; by default results in config.run_dir.")
    flags.adopt_module_key_flags(common)


if __name__ == "__main__":
    define_flags()
    common.run(main, __doc__)
