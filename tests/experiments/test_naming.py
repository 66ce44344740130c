"""Names of groups on the command line, and runs that are not finished."""

import dataclasses

import numpy as np
import pytest

import ensdiff
from ensdiff.files.checksums import write_sealed
from experiments import naming, runs
from tests.helpers import random_ensemble

GROUPED = ensdiff.Code.hierarchical(8, np.arange(12) // 4, group_weight=6, group_names=["digit 0", "digit 1", "ann, b"])


def test_an_unknown_unit_that_is_a_group_is_an_error_that_says_so():
    params = random_ensemble(GROUPED)
    names = ensdiff.codes.unit_names.UnitNames([f"item {i}" for i in range(12)])
    with (
        pytest.raises(ValueError, match=r"no unit is called 'digit 1'.*In this run digit 1 is a group.*add --groups"),
        naming.groups_named(params, "digit 1"),
    ):
        naming.removals(["digit 1"], 12, names)
    with pytest.raises(ValueError, match="no unit is called 'dig'") as caught, naming.groups_named(params, "nothing"):
        naming.removals(["dig"], 12, names)
    assert "--groups" not in str(caught.value)
    groups = GROUPED.group_code()
    with (
        pytest.raises(ValueError, match=r"no group is called 'item 7'.*In this run item 7 is a unit: leave out --gr"),
        naming.groups_named(dataclasses.replace(params, unit_names=names), "item 7", groups),
    ):
        naming.removals(["item 7"], 3, params.names_of(groups), "group")
    with pytest.raises(ValueError, match="'digit 7'") as caught, naming.groups_named(params, "digit 7", groups):
        naming.removals(["digit 7"], 3, params.names_of(groups))
    assert "--groups" not in str(caught.value)


def test_the_units_of_named_groups_are_all_of_theirs(capsys):
    params = random_ensemble(GROUPED)
    assert naming._units_of_groups(params, '"ann, b"') == [8, 9, 10, 11]
    assert 'groups 2 ("ann, b") are 4 units' in capsys.readouterr().out
    with pytest.raises(ValueError, match="no group is called 'ann'"):  # a part of a name is not enough
        naming._units_of_groups(params, "ann")
    with pytest.raises(ensdiff.NoSurvivorError, match="^no member survives the removal of units digit 0, digit 1"):
        naming._units_of_groups(params, "0,1")


@pytest.mark.parametrize(("step", "wanted", "told"), [(None, 9, "step 4 of 9"), (2, 4, "step 2 of 4"), (None, 4, "")])
def test_an_unfinished_run_is_said_to_be_one(tmp_path, capsys, step, wanted, told):
    for number in (2, 4):
        (tmp_path / "checkpoints" / str(number)).mkdir(parents=True)
    write_sealed(tmp_path / "config.json", {"data": {"name": "digits"}, "train": {"steps": wanted}})
    runs.warn_of_unfinished(tmp_path, step)
    text = capsys.readouterr().out
    assert (told in text) if told else not text
    (tmp_path / "config.json").write_text("damaged")
    runs.warn_of_unfinished(tmp_path, None)
    assert capsys.readouterr().out == ""
