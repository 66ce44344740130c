"""Names of units in attributions: who they are, wherever a unit is shown, and in saved results."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

import ensdiff
from ensdiff.codes.unit_names import UnitNames
from ensdiff.files.checksums import read_sealed, write_sealed
from tests.helpers import CODE, blobs, random_ensemble

NAMES = UnitNames(["ganson", "calder", "Smith, John", "ganson", "$a\x1b", "7"])


def result(**changes):
    """Return an attribution of two samples, computed by nobody."""
    values = dict(
        units=np.array([[0, 1, 2], [5, 4, 3]]), influence=np.array([[3.0, 2, 1]] * 2), p_value=np.full((2, 3), 0.1),
        null_BL=np.zeros((2, 9)), method="exact", distance="l2", settings={"candidates": 6, "null_of_a_kind": 9},
        q_value=np.array([[0.01, 0.05, 0.5]] * 2),
    )  # fmt: skip
    return ensdiff.Attribution(**(values | changes))


def test_print_and_verdict():
    att = result().named(NAMES)
    assert att.verdict[0] == "attributable to ganson (id:0), calder at level 0.1"
    assert att.verdict[1] == "attributable to 7 (id:5), $a\\x1b at level 0.1"
    assert 'ganson (id:0) (3, p=0.1, q=0.01), calder (2, p=0.1, q=0.05), "Smith, John" (1' in repr(att)
    assert result().named(["unit 0", "unit 1", "unit 2", "unit 3", "unit 4", "unit 5"]).names is None
    sets = result(units=np.array([[0, 1]]), sets=((1, 2), (4,)), q_value=np.array([[0.01, 0.5]])).named(NAMES)
    assert sets.verdict == ['attributable to {calder, "Smith, John"} at level 0.1']
    assert result().verdict[0] == "attributable to 0, 1 at level 0.1"


def test_table():
    table = result().named(NAMES).to_pandas()
    assert table["unit"].tolist() == [0, 1, 2, 5, 4, 3]
    assert table["name"].tolist() == ["ganson", "calder", "Smith, John", "7", "$a\x1b", "ganson"]
    assert "name" not in result().to_pandas()
    pair = result(units=np.array([[1, 0]]), influence=np.ones((1, 2)), p_value=None, q_value=None, sets=((1, 2), (4,)))
    assert pair.named(NAMES).to_pandas()["name"].tolist() == [("$a\x1b",), ("calder", "Smith, John")]


def test_saved_results_have_the_names_of_their_units(tmp_path):
    """They need neither the data nor the names of all units, and still tell that a name is shared."""
    att = result(units=np.array([[0, 1, 2]] * 2)).named(NAMES)
    att.save(tmp_path / "att")
    back = ensdiff.Attribution.load(tmp_path / "att")
    assert back.names == att.names == {0: "ganson", 1: "calder", 2: "Smith, John", 3: "ganson"}
    assert back.verdict == att.verdict == json.loads((tmp_path / "att.json").read_text())["verdict"]
    result().save(tmp_path / "plain")
    assert ensdiff.Attribution.load(tmp_path / "plain").names is None


@pytest.mark.parametrize("of_code", [True, False])
def test_results_of_older_versions(tmp_path, of_code):
    """They had the names in a code, or none; data name the units of the latter."""
    settings = {**result().settings, **({"names": list(NAMES)} if of_code else {})}
    result(settings=settings).save(tmp_path / "att")
    values = read_sealed(tmp_path / "att.json")
    assert values.pop("unit_names") is None
    arrays = (tmp_path / "att.npz").read_bytes()
    write_sealed(tmp_path / "att.json", {k: v for k, v in values.items() if k != "files"}, beside={".npz": arrays})
    back = ensdiff.Attribution.load(tmp_path / "att")
    assert back.names == (dict(enumerate(NAMES)) if of_code else None)
    assert back.named(NAMES).label(1) == "calder"


@pytest.mark.parametrize("known", ["result", "data"])
def test_figure(known):
    """Names are no formulas, and long ones lose their middle."""
    names = [*NAMES[:5], "a/very/long/name/of/some/file/0007.png"]
    att = result().named(names) if known == "result" else result()
    data = None if known == "result" else ensdiff.data.from_images(blobs(), names=["x", *names[1:]])
    figure = att.plot(np.zeros((2, 8, 8, 1), np.float32), data)
    figure.canvas.draw()
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes]
    first = "ganson (id:0)" if known == "result" else "x"
    assert titles[1:4] == [first, "calder", '"Smith, John"']
    assert titles[5] == "a/very/long/...ile/0007.png"
    plt.close(figure)


@pytest.fixture(scope="module")
def named():
    return dataclasses.replace(random_ensemble(), unit_names=UnitNames([*NAMES[:3], "ada", "eve", "7"]))


@pytest.mark.slow
def test_functions_take_names(named):
    """A str is a name, a number is an id, and both may be mixed in sets."""
    samples = ensdiff.sample(named, 0, 2, steps=2)
    without = ensdiff.counterfactuals(named, samples, ["ganson", {"calder", 3}, ("7",)])
    np.testing.assert_array_equal(without, ensdiff.counterfactuals(named, samples, [0, {1, 3}, {5}]))

    def spread(weights):
        return np.tile(np.var(weights, axis=1), (2, 1)) + np.arange(len(weights))

    att = ensdiff.attribute(named, samples, spread, units=["Smith, John", 0, "ada"], top=2)
    same = ensdiff.attribute(named, samples, spread, units=[0, 2, 3], top=2)
    np.testing.assert_array_equal(att.units, same.units)
    assert att.names == same.names == {2: "Smith, John", 3: "ada"}
    sets = ensdiff.attribute(named, samples, spread, units=["ganson", {"calder", 3}], top=2)
    assert sets.sets == ((0,), (1, 3))
    assert sets.label(1) == "{calder, ada}"
    for units, message in (([["gansno"]], "similar names are 'ganson'"), ("ganson", "expected a list")):
        with pytest.raises(ValueError, match=message):
            ensdiff.attribute(named, samples, spread, units=units)
        with pytest.raises(ValueError, match=message):
            ensdiff.counterfactuals(named, samples, units)


def test_groups_have_the_names_in_the_code():
    code = ensdiff.Code.hierarchical(
        6, [0, 0, 0, 1, 1, 1, 2, 2, 2], group_weight=4, weight=2, group_names=("cyd", "ada", "bob")
    )
    params = dataclasses.replace(random_ensemble(code), unit_names=UnitNames([f"{i}.png" for i in range(9)]))
    assert params.ids_of(["4.png", {"0.png"}]) == [4, {0}]
    assert params.ids_of(["bob"], code.group_code()) == [2]
    assert params.names_of(code.group_code())[1] == "ada"
    assert CODE.names is None
