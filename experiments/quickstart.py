"""Run the whole workflow on 1,400 embedded digits, or on a folder of pictures by artist, and write a report.

It trains 16 members that are conditioned on the class, draws one sample of each of the first classes, regenerates them
without each class, finds the pictures inside of the classes that matter most, and writes report.html into the run
directory, by default runs/quickstart. Start here.

With --images, classes are the subfolders of a folder: artists, persons, places. It needs at least two.

Examples:
  python -m experiments.quickstart
  python -m experiments.quickstart --samples=10 --config.train.steps=3000 --config.run_dir=runs/longer
  python -m experiments.quickstart --images=my_images --config.run_dir=runs/mine
"""

import pathlib
import shlex
import time
from typing import Any

import numpy as np
from absl import flags

from . import building, common, facts
from .commands import command
from .config import define_config
from .own_runs import begin_run

flags.adopt_module_key_flags(common)

CONFIG = define_config("quickstart")
flags.declare_key_flag("config")
IMAGES = flags.DEFINE_string("images", None, "A folder whose subfolders are the classes, instead of the digits.")
SIZE = flags.DEFINE_integer("size", 16, "Side in pixels to which the pictures of --images are resized.", 4)
SAMPLES = flags.DEFINE_integer("samples", 6, "Samples to attribute: one of each class, then again from the first.", 1)
STEPS = flags.DEFINE_integer("steps", 20, "Steps of the sampler.", 1)
GUIDANCE = flags.DEFINE_float("guidance", 2.0, "Strength of classifier-free guidance; 1 is none.", 0)
EVALUATED = flags.DEFINE_integer("evaluated", 397, "Generated images to compare with held-out ones.", 1)

SAMPLER = "euler"
GRADIENTS: dict[str, Any] = {
    "draws": 4,
    "parts": 1,
    "dimension": 256,
    "ridge": 0.01,
    "levels": "all",
    "normalize": False,
}
"""Settings of the gradients that choose pictures inside of a class. Few draws, because all pictures share them."""
INSIDE = (
    "The pictures shown of a group are those of its training pictures whose gradients (TRAK) say most about the "
    "sample. The samples are conditioned on their groups: without a group, no remaining member ever saw its condition."
)
HELD_OUT = 0.2
"""Share of the pictures of --images that is held out."""
FEW = 40
"""With fewer held-out pictures, samples are not compared with them."""


def main() -> None:
    """Run everything and print where the report is."""
    from ensdiff import hosts
    from ensdiff.codes.unit_names import UnitNames
    from ensdiff.report import finding

    begin = time.time()
    config = chosen_config(CONFIG.value)
    run_dir = pathlib.Path(config.run_dir)
    building.check_config(config)
    values = building.section(config, "data")
    data, held_out = building.load_data(values), building.load_held_out(values)  # an earlier run stays if they fail
    hosts.decide(lambda: begin_run(run_dir, bool(config.resume), IMAGES.value))
    params = building.train_from_config(config)
    names = params.code.group_code().names
    if held_out is not None and IMAGES.value is not None:
        print(f"{held_out.items} of {held_out.items + data.items} pictures are held out, to compare samples with")
    noun = "class" if IMAGES.value is None else "folder"

    samples, shown = draw(params, data, EVALUATED.value), draw(params, data, SAMPLES.value)
    tables = []
    if held_out is not None and held_out.items >= FEW:
        tables.append(validity(config, params, data, held_out, np.asarray(samples.images)))
        print("\n" + tables[0].title)
        for row in tables[0].rows:
            print("  " + "  ".join(cell.ljust(28) for cell in row))
    att, inside = attribute(params, data, shown)
    print(att)
    print("\n" + finding(att, names, noun))
    page = report(config, params, data, samples, shown, att, inside, tables, noun)
    if page is None:
        return
    print(f"\n{time.time() - begin:.0f} s in total\nrun: {run_dir}\nreport: {page}")
    again = f"--run={run_dir} --n={len(shown)} --sampler={SAMPLER} --steps={STEPS.value} --guidance={GUIDANCE.value:g}"
    named = shlex.quote(UnitNames(names).typed(int(att.units[0, 0])))
    print(f"\nits groups and their pictures: {command('units')} --run={run_dir} --groups")
    print(f"the samples without one group: {command('sample')} {again} --groups --remove={named}")
    print(f"all of it to explore: {command('report')} {again}, or live: {command('serve')} {again}")


