"""Codes: distinct words of equal weight computed on demand, checked matrices, and ablation rows."""

import dataclasses
import itertools
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.codes import Code, CodeWarning, NoSurvivorError, check_names, deletion_capacity
from ensdiff.codes.combinations import unrank
from ensdiff.codes.permute import permute


@pytest.mark.parametrize(("members", "weight"), [(2, 1), (4, 2), (6, 3), (7, 2), (8, 5), (10, 5)])
def test_every_word_once(members, weight):
    """With N = C(K, w) units, the code uses every word of weight w exactly once."""
    code = Code.balanced(members, math.comb(members, weight), weight, seed=3)
    words = {tuple(row) for row in code.matrix().tolist()}
    expected = set()
    for ones in itertools.combinations(range(members), weight):
        expected.add(tuple(int(k in ones) for k in range(members)))
    assert words == expected


def test_unranking_is_lexicographic():
    words = unrank(np.arange(math.comb(7, 3)), 7, 3).tolist()
    assert words == sorted(words)
    assert len({tuple(w) for w in words}) == 35


@given(st.integers(2, 40), st.integers(0, 2**32), st.data())
def test_rows_are_distinct_constant_weight_and_on_demand(members, seed, data):
    weight = data.draw(st.integers(1, members - 1))
    units = min(math.comb(members, weight), 400)
    if units * weight < 4 * members:
        return
    code = Code.balanced(members, units, weight, seed)
    ids = np.random.default_rng(seed).integers(0, units, 300)
    rows = code.rows(ids)
    assert rows.shape == (300, members)
    assert (rows.sum(1) == weight).all()
    np.testing.assert_array_equal(rows, code.matrix()[ids])
    assert len(np.unique(code.matrix(), axis=0)) == units


def test_ten_million_units():
    code = Code.balanced(32, 10**7, seed=1)
    ids = np.random.default_rng(0).choice(10**7, 200_000, replace=False)
    rows = code.rows(ids)
    assert (rows.sum(1) == 16).all()
    assert len(np.unique(np.packbits(rows, axis=1), axis=0)) == len(ids)
    shares = rows.sum(0) / len(ids)
    assert np.abs(shares - 0.5).max() < 5 * 0.5 / np.sqrt(len(ids))
    # members are as correlated as in a uniform draw of words: -1 / (K - 1)
    correlation = np.corrcoef(rows.T.astype(float))[np.triu_indices(32, 1)]
    assert np.abs(correlation + 1 / 31).max() < 6 / np.sqrt(len(ids))


def test_a_billion_units_answer_for_a_million_ids():
    code = Code.balanced(members=34, units=10**9, seed=0)
    ids = np.random.default_rng(0).choice(10**9, 10**6, replace=False)
    rows = code.rows(ids)
    assert (rows.sum(1) == 17).all()
    assert len(np.unique(np.packbits(rows, axis=1), axis=0)) == 10**6


def test_many_members():
    code = Code.balanced(256, 1000, seed=0)
    rows = code.matrix()
    assert (rows.sum(1) == 128).all()
    assert len(np.unique(rows, axis=0)) == 1000
    assert np.abs(code.shares() - 500).max() < 5 * np.sqrt(250)


