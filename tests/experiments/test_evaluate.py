"""The evaluation program with tiny studies, the functions that studies share, and the files of findings."""

import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

import ensdiff
from ensdiff.metrics import Estimate, GroupRetrieval
from ensdiff.metrics.arrays import distances
from experiments.configs import evaluate_digits, evaluate_smoke
from experiments.evaluate import check_config
from experiments.studies import STUDIES, ensembles
from experiments.studies.findings import Findings, plain
from experiments.studies.groups import READINGS, _weights, decided_table, decisions, ensemble_sizes
from experiments.studies.lds import subsets
from experiments.studies.planted import planting
from experiments.studies.removal import first_units
from experiments.studies.scores import quadratic
from experiments.studies.workshop import Workshop, quiet_matrix
from experiments.tables import interval, table

STUDY_NAMES = ["generative", "retraining", "size", "groups", "planted", "lds", "judging"]


@pytest.fixture
def shop(tmp_path):
    return Workshop(tmp_path, evaluate_smoke.get_config(), progress=False)


def test_configs_name_all_studies():
    for config in (evaluate_digits.get_config(), evaluate_smoke.get_config()):
        assert check_config(config, tuple(STUDIES)) == STUDY_NAMES == list(STUDIES)


def test_data_are_shuffled_and_held_out_data_are_disjoint(shop):
    assert (shop.data.items, shop.held_out.items) == (57, 1740)
    rows = {image.tobytes() for image in shop.data.images}
    assert not rows & {image.tobytes() for image in shop.held_out.images}
    assert len(set(shop.data.labels[:30].tolist())) > 5


def test_subsets_hold_alpha_of_the_units(shop):
    subset_NM = subsets(shop)
    assert subset_NM.shape == (18, 4)
    assert (subset_NM.sum(0) == 9).all()
    assert len(np.unique(subset_NM, axis=1).T) == 4


def test_planting_replaces_only_the_planted_units(shop):
    planted = planting(shop)
    assert planted.data.units == planted.twin.units == 12
    assert planted.copies_P.tolist() == [1, 2]
    same = [np.array_equal(planted.data.images[planted.data.items_of(u)], planted.twin.images[planted.twin.items_of(u)])
            for u in range(12)]  # fmt: skip
    assert same == [True] * 10 + [False] * 2
    for unit, copies, picture in zip(planted.unit_P, planted.copies_P, planted.pictures, strict=True):
        items = planted.data.images[planted.data.items_of(unit)]
        assert len(items) == copies
        assert (items == picture).all()


def test_weights_of_retrained_models():
    weights = _weights(2, 3, [0, 2])
    assert weights.shape == (3, 9)
    assert weights[1].tolist() == [0, 0, 0, 0.5, 0, 0.5, 0, 0, 0]
    assert weights.sum(1).tolist() == [1, 1, 1]


def test_sizes_of_the_ensembles_of_groups(shop):
    assert ensemble_sizes(shop.settings("groups").members) == (8,)
    assert ensemble_sizes(20) == (20,)
    for wrong in ((), (20, 3), (20.5,), "20"):
        with pytest.raises(ValueError, match=r"config\.groups\.members=.*such as \(20, 64\), each at least 4"):
            ensemble_sizes(wrong)


def test_what_the_study_of_groups_decides():
    def rows(**top):
        top = {"loss": 0.5, "combined": 0.6, "trak, chosen": 0.9, "d-trak, chosen": 0.6, "exact": 0.4} | top
        readings = dict(zip(READINGS, (top["exact"], 0.5, 0.8), strict=True))
        return {name: GroupRetrieval(*[Estimate(value)] * 4) for name, value in (top | readings).items()}

    parts = {20: "d-trak, chosen", 64: "trak, chosen"}
    against = {20: {"image": rows(), "loss": rows(loss=0.61)}, 64: {"image": rows(combined=0.95, exact=0.45)}}
    found = decisions(against, parts)
    assert found["combined"]["behind"] == pytest.approx(0.01)
    assert found["combined"]["recommended"]
    assert [one["lead"] for one in found["readings"].values()] == pytest.approx([0, 0.05, 0.35])
    assert [one["replaces"] for one in found["readings"].values()] == [False, True, True]
    assert [one["goal"] for one in found["readings"].values()] == [False, False, True]
    assert [row[:3] for row in decided_table(found).rows][:2] == [
        ["combined is recommended", "-0.01", "yes"], ["`exact, features` replaces `exact`", "0.00", "no"],
    ]  # fmt: skip
    assert not decisions({20: {"image": rows(loss=0.63)}}, parts)["combined"]["recommended"]
    assert not decisions({64: {"image": rows()}}, parts)["combined"]["recommended"]


def test_first_units_leave_a_member():
    code = ensdiff.Code.from_matrix([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 1, 0]])
    assert first_units(code, np.array([0, 1, 2, 3]), 2).tolist() == [0, 2]  # no member survives without 0 and 1
    assert first_units(code, np.array([3, 1, 0, 2]), 2).tolist() == [3, 1]
    with pytest.raises(ValueError, match="only 3 can be removed together"):
        first_units(code, np.array([0, 1, 2, 3]), 4)


def test_quadratic_and_distances(rng):
    matrix, weights = rng.normal(size=(2, 3, 3)), rng.normal(size=(4, 3))
    expected = [[w @ R @ w for w in weights] for R in matrix]
    np.testing.assert_allclose(quadratic(matrix, weights), expected)
    a, b = rng.normal(size=(5, 2, 4, 4, 1)), rng.normal(size=(2, 4, 4, 1))
    np.testing.assert_allclose(distances(a, b)[3, 1], np.linalg.norm(a[3, 1] - b[1]))


