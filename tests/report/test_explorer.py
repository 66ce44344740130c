"""The explorer's data and page: exact, complete, escaped, and without references to anything outside."""

import dataclasses
import html.parser
import io
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image

import ensdiff
from ensdiff.data.images import to_png, to_uint8
from ensdiff.report.explorer import explore, same_samples, write_explorer
from ensdiff.report.explorer.layer import _classes
from ensdiff.report.explorer.scores import unfit_scores
from ensdiff.report.figures import data_uri
from tests.explorations import HOSTILE, exploration, groups, items, scored

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flat():
    return items()


@pytest.fixture(scope="module")
def nested():
    return groups()


@pytest.fixture
def page(flat, tmp_path):
    _, _, samples, layer = flat
    return write_explorer(tmp_path / "explorer.html", exploration(samples, [layer]))


class Collector(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.outside, self.ids, self.blocks, self._block = [], [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if attrs.get(name) and not attrs[name].startswith(("data:", "#")):
                self.outside.append(attrs[name])
        self._block = attrs.get("id") if tag == "script" else None

    def handle_data(self, data):
        if self._block:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data

    def handle_endtag(self, tag):
        self._block = None


def read_png(uri):
    import base64

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_every_picture_equals_the_librarys_counterfactual(flat):
    params, _, samples, layer = flat
    images = np.asarray(samples.images)
    for b in range(len(samples)):
        one = samples[b]
        for t, unit in enumerate(layer.att.units[b]):
            expected = ensdiff.counterfactuals(params, one, [int(unit)])[0, 0]
            np.testing.assert_allclose(layer.image_BTHWC[b, t], expected, atol=1e-5)
            np.testing.assert_allclose(np.linalg.norm(expected - images[b]), layer.att.influence[b, t], rtol=1e-3)
        first = sorted(layer.att.units[b, :3].tolist())
        possible = [s for size in (2, 3) for s in itertools.combinations(first, size)]
        possible = [s for s in possible if params.code.survivors(list(s)).any()]
        assert sorted(layer.sets[b]) == sorted(possible)
        for units, removal in layer.sets[b].items():
            expected = ensdiff.counterfactuals(params, one, [set(units)])[0, 0]
            np.testing.assert_allclose(removal.image, expected, atol=1e-5)
            np.testing.assert_allclose(removal.influence, np.linalg.norm(expected - images[b]), rtol=1e-3)
    assert any(layer.sets)
    assert (layer.radius_B == layer.att.influence[:, 0]).all()


def test_landscapes_are_predicted_for_a_screen_and_exact_for_an_exact_method():
    _, _, _, screen = items(top=5)
    assert (screen.att.method, screen.landscape.method, screen.exact) == ("screen", "differential", False)
    assert screen.whole
    assert sorted(screen.landscape.units[0]) == list(range(20))
    _, _, _, cut = items(top=5, landscape=7)
    assert not cut.whole
    np.testing.assert_array_equal(cut.landscape.units, screen.landscape.units[:, :7])
    _, _, _, exact = items(top=20)
    assert exact.exact
    assert exact.landscape is exact.att


@pytest.mark.parametrize("labels", [[5, 5, 7, 9, 5], ["bee", "bee", "cat", "ant", "bee"]])
def test_classes_equal_the_labels(labels):
    data = ensdiff.data.arrays(np.zeros((5, 2, 2), np.uint8), groups=list("aabbc"), labels=labels)
    assert _classes(data, None) == [str(labels[0]), "mixed", str(labels[0])]
    assert _classes(data.regroup(None), None) == list(map(str, labels))


def test_groups_have_their_own_layer_with_all_their_images(nested):
    params, _, _, (inner, outer) = nested
    assert (inner.name, outer.name) == ("item", "group")
    assert inner.classes is not None
    assert outer.classes is None  # every group is one class, so classes would add nothing
    assert outer.data.unit_names == ("w", "x", "y", "z")
    assert outer.data.items_of(2).tolist() == list(range(2, 30, 4))
    code = params.code.group_code()
    for t, group in enumerate(outer.att.units[0]):
        weights = code.ablate([int(group)])[0]
        expected = ensdiff.sample(params, 0, 1, steps=3, weights=weights).images
        np.testing.assert_allclose(outer.image_BTHWC[0, t], np.asarray(expected)[0], atol=1e-5)


def test_page_holds_the_data_and_refers_to_nothing_outside(flat, page):
    _, data, samples, layer = flat
    text = page.read_text()
    parts = Collector(text)
    assert parts.outside == []
    assert "link" in parts.tags  # an empty icon, so that browsers request none
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert len(parts.ids) == len(set(parts.ids))
    assert "A &lt;b&gt;title&lt;/b&gt;" in text
    values = json.loads(parts.blocks["page-data"])
    for b, uri in enumerate(values["samples"]):
        np.testing.assert_array_equal(read_png(uri), to_uint8(np.asarray(samples.images[b]))[..., 0])
    row = values["layers"][0]["samples"][1]["rows"][2]
    assert row[0] == layer.att.units[1, 2]
    np.testing.assert_array_equal(read_png(row[4]), to_uint8(layer.image_BTHWC[1, 2])[..., 0])
    assert row[1] == pytest.approx(layer.att.influence[1, 2], rel=1e-3)
    assert row[2] == pytest.approx(layer.att.p_value[1, 2], rel=1e-3)
    landscape = json.loads(parts.blocks["data-landscape-0-2"])
    assert landscape["units"] == layer.landscape.units[2].tolist()
    np.testing.assert_allclose(landscape["influence"], layer.landscape.influence[2], rtol=1e-3)
    classes = json.loads(parts.blocks["data-classes-0"])
    assert [classes["names"][i] for i in classes["of"]] == [str(label) for label in data.labels]
    units = json.loads(parts.blocks["data-units-0-0"])
    assert units["0"][0] == HOSTILE
    np.testing.assert_array_equal(read_png(units["7"][4][0]), data.images[7, ..., 0])
    assert units["7"][2] == "".join(map(str, layer.code.rows(7)[0]))
    assert [p.name for p in page.parent.iterdir()] == ["explorer.html"]


def test_hostile_names_stay_text(page):
    text = page.read_text()
    assert "window.hacked" in text
    assert "<script>window" not in text
    assert "<img src=x" not in text
    assert text.count("</script>") == text.count("<script")


def test_large_data_are_written_and_deleted_beside_the_page(flat, tmp_path):
    _, _, samples, layer = flat
    path = write_explorer(tmp_path / "explorer.html", exploration(samples, [layer]), inline=0)
    folder = tmp_path / "explorer_files"
    names = {p.name for p in folder.iterdir()}
    assert {"landscape-0-0.js", "more-0-2.js", "classes-0.js", "units-0-0.js"} <= names
    match = re.fullmatch(r'explorer\.loaded\("units-0-0", (.*)\);\n', (folder / "units-0-0.js").read_text())
    assert json.loads(match.group(1))["0"][0] == HOSTILE
    small = path.stat().st_size
    write_explorer(path, exploration(samples, [layer]))
    assert not folder.exists()  # files of an earlier page are deleted
    assert path.stat().st_size > small + 1000


def test_no_null_gives_no_p_values(tmp_path):
    _, _, samples, layer = items(null=0, top=20)
    path = write_explorer(tmp_path / "explorer.html", exploration(samples, [layer]))
    values = json.loads(Collector(path.read_text()).blocks["page-data"])
    one = values["layers"][0]["samples"][0]
    assert (one["verdict"], one["null"], one["rows"][0][2]) == (None, None, None)


def test_colour_and_large_pictures_are_reduced_to_thumbnails(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (160, 80, 3), dtype=np.uint8)
    assert read_png(data_uri(to_png(image, most=64))).shape == (64, 32, 3)
    assert read_png(data_uri(to_png(image[:10], most=64))).shape[0] == 8
    assert read_png(data_uri(to_png(image[:10, :10], most=64))).shape == (10, 10, 3)


def test_an_attribution_of_other_samples_is_refused(flat):
    params, data, samples, layer = flat
    assert same_samples(params, samples, layer.att)
    others = ensdiff.sample(params, 1, 3, steps=3)
    assert not same_samples(params, others, layer.att)
    with pytest.raises(ValueError, match="sample 0 moves by .* it is of other samples"):
        explore(params, data, others, layer.att)
    with pytest.raises(ValueError, match="it is of 3 samples, not 2"):
        explore(params, data, samples[:2], layer.att)
    loss = ensdiff.attribute(params, samples, "loss", top=2)
    with pytest.raises(ValueError, match="it is by 'loss'"):
        explore(params, data, samples, loss)
    assert unfit_scores(params, samples, loss, params.code) is None
    assert unfit_scores(params, others, loss, params.code) == "it is of other samples"


def test_scores_are_shown_beside_the_exact_influences(flat, tmp_path):
    _, data, samples, layer = flat
    scores = scored(samples, 20)
    path = write_explorer(tmp_path / "explorer.html", exploration(samples, [layer._replace(scores=scores)]))
    shown = json.loads(Collector(path.read_text()).blocks["page-data"])["layers"][0]
    assert shown["scores"]["title"] == "By combined (posterior)"
    assert "1,999 held-out items, which no member saw" in shown["scores"]["meaning"]
    assert "posterior standard deviation" in shown["scores"]["meaning"]
    assert "member-LDS 0.41 [0.36, 0.46] on these 3 samples by 8 members" in shown["scores"]["judgement"]
    assert set(map(str, scores.units[:, :6].ravel())) <= set(shown["units"])
    first, second = (sample["scores"] for sample in shown["samples"][:2])
    assert first["rows"][1] == [scores.units[0, 1], "0.05 ± 0.012", "1"]
    assert len(first["rows"]) == 6
    assert first["verdict"] == f"Attributable to {data.unit_names[scores.units[0, 0]]} at level 0.1."
    assert second["verdict"] == "Unattributable at level 0.1."


def test_scores_of_something_else_are_refused(flat):
    params, data, samples, _ = flat
    good = scored(samples, 20)
    assert unfit_scores(params, samples, good, params.code) is None
    marks = good.settings["queries"]
    for changed, problem in (
        ({"queries": marks[::-1]}, "of other samples"),
        ({"queries": [["x"]]}, "of other samples"),
        ({"candidates": 19}, "of other units"),
        ({"data": "0" * 64}, "trained on other data"),
    ):
        assert problem in unfit_scores(params, samples, scored(samples, 20, settings=changed), params.code)
    other = dataclasses.replace(good, settings={"candidates": 20})
    assert "does not record which images" in unfit_scores(params, samples, other, params.code)
    assert "of 3 samples, not 2" in unfit_scores(params, samples[:2], good, params.code)
    exact = dataclasses.replace(good, method="exact")
    with pytest.raises(ValueError, match="the scores do not fit: it is by 'exact'; shown are .*combined"):
        explore(params, data, samples, scores=exact)


def test_bad_numbers_and_other_data_are_refused(flat, tmp_path):
    params, data, samples, layer = flat
    with pytest.raises(ValueError, match=r"combined=9: expected 0 \.\. 8"):
        explore(params, data, samples, combined=9)
    with pytest.raises(ValueError, match="top=0"):
        explore(params, data, samples, top=0)
    with pytest.raises(ValueError, match="the data have 7 units of .*, the ensemble 20"):
        explore(params, data.subset(range(7)), samples)
    with pytest.raises(ValueError, match="the layer of items is of 3 samples, the exploration of 2"):
        write_explorer(tmp_path / "x.html", exploration(samples[:2], [layer]))
    assert list(tmp_path.iterdir()) == []
