"""The head of a report: one line on all samples, verdicts in words, and sections of groups and of outside pictures."""

import dataclasses

import numpy as np
import pytest

import ensdiff
from ensdiff.report import Page, attribution_sections, finding, how_to_read, verdict_words, write_page
from tests.helpers import blobs, random_ensemble

NAMES = ["ada", "bob", "<b>cy</b>", "dan", "eve"]


def attribution(q_BT, units=None, call=None, level=0.1, null=99, **settings):
    q = np.asarray(q_BT, float)
    B, T = q.shape
    units = np.tile(np.arange(T), (B, 1)) if units is None else np.asarray(units)
    return ensdiff.Attribution(
        units, np.linspace(1, 0.5, B * T).reshape(B, T), q / 2, np.zeros((B, null)), "exact", "l2",
        {"candidates": 5, "units": 5, "null_of_a_kind": null, **settings}, q_value=q, level=level,
        q_value_of_call=q if call is None else np.asarray(call, float),
    )  # fmt: skip


@pytest.mark.parametrize(("q", "settings", "words"), [
    ([0.1, 0.5], {}, "depends on ada"),
    ([0.1, 0.1], {}, "depends on ada and bob and perhaps more"),
    ([0.01, 0.02, 0.03, 0.04, 0.9], {}, "depends on ada, bob, <b>cy</b> and 1 more"),
    ([0.5, 0.6], {}, "unattributable; first is ada, q 0.5"),
    ([0.5, 0.6], {"null_of_a_kind": 9}, "no answer: the null is too small"),
    ([0.01, 0.6], {"attributed": [3]}, "depends on ada and 2 more"),
    ([0.6, 0.6], {"attributed": [1]}, "depends on 1 more"),
])  # fmt: skip
def test_verdicts_in_words(q, settings, words):
    assert verdict_words(attribution([q], **settings), 0, NAMES) == words


def test_one_line_says_what_was_found_and_which_q_values_that_is_by():
    att = attribution(
        [[0.05, 0.5], [0.05, 0.05], [0.5, 0.5], [0.05, 0.9]], units=[[1, 0], [1, 4], [0, 1], [2, 0]],
        call=[[0.05, 0.5], [0.2, 0.2], [0.5, 0.5], [0.08, 0.9]],
    )  # fmt: skip
    assert finding(att, NAMES, "artist") == (
        "3 of 4 samples depend on an artist that can be named: bob (samples 0 and 1) and <b>cy</b> (sample 3). 1 of "
        "them depends on others too. That is at q <= 0.1 within each of the samples; at q <= 0.1 within all 4 "
        "together, 2 of them."
    )
    none = attribution([[0.5, 0.5]], null=9)
    text = finding(none, NAMES, "class", "pictures")
    assert text.startswith("The picture cannot be attributed to a class at level 0.1. With this null one unit alone")


def test_a_unit_outside_of_the_top_is_no_reason_to_say_that_there_is_none():
    text = finding(attribution([[0.6, 0.6], [0.6, 0.6]], attributed=[0, 3]), NAMES, "class")
    assert text.startswith("1 of 2 depend on classes that are not among the top 2 (sample 1). That is at q <= 0.1")
    text = finding(attribution([[0.05, 0.6], [0.6, 0.6]], attributed=[1, 3]), NAMES)
    assert "can be named: ada (sample 0). 1 of 2 depend on units that are not among the top 2 (sample 1). That" in text


def test_units_that_share_a_name_are_told_apart():
    att = attribution([[0.05, 0.05, 0.9]]).named(["ada", "ada", "bob"])
    assert verdict_words(att, 0, NAMES) == "depends on ada (id:0) and ada (id:1)"
    assert "can be named: ada (id:0) (sample 0)" in finding(att, NAMES)


