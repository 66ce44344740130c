"""Compare a run in bfloat16 with the same run in float32, on handwritten digits; docs/performance.md has the result.

Command: python -m experiments.benchmarks.bfloat16 FOLDER
Hardware and wall time: 2 CPU cores, which other programs shared, 18 minutes.
Expected: all four comparisons within their tolerances (losses and distances within .3 %, a rank correlation of .999).

Two ensembles differ in ``compute_dtype`` alone: K = 16, N = 256, 16 channels, 400 steps of 16 images, one seed. The
linear datamodeling score of both is measured against the same models, which are retrained in float32 on random halves
of the units.
"""

import json
import pathlib
import sys

import numpy as np
from scipy.stats import spearmanr

import ensdiff
from ensdiff import metrics

from ..configs import evaluate_digits
from ..studies import lds
from ..studies.scores import loss_scores, member_products
from ..studies.workshop import Workshop, quiet_matrix

TOLERANCES = {
    "loss": "the mean loss of the members on held-out images differs by at most 2 %",
    "frechet": "the Frechet distance to held-out images differs by at most 10 %",
    "rank": "the rank correlation of the two ensembles' loss scores of all units, averaged over images, is at least .9",
    "lds": "the LDS of the loss scores differs by at most .03",
}
"""What is compared, and how far apart the two may be, stated before it was measured."""


def workshop(folder: pathlib.Path, dtype: str) -> Workshop:
    """Return the workshop whose models compute in a dtype."""
    config = evaluate_digits.get_config()
    config.model.update(channels=16, compute_dtype=dtype)
    config.train.update(steps=400, batch_size=16, checkpoint_every=400)
    config.lds.update(units=256, members=16, subsets=24, seeds=1, queries=24, draws=64)
    return Workshop(folder, config, progress=False)


def measure(folder: pathlib.Path) -> dict[str, dict[str, float]]:
    """Train and compare, and return the figures of each dtype and the differences."""
    shops = {dtype: workshop(folder, dtype) for dtype in ("float32", "bfloat16")}
    shop = shops["float32"]
    s = shop.settings("lds")
    data = shop.data.subset(np.arange(s.units))
    held_out = shop.held_out.images
    queries = np.concatenate([data.images[: s.queries], held_out[: s.queries]]).astype(np.float32) / np.float32(255)
    code = ensdiff.Code.balanced(members=s.members, units=s.units, seed=0)
    subset_NM = lds.subsets(shop)
    truth = shop.train("lds/truth", data, quiet_matrix(subset_NM), seed=1)
    outputs_BMK = member_products(shop, "lds/outputs", truth, queries, s.draws)
    outputs_BMR = -np.diagonal(outputs_BMK, axis1=1, axis2=2)[:, :, None]
    real = shop.classifier.features(held_out)

    found, scores = {}, {}
    for dtype, own in shops.items():
        params = own.train(f"lds/{dtype}", data, code)
        losses_BKK = member_products(own, f"lds/losses {dtype}", params, queries[s.queries :], s.draws)
        images = np.asarray(own.samples(f"lds {dtype}", params, 256).images)
        scores[dtype] = loss_scores(own, f"lds/scores {dtype}", params, queries, s.draws)
        found[dtype] = {
            "loss": float(np.diagonal(losses_BKK, axis1=1, axis2=2).mean()),
            "frechet": metrics.frechet_distance(shop.classifier.features(images), real).value,
            "lds": metrics.lds(scores[dtype], subset_NM, outputs_BMR).value,
        }
    one, other = (found[dtype] for dtype in shops)
    pairs = zip(scores["float32"], scores["bfloat16"], strict=True)
    found["differences"] = {
        "loss": other["loss"] / one["loss"] - 1,
        "frechet": other["frechet"] / one["frechet"] - 1,
        "rank": float(np.mean([spearmanr(a, b).statistic for a, b in pairs])),
        "lds": other["lds"] - one["lds"],
    }
    return found


def main(folder: str) -> None:
    """Print the comparison, and write it to ``bfloat16.json`` in the folder."""
    found = measure(pathlib.Path(folder))
    text = json.dumps({"tolerances": TOLERANCES, **found}, indent=1)
    (pathlib.Path(folder) / "bfloat16.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1])
