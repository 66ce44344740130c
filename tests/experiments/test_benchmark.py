"""The benchmark's parts: that both libraries compute the same, and that the program writes its tables."""

import functools
import json

import numpy as np
import pytest

from experiments.benchmark import GROUPS, choose_groups, choose_networks
from experiments.benchmarks import jobs
from experiments.benchmarks.comparison import compare
from experiments.benchmarks.timing import interleave, race, ratio, ratio_of
from experiments.benchmarks.ways import CPU, CUDA, choose

SMALL = jobs.Setting(
    members=4, batch=2, factual=2, factual_steps=2, landscape=(4, 2), jacobian=2, loss=(2, 4), channels=16, side=8
)  # fmt: skip


def test_alternatives_take_turns(monkeypatch):
    monkeypatch.setattr("experiments.benchmarks.timing.PAUSE", 0.0)
    calls = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_ratio_is_the_median_of_ratios():
    """Not the ratio of medians: a slow turn slows both."""
    seconds = {"a": np.array([1.0, 20.0, 3.0]), "b": np.array([2.0, 10.0, 3.0])}
    assert ratio(seconds, "a", "b") == (1.0, 0.5, 2.0)


def test_groups_of_tables(capsys):
    every = list(GROUPS)
    assert choose_groups([], False, []) == every
    assert choose_groups([], True, []) == ["pytorch", "compilation"]
    assert choose_groups(["devices", "pytorch"], True, []) == ["devices", "pytorch"]
    assert capsys.readouterr().out == ""
    assert choose_groups([], True, ["torch"]) == ["rates", "compilation"]
    assert choose_groups([], False, ["torch"]) == every[1:]
    assert choose_groups(["growth"], False, ["torch"]) == ["growth"]
    assert capsys.readouterr().out.count("not compared with PyTorch: torch not installed") == 2
    with pytest.raises(ValueError, match="torch, diffusers not installed"):
        choose_groups(["pytorch"], False, ["torch", "diffusers"])
    with pytest.raises(ValueError, match="--tables=speed: expected some of pytorch, rates"):
        choose_groups(["speed"], False, [])


def test_an_alternative_that_fails_leaves_the_race():
    calls, left = [], iter([9, 9, 9, 0])

    def works(name):
        return lambda: jobs.Job(lambda: calls.append(name))

    def breaks():
        raise RuntimeError("no kernel\n for this")

    entries = race({"a": works("a"), "b": breaks, "c": works("c")}, 3, pause=0.0, left=lambda: next(left))
    assert calls == ["a", "c"] * 2  # no time for a second turn
    assert [(e.name, e.error, len(e.seconds)) for e in entries] == [
        ("a", "", 1), ("b", "RuntimeError: no kernel for this", 0), ("c", "", 1),
    ]  # fmt: skip
    entries[0].seconds, entries[0].turns = [1.0, 4.0], [0, 2]
    entries[2].seconds, entries[2].turns = [2.0, 9.0, 2.0], [0, 1, 2]
    assert ratio_of(entries[0], entries[2]) == (1.25, 0.5, 2.0)  # over the turns that both have


def test_ways():
    assert [way.name for way in choose("cpu", "landscape")] == [
        "eager", "eager+by_member", "channels_last", "channels_last+by_member",
    ]  # fmt: skip
    assert [way.name for way in choose("cuda", "jacobian", ["vmap", "bf16+graph"])] == ["vmap"]
    assert all({job for way in every for job in way.jobs} == set(jobs.JOBS) for every in (CPU, CUDA))
    with pytest.raises(ValueError, match="--ways=eager,fast: 'fast' is not one of eager, eager"):
        choose("cpu", "train", ["eager", "fast"])


def test_networks():
    assert list(choose_networks([], [], None, None, False)) == ["32 channels", "64 channels"]
    (quick,) = choose_networks([], [], None, None, True).values()
    assert (quick.members, quick.side, quick.channels) == (8, 28, 32)
    named = choose_networks(["paper", "cifar"], [], 4, None, False)
    assert [(s.members, s.side, s.channels, s.batch) for s in named.values()] == [(4, 32, 128, 128), (4, 32, 64, 64)]
    with pytest.raises(ValueError, match="--networks=huge: expected some of small, cifar, paper"):
        choose_networks(["huge"], [], None, None, False)
    with pytest.raises(ValueError, match="exclude each other"):
        choose_networks(["small"], ["8"], None, None, False)
    for channels, side, said in (
        (["32", "x"], None, "--channels=32,x: 'x' is not a width"),
        (["7"], None, "channels=7"),
        ([], 5, "5x5 do not fit"),
    ):
        with pytest.raises(ValueError, match=said):
            choose_networks([], channels, None, side, True)


@pytest.mark.torch
def test_a_library_that_fails_is_a_row(monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")

    def job(setting, params):
        if setting.dtype == "bfloat16":
            raise RuntimeError("out of memory")
        return jobs.Job(lambda: np.ones(2), flops=6)

    def theirs(setting, job, params, ways):
        return {"PyTorch eager": lambda: jobs.Job(lambda: np.full(2, 1.5)), "PyTorch vmap": lambda: 1 // 0}, ""

    monkeypatch.setitem(jobs.JOBS, "factual", job)
    monkeypatch.setattr("experiments.benchmarks.comparison._theirs", theirs)
    found = compare("n", SMALL, "factual", repeats=1, dtypes=("float32", "bfloat16"), pause=0.0, peak=1e3)
    rows = {row["way"]: row for row in found.rows}
    assert rows["ensdiff bf16"]["error"] == "RuntimeError: out of memory"
    assert rows["PyTorch vmap"]["error"].startswith("ZeroDivisionError")
    assert rows["ensdiff"]["TFLOP/s"] > 0
    assert rows["PyTorch eager"]["largest difference"] == 0.5
    assert (found.summary["ensdiff"], found.summary["PyTorch"]) == ("ensdiff", "PyTorch eager")


@pytest.fixture(scope="module")
def ours():
    """Return the ensemble and a function from the name of a job to ensdiff's result."""
    params = jobs.ensemble(SMALL)
    return params, functools.cache(lambda name: jobs.JOBS[name](SMALL, params).call())


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "way"), [(name, way) for name in jobs.JOBS for way in CPU if name in way.jobs and not way.compiled],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_pytorch_computes_the_same(name, way, ours, record_property):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    from experiments.benchmarks import pytorch

    params, result = ours
    got, want = pytorch.JOBS[name](SMALL, params, way).call(), result(name)
    assert got.shape == want.shape
    if name == "train":  # with other noise; untrained networks are wrong by about as much
        np.testing.assert_allclose(got.mean(), want.mean(), rtol=0.5)
        return
    error = np.abs(got - want).max() / np.abs(want).max()
    record_property("largest difference", f"{name}, {way.name} {error:.1e}, of the largest value (allowed 1e-04)")
    assert error < 1e-4


@pytest.mark.slow
def test_the_program_writes_its_tables(run, tmp_path):
    done = run(
        "benchmark", "--quick", "--members=2", "--side=8", "--channels=16", "--repeats=1", f"--out={tmp_path}",
        "--tables=rates,compilation",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "### Achieved rate" in (tmp_path / "rates.md").read_text()
    (table,) = json.loads((tmp_path / "compilation.json").read_text())["tables"]
    assert [row["members"] for row in table["rows"] if row["conv"] == "map"] == [1, 20]