def chosen_config(config: Any) -> Any:
    """Return the config, with the pictures of --images instead of the digits if they are given.

    Raises:
        ValueError: there are no pictures in subfolders.
    """
    if IMAGES.value is None:
        return config
    from ensdiff.data.pictures import find_pictures

    found = len(find_pictures(IMAGES.value))
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.data = {
            "name": "folder",
            "path": IMAGES.value,
            "size": SIZE.value,
            "labels": "folder",
            "condition": "label",
            "held_out": round(HELD_OUT * found),
        }
        changed.code.group_names = "{}"
    return changed


def draw(params: Any, data: Any, n: int) -> Any:
    """Return n samples of the classes in turn."""
    import ensdiff

    _, first_of = np.unique(data.labels, return_index=True)
    cond = np.asarray(data.condition)[first_of[np.arange(n) % len(first_of)]]
    return ensdiff.sample(
        params, 0, n, steps=STEPS.value, sampler=SAMPLER, cond=cond, guidance=GUIDANCE.value, progress=True
    )


def attribute(params: Any, data: Any, shown: Any) -> tuple[Any, Any]:
    """Return the attribution of samples to the classes, by loss, and to single pictures, by gradients.

    Verdicts are by q-values among all samples, with every null ablation that there is: 1,810 for ten classes.
    """
    import ensdiff

    groups = params.code.group_code()
    att = ensdiff.attribute(
        params, shown, "loss", code=groups, top=min(4, groups.units), null="all", progress=True
    ).over_call()
    inside = ensdiff.attribute(
        params, shown, "trak", data=data, top=data.units, gradients=ensdiff.GradientConfig(**GRADIENTS), progress=True
    )
    return att, inside


def report(
    config: Any, params: Any, data: Any, samples: Any, shown: Any, att: Any, inside: Any, tables: Any, noun: str
) -> pathlib.Path | None:
    """Write the report, and return its path; None in a process that does not write."""
    import ensdiff
    from ensdiff import hosts
    from ensdiff.report import (
        Figure,
        Page,
        attribution_sections,
        finding,
        grid,
        how_to_read,
        loss_figure,
        picture,
        write_page,
    )

    sections = attribution_sections(params, data, shown, att, top=3, groups=True, inside=inside)
    if not hosts.is_writer():
        return None
    what = "generated digits" if IMAGES.value is None else f"samples of {data.name}"
    metrics = ensdiff.read_metrics(pathlib.Path(config.run_dir))
    page = Page(
        f"What {len(shown)} {what} depend on",
        [*how_to_read(att), INSIDE],
        [*facts.facts(params, data), *facts.sampler_facts(shown)],
        tables,
        [
            Figure("Samples", picture(grid(samples.images[:60]), 568), "60 samples"),
            Figure("Training", loss_figure(metrics), "Loss of each member and their mean against the training step"),
        ],
        sections,
        finding(att, params.code.group_code().names, noun),
    )
    return write_page(pathlib.Path(config.run_dir) / "report.html", page)


def validity(config: Any, params: Any, data: Any, held_out: Any, images: np.ndarray) -> Any:
    """Return a table of Frechet distances to held-out images, for the ensemble, one ordinary model and real images."""
    from ensdiff.metrics import fit_classifier, frechet_distance, frechet_floor
    from ensdiff.report import Table

    classifier = fit_classifier(data.images, data.labels)
    real = classifier.features(held_out.images)
    single_images = np.asarray(draw(building.train_single(config, data), data, len(images)).images)
    noise = np.random.default_rng(0).random(images.shape)
    rows = []
    for name, generated in (
        ("ensemble", images),
        ("one model on all the data", single_images),
        ("uniform noise", noise),
    ):
        distance = frechet_distance(classifier.features(generated), real)
        rows.append((name, f"{distance.value:.2f}"))
    half = min(len(images), len(held_out.images), data.items // 2)
    rows.append(("real images (the floor)", f"{frechet_floor(classifier.features(data.images), half):.2f}"))
    accuracy = classifier.accuracy(held_out.images, held_out.labels)
    return Table(
        "Are the samples like the data?",
        ("what", "Frechet distance to held-out images"),
        rows,
        f"In the {real.shape[1]} features of a small classifier fitted on the training images (accuracy on held-out "
        f"images {accuracy:.1%}); {len(images)} images against {len(real)}. The floor is the distance between two "
        f"disjoint sets of {half} real training images. Not comparable with the FID of other data.",
    )


if __name__ == "__main__":
    common.run(main, __doc__)
