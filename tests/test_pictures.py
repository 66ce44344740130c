"""The pictures of the documentation show what the program writes: layout, verdicts and texts.

`docs/examples/pictures.py` makes a picture and a record of what it shows. The tests compare records and program.
"""

import hashlib
import importlib.util
import json
import re

import pytest

from tests.helpers import ROOT

SCRIPT = ROOT / "docs" / "examples" / "pictures.py"
spec = importlib.util.spec_from_file_location("pictures", SCRIPT)
pictures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pictures)
REMAKE = "make the picture again: python docs/examples/pictures.py --only={}"


@pytest.fixture(scope="module")
def words():
    return pictures.program_words()


@pytest.fixture(params=pictures.PICTURES)
def shown(request):
    path = ROOT / "docs" / f"{request.param}.json"
    if not path.exists():
        pytest.fail(f"docs/{request.param}.json is missing; {REMAKE.format(request.param)}")
    return request.param, pictures.PICTURES[request.param], json.loads(path.read_text())


def test_layout_is_that_of_the_page(shown):
    name, picture, record = shown
    assert record["layout"] == pictures.layout_digest(picture.layout), f"the layout changed; {REMAKE.format(name)}"


def test_texts_are_those_of_the_program(shown, words):
    name, _, record = shown
    assert len(record["says"]) > 5
    strange = {text: parts for text in record["says"] if (parts := pictures.unknown(text, record["names"], words))}
    assert not strange, f"the program does not write this; {REMAKE.format(name)}"


def test_verdicts_are_in_the_picture(shown):
    assert re.search("attributable|attributed|depends? on", " ".join(shown[2]["says"]))


def test_record_and_pages_belong_to_the_picture(shown):
    name, picture, record = shown
    digest = hashlib.sha256((ROOT / "docs" / f"{name}.png").read_bytes()).hexdigest()
    assert record["sha256"] == digest, f"the picture was not made by the script; {REMAKE.format(name)}"
    for page in picture.shown:
        assert f"![{record['alt']}](" in (ROOT / page).read_text(), f"{page}; {REMAKE.format(name)}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("unattributable at level 0.1", []),
        ("Attributable to ada, 7 at level 0.1", []),
        ("not attributed", []),
        ("attributable to ada and ada at level 0.1", []),
        ("attributable to bob at level 0.1", ["bob at level"]),
        ("untraceable at level 0.1", ["untraceable at level"]),
    ],
)
def test_only_words_of_the_program_pass(text, parts, words):
    """A text with other words, or with a name that is not in the record, is found."""
    assert pictures.unknown(text, ["ada"], words) == parts


def test_pictures_of_pages_are_known():
    """Every PNG in docs has a record or is being made by the script."""
    assert {path.stem for path in (ROOT / "docs").glob("*.png")} == set(pictures.PICTURES)