def test_the_config_says_how_gradients_are_computed(shop, tmp_path):
    config = shop.gradients(ridge=0.5)
    assert (config.draws, config.parts, config.dimension, config.ridge) == (4, 4, 64, 0.5)
    with shop.config.unlocked():
        shop.config.gradients.drawz = 2
        with pytest.raises(ValueError, match=r"config\.gradients.*drawz"):
            shop.gradients()
        del shop.config.gradients
    assert shop.gradients() == ensdiff.GradientConfig()


def test_kept_arrays_are_not_recomputed(shop, tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return np.arange(3.0)

    for _ in range(2):
        np.testing.assert_array_equal(shop.kept("size/x", compute, np.ones(2), "setting"), np.arange(3.0))
    assert len(calls) == 1
    shop.kept("size/x", compute, np.zeros(2), "setting")
    Workshop(tmp_path, evaluate_smoke.get_config(), progress=False).kept("size/x", compute, np.ones(2), "setting")
    assert len(calls) == 2
    assert shop.seconds("size") > 0
    assert shop.seconds("lds") == 0
    assert set(shop.seconds_of({"a": "size/x", "b": "size/y"})) == {"a"}


@pytest.mark.slow
def test_trained_models_are_reused(shop):
    data = shop.data.subset(range(6))
    code = quiet_matrix(np.array([[1, 0], [1, 0], [0, 0], [0, 1], [0, 1], [1, 0]]))
    first = shop.train("size/tiny", data, code, steps=2, checkpoint_every=2)
    took = shop.seconds("size")
    again = shop.train("size/tiny", data, code, steps=2, checkpoint_every=2)
    assert shop.seconds("size") == took > 0
    np.testing.assert_array_equal(first.params["head"]["kernel"], again.params["head"]["kernel"])
    with pytest.raises(ValueError, match="data"):
        shop.train("size/tiny", shop.data.subset(range(1, 7)), code, steps=2, checkpoint_every=2)


def test_findings_as_files(tmp_path):
    made = table("T", [{"method": "a", "value": interval(Estimate(1, 0.5, 2))}], "A note.")
    numbers = {"x": Estimate(1.23456789, float("nan"), np.float32(2)), 3: {"y": np.arange(2)}, "t": (1, [2.0])}
    Findings("Title", [made], numbers, {"figure": b"<svg/>"}).write(tmp_path, "name", {"seconds": 3})
    assert (tmp_path / "figure.svg").read_bytes() == b"<svg/>"
    text = (tmp_path / "name.md").read_text()
    assert text.startswith("## Title\n")
    assert "1.00 [0.50, 2.00]" in text
    assert "![figure](figure.svg)" in text
    values = json.loads((tmp_path / "name.json").read_text())
    assert values["seconds"] == 3
    assert values["numbers"] == {"x": {"value": 1.23457, "low": None, "high": 2.0}, "3": {"y": [0, 1]}, "t": [1, [2.0]]}
    assert plain(np.array([[np.inf, 1]])) == [[None, 1.0]]


def test_program_refuses_other_configs_and_unknown_studies(run, tmp_path):
    done = run("evaluate", "--config=digits")
    assert done.returncode == 1
    assert "try --config=evaluate_smoke" in done.stderr
    done = run("evaluate", "--config=evaluate_smoke", "--only=nothing", f"--config.run_dir={tmp_path}")
    assert done.returncode == 1
    assert "no study 'nothing', only generative" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whole_program(run, tmp_path):
    """The program runs a tiny version of every study, and a second run computes nothing.

    No other test runs the studies. Nearly all of the time is compiling.
    """
    words = ("evaluate", "--config=evaluate_smoke", f"--config.run_dir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    done = run(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    results = (tmp_path / "out" / "results.md").read_text()
    for name in STUDY_NAMES:
        values = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert values["seconds"] > 0
        assert f"## {values['title']}" in results
        for line in results.splitlines():
            if line.startswith("!["):
                figure = line.partition("(")[2].rstrip(")")
                assert (tmp_path / "out" / figure).read_text().lstrip().startswith("<?xml")
    lds = json.loads((tmp_path / "out" / "lds.json").read_text())["numbers"]
    assert lds["lds"]["held out"]["constant"]["value"] == 0
    methods = {"loss", "exact", "differential", "trak", "d-trak"}
    assert set(lds["lds"]["generated"]) == methods | set(ensdiff.baselines.BASELINES)
    groups = json.loads((tmp_path / "out" / "groups.json").read_text())["numbers"]
    names = {"exact", *READINGS, "loss", *ensdiff.baselines.BASELINES, "trak, chosen", "d-trak, chosen", "combined"}
    assert set(groups["scores"]["8"]) == names
    planted = json.loads((tmp_path / "out" / "planted.json").read_text())["numbers"]["by_members"]["8"]
    assert planted["pixel"]["recall_1"]["value"] == 1
    assert "\ntraining size/" in done.stdout
    before = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.json")}
    done = run(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "\ntraining " not in done.stdout
    assert "\ncomputing " not in done.stdout
    assert {path.name: path.read_text() for path in (tmp_path / "out").glob("*.json")} == before


def test_an_ensemble_that_is_judged_twice_is_refused():
    """Its results would overwrite those of the other."""
    sections = {"lds": ConfigDict({"units": 18}), "judging": ConfigDict({"members": (8, 16), "sizes": ((18, 16),)})}
    shop = types.SimpleNamespace(settings=sections.__getitem__)
    with pytest.raises(ValueError, match="18 images with K = 16 are given twice"):
        ensembles.models(shop)
