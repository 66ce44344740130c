"""The report: a single file with every picture that fetches nothing and escapes names."""

import html.parser
import io

import numpy as np
import pytest
from PIL import Image

from ensdiff.report import (
    Figure,
    Page,
    SampleSection,
    Table,
    UnitCard,
    grid,
    loss_figure,
    null_figure,
    to_png,
    write_page,
)


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


@pytest.mark.parametrize(("null", "small"), [(3, True), ("all", False)])
def test_the_note_mentions_a_null_that_is_too_small(tiny, null, small):
    import ensdiff
    from ensdiff.report import attribution_sections
    from tests.helpers import blobs, random_ensemble

    code = ensdiff.Code.balanced(members=6, units=3, seed=0)  # 17 unowned words
    params = random_ensemble(code, tiny.model)
    data = ensdiff.data.arrays(blobs(3))
    samples = ensdiff.sample(params, 0, 1, steps=2)
    att = ensdiff.attribute(params, samples, "differential", top=1, null=null, level=0.2)
    (section,) = attribution_sections(params, data, samples, att)
    assert "Verdict: " in section.note
    assert ("the null is too small for any other verdict" in section.note) == small == (att.limitation is not None)
