"""Baselines: scores against loops, and what the arguments allow."""

import numpy as np
import pytest

import ensdiff
from ensdiff import baselines
from ensdiff.data import arrays
from tests.helpers import blobs


@pytest.fixture(scope="module")
def grouped():
    return arrays(blobs(8), [0, 0, 1, 1, 1, 2, 3, 3])


def test_units_of_several_items(grouped):
    query = blobs(8)[[3, 5]] / np.float32(255)

    def features(images):
        return images.reshape(len(images), -1)[:, ::3]

    found = baselines.baseline_scores(query, grouped, features=features)
    assert list(found) == list(baselines.BASELINES)
    assert {scores.shape for scores in found.values()} == {(2, 4)}
    assert found["pixel"].argmax(1).tolist() == found["feature"].argmax(1).tolist() == [1, 2]
    assert found["pixel"].max(1).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert (found["constant"] == 1).all()
    distance = np.linalg.norm((query[0] - grouped.images[:2] / 255.0).reshape(2, -1), axis=1).min()
    assert found["pixel"][0, 0] == pytest.approx(-distance)


def test_only_what_the_arguments_allow(grouped):
    assert list(baselines.baseline_scores(blobs(2), grouped)) == ["random", "constant", "pixel", "patches"]
    moved = r"ensdiff.attribute\(..., method='{}', data=...\)"
    for methods, message in (
        (["trak"], moved.format("trak")),
        (["d-trak"], moved.format("d-trak")),
        (["gradient"], moved.format("trak")),
        (["feature"], "feature function"),
        (["x"], "'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            baselines.baseline_scores(blobs(2), grouped, methods=methods)
    for value, message in ((np.nan, "NaN or infinity at"), (-1.0, "are masked")):
        row = np.ma.masked_less([value, 1.0], 0)
        with pytest.raises(ValueError, match=f"features of the images.*{message}"):
            baselines.baseline_scores(blobs(2), grouped, features=lambda x, row=row: np.ma.stack([row] * len(x)))
    with pytest.raises(ValueError, match="training data"):
        baselines.baseline_scores(np.zeros((2, 4, 4, 1)), grouped)
    assert ensdiff.baselines is baselines
