"""One real run: train on pictures for a given time, sample, measure the samples, attribute them to classes."""

import concurrent.futures
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable

import numpy as np

import ensdiff
from ensdiff.data.images import grid, to_png
from ensdiff.metrics import fit_classifier, frechet_distance, frechet_floor

from .card import peak_gib
from .journal import Row

PICTURE = "samples.png"
LEAST = 20
"""Fewest training steps, however long compiling them took."""


@dataclasses.dataclass(frozen=True)
class Study:
    """The size of the run.

    Args:
        model: the network.
        members: K.
        batch: images per member.
        samples: samples whose Frechet distance is measured.
        steps: steps of the DDIM sampler.
        attributed: samples that are attributed.
        held_out: images that are kept from training, for the Frechet distance.
        most_steps: most training steps.
        fitted: images on which the classifier is fitted.
        learning_rate: peak learning rate.
    """

    model: ensdiff.UNetConfig
    members: int = 16
    batch: int = 64
    samples: int = 2000
    steps: int = 50
    attributed: int = 20
    held_out: int = 2000
    most_steps: int = 100_000
    fitted: int = 6000
    learning_rate: float = 3e-4


def real_run(
    left: Callable[[], float], study: Study, data: ensdiff.data.Dataset, folder: pathlib.Path
) -> Iterable[Row]:
    """Yield the results of one run on labelled pictures, whose units are the classes.

    Training takes the time that remains except for a quarter, which sampling and attribution need.

    Args:
        left: the seconds that remain.
        study: the size of the run.
        data: the pictures, with labels.
        folder: where to write the grid of samples.
    """
    if data.labels is None:
        raise ValueError("the pictures have no labels: expected an .npz with images and labels")
    first, last = data.subset(np.arange(data.items - study.held_out)), np.arange(data.items)[-study.held_out :]
    labels, held_out, held_labels = data.labels[: first.items], data.images[last], data.labels[last]
    seen = first.regroup([str(label) for label in labels])
    code = ensdiff.Code.balanced(members=study.members, units=seen.units)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # the host is free while the device trains
        fitting = pool.submit(fit_classifier, seen.images[: study.fitted], labels[: study.fitted])
        params, row = _train(left() * 0.75, study, seen, code)
        yield row
        yield {"finding": f"Trained {study.members} members for {row['steps']} steps in {row['seconds']:.0f} s."}
        begin = time.perf_counter()
        samples = ensdiff.sample(params, 0, study.samples, steps=study.steps, sampler="ddim")
        images = np.asarray(samples.images)
        yield {
            "table": "Sampling",
            "samples": len(images),
            "steps": study.steps,
            "seconds": time.perf_counter() - begin,
        }
        try:
            (folder / PICTURE).write_bytes(to_png(grid(images[:64]), scale=3))
            yield {"picture": PICTURE}
        except ImportError as error:
            yield {"table": "Left out", "what": "grid of samples", "why": str(error)}
        try:
            classifier = fitting.result(timeout=max(left(), 1.0))
        except (ImportError, TimeoutError) as error:
            yield {"table": "Left out", "what": "Frechet distance", "why": f"{type(error).__name__}: {error}"}
            classifier = None
    if classifier is not None:
        real = classifier.features(held_out)
        distance = frechet_distance(classifier.features(images), real).value
        floor = frechet_floor(classifier.features(seen.images[: 2 * len(real)]), len(real))
        noise = frechet_distance(classifier.features(np.random.default_rng(0).random(images.shape)), real).value
        yield {
            "table": "Frechet distance to held-out images, in features of a small classifier", "samples": distance,
            "two sets of real images": floor, "uniform noise": noise,
            "classifier's accuracy": classifier.accuracy(held_out, held_labels), "images": len(images),
        }  # fmt: skip
        yield {
            "finding": f"Frechet distance of the samples {distance:.3g} (real images {floor:.3g}, noise {noise:.3g})."
        }
    shown = samples[: study.attributed]
    for method in ("loss", "differential", "exact"):
        if left() <= 0:
            yield {"table": "Left out", "what": f"attribution by {method}", "why": "no time left"}
            continue
        row, att = _attribute(params, shown, method)
        if classifier is not None:
            classes = [str(label) for label in classifier.predict(np.asarray(shown.images))]
            hits = [seen.unit_names[int(att.units[b, 0])] == name for b, name in enumerate(classes)]
            row |= {"first unit is the sample's class": float(np.mean(hits)), "by chance": 1 / seen.units}
        yield row


def _train(
    seconds: float, study: Study, data: ensdiff.data.Dataset, code: ensdiff.Code
) -> tuple[ensdiff.Ensemble, Row]:
    """Train for some seconds, and return the ensemble and what it took."""
    begin = time.perf_counter()
    marks: list[tuple[float, int]] = []

    def stop(done: int) -> bool:
        if done:  # it is also called while ways to compute members are timed
            marks.append((time.perf_counter() - begin, done))
        return done >= LEAST and marks[-1][0] >= seconds

    with tempfile.TemporaryDirectory() as folder:
        try:
            params = ensdiff.train(
                data, code, study.model, steps=study.most_steps, batch_size=study.batch, warmup=100, ema=0.999,
                learning_rate=study.learning_rate, checkpoint_every=10**9, log_every=50, progress=False,
                run_dir=folder, stop=stop,
            )  # fmt: skip
        except ensdiff.Preempted:
            params = ensdiff.load(folder)
        losses = [float(np.mean(line["loss_K"])) for line in ensdiff.read_metrics(folder)]
    (first, early), (last, done) = marks[0], marks[-1]
    row = {
        "table": "Training", "members": study.members, "channels": study.model.channels, "batch": study.batch,
        "images": data.items, "steps": done, "seconds": time.perf_counter() - begin, "first call s": first,
        "ms per step": 1e3 * (last - first) / max(done - early, 1), "first loss": losses[0] if losses else None,
        "last loss": losses[-1] if losses else None, "peak GiB": peak_gib(),
    }  # fmt: skip
    return params, row


def _attribute(params: ensdiff.Ensemble, samples: ensdiff.Samples, method: str):
    """Return a row with the time of a method, the second time after compilation, and its result."""
    draws = ensdiff.LossConfig(draws=64, block=32) if method == "loss" else None
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        att = ensdiff.attribute(params, samples, method, top=3, loss=draws)
        seconds.append(time.perf_counter() - begin)
    row = {
        "table": "Attribution by class", "method": method, "samples": len(samples),
        "first call s": seconds[0], "seconds per query": seconds[1] / len(samples),
    }  # fmt: skip
    return row, att
