"""What averaged parameters cost in quality, and what they agree with: adapters on digits and Fashion-MNIST 14x14.

``python docs/examples/adapters_study.py digits 16 4`` trains (data set, K, rank), and appends one line of results to
``runs/adapters_study/results.jsonl``. Trained runs are kept, and a second call uses them. With further numbers,
``python docs/examples/adapters_study.py digits 16 4 1.25 1.5``, it only prints the Frechet distance of averaged
parameters with these scales of the averaged change, of three single members, and the length of the averaged change.

Fixed before the first run. A class-conditional U-Net (16 channels, 2 levels) is trained on classes 0 to 4 and frozen.
Adapters of all kernels, with alpha = rank, are trained on classes 5 to 9 (600 steps of 32 images, learning rate 2e-3,
Adam, average of parameters .995), with the thirds of each class as 15 units under a balanced code. Fashion-MNIST: 250
pictures per class. Samples are drawn by DDIM in 25 steps, conditioned on classes 5 to 9 in turn, without guidance.

- ``frechet``: the distance between 500 samples and the training pictures of classes 5 to 9, in the features of a small
  classifier, for averaged predictions, averaged parameters, and one adapter that was trained on all units; and of the
  base. What decides: averaged parameters are acceptable if their distance is at most 1.1 times that of averaged
  predictions.
- ``cosine``: between the displacements of the two kinds of counterfactuals of a sample without a unit, mean over 20
  samples and 15 units; ``first``: how often both name the same unit first; ``spearman``: of the units' influences.
- ``top1``: how often the first unit by exact influence is of the sample's class (chance is .2), for both kinds.
- ``retraining``: 15 adapters, each trained without one unit, and one trained with all, for each of two seeds. Spearman
  correlation over units between the change of a sample's loss by retraining and its score (``loss``, 256 draws), mean
  over samples, for both kinds; ``seeds``: between the two seeds.
- ``seconds``: of all counterfactuals of 15 units and 20 samples, for both kinds, after compilation.
"""

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from scipy.stats import spearmanr

import ensdiff
from ensdiff.metrics import fit_classifier, frechet_distance, frechet_floor
from ensdiff.models import adapted
from ensdiff.models.adapters import change, factors_of

OUT = pathlib.Path("runs/adapters_study")
MODEL = ensdiff.UNetConfig(channels=16, multipliers=(1, 2), norm_groups=8, classes=10)
SEEDS = (1, 2)


def load_data(name: str) -> tuple[ensdiff.data.Dataset, ensdiff.data.Dataset]:
    """Return the data of the base and of the adapters, with classes as conditions and thirds of classes as units."""
    if name == "digits":
        whole = ensdiff.data.digits()
    else:
        whole = ensdiff.data.fashion_mnist()
        chosen = np.concatenate([np.flatnonzero(np.asarray(whole.labels) == c)[:250] for c in range(10)])
        whole = whole.subset(np.sort(chosen))
        whole = dataclasses.replace(whole, images=_halved(whole.images))
    labels = np.asarray(whole.labels)
    whole = whole.with_condition(labels, classes=10)
    base, rest = np.flatnonzero(labels < 5), np.flatnonzero(labels >= 5)
    units = np.zeros(len(rest), int)
    for c in range(5, 10):
        own = np.flatnonzero(labels[rest] == c)
        units[own] = 3 * (c - 5) + np.arange(len(own)) * 3 // len(own)
    names = [f"{5 + unit // 3}, part {unit % 3 + 1}" for unit in range(15)]
    return whole.subset(base), whole.subset(rest).regroup(units, names)


def _halved(images: np.ndarray) -> np.ndarray:
    small = images.reshape(len(images), 14, 2, 14, 2, 1).astype(np.float32).mean((2, 4))
    return np.round(small).astype(np.uint8)


def trained(folder: pathlib.Path, *args: Any, **options: Any) -> ensdiff.Ensemble:
    """Return the ensemble of a finished run, which is trained first if it does not exist."""
    if not (folder / "done").exists():
        ensdiff.train(*args, run_dir=folder, progress=False, resume=(folder / "run.json").exists(), **options)
        (folder / "done").touch()
    return ensdiff.load(folder)


