"""Captions of folders of pictures: every picture has exactly one line, and mistakes are named."""

import json

import pytest

from ensdiff.data.metadata import read_metadata

ROWS = [
    {"file_name": "b.png", "text": "a dog", "artist": "bob"},
    {"file_name": "deep/a.png", "text": "a cat", "artist": 3, "more": None},
]


def write(folder, rows):
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text(text)
    return folder


def test_values_follow_the_pictures(tmp_path):
    write(tmp_path, [ROWS[0], "", ROWS[1], ""])
    found = read_metadata(tmp_path, ["deep/a.png", "b.png"], {"text": str, "artist": object})
    assert found == {"text": ["a cat", "a dog"], "artist": [3, "bob"]}
    assert read_metadata(tmp_path, ["b.png", "deep/a.png"], {}) == {}


@pytest.mark.parametrize(("rows", "message"), [
    (["{", ROWS[1]], "metadata.jsonl, line 1: "),
    ([ROWS[0], "[1]"], "line 2: expected an object with the text 'file_name'"),
    ([ROWS[0], {"text": "x"}], "line 2: expected an object with the text 'file_name'"),
    ([ROWS[0], {"file_name": "deep/a.png", "text": 3}], "line 2: text=3: expected text"),
    ([ROWS[0], {"file_name": "deep/a.png", "text": None}], "line 2: text=None: expected text"),
    ([ROWS[0], {"file_name": "deep/a.png", "title": "x"}], "line 2: it has no 'text'; it has 'file_name', 'title'"),
    (ROWS[:1], "has no line for the picture deep/a.png"),
    ([*ROWS, {"file_name": "./b.png", "text": "x"}], "line 3: b.png has an earlier line too"),
    ([*ROWS, {"file_name": "../c.png", "text": "x"}], "has a line for ../c.png, which is no picture that is read"),
])  # fmt: skip
def test_mistakes_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_metadata(write(tmp_path, rows), ["b.png", "deep/a.png"], {"text": str})


def test_columns_of_any_kind_are_there(tmp_path):
    with pytest.raises(ValueError, match="line 2: more=None: expected a value"):
        read_metadata(
            write(tmp_path, [{**ROWS[0], "more": 1}, {**ROWS[1], "more": None}]),
            ["b.png", "deep/a.png"],
            {"more": object},
        )
    with pytest.raises(ValueError, match="line 1: it has no 'other'; it has "):
        read_metadata(tmp_path, ["b.png", "deep/a.png"], {"other": object})


def test_a_folder_without_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metadata.jsonl does not exist"):
        read_metadata(tmp_path, ["a.png"], {})