@pytest.mark.parametrize(("members", "units"), [(16, 10), (16, 31), (16, 1797), (20, 5000)])
def test_shares_are_near_equal(members, units):
    shares = Code.balanced(members, units, seed=0).shares()
    np.testing.assert_array_equal(shares, Code.balanced(members, units, seed=0).matrix().sum(0))
    assert shares.sum() == units * (members // 2)
    assert np.ptp(shares) < 3 * np.sqrt(units)
    assert shares.min() > 0


def test_words_do_not_depend_on_the_number_of_units():
    code = Code.balanced(16, 1000, seed=0)
    larger = Code(16, 2000, 8, code.key)
    np.testing.assert_array_equal(code.matrix(), larger.rows(range(1000)))


def test_every_member_sees_a_unit_if_any_draw_allows_it():
    """Even the most equal shares may include a zero, so codes that give every member some unit are preferred."""
    for seed in range(3):
        shares = Code.balanced(10, 7, 2, seed).shares()
        assert shares.min() > 0
        assert shares.sum() == 14


def test_numpy_integers_make_the_same_code():
    code = Code.balanced(np.int64(8), np.int64(50), np.int64(3))
    assert code == Code.balanced(8, 50, 3)
    assert Code.from_dict(json.loads(json.dumps(code.to_dict()))) == code


def test_shares_do_not_depend_on_the_chunk():
    for code in (Code.balanced(8, 60), Code.from_matrix(Code.balanced(8, 60).matrix())):
        np.testing.assert_array_equal(code.shares(chunk=7), code.matrix().sum(0))


def mean_and_least_survivors(matrix, m):
    counts = [(matrix[list(units)].max(0) == 0).sum() if m else matrix.shape[1]
              for units in itertools.combinations(range(len(matrix)), m)]  # fmt: skip
    return np.mean(counts), min(counts), np.mean(np.array(counts) == 0)


@pytest.mark.parametrize(("members", "weight"), [(6, 3), (6, 2), (5, 4)])
@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_capacity_against_all_sets_of_units(members, weight, m):
    """Expected values for random words are exact for a code that uses every word."""
    code = Code.balanced(members, math.comb(members, weight), weight)
    mean, least, lost = mean_and_least_survivors(code.matrix(), m)
    capacity = code.capacity(m)
    assert capacity.expected == pytest.approx(mean)
    assert capacity.failure == pytest.approx(lost)
    assert capacity.worst == least == max(0, members - m * weight)
    stored = Code.from_matrix(code.matrix()).capacity(m)
    assert (stored.expected, stored.worst) == (pytest.approx(mean), least)


@pytest.mark.filterwarnings("ignore::ensdiff.CodeWarning")
def test_capacity_of_mixed_weights():
    matrix = np.array([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 1], [0, 0, 1, 0, 1]])
    for m in range(4):
        mean, least, _ = mean_and_least_survivors(matrix, m)
        capacity = Code.from_matrix(matrix).capacity(m)
        assert capacity.expected == pytest.approx(mean)
        assert capacity.worst <= least
        assert capacity.failure is None
    with pytest.raises(ValueError, match=r"0 \.\. 4, the number of units"):
        Code.from_matrix(matrix).capacity(5)
    with pytest.raises(ValueError, match=r"weight=4: expected 1 \.\. 3"):
        deletion_capacity(4, 4, 1)


def test_hierarchical_words_lie_inside_their_groups():
    groups = np.random.default_rng(0).integers(0, 5, 60)
    code = Code.hierarchical(12, groups, group_weight=8, weight=4, seed=1)
    matrix, group_GK = code.matrix(), code.group_code().matrix()
    assert (matrix <= group_GK[groups]).all()
    assert (matrix.sum(1) == 4).all()
    assert (group_GK.sum(1) == 8).all()
    assert len(np.unique(matrix, axis=0)) == 60
    np.testing.assert_array_equal(code.group_of_unit(), groups)
    # members left without the group saw none of its items; members left without one item saw others of the group
    for g in range(5):
        items = np.flatnonzero(groups == g)
        assert not matrix[items][:, code.group_code().survivors(g)].any()
        for i in items:
            assert matrix[np.setdiff1d(items, i)][:, code.survivors(i)].any()
    again = Code.from_dict(json.loads(json.dumps(code.to_dict())))
    assert again == code
    assert hash(again) == hash(code)


@pytest.mark.parametrize(("groups", "options", "message"), [
    ([0, 0, 1, 1], dict(group_weight=8), "group_weight < 8"),
    ([0, 0, 2], {}, "groups 1 have no unit"),
    ([0, 0], {}, "one group"),
    ([0.5, 1], {}, "one integer per unit"),
    ([-1, 0], {}, "group -1"),
    ([0] * 7 + [1], dict(group_weight=4, weight=2), "larger weight"),
    ([0, 0, 1, 1], dict(group_names=["a", "a"]), "two groups have names that look the same, 'a' and 'a'"),
    ([0, 0, 1, 1, 2, 2], dict(group_names=["a", "a", "b", "c"]), "two groups have names that look the same"),
    ([0, 0, 1, 1], dict(group_names=["a", "b", "c"]), "3 names for 2 groups: expected one per group"),
    ([0, 0, 1, 1], dict(group_names="ab"), "one name per group"),
])  # fmt: skip
def test_bad_hierarchies(groups, options, message):
    with pytest.raises(ValueError, match=message):
        Code.hierarchical(8, groups, **options)
    with pytest.raises(ValueError, match="no groups"):
        Code.balanced(8, 10).group_code()