def main(name: str, members: int, rank: int) -> None:
    """Train what is missing, and append one line of results."""
    base_data, data = load_data(name)
    both: Any = {"batch_size": 32, "ema": 0.995, "warmup": 50}
    # a member that sees all pictures but one is the base; an ensemble has a second one, which sees only that picture
    split = base_data.regroup(np.minimum(np.arange(base_data.items), 1), ["one", "others"])
    two = ensdiff.Code.from_matrix([[0, 1], [1, 0]])
    start = trained(OUT / f"{name}_base", split, two, MODEL, steps=1500, learning_rate=1e-3, **both)
    theta = jax.tree.map(lambda a: np.asarray(a)[0], start.params)
    adapter = adapted(MODEL, theta, rank=rank)
    fit: Any = {"steps": 600, "learning_rate": 2e-3, **both}
    code = ensdiff.Code.balanced(members, data.units, seed=0)
    kinds = {
        kind: dataclasses.replace(trained(OUT / f"{name}_K{members}_r{rank}", data, code, adapter, **fit), combine=kind)
        for kind in ("predictions", "parameters")
    }
    without = ensdiff.Code.from_matrix(np.concatenate([1 - np.eye(data.units), np.ones((data.units, 1))], axis=1))
    again = [
        trained(OUT / f"{name}_without_r{rank}_{seed}", data, without, adapter, seed=seed, **fit) for seed in SEEDS
    ]
    alone = ensdiff.load(OUT / f"{name}_without_r{rank}_{SEEDS[0]}", members=[data.units, 0])
    result: dict[str, Any] = {"data": name, "K": members, "rank": rank}

    labels = np.asarray(data.labels)
    classifier = fit_classifier(data.images, labels)
    real = classifier.features(data.images)
    cond = 5 + np.arange(500) % 5

    def generate(params: ensdiff.Ensemble, **options: Any) -> np.ndarray:
        return np.asarray(ensdiff.sample(params, 0, 500, sampler="ddim", steps=25, cond=cond, **options).images)

    pictures = {kind: generate(params) for kind, params in kinds.items()}
    pictures["one adapter"] = generate(alone, weights=np.array([True, False]))
    pictures["base"] = generate(start, weights=np.array([True, False]))
    result["frechet"] = {
        kind: round(float(frechet_distance(classifier.features(images), real).value), 3)
        for kind, images in pictures.items()
    }
    result["floor"] = round(float(np.asarray(frechet_floor(real, len(real) // 2))), 3)
    print(result, flush=True)

    samples = {
        kind: ensdiff.sample(params, 1, 20, sampler="ddim", steps=25, cond=5 + np.arange(20) % 5)
        for kind, params in kinds.items()
    }
    moved, order, seconds = {}, {}, {}
    for kind, params in kinds.items():
        units = list(range(data.units))
        ensdiff.counterfactuals(params, samples[kind], units)
        began = time.monotonic()
        images = ensdiff.counterfactuals(params, samples[kind], units)
        seconds[kind] = round(time.monotonic() - began, 2)
        moved[kind] = (images - np.asarray(samples[kind].images)).reshape(data.units, 20, -1)
        order[kind] = np.linalg.norm(moved[kind], axis=-1).T
    one, other = moved["predictions"], moved["parameters"]
    cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    result["cosine"] = round(float(cosine.mean()), 3)
    first = {kind: found.argmax(1) for kind, found in order.items()}
    result["first"] = float((first["predictions"] == first["parameters"]).mean())
    pairs = zip(order["predictions"], order["parameters"], strict=True)
    result["spearman"] = round(float(np.mean([spearmanr(a, b)[0] for a, b in pairs])), 3)
    result["top1"] = {kind: float((found // 3 == np.arange(20) % 5).mean()) for kind, found in first.items()}
    result["seconds"] = seconds
    print(result, flush=True)

    config = ensdiff.LossConfig(draws=256)
    truth = []
    for params in again:
        asked = dataclasses.replace(params, combine="predictions")
        losses = ensdiff.loss_matrix(asked, samples["parameters"].unbound(), 0, config).mean_BKK
        loss_BK = np.diagonal(losses, axis1=1, axis2=2)
        truth.append(loss_BK[:, :-1] - loss_BK[:, -1:])
    result["seeds"] = round(float(np.mean([spearmanr(a, b)[0] for a, b in zip(*truth, strict=True)])), 3)
    result["retraining"] = {}
    for kind, params in kinds.items():
        att = ensdiff.attribute(params, samples["parameters"].unbound(), "loss", top=data.units, loss=config, null=0)
        score_BN = np.zeros((20, data.units))
        np.put_along_axis(score_BN, att.units, att.influence, axis=1)
        pairs = zip(score_BN, np.mean(truth, axis=0), strict=True)
        result["retraining"][kind] = round(float(np.mean([spearmanr(a, b)[0] for a, b in pairs])), 3)
    print(result, flush=True)
    with open(OUT / "results.jsonl", "a") as file:
        file.write(json.dumps(result) + "\n")


def scales(name: str, members: int, rank: int, values: list[float]) -> None:
    """Print the Frechet distance of averaged parameters with some scales, and of three single members."""
    _, data = load_data(name)
    folder = OUT / f"{name}_K{members}_r{rank}"
    classifier = fit_classifier(data.images, np.asarray(data.labels))
    real, cond = classifier.features(data.images), 5 + np.arange(500) % 5

    def distance(params: ensdiff.Ensemble, weights: Any = None) -> float:
        found = ensdiff.sample(params, 0, 500, sampler="ddim", steps=25, cond=cond, weights=weights)
        return round(float(frechet_distance(classifier.features(np.asarray(found.images)), real).value), 3)

    plain = ensdiff.load(folder, combine="predictions")
    change_KP = np.concatenate([_change(plain, path) for path in factors_of(plain.params)], axis=1)
    length_K = np.linalg.norm(change_KP, axis=1)
    mean = np.linalg.norm(change_KP.mean(0)) / np.sqrt(np.square(length_K).mean())
    print(f"length of the mean change / root mean square length of a change: {mean:.3f}", flush=True)
    for scale in values:
        print(f"scale {scale}: {distance(ensdiff.load(folder, combine='parameters', scale=scale))}", flush=True)
    for k in range(3):
        print(f"member {k}: {distance(plain, np.arange(members) == k)}", flush=True)


def _change(params: ensdiff.Ensemble, path: str) -> np.ndarray:
    """Return each member's change of one array of the base, as a row."""
    parts = factors_of(params.params)[path]
    rows = [change({name: leaf[k] for name, leaf in parts.items()}, params.model.scale) for k in range(params.members)]
    return np.stack([np.asarray(row).reshape(-1) for row in rows])


if __name__ == "__main__":
    if len(sys.argv) > 4:
        scales(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [float(value) for value in sys.argv[4:]])
    else:
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
