"""Descriptions of runs and checkpoints, and whether two descriptions are of the same run."""

import dataclasses
import pathlib

import pytest

import ensdiff
from ensdiff.runs.description import MISSING, Difference, decided, describe, differences, foreign
from ensdiff.runs.resuming import check_same


def description(tiny, **train):
    settings = dataclasses.asdict(ensdiff.TrainConfig()) | train
    return {**describe(tiny), "train": settings, "data": {"name": "digits", "digest": "a" * 64}}


def test_differences_are_named_by_their_place():
    one = {"train": {"seed": 0, "ema": 0.9}, "shape": [8, 8, 1], "data": None, "words": [[1, 2]]}
    other = {"train": {"seed": 1}, "shape": [8, 4, 1], "data": {"digest": "a"}, "words": [[1]], "origin": 3}
    assert differences(one, one) == []
    assert differences(one, other) == [
        Difference("train.seed", 0, 1),
        Difference("train.ema", 0.9, MISSING),
        Difference("shape[1]", 8, 4),
        Difference("data", None, {"digest": "a"}),
        Difference("words[0]", [1, 2], [1]),
        Difference("origin", MISSING, 3),
    ]
    for same, exact in (({"a": 1}, {"a": 1.0}), ({"a": [1]}, {"a": [True]})):
        assert differences(same, exact) == []
        assert len(differences(same, exact, exact=True)) == 1


def test_only_what_decides_the_parameters_is_compared(tiny):
    one = description(tiny, seed=3, keep=2, learning_rate=1)
    same = description(tiny, seed=3, keep=5, learning_rate=1.0)
    same["data"] |= {"name": "the same pictures, called otherwise"}
    assert decided(one) == decided(same)
    check_same(pathlib.Path("run"), 4, one, same)
    del one["train"]["ema"], same["train"]["keep"]  # fields that an older version did not write
    assert foreign(pathlib.Path("run/checkpoints/4"), one, same) == ""
    with pytest.raises(ValueError, match=r"run cannot be resumed.* of checkpoint 4\. train\.seed: was 3, is 4\. Use"):
        check_same(pathlib.Path("run"), 4, one, description(tiny, seed=4, learning_rate=1))
    longer = {**one, "combine": "parameters", "scale": 1.25}
    with pytest.raises(ValueError, match=r"scale: was 1\.25, is 1\.0 \(members do not depend on it") as caught:
        check_same(pathlib.Path("run"), 4, longer, one)
    assert "combine: was 'parameters', is 'predictions'" in str(caught.value)
    assert "when the run is loaded, with --combine=predictions or ensdiff.load(run, combine='" in str(caught.value)


@pytest.mark.parametrize("train", [3, {"sped": 0}, {"seed": 0, "batch": 4}])
def test_settings_of_no_training(tiny, train):
    text = {**description(tiny), "train": train}
    with pytest.raises(ValueError, match="train: .*expected the fields of a TrainConfig"):
        decided(text)
    assert "4 cannot be compared with run.json: train: " in foreign(pathlib.Path("4"), text, description(tiny))
