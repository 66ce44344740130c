"""The report: a single file with every picture that fetches nothing and escapes names."""

import dataclasses
import html.parser
import io

import numpy as np
import pytest
from PIL import Image

import ensdiff
from ensdiff.attribution.judging import Judgement
from ensdiff.metrics import Estimate
from ensdiff.report import (
    HOW_TO_READ,
    Figure,
    Page,
    SampleSection,
    Table,
    UnitCard,
    attribution_sections,
    grid,
    how_to_read,
    loss_figure,
    null_figure,
    to_png,
    write_page,
)
from ensdiff.report.wording import judgement_sentence
from tests.explorations import scored
from tests.helpers import blobs, random_ensemble


def example(name="item <script>alert(1)</script>"):
    rng = np.random.default_rng(0)
    image = rng.random((8, 8, 1))
    one = rng.integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    many = rng.integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    bits = np.array([1, 0, 1, 0])
    units = [
        UnitCard(name, one, rng.random((8, 8, 1)), 0.25, bits, {"p": "0.020"}),
        UnitCard("artist", many, rng.random((8, 8, 1)), 0.125, bits),
    ]
    figure = Figure(
        "Training",
        loss_figure([{"step": 1, "loss_K": [1.0, 2.0]}, {"step": 2, "loss_K": [0.5, 0.6]}]),
        "loss",
    )
    null = Figure("Null", null_figure(rng.random(20), np.array([0.25])), "null")
    return Page(
        "A report", ["How to read"], [("members", "4")], [Table("T", ["a"], [["1 & 2"]], "note")], [figure],
        [SampleSection("Sample 0", image, "note", units, null)],
    )  # fmt: skip


class Collector(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[a] for a in ("src", "href", "srcset", "action") if attrs.get(a)]
        if tag == "img":
            self.images.append(attrs)


def test_page(tmp_path):
    path = write_page(tmp_path / "new" / "report.html", example())
    text = path.read_text()
    page = Collector()
    page.feed(text)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "&lt;script&gt;" in text
    assert "1 &amp; 2" in text
    assert "@import" not in text
    assert "url(" not in text
    # one sample; 3 of a unit (image, counterfactual, difference); 4 of 7 images of a group and 2 more; two figures
    assert len(page.images) == 1 + 3 + 6 + 2
    assert all(attrs.get("alt") for attrs in page.images)
    assert "+3 more" in text
    assert 'aria-label="seen by 2 of 4 members"' in text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 1), np.uint8)
    sheet = grid(images, columns=2)
    assert sheet.shape == (3 * 3 + 2, 2 * 4 + 1, 1)
    for b in range(5):
        tile = sheet[b // 2 * 4 : b // 2 * 4 + 3, b % 2 * 5 : b % 2 * 5 + 4]
        assert (tile == b).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(to_png(image, scale=3)))).reshape(15, 18, channels)
    np.testing.assert_array_equal(read[1::3, 1::3], image)
    floats = np.asarray(Image.open(io.BytesIO(to_png(image / 255.0)))).reshape(5, 6, channels)
    np.testing.assert_array_equal(floats, image)


@pytest.fixture(scope="module")
def small(tiny):
    """Return an ensemble of 6 members and 3 units, its data and one sample."""
    params = random_ensemble(ensdiff.Code.balanced(members=6, units=3, seed=0), tiny.model)  # 17 unowned words
    return params, ensdiff.data.arrays(blobs(3)), ensdiff.sample(params, 0, 1, steps=2)


@pytest.mark.parametrize(("null", "few"), [(3, True), ("all", False)])
def test_the_note_mentions_a_null_that_is_too_small(small, null, few):
    params, data, samples = small
    att = ensdiff.attribute(params, samples, "differential", top=1, null=null, level=0.2)
    (section,) = attribution_sections(params, data, samples, att)
    assert "Verdict: " in section.note
    assert ("the null is too small for any other verdict" in section.note) == few == (att.limitation is not None)


def test_sections_of_a_gradient_method_say_what_its_numbers_are(small, tmp_path):
    params, data, samples = small
    att = scored(samples, 3, method="trak")
    sections = attribution_sections(params, data, samples, att, top=1)
    note = sections[0].note
    assert "how much the unit's presence in training lowers the image's loss for one model (squared noise" in note
    assert "± its standard error" in note
    assert "The null, 1,999 held-out items, which no member saw, scores " in note
    assert note.endswith("by 8 members; 0 means that the scores do not predict what training on a unit changes.")
    assert "code words" not in note + " ".join(how_to_read(att))
    assert "held-out check" in " ".join(how_to_read(att))
    assert how_to_read(dataclasses.replace(att, method="exact", distance="l2")) == HOW_TO_READ
    text = write_page(tmp_path / "page.html", Page("x", how_to_read(att), samples=sections)).read_text()
    assert ">0.1 ± 0.012</span>" in text
    assert "distance that the sample moves" not in text
    groups = dataclasses.replace(att, settings=att.settings | {"null_kind": "groups"}, distance="score")
    (section,) = attribution_sections(params, data, samples, groups, top=1)
    assert "1,999 random groups of as many items, scores" in section.note
    assert "the members cannot tell the scale" in section.note


def test_a_judgement_whose_interval_reaches_0_comes_with_a_warning():
    for lds, warning in (
        (Estimate(0.4, 0.01, 0.6), None),
        (Estimate(0.4, 0.0, 0.6), "the interval reaches 0"),
        (Estimate(-0.3, -0.4, -0.2), "the interval is below 0"),
        (Estimate(0.4), None),
        (Estimate(-0.1), "it is not above 0"),
    ):
        text = judgement_sentence(Judgement(lds, Estimate(1.0), None, (), 1, 8))
        assert "on this sample by 8 members" in text
        assert ("Warning: " in text) == (warning is not None)
        assert warning is None or warning in text
