"""Run the whole workflow on 1,400 embedded digits: train, sample, measure, attribute, and write a report.

It trains 16 members, compares their samples with held-out digits, attributes some of them to training digits, and
writes report.html into the run directory, by default runs/quickstart. Start here.

Examples:
  python -m experiments.quickstart
  python -m experiments.quickstart --samples=12 --config.train.steps=3000 --config.run_dir=runs/longer
"""

import pathlib
import shutil
import time

import numpy as np
from absl import flags

from . import building, common, facts
from .commands import command
from .config import define_config

flags.adopt_module_key_flags(common)

CONFIG = define_config("quickstart")
flags.declare_key_flag("config")
SAMPLES = flags.DEFINE_integer("samples", 6, "Samples to attribute.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps of the DDIM sampler.")
EVALUATED = flags.DEFINE_integer("evaluated", 397, "Generated images to compare with held-out ones.")


def main() -> None:
    """Run everything and print where the report is."""
    import ensdiff
    from ensdiff import hosts
    from ensdiff.report import (
        HOW_TO_READ,
        Figure,
        Page,
        attribution_sections,
        grid,
        loss_figure,
        picture,
        write_page,
    )

    begin = time.time()
    config = CONFIG.value
    run_dir = pathlib.Path(config.run_dir)
    if not config.resume:
        hosts.decide(lambda: shutil.rmtree(run_dir) if (run_dir / "run.json").exists() else None)
    params = building.train_from_config(config)
    values = building.section(config, "data")
    data, held_out = building.load_data(values), building.load_held_out(values)

    samples = ensdiff.sample(params, 0, EVALUATED.value, steps=STEPS.value, sampler="ddim", progress=True)
    table = validity(config, params, data, held_out, np.asarray(samples.images))
    print("\n" + table.title)
    for row in table.rows:
        print("  " + "  ".join(cell.ljust(28) for cell in row))

    shown = samples[: SAMPLES.value]
    att = ensdiff.attribute(params, shown, "screen", top=6, verify=20, null=49, progress=True)
    print(att)
    sections = attribution_sections(params, data, shown, att)
    if not hosts.is_writer():
        return
    metrics = ensdiff.read_metrics(run_dir)
    page = Page(
        f"What {len(shown)} generated digits depend on",
        HOW_TO_READ,
        facts.facts(params, data),
        [table],
        [
            Figure("Samples", picture(grid(samples.images[:64]), 568), "64 generated digits"),
            Figure(
                "Training",
                loss_figure(metrics),
                "Loss of each member and their mean against the training step",
            ),
        ],
        sections,
    )
    report = write_page(run_dir / "report.html", page)
    print(f"\n{time.time() - begin:.0f} s in total\nrun: {run_dir}\nreport: {report}")
    print(f"to explore it: {command('report')} {run_dir}")


def validity(config, params, data, held_out, images):
    """Return a table of Frechet distances to held-out images, for the ensemble, one ordinary model and real images."""
    import ensdiff
    from ensdiff.metrics import fit_classifier, frechet_distance, frechet_floor
    from ensdiff.report import Table

    classifier = fit_classifier(data.images, data.labels)
    real = classifier.features(held_out.images)
    single = building.train_single(config, data)
    single_images = np.asarray(
        ensdiff.sample(single, 1, len(images), steps=STEPS.value, sampler="ddim", progress=True).images
    )
    rng = np.random.default_rng(0)
    noise = rng.random(images.shape)
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
        ("what", "Frechet distance to held-out digits"),
        rows,
        f"In the {real.shape[1]} features of a small classifier fitted on the training digits (accuracy on held-out "
        f"digits {accuracy:.1%}); {len(images)} images against {len(real)}. The floor is the distance between two "
        f"disjoint sets of {half} real training images. Not comparable with the FID of other data.",
    )


if __name__ == "__main__":
    common.run(main, __doc__)