def test_groups_have_names():
    code = Code.hierarchical(8, np.arange(30) // 10, group_weight=6, group_names=["ada", "bob", "cyd"])
    assert code.group_code().names == code.only([1, 3, 4]).group_code().names == ("ada", "bob", "cyd")
    with pytest.raises(ValueError, match="units ada, bob"):
        code.group_code().ablate([{0, 1, 2}])
    values = code.to_dict()
    values["groups"]["names"] = ["ada"]
    with pytest.raises(ValueError, match="1 names for 3 units"):
        Code.from_dict(values)
    assert Code.hierarchical(8, [0, 0, 1, 1], group_names=[7, b"bob"]).group_code().names == ("7", "bob")


def test_antichain():
    """With any unit removed, every other unit is still seen by a survivor."""
    matrix = Code.balanced(8, 70, seed=0).matrix()
    for i in range(70):
        survivors = matrix[i] == 0
        others = np.delete(matrix, i, axis=0)
        assert others[:, survivors].any(1).all()


def test_ablation_rows():
    code = Code.from_matrix([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]])
    np.testing.assert_allclose(code.ablate([0, {0, 1}]), [[0, 0, 0.5, 0.5], [0, 0, 0, 1]])
    np.testing.assert_allclose(code.ablate(np.array([0, 2])), [[0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(code.ablate([(1,)]), [[0, 0.5, 0, 0.5]])
    np.testing.assert_allclose(code.factual(), [[0.25] * 4])
    np.testing.assert_array_equal(code.survivors(1), [False, True, False, True])
    np.testing.assert_array_equal(code.survivors({0, 1}), [False, False, False, True])
    for units, message in (
        (set(), "a set has no order"),
        ({0: [1, 2]}, "a dict has no order"),
        ([{0: 1}], "are a mapping"),
        ({0, 1}, r"give \[\{0, 1\}\]"),
        ([], "no units"),
        ([[]], "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            code.ablate(units)
    with pytest.raises(NoSurvivorError, match=r"units 0, 2; survivors when one of them is kept: 0: 2, 2: 2"):
        code.ablate([[0, 2]])


def test_long_listings_are_cut():
    code = Code.balanced(16, 100)
    with pytest.raises(NoSurvivorError) as error:
        code.ablate([3, range(100)])
    message = str(error.value)
    assert "units 0, 1, 2, 3, 4 and 95 more;" in message
    assert message.count(" and 92 more") == 2
    assert "7: 8" in message  # alone, a unit leaves K - w survivors
    assert len(message) < 500


@given(st.integers(0, 10**6))
def test_ablation_rows_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    code = Code.balanced(10, 100, 3, seed)
    sets = [list(map(int, rng.choice(100, rng.integers(1, 3), replace=False))) for _ in range(5)]
    matrix = code.matrix()
    try:
        rows = code.ablate(sets)
    except NoSurvivorError:
        assert any(matrix[s].any(0).all() for s in sets)
        return
    for row, s in zip(rows, sets, strict=True):
        keep = [k for k in range(10) if not any(matrix[i, k] for i in s)]
        expected = np.zeros(10)
        expected[keep] = 1 / len(keep)
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_names_appear_in_messages():
    code = Code.from_matrix([[1, 0], [0, 1]], names=["ada", "bob"])
    with pytest.raises(NoSurvivorError, match="ada, bob"):
        code.ablate([[0, 1]])


def test_names_are_those_of_the_data_in_order():
    check_names(["ada", "bob"], ["ada", "bob"])
    check_names(None, ["ada", "bob"])
    for numbers in (["item 0", "item 1"], ["0", "1"], ["unit 0", "unit 1"], ["group 0", "group 1"], range(2)):
        check_names(["ada", "bob"], numbers)  # such names only state positions
        check_names(list(map(str, numbers)), ["ada", "bob"])
    with pytest.raises(ValueError, match=r"unit 0 is 'zed' .* and 'ada' .*; unit 2 .*code\.reordered\("):
        check_names(["zed", "bob", "ada"], ["ada", "bob", "zed"])
    with pytest.raises(ValueError, match="unit 1 is 'bob' in the code and 'item 0' .* give the code the names"):
        check_names(["ada", "bob"], ["ada", "item 0"])
    for of_data in (["item 1", "item 0"], ["1", "0"]):  # the numbers of other units
        with pytest.raises(ValueError, match="name different units"):
            check_names(["ada", "bob"], of_data)
    for of_code, of_data in ((["1", "0"], ["0", "1"]), (("2", "0", "1"), range(3)), (["0", "1"], ["1", "0"])):
        with pytest.raises(ValueError, match="the same names in another order"):  # they may be names, not positions
            check_names(of_code, of_data)
    check_names(["5", "7"], range(2))


@pytest.mark.parametrize(("names", "message"), [
    (["ada", "bob", "ada"], "two units have names that look the same, 'ada' and 'ada'"),
    (["ada", "bob", "ada "], "two units have names that look the same, 'ada' and 'ada '"),
    (["1", "2", 1], "two units have names that look the same, '1' and '1'"),
    (["ada", "bob"], "2 names for 3 units"),
    ("abc", "expected a list with one name per unit"),
])  # fmt: skip
def test_bad_names(names, message):
    with pytest.raises(ValueError, match=message):
        Code.from_matrix([[1, 0, 0], [0, 1, 0], [0, 0, 1]], names=names)


def test_a_code_in_the_order_of_names():
    """Reordering a code by names leaves each unit its word and its group."""
    names = ["zed", "ada", "bob", "eve"]
    stored = Code.from_matrix([[1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]], names=names)
    nested = dataclasses.replace(Code.hierarchical(8, [0, 1, 0, 1]), names=tuple(names))
    balanced = dataclasses.replace(Code.balanced(4, 4), names=tuple(names))
    for code in (stored, nested, balanced):
        turned = code.reordered(sorted(names))
        assert turned.names == ("ada", "bob", "eve", "zed")
        np.testing.assert_array_equal(turned.matrix(), code.matrix()[[1, 2, 3, 0]])
        assert turned.reordered(names).matrix().tolist() == code.matrix().tolist()
        assert Code.from_dict(json.loads(json.dumps(turned.to_dict()))) == turned
        assert Code.from_dict(json.loads(json.dumps(code.to_dict()))) == code
    assert nested.reordered(sorted(names)).group_of_unit().tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="'kim' are not in the code; 'zed' of the code are missing"):
        stored.reordered(["ada", "bob", "eve", "kim"])
    with pytest.raises(ValueError, match="no names"):
        Code.balanced(4, 4).reordered(names)


@pytest.mark.parametrize(("matrix", "message"), [
    ([1, 0], "shape"),
    ([[0, 2], [1, 0]], r"code\[0, 1\] is 2"),
    ([[0.5, 1], [1, 0]], r"code\[0, 0\] is 0.5"),
    ([[np.nan, 1], [1, 0]], "nan"),
    ([["a", "b"]], "dtype"),
    ([[0, 1], [0, 1]], "members 0 see no unit"),
    ([[1, 1], [0, 1], [1, 0]], "units 0 are seen by every member"),
    ([[1], [1]], "one member"),
])  # fmt: skip
def test_bad_matrices(matrix, message):
    with pytest.raises(ValueError, match=message):
        Code.from_matrix(matrix)


@pytest.mark.parametrize(("matrix", "message"), [
    ([[1, 0, 0], [0, 1, 1], [1, 0, 0]], "units 2 have the same code word as an earlier unit"),
    ([[1, 0], [0, 1], [0, 0]], "units 2 are seen by no member"),
    ([[1, 0, 1], [0, 1, 1]], "members 2 see every unit"),
])  # fmt: skip
def test_weak_matrices_warn(matrix, message):
    with pytest.warns(CodeWarning, match=message):
        Code.from_matrix(matrix)


@pytest.mark.parametrize(("options", "message"), [
    (dict(members=1, units=3), "at least 2 members"),
    (dict(members=4, units=0), "at least 1 unit"),
    (dict(members=4, units=3, weight=4), r"1 \.\. 3"),
    (dict(members=8, units=1797), "only 70 code words; the smallest number of members that fits is 14"),
    (dict(members=10, units=100, weight=2), "number of members that fits is 9;"),
    (dict(members=10, units=100, weight=2), r"a weight of 3 \.\. 7 fits"),
    (dict(members=8, units=1, weight=4), "would see no unit"),
])  # fmt: skip
def test_bad_balanced_codes(options, message):
    with pytest.raises(ValueError, match=message):
        Code.balanced(**options)


def test_many_repeated_words_are_found_at_once():
    words = Code.balanced(8, 70).matrix()
    with pytest.warns(CodeWarning, match="units 70, 71, 72, 73, 74 and 20925 more have the same code word as"):
        Code.from_matrix(np.tile(words, (300, 1)))


@pytest.mark.parametrize("ids", [[6], [-1], [0.5], ["a"], [[0]], np.array([2**64 - 1], np.uint64), [2**70]])
def test_unknown_units(ids):
    with pytest.raises(ValueError, match=r"0 \.\. 5"):
        Code.balanced(4, 6).rows(ids)


def test_unowned_words_belong_to_no_unit():
    for code in (Code.balanced(10, 100, 5, seed=2), Code.from_matrix(Code.balanced(10, 100, 5).matrix())):
        words = code.unowned(150, seed=1)
        owned = set(map(bytes, code.matrix()))
        assert len(set(map(bytes, words))) == 150
        assert not owned & set(map(bytes, words))
        assert (words.sum(1) == 5).all()
    with pytest.raises(ValueError, match="11 members would do"):
        Code.balanced(10, 200).unowned(100)
    with pytest.raises(ValueError, match=r"only 5 .* 8 members would do; with 10 members, a weight of 3 \.\. 7 fits"):
        Code.balanced(10, 40, 2).unowned(20)
    with pytest.raises(ValueError, match="0 or more"):
        Code.balanced(10, 40).unowned(-1)
    assert Code.balanced(10, 40).unowned(0).shape == (0, 10)


def test_all_unowned_words():
    for code in (Code.balanced(8, 60, 4), Code.from_matrix(Code.balanced(8, 60, 4).matrix())):
        words = np.concatenate([code.unowned(), code.matrix()])
        assert len(np.unique(words, axis=0)) == len(words) == 70
    with pytest.raises(ValueError, match="pass the number n"):
        Code.balanced(32, 60).unowned()


@pytest.mark.filterwarnings("ignore::ensdiff.CodeWarning")
def test_unowned_words_of_a_chosen_weight():
    code = Code.from_matrix([[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    assert (code.unowned(3, weight=2).sum(1) == 2).all()
    assert len(code.unowned(weight=2)) == 4
    assert set(code.unowned(5).sum(1).tolist()) == {1, 2}
    with pytest.raises(ValueError, match="2 units leave only 4"):
        code.unowned(5, weight=2)
    with pytest.raises(ValueError, match="this code have weight 4"):
        Code.balanced(8, 60).unowned(3, weight=3)


@pytest.mark.parametrize("members", [66, 67, 68, 69])
def test_unowned_words_past_64_bits(members, monkeypatch):
    """The permutation gets every word number as an integer, even if only some of them exceed 64 bits."""
    seen = []
    monkeypatch.setattr("ensdiff.codes.words.permute", lambda ids, *rest: seen.extend(ids) or permute(ids, *rest))
    code = Code.balanced(members, 100)
    words = code.unowned(300, seed=0)
    places = [number for number in seen if number >= 100]
    assert len(set(places)) == 300
    assert all(isinstance(number, int | np.integer) for number in places)
    assert len(np.unique(words, axis=0)) == 300
    assert (words.sum(1) == members // 2).all()


def test_static_field_behaviour():
    code, same = Code.balanced(8, 50), Code.balanced(8, 50)
    assert code == same
    assert hash(code) == hash(same)
    assert code != Code.balanced(8, 50, seed=1)
    named = [Code.from_matrix([[1, 0], [0, 1]], names=names) for names in (["a", "b"], ["a", "b"], ["a", "c"])]
    assert named[0] == named[1] != named[2]
    assert hash(named[0]) == hash(named[1])
    assert "packed" not in repr(named[0])
    assert pickle.loads(pickle.dumps(code)) == code
    with pytest.raises(AttributeError):
        code.members = 3


@pytest.mark.parametrize("code", [
    Code.balanced(8, 50),
    Code.balanced(100, 50),
    Code.from_matrix([[1, 0, 0], [0, 1, 1]], names=["a", "b"]),
    Code.hierarchical(8, np.arange(30) // 10, group_weight=6),
    Code.hierarchical(8, np.arange(30) // 10, group_weight=6, group_names=["ada", "bob", "cyd"]),
    Code.undivided(7),
])  # fmt: skip
def test_round_trip_through_json(code):
    again = Code.from_dict(json.loads(json.dumps(code.to_dict())))
    assert again == code
    np.testing.assert_array_equal(again.matrix(), code.matrix())


@pytest.mark.parametrize("values", [
    {},
    {"members": 3},
    None,
    {"members": 2, "units": 9, "weight": 1, "matrix": "AA=="},
    {"members": 4, "units": 100, "weight": 2, "key": "0x1"},
    {"members": 4, "units": 3, "weight": 4, "key": "0x1"},
    {"members": 4.5, "units": 3, "weight": 2, "key": "0x1"},
    {"members": 3, "units": 1, "weight": 2, "matrix": "gA=="},
    {"members": 2, "units": 2, "weight": 1, "matrix": "gEA=", "names": ["a"]},
])  # fmt: skip
def test_bad_dicts(values):
    with pytest.raises(ValueError, match="not a code"):
        Code.from_dict(values)


def test_undivided_sees_everything_and_cannot_forget():
    code = Code.undivided(5)
    assert code.shares().tolist() == [5]
    with pytest.raises(NoSurvivorError):
        code.ablate([0])
