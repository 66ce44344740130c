"""The names of units in a run: they are written and read with it, and nothing else depends on them."""

import dataclasses
import json

import pytest

import ensdiff
from ensdiff.codes.unit_names import UnitNames
from ensdiff.ensemble.digest import digest
from ensdiff.files.checksums import write_sealed
from ensdiff.runs.unit_names import NAME
from tests.faults import CONFIG, MODEL, flip
from tests.helpers import CODE, SHORT, blobs

NAMES = UnitNames(["ganson", "calder", "Smith, John", "ada", "eve\x1b", "7"])


@pytest.fixture
def saved(tiny, tmp_path):
    ensdiff.save(dataclasses.replace(tiny, unit_names=NAMES, data_digest="ab" * 32), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_keeps_the_names_of_its_units(saved):
    params = ensdiff.load(saved)
    assert params.names_of() == params.unit_names == NAMES
    assert params.names_of(params.code) == NAMES
    assert params.names_of(ensdiff.Code.balanced(4, 6, seed=1)) is None  # whose units may be others
    assert ensdiff.load(saved, members=[0, 2]).names_of() == NAMES
    assert ensdiff.check_run(saved) == []


@pytest.mark.slow
def test_training_records_the_names_of_the_data(tmp_path):
    """They stay when the run is resumed with the same pictures without names; names of a code are not written twice."""
    named = ensdiff.data.from_images(blobs(), names=list(NAMES))
    options = dict(schedule=SHORT, progress=False, run_dir=tmp_path)
    params = ensdiff.train(named, CODE, MODEL, CONFIG, steps=1, **options)
    assert params.unit_names == NAMES
    assert json.loads((tmp_path / NAME).read_text())["names"] == list(NAMES)
    ensdiff.train(ensdiff.data.arrays(blobs()), CODE, MODEL, CONFIG, steps=1, resume=True, **options)
    assert ensdiff.load(tmp_path).names_of() == NAMES
    code = ensdiff.Code.from_matrix(CODE.matrix(), NAMES)
    ensdiff.save(dataclasses.replace(params, code=code), tmp_path / "coded")
    assert not (tmp_path / "coded" / NAME).exists()
    assert ensdiff.load(tmp_path / "coded").names_of() == NAMES


def test_runs_without_names(tiny, saved, tmp_path):
    """A run of an older version, and one whose units are only numbered."""
    (saved / NAME).unlink()
    assert ensdiff.load(saved).names_of() is None
    assert ensdiff.check_run(saved) == []
    ensdiff.save(tiny, tmp_path / "plain")
    assert not (tmp_path / "plain" / NAME).exists()


@pytest.mark.parametrize("damage", ["flip", "other data", "other number", "no names"])
def test_damaged_or_foreign_names_are_left_out(saved, damage):
    if damage == "flip":
        flip(saved / NAME, 40)
    else:
        values = {"data": ("cd" if damage == "other data" else "ab") * 32, "names": list(NAMES)}
        values["names"] = {"other number": ["ada"], "no names": "ganson"}.get(damage, values["names"])
        write_sealed(saved / NAME, values)
    with pytest.warns(ensdiff.DamageWarning, match="unit_names.json .*; the names of units are not known"):
        params = ensdiff.load(saved)
    assert params.names_of() is None
    assert any(NAME in line for line in ensdiff.check_run(saved))


def test_nothing_that_is_computed_depends_on_names(tiny, saved):
    params = ensdiff.load(saved)
    assert params.fingerprint == tiny.fingerprint
    other = dataclasses.replace(params, unit_names=UnitNames(["x"] * 6))
    assert digest(other) == digest(params)
