"""The list of a run's units."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

import ensdiff
from ensdiff.codes.unit_names import UnitNames
from ensdiff.runs.directory import RunDirectory
from experiments import listing
from tests.helpers import CODE, blobs, random_ensemble

NAMES = ["ganson", "calder", "Smith, John", "7", "ada\x1b", "ada"]
NESTED = ensdiff.Code.hierarchical(6, np.arange(9) // 3, group_weight=4, weight=2, group_names=["x", "y", "z"])


def test_rows(tiny):
    data = ensdiff.data.arrays(blobs(8), [0, 1, 1, 2, 3, 4, 5, 5])
    rows = listing.describe(tiny, data.manifest(), [1, 3], UnitNames(NAMES), origin={"forgotten": [3]})
    members = [np.flatnonzero(CODE.rows(i)[0]).tolist() for i in (1, 3)]
    assert rows == [
        {"id": 1, "name": "calder", "write": "calder", "forgotten": False, "items": 2, "members": members[0]},
        {"id": 3, "name": "7", "write": "name:7", "forgotten": True, "items": 1, "members": members[1]},
    ]
    assert listing.describe(tiny, None, [], None) == []


def test_groups():
    params = random_ensemble(NESTED)
    data = ensdiff.data.arrays(blobs(10), [*range(9), 5])
    inner = listing.describe(params, data.manifest(), [5], None)[0]
    assert (inner["group"], inner["group_name"], inner["items"], inner["write"]) == (1, "y", 2, "5")
    outer = listing.describe(params, data.manifest(), [0, 1], params.names_of(NESTED.group_code()), groups=True)
    assert [(row["name"], row["units"], row["items"]) for row in outer] == [("x", 3, 3), ("y", 3, 4)]
    assert set(inner["members"]) <= set(outer[1]["members"])
    told = listing.describe(params, None, [0, 1], None, groups=True, origin={"forgotten": [0, 1, 2, 3]})
    assert [row["forgotten"] for row in told] == [True, False]  # of group 1, two units are left


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("units") / "run"
    data = ensdiff.data.from_images(blobs(), names=NAMES)
    with RunDirectory.open(path, keep=1, resume=False) as directory:
        named = dataclasses.replace(tiny, unit_names=UnitNames(NAMES), data_digest=data.digest())
        directory.begin(named, data=data)
        directory.save_tree(0, {"params": tiny.params})
    return path


@pytest.mark.slow
def test_the_program(run, folder):
    done = run("units", f"--run={folder}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "6 units, 4 members"
    assert lines[1].split() == ["id", "name", "write", "items", "members"]
    assert lines[3].split() == ["0", "ganson", "ganson", "1", *map(str, np.flatnonzero(CODE.rows(0)[0]))]
    assert "ada\\x1b" in lines[7]
    assert "id:4" in lines[7]
    assert '"Smith, John"' in lines[5]
    done = run("units", f"--run={folder}", "--find=ADA", "--format=json")
    assert [row["id"] for row in json.loads(done.stdout)] == [4, 5]
    done = run("units", f"--run={folder}", "--most=2", "--find=a")
    assert done.stdout.splitlines()[0] == "4 of 6 units, 4 members"
    assert "the first 2; --most=... shows more" in done.stdout
    done = run("units", f"--run={folder}", "--format=csv")
    assert [row["name"] for row in csv.DictReader(io.StringIO(done.stdout))] == NAMES
    done = run("units", f"--run={folder}", "--groups")
    assert done.returncode == 1
    assert "this code has no groups" in done.stderr