def test_the_head_shows_a_verdict_and_the_picture_without_what_is_named(tiny, tmp_path):
    params = random_ensemble(ensdiff.Code.balanced(6, 3), tiny.model)
    data, samples = ensdiff.data.arrays(blobs(3)), ensdiff.sample(params, 0, 2, steps=2)
    att = ensdiff.attribute(params, samples, "exact", top=2, null="all", level=0.4)
    named = dataclasses.replace(att, q_value=np.array([[0.01, 0.9], [0.9, 0.9]]))
    sections = attribution_sections(params, data, samples, named)
    assert [section.named for section in sections] == [1, 0]
    page = Page("t", how_to_read(named), [("members", "6")], samples=sections, finding="2 samples: a <finding>")
    html = write_page(tmp_path / "page.html", page).read_text()
    head, _, rest = html.partition('<section aria-labelledby="sample-1"')
    assert "2 samples: a &lt;finding&gt;" in head
    assert head.count("depends on item") == 1
    assert head.count("unattributable; first is item") == 1
    assert head.count("without item") == 2  # its alternative text and its caption, for the first sample only
    assert "How to read this page" in rest
    assert "Each training unit was seen" not in head
    plain = write_page(tmp_path / "plain.html", page._replace(finding=None)).read_text()
    assert "Each training unit was seen" in plain.partition('<section aria-labelledby="sample-1"')[0]


@pytest.fixture(scope="module")
def grouped(tiny):
    """Return an ensemble with three groups of four pictures, its data and two samples."""
    code = ensdiff.Code.hierarchical(8, np.arange(12) // 4, group_weight=6, group_names=["ann", "ben", "cat"])
    params = random_ensemble(code, tiny.model)
    return params, ensdiff.data.arrays(blobs(12)), ensdiff.sample(params, 0, 2, steps=2)


def test_sections_of_groups_show_the_pictures_that_another_attribution_puts_first(grouped):
    params, data, samples = grouped
    code = params.code.group_code()
    att = ensdiff.attribute(params, samples, "exact", code=code, top=2, null=5)
    inside = ensdiff.attribute(params, samples, "loss", top=12, loss=ensdiff.LossConfig(draws=4, block=2))
    sections = attribution_sections(params, data, samples, att, groups=True, inside=inside)
    for b, section in enumerate(sections):
        assert [card.name for card in section.units] == [code.names[g] for g in att.units[b]]
        for card, group in zip(section.units, att.units[b], strict=True):
            order = [unit for unit in inside.units[b] if unit // 4 == group]
            np.testing.assert_array_equal(card.images, data.images[order])
            assert card.chosen == "of 4, chosen by loss"
            assert card.members.tolist() == code.rows(int(group))[0].tolist()
            distance = np.linalg.norm(card.counterfactual - np.asarray(samples.images[b]))
            np.testing.assert_allclose(distance, card.influence, rtol=1e-4)
    few = dataclasses.replace(inside, units=inside.units[:, :3])
    with pytest.raises(ValueError, match=r"inside has units of shape \(2, 3\): expected .* all 12 single units"):
        attribution_sections(params, data, samples, att, groups=True, inside=few)
    with pytest.raises(ValueError, match="12 units, the attribution is to 3"):
        attribution_sections(params, data, samples, att)


def test_sections_of_outside_pictures_have_no_counterfactuals(grouped, tmp_path):
    params, data, _ = grouped
    pictures = data.images[[3, 7]]
    att = ensdiff.attribute(params, pictures, "loss", top=2, null=5, loss=ensdiff.LossConfig(draws=4, block=2))
    sections = attribution_sections(params, data, pictures, att, names=["a.png", "<i>.png"])
    assert [section.heading for section in sections] == ["a.png", "<i>.png"]
    assert all(card.counterfactual is None for section in sections for card in section.units)
    assert "raises its loss by" in sections[0].note
    page = Page("t", how_to_read(att, generated=False), samples=sections, finding=finding(att, data.unit_names))
    html = write_page(tmp_path / "page.html", page).read_text()
    assert "as given" in html
    assert "&lt;i&gt;.png" in html
    assert "without it" not in html
    assert "same noise" not in html
    assert "denoising loss rises" in html
    assert "same noise" in " ".join(how_to_read(att))
