"""Units by their names in every program that takes units."""

import json

import numpy as np
import pytest

import ensdiff
from tests.faults import CONFIG, MODEL
from tests.helpers import CODE, SHORT, blobs

NAMES = ["ganson", "calder", "Smith, John", "7", "ada", "adam"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artists(tmp_path_factory):
    """Return a run whose units have names, trained on data that are not on the disk."""
    path = tmp_path_factory.mktemp("names") / "artists"
    data = ensdiff.data.from_images(blobs(), names=NAMES)
    ensdiff.train(data, CODE, MODEL, CONFIG, steps=2, schedule=SHORT, run_dir=path, progress=False)
    return path


@pytest.fixture
def go(run, artists):
    """Return a function that runs a program on the run and returns its output, or its error if it must fail."""

    def call(program, *args, fails=False, folder=artists):
        done = run(program, *args, f"--run={folder}")
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return call


def test_sample(go, artists, tmp_path):
    few = ("sample", "--n=1", "--steps=2", f"--out={tmp_path}")
    text = go(*few, "--remove=ganson", '--remove="Smith, John"+id:3', "--remove=1")
    assert "ganson is unit 0\n" in text
    assert '"Smith, John"+id:3 is unit 2, 3\n' in text
    assert "unit 1 is calder\n" in text
    params = ensdiff.load(artists)
    samples = ensdiff.sample(params, 0, 1, steps=2)
    with np.load(tmp_path / "samples_seed0.npz") as found:
        expected = ensdiff.counterfactuals(params, samples, [0, {2, 3}, 1])
        np.testing.assert_allclose(found["counterfactuals"], expected, atol=1e-5)
    assert (tmp_path / "samples_seed0_without_2_3.png").is_file()
    assert "no unit is called 'gansno'; similar names are 'ganson'" in go(*few, "--remove=gansno", fails=True)
    assert "id:4 (ada), id:5 (adam); give an id" in go(*few, "--remove=ad", fails=True)


def test_attribute(go, artists, tmp_path):
    few = ("attribute", "--n=1", "--steps=2", f"--out={tmp_path}")
    go(*few, "--method=exact", "--null=0", "--units=ganson,name:7+calder")
    values = json.loads((tmp_path / "exact_seed0.json").read_text())
    assert sorted(map(tuple, values["sets"])) == [(0,), (1, 3)]
    text = go(*few, "--values=shapley", "--method=differential", "--units=ganson,3+calder", "--skip_empty")
    assert "ganson: " in text
    assert "7 (id:3)+calder: " in text


def test_certify_and_forget(go, tmp_path):
    """A part of a name is not enough to forget somebody."""
    text = go("certify", "create", "--units=ganson", f"--certificate={tmp_path / 'c.json'}")
    assert "unit 0 is ganson, 1 picture\n" in text
    assert ensdiff.Certificate.load(tmp_path / "c.json").units == (0,)
    out = tmp_path / "less"
    wrong = go("forget", "--units=gans", f"--out={out}", fails=True)
    assert "no unit is called 'gans'; similar names are 'ganson'" in wrong
    assert not out.exists()
    text = go("forget", '--units="Smith, John"', f"--out={out}")
    assert 'unit 2 is "Smith, John", 1 picture\n' in text
    assert ensdiff.load(out).names_of()[2] == "Smith, John"
    text = go("forget", "--units=ada", f"--out={tmp_path / 'lesser'}", folder=out)
    assert ensdiff.Certificate.load(tmp_path / "lesser" / "certificate.json").units == (2, 4)
    assert "the certificate holds" in go("certify", "verify", folder=tmp_path / "lesser")
