"""Choosing units by ids or names, and writing names so that they can be read back."""

import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ensdiff.codes.choosing import choose, ids_of_names
from ensdiff.codes.unit_names import UnitNames, labels

ODD = st.text(st.sampled_from('ab,+": 07\tÉ\x1b\u202e') | st.characters(codec="utf-8"), max_size=8)
NAMES = UnitNames(["ganson", "calder", "Smith, John", "Ada Lovelace", "a+b", "7", "ada", "Ada Byron"])


def refused():
    raise AssertionError("ids need no names")


@given(st.lists(ODD | st.from_regex(r"(id:|name:|\")?[0-9]{1,2}", fullmatch=True), min_size=1, max_size=12))
@example(["a", "A", "a ", "a,b", "b", "a+b", "id:0", '"', "", " ", "0", "9"])
def test_every_unit_can_be_typed_by_what_names_say(given_names):
    names = UnitNames(given_names)
    texts = [names.typed(unit) for unit in range(len(names))]
    for unit, text in enumerate(texts):
        assert choose(text, len(names), names) == [[unit]]
        assert choose(text, len(names), names, parts=True) == [[unit]]
        assert names.label(unit).isprintable()
    assert choose(",".join(texts), len(names), names) == [[unit] for unit in range(len(names))]
    assert choose(" + ".join(texts), len(names), names) == [list(range(len(names)))]
    assert len({names.label(unit) for unit in range(len(names))}) == len(names)
    assert labels(names.some(range(len(names)))) == {unit: names.label(unit) for unit in range(len(names))}


@pytest.mark.parametrize(("text", "expected"), [
    ("3", [[3]]), ("3+5, 0", [[3, 5], [0]]), ("id:3", [[3]]), ("ganson,3+calder", [[0], [3, 1]]),
    ("GANSON ", [[0]]), ("Smith, John", [[2]]), ('"Smith, John",0', [[2], [0]]), ("a+b", [[4]]), ("name:7", [[5]]),
    ('name:"Smith, John"+id:7', [[2, 7]]), ("ada", [[6]]), ("ada+ada", [[6]]), ("Ada Byron", [[7]]),
])  # fmt: skip
def test_ids_and_names(text, expected):
    assert choose(text, 8, NAMES) == expected


@pytest.mark.parametrize(("text", "parts", "message"), [
    ("gansn", False, "no unit is called 'gansn'; similar names are 'ganson'; expected a name or an id, 0 .. 7"),
    ("gan", False, "no unit is called 'gan'; similar names are 'ganson'"),
    ("zzz", False, "'ganson', for example"),
    ("a", True, "is in the names of .* units: id:0 \\(ganson\\), id:1"),
    ("7", False, "7 is the id of unit 7 and the name of unit 5: write id:7, or name:7 for the name"),
    ("8", False, "unit 8 does not exist: ids are 0 .. 7"),
    ("id:8", False, "unit 8 does not exist"),
    ('"ganson', False, "a quote is not closed"),
    ('"ganson"x', False, "'x' follows the closing quote"),
    ("", False, "an empty text"),
    ("ganson,,calder", False, "an empty text"),
    ("01", False, "no unit is called '01'"),
    ("-1", False, "no unit is called '-1'"),
])  # fmt: skip
def test_what_names_no_single_unit_is_an_error(text, parts, message):
    with pytest.raises(ValueError, match=message):
        choose(text, 8, NAMES, parts=parts)


def test_a_part_of_a_name_counts_only_where_it_is_asked_for():
    assert choose("lovelace,gans", 8, NAMES, parts=True) == [[3], [0]]
    with pytest.raises(ValueError, match="no unit is called 'lovelace'; similar names are 'Ada Lovelace'"):
        choose("lovelace", 8, NAMES)


def test_units_that_share_a_name_need_their_ids():
    names = UnitNames(["ada", "bob", "ada"])
    with pytest.raises(ValueError, match="'ada' is the name of 2 units: id:0 \\(ada\\), id:2 \\(ada\\); give an id"):
        choose("ada", 3, names)
    assert [names.label(unit) for unit in range(3)] == ["ada (id:0)", "bob", "ada (id:2)"]


def test_two_readings_are_an_error():
    names = UnitNames(["a", "b", "a,b", "a+b", "2,1", "c,a"])
    for text in ("a,b", "a+b", "2,1"):
        with pytest.raises(ValueError, match="also stands for the units"):
            choose(text, 6, names)
        assert len(choose(f'"{text}"', 6, names)[0]) == 1
    assert choose("c,a", 6, names) == [[5]]  # there is no unit c
    assert choose("c,a", 6, names, parts=True) == [[5]]  # of which "c" alone is only a part


def test_a_number_that_is_no_id_may_be_a_name():
    assert choose("1998,1", 2, UnitNames(["1998", "1999"])) == [[0], [1]]
    assert choose("1", 3, UnitNames(["0", "1", "2"])) == [[1]]


def test_names_are_only_looked_for_where_they_are_needed():
    assert choose("3,5+id:7", 8, refused) == [[3], [5, 7]]
    assert choose("ganson", 8, lambda: NAMES) == [[0]]
    with pytest.raises(ValueError, match="have no names; expected ids"):
        choose("ganson", 8, lambda: None)
    with pytest.raises(ValueError, match="have no names; expected ids"):
        choose("ganson", 8)


def test_names_in_python():
    assert ids_of_names(["ganson", {"calder", 3}, (1, "Smith, John")], NAMES) == [0, {1, 3}, (1, 2)]
    unchanged = [3, 5]
    assert ids_of_names(unchanged, None) is unchanged
    assert ids_of_names(["7"], NAMES) == [5]  # a str is a name
    for units, message in (
        ("ganson", r"expected a list .*'ganson'"),
        (["lovelace"], "no unit"),
        ([["bob"]], "no unit"),
    ):
        with pytest.raises(ValueError, match=message):
            ids_of_names(units, NAMES)
    with pytest.raises(ValueError, match="no names"):
        ids_of_names(["ganson"], None)


def test_names_are_values():
    same = UnitNames(list(NAMES))
    assert (same, hash(same), repr(same)) == (NAMES, hash(NAMES), "UnitNames(8)")
    assert UnitNames(["x"] * 8) != NAMES
    assert pickle.loads(pickle.dumps(NAMES)) == NAMES
    assert UnitNames.of(["item 0", "item 1"]) is UnitNames.of(None) is None
    assert UnitNames.of(same) is same


def test_suggestions_among_very_many_names():
    names = UnitNames([f"artist {i}" for i in range(30_000)] + ["ganson"])
    with pytest.raises(ValueError, match="similar names are 'ganson'"):
        choose("gansen", len(names), names)
