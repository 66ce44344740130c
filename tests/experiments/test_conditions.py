"""--cond: what a text means for conditional and unconditional members."""

import numpy as np
import pytest

from ensdiff.models.condition import ConditionSpec, Leaf
from experiments.conditions import Asked, asked

NAMED = ConditionSpec((Leaf(classes=4, names=("cat", "dog", "red, blue", "2")),))
NUMBERED = ConditionSpec((Leaf(classes=4),))
INSIDE = ConditionSpec((Leaf("kind", classes=4),))
CAPTIONS = ConditionSpec((Leaf(shape=(12, 16), dtype="float32", encoder="CLIPTextModel, SHA-256 1234"),))
VECTORS = ConditionSpec((Leaf(shape=(3,), dtype="float32"),))


@pytest.mark.parametrize(("spec", "text", "count", "ids"), [
    (NUMBERED, "3", 2, [3, 3]),
    (NUMBERED, "3, 0", 2, [3, 0]),
    (NUMBERED, "4", 1, [4]),  # the null row
    (NAMED, "dog,cat", 2, [1, 0]),
    (NAMED, "2", 1, [3]),  # a name goes before an id
    (NAMED, "red, blue", 2, [2, 2]),
    (NUMBERED, None, 6, [0, 1, 2, 3, 0, 1]),
])  # fmt: skip
def test_classes(spec, text, count, ids):
    found = asked(spec, text, count)
    assert (found.cond.tolist(), found.samples) == (ids, count)
    assert bool(found.told) == (text is None)
    np.testing.assert_array_equal(spec.check(found.cond, count), ids)


def test_without_condition():
    assert asked(NUMBERED, "none", 3) == Asked(None, 3)
    assert asked(None, None, 3) == Asked(None, 3)
    found = asked(VECTORS, None, 3)
    assert found.cond is None
    assert "--cond takes classes; call ensdiff.sample(cond=...)" in found.told


def test_a_tree_of_one_class():
    assert asked(INSIDE, "1", 2).cond["kind"].tolist() == [1, 1]
    assert asked(INSIDE, None, 2).cond["kind"].tolist() == [0, 1]


def test_as_many_samples_as_classes_unless_their_number_is_given():
    assert asked(NUMBERED, "1,2,3", 8, fixed=False).samples == 3
    assert asked(NUMBERED, "1", 8, fixed=False).samples == 8
    with pytest.raises(ValueError, match="--cond=1,2,3: 3 classes for 8 samples: expected one per sample, or one"):
        asked(NUMBERED, "1,2,3", 8)


@pytest.mark.parametrize(("spec", "text", "message"), [
    (None, "3", "--cond=3: the members were trained without conditions"),
    (None, "none", "the members were trained without conditions"),
    (NUMBERED, "cat", "--cond=cat: the classes have no names: expected ids 0 .. 3"),
    (NUMBERED, "", "the classes have no names"),
    (NUMBERED, "9", "--cond=9: the condition has the class 9: expected 0 .. 3, or 4 for no condition"),
    (NAMED, "cut", "--cond=cut: the condition has no class 'cut': expected perhaps cat"),
    (VECTORS, "0.5", "--cond=0.5: --cond takes classes; call"),
    (CAPTIONS, "ada", "--cond=ada: --cond takes classes, and this run has captions: give --prompt="),
])  # fmt: skip
def test_errors(spec, text, message):
    with pytest.raises(ValueError, match=message):
        asked(spec, text, 1)
