"""Reports, figures and universe files of conditional members on latents: decoded pictures and captions."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import ensdiff
from ensdiff.data.images import to_uint8
from ensdiff.interop import ctf
from ensdiff.report import HOW_TO_READ, Page, attribution_sections, how_to_read, write_page
from ensdiff.report.explorer import Exploration, explore, same_samples, write_explorer
from ensdiff.report.explorer.layer import unfit
from ensdiff.report.explorer.scores import unfit_scores
from ensdiff.report.explorer.write import page_data
from ensdiff.sampling.captions import captions_of
from tests.explorations import latents

pytestmark = pytest.mark.slow

CAPTIONS = ["cat", "<b>dog</b>", "fox"]


@pytest.fixture(scope="module")
def world():
    """Return the ensemble, its data, samples, a decoder, and an exact attribution of all units."""
    params, data, samples, decode = latents()
    return params, data, samples, decode, ensdiff.attribute(params, samples, "exact", top=12, null=5)


def size(uri):
    import base64

    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size


def test_an_attribution_says_its_space_and_conditions(world, tmp_path):
    params, _, samples, _, att = world
    assert att.distance == "l2 over latents"
    assert "Attribution(exact, L2 over latents, 12 candidates" in str(att)
    assert "sample 1 (<b>dog</b>): " in str(att)
    assert att.settings["space"] == "latents"
    assert att.settings["captions"] == captions_of(params, samples.cond) == CAPTIONS
    att.save(tmp_path / "att")
    again = ensdiff.Attribution.load(tmp_path / "att")
    assert again.settings == att.settings
    assert same_samples(params, samples, again)
    moved = np.linalg.norm(ensdiff.counterfactuals(params, samples, [att.units[0, 0]])[0, 0] - samples.images[0])
    assert moved == pytest.approx(att.influence[0, 0], rel=1e-5)


def test_numbered_classes_and_no_condition(world):
    params = world[0]
    leaf = dataclasses.replace(params.condition.leaves[0], names=None)
    numbered = dataclasses.replace(params, condition=dataclasses.replace(params.condition, leaves=(leaf,)))
    assert captions_of(numbered, np.array([2, 3], np.int32)) == ["class 2", "no condition"]
    assert captions_of(params, np.array([3], np.int32)) == ["no condition"]
    assert captions_of(dataclasses.replace(params, condition=None), None) is None


def test_a_report_of_other_conditions_is_refused(world):
    params, data, samples, decode, att = world
    other = ensdiff.sample(params, 0, 3, steps=2, cond=[0, 1, 1], guidance=2.0)
    assert (
        unfit(params, other, att, params.code) == "its sample 2 has another condition (fox) than this one (<b>dog</b>)"
    )
    unguided = ensdiff.sample(params, 0, 3, steps=2, cond=[0, 1, 2])
    assert unfit(params, unguided, att, params.code) == "its samples have guidance 2, not 1"
    with pytest.raises(ValueError, match="the attribution does not fit: its sample 2 has another condition"):
        attribution_sections(params, data, other, att, decode=decode)
    old = dataclasses.replace(att, settings={k: v for k, v in att.settings.items() if k != "conditions"})
    assert "does not record the conditions" in unfit(params, samples, old, params.code)
    scores = ensdiff.attribute(params, samples, "loss", top=12, loss=ensdiff.LossConfig(draws=4, block=2), null=0)
    assert scores.settings["captions"] == CAPTIONS
    assert unfit_scores(params, samples, scores, params.code) is None
    same_pictures = dataclasses.replace(samples, cond=other.cond)
    assert "another condition" in unfit_scores(params, same_pictures, scores, params.code)


def test_the_report_shows_decoded_pictures_with_captions(world, tmp_path):
    params, data, samples, decode, att = world
    with pytest.raises(ValueError, match="the members generate latents, which are no pictures: pass decode="):
        attribution_sections(params, data, samples, att)
    sections = attribution_sections(params, data, samples, att, top=2, decode=decode)
    assert [section.caption for section in sections] == CAPTIONS
    np.testing.assert_array_equal(sections[0].image, decode(np.asarray(samples.images))[0])
    card = sections[1].units[0]
    item = data.items_of(int(att.units[1, 0]))
    np.testing.assert_array_equal(card.images, decode(data.images[item].astype(np.float32)))
    assert card.counterfactual.shape == (8, 8, 3)
    told = how_to_read(att)
    assert "(L2 over latents)" in told[0]
    assert told[1:] == HOW_TO_READ[1:]
    text = write_page(tmp_path / "page.html", Page("x", told, samples=sections)).read_text()
    assert "&lt;b&gt;dog&lt;/b&gt;</span>, as generated" in text
    assert "<b>dog" not in text
    assert "pixels in [0, 1]" not in text


def test_the_explorer_shows_decoded_pictures_with_captions(world, tmp_path):
    params, data, samples, decode, att = world
    layer = explore(params, data, samples, att, combined=2)
    exploration = Exploration("x", samples, [layer], "command", captions=CAPTIONS, decode=decode)
    lazy = {}
    page = page_data(exploration, lazy)
    assert (page["height"], page["width"], page["captions"]) == (8, 8, CAPTIONS)
    first = page["layers"][0]
    assert size(page["samples"][0]) == size(first["samples"][0]["rows"][0][4]) == (8, 8)
    assert size(next(iter(first["units"].values()))[4][0]) == (8, 8)
    assert all(size(uri) == (8, 8) for _, uri in first["samples"][0]["sets"].values())
    assert first["samples"][2]["scale"] == pytest.approx(np.linalg.norm(samples.images[2]), rel=1e-5)
    text = write_explorer(tmp_path / "x.html", exploration).read_text()
    assert "Influence is how far the sample moves (L2 over latents)." in text
    assert "<b>dog" not in text
    with pytest.raises(ValueError, match="pass decode="):
        write_explorer(tmp_path / "y.html", exploration._replace(decode=None))
    with pytest.raises(ValueError, match="1 captions for 3 samples"):
        write_explorer(tmp_path / "y.html", exploration._replace(captions=["cat"]))


def test_the_figure_has_captions_and_a_rough_view_without_a_decoder(world):
    _, data, samples, decode, att = world
    for options, shape in (({}, (4, 4, 3)), ({"decode": decode}, (8, 8, 3))):
        figure = att.plot(samples.images, data, top=1, **options)
        assert figure.axes[2].get_title() == "sample 1\n<b>dog</b>"
        assert [axes.get_images()[0].get_array().shape for axes in figure.axes] == [shape] * 6


def test_a_universe_file_has_decoded_pictures_and_conditions(world, tmp_path):
    params, data, samples, decode, _ = world
    path = tmp_path / "x.ctf"
    with pytest.raises(ValueError, match="pass decode="):
        ctf.write(path, params, samples, data)
    assert not list(tmp_path.iterdir())
    with ctf.write(path, params, samples, data, decode=decode) as universe:
        assert (universe.image_shape, universe.train_shape) == ((8, 8, 3), (8, 8, 3))
        np.testing.assert_array_equal(universe.factual, to_uint8(decode(np.asarray(samples.images))))
        without = ensdiff.counterfactuals(params, samples, [4])[0]
        assert np.abs(universe.counterfactual(4) - 255 * decode(without)).max() <= 0.5 + 1e-2
        np.testing.assert_array_equal(universe.training(4), to_uint8(decode(data.images[4:5].astype(np.float32))))
        assert universe.conditions == {
            "captions": CAPTIONS,
            "guidance": 2.0,
            "conditions": {"": [0, 1, 2]},
            "null": {"": 3},
        }
        universe._json = lambda name: {"captions": ["cat"]}
        with pytest.raises(ValueError, match=re.escape("conditions.json has no captions: expected 3 texts")):
            universe.check()


def test_settings_are_json(world):
    att = world[-1]
    assert json.loads(json.dumps(att.settings)) == att.settings
    assert len(set(att.settings["conditions"])) == 3
