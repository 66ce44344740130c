"""Write the explorer of a run: one HTML page in which training units are removed from samples, exactly.

It shows each sample's most influential units, the sample without each of them and without every combination of the
first few, the whole landscape of influences with its null, and the training curves. If experiments.attribute saved an
attribution of the same samples by exact or screen in the run, it is reused. If it saved some by combined, trak, d-trak,
das or loss, the first in this order is shown beside the exact influences.

Examples:
  python -m experiments.report runs/digits
  python -m experiments.report runs/digits --n=24 --top=64 --null=199
  python -m experiments.report --run=runs/classes --cond=3 --guidance=2
  python -m experiments.report --run=runs/captions --prompt="a red cat" --guidance=5
  python -m experiments.report --run=runs/hierarchy --combined=4 --out=public
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from . import common, decoding, facts, runs

runs.define_sampling_flags(n=8)
runs.define_data_flag()
flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
TOP = flags.DEFINE_integer(
    "top", None, "Units per sample to remove exactly; by default 32, or what a saved attribution has.", lower_bound=1
)
COMBINED = flags.DEFINE_integer(
    "combined", 5, "Also remove every combination of each sample's first units, this many of them.", 0, 8
)
NULL = flags.DEFINE_string(
    "null",
    None,
    "Null ablations per sample, for p- and q-values: a number, 0 for none, all, or auto, as many as a verdict needs; "
    "by default those of a saved attribution, or auto.",
)
LEVEL = flags.DEFINE_float(
    "level", None, "The q-value up to which a sample is attributed; by default 0.1, or a saved attribution's.", 0, 1
)
LANDSCAPE = flags.DEFINE_integer("landscape", 20_000, "Most influential units per sample to show in the landscape.", 1)
INLINE = flags.DEFINE_float(
    "inline", 3.0, "MiB of data to store in the page itself; more goes into files beside it.", 0
)
MEMORY = flags.DEFINE_float("memory", None, "GiB of activations that a device may hold at a time.", 0)


def main(run: str | None = None) -> None:
    """Sample, remove units, and write the page."""
    import ensdiff
    from ensdiff.report.explorer import Exploration, write_explorer
    from ensdiff.sampling.captions import captions_of

    if run is not None:
        runs.set_run(run)
    params = runs.load_run()
    data = runs.training_data()
    out = runs.output_folder("report")
    samples = runs.draw_samples(params)
    decode = decoding.decoder_of(params, samples.images)
    # groups first: with few members, they are what can be answered for
    layers = [layer(params, data, samples, groups) for groups in kinds_of(params)]
    if not runs.is_writer():
        return
    folder = runs.run_folder()
    grids = {int(m.group(1)): path.read_bytes() for path in sorted((folder / "samples").glob("step_*.png"))
             if (m := re.fullmatch(r"step_(\d+)", path.stem))}  # fmt: skip
    exploration = Exploration(
        f"What {len(samples)} samples of {data.name} depend on",
        samples,
        layers,
        runs.sampling_command(),
        [*facts.facts(params, data), *facts.sampler_facts(samples)],
        ensdiff.read_metrics(folder),
        evenly(grids),
        captions_of(params, samples.cond, samples.captions),
        decode,
    )
    page = write_explorer(out / "explorer.html", exploration, inline=round(INLINE.value * 2**20))
    print(f"explorer: {page}")


def kinds_of(params: Any) -> list[bool]:
    """Return the layers of the page in order: True for one of groups, False for one of units."""
    return [False] if params.code.groups is None else [True, False]


def layer(params: Any, data: Any, samples: Any, groups: bool) -> Any:
    """Compute one layer of the page: for the code's units, or for its groups.

    A saved attribution of these samples is reused if there is one.
    """
    from ensdiff.report.explorer import explore

    return explore(
        params,
        data,
        samples,
        saved(params, samples, groups),
        scores=scored(params, samples, groups),
        groups=groups,
        top=given(TOP, 32),
        combined=COMBINED.value,
        null="auto" if NULL.value is None else runs.null_value(NULL.value),
        level=given(LEVEL, 0.1),
        landscape=LANDSCAPE.value,
        seed=flags.FLAGS.seed,
        memory_budget=None if MEMORY.value is None else round(MEMORY.value * 2**30),
        progress=True,
    )


def saved(params: Any, samples: Any, groups: bool) -> Any:
    """Return the attribution of these samples that experiments.attribute saved.

    None if there is none, or if the flags ask for more than it has.
    """
    import ensdiff
    from ensdiff.report.explorer.layer import unfit

    code = params.code.group_code() if groups else params.code
    for stem in stems(("exact", "screen"), groups):
        att = ensdiff.Attribution.load(stem)
        enough = att.units.shape[1] >= min(given(TOP, 1), code.units) and att.level == given(LEVEL, att.level)
        if not enough or not suffices(att):
            continue
        problem = unfit(params, samples, att, code)
        if problem is None:
            print(f"attribution: {stem}.json")
            return att
        print(f"left out: {stem}.json: {problem}")
    return None


def suffices(att: Any) -> bool:
    """Return whether a saved attribution has at least as many null ablations as --null asks for."""
    null = 0 if NULL.value is None else runs.null_value(NULL.value)
    if null == "auto":
        return att.null_BL is not None and att.limitation is None
    if null == "all":
        return att.settings.get("null") == "all"
    return att.settings.get("null_of_a_kind", 0) >= null


def scored(params: Any, samples: Any, groups: bool) -> Any:
    """Return the attribution of these samples that experiments.attribute saved by gradients or loss, or None.

    Files that cannot be shown are left out, and a line says why.
    """
    import ensdiff
    from ensdiff.report.explorer.scores import METHODS, unfit_scores

    code = params.code.group_code() if groups else params.code
    for stem in stems(METHODS, groups):
        try:
            att = ensdiff.Attribution.load(stem)
            problem = unfit_scores(params, samples, att, code)
        except (OSError, ValueError) as error:
            problem = str(error)
        if problem is None:
            print(f"scores: {stem}.json")
            return att
        print(f"left out: {stem}.json: {problem}")
    return None


def stems(methods: Sequence[str], groups: bool) -> list[pathlib.Path]:
    """Return the paths, without suffix, of the run's saved attributions by these methods."""
    folder, end = runs.run_folder() / "attribution", f"_seed{flags.FLAGS.seed}{'_groups' if groups else ''}"
    return [folder / f"{method}{end}" for method in methods if (folder / f"{method}{end}.json").exists()]


def given(flag: Any, default: Any) -> Any:
    """Return the value of a flag, or ``default`` if the flag was not given."""
    return default if flag.value is None else flag.value


def evenly(grids: dict[int, bytes], most: int = 12) -> dict[int, bytes]:
    """Return at most ``most`` evenly spaced grids, including the last."""
    steps = sorted(grids)
    chosen = steps[:: -max(1, -(-len(steps) // most))] if steps else []
    return {step: grids[step] for step in chosen}


if __name__ == "__main__":
    common.run(main, __doc__, optional="run")
