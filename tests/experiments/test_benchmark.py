"""The benchmark's parts: that both libraries compute the same, and that the program writes its tables."""

import json

import numpy as np
import pytest

from experiments.benchmark import GROUPS, choose_groups
from experiments.benchmarks import jobs
from experiments.benchmarks.timing import interleave, ratio

SMALL = jobs.Setting(
    members=4, batch=2, factual=2, factual_steps=2, landscape=(4, 2), jacobian=2, channels=16, side=8
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


@pytest.mark.torch
@pytest.mark.parametrize("name", ["factual", "landscape", "jacobian"])
def test_the_pytorch_loop_computes_the_same(name, record_property):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    from experiments.benchmarks import pytorch

    params = jobs.ensemble(SMALL)
    got, want = jobs.JOBS[name](SMALL, params).call(), pytorch.JOBS[name](SMALL, params).call()
    error = np.abs(got - want).max() / np.abs(want).max()
    record_property("largest difference", f"{name} {error:.1e}, of the largest value (allowed 1e-04)")
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
