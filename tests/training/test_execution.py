"""How steps are executed: what is recorded, what a resumed run repeats, and what the user can change."""

import json

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.files.checksums import seal_line
from ensdiff.models import conv
from ensdiff.runs.description import decided
from ensdiff.runs.logs import read_environments
from ensdiff.training.execution import Execution, repeatable
from tests.helpers import CODE, SHORT, TINY, blobs

OPTIONS = dict(schedule=SHORT, batch_size=2, learning_rate=1e-2, warmup=0, checkpoint_every=2, progress=False)
DATA = ensdiff.data.arrays(blobs())
PLAIN = Execution("map", 1, "image", "host")


def train(path, model=TINY, **options):
    return ensdiff.train(DATA, CODE, model, run_dir=path, **{**OPTIONS, **options})


def recorded(path):
    return [(line["step"], line.get("execution")) for line in read_environments(path)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True))


def test_an_execution_is_concrete():
    assert Execution.of(ensdiff.UNetConfig()) == PLAIN
    assert Execution.of(ensdiff.UNetConfig(conv="loop", attention="batch")) == Execution("loop", 0, "batch")
    model = PLAIN.apply_to(ensdiff.UNetConfig(channels=8))
    assert model == ensdiff.UNetConfig(channels=8, conv="map", stack=1, attention="image")
    assert Execution.of(ensdiff.UNetConfig(conv="loop", stack=3)).stack == 3
    assert Execution.of(ensdiff.UNetConfig(conv="map", stack=0)).stack == 1
    for wrong in (
        ("auto", 1, "image"), ("map", -1, "image"), ("map", 1, "auto"), ("map", 1, "image", "auto"), ("map", 2, "image")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"='auto'|stack=-1|stack=2: conv='map' computes members one by one"):
            Execution(*wrong)


def test_records_of_other_versions():
    """Lines without an execution mean what their versions did; unknown ones are refused, not read in part."""
    assert Execution.from_record({"step": 3}, TINY) == Execution.of(TINY)
    assert Execution.from_record({"step": 3, "execution": PLAIN.record()}, TINY) == PLAIN
    for wrong in ({**PLAIN.record(), "tiles": 4}, {"conv": "map"}, {**PLAIN.record(), "conv": "fft"}, None, ["map"]):
        with pytest.raises(ValueError, match=r"environment\.jsonl, step 3: the execution .* cannot be repeated"):
            Execution.from_record({"step": 3, "execution": wrong}, TINY)


def test_the_newest_line_of_this_environment_is_repeated():
    here, there = {"device": "cpu", "mesh": {"member": 1, "data": 1}}, {"device": "gpu"}
    other = Execution("loop", 0, "batch")
    lines = [
        {"step": 0, **here, "execution": PLAIN.record()},
        None,
        {"step": 2, **here, "execution": other.record()},
        {"step": 4, **there, "execution": PLAIN.record()},
    ]
    assert repeatable(lines, here, TINY) == other
    assert repeatable(lines, there, TINY) == PLAIN
    assert repeatable(lines, {**here, "jax": "9"}, TINY) is None
    assert repeatable([], here, TINY) is None
    assert repeatable(lines, here, ensdiff.UNetConfig(conv="loop")) == other
    assert repeatable(lines, here, ensdiff.UNetConfig(conv="map")) == Execution("map", 1, "batch")
    assert repeatable(lines, here, ensdiff.UNetConfig(conv="measure", stack=2)) is None
    assert repeatable(lines, here, ensdiff.UNetConfig(conv="measure")) == other
    assert repeatable(lines, here, ensdiff.UNetConfig(conv="loop", stack=2)) == Execution("loop", 2, "batch")
    assert repeatable(lines, here, ensdiff.UNetConfig(attention="image")) == Execution("loop", 0, "image")
    assert repeatable(lines, here, TINY, "device") == Execution("loop", 0, "batch", "device")
    assert repeatable([{"step": 0, **here}], here, TINY) == Execution.of(TINY)


@pytest.mark.slow
def test_resuming_repeats_the_execution(tmp_path, monkeypatch):
    """Another meaning of "auto" does not change a run that is continued, but a concrete choice of the user does."""
    whole = train(tmp_path / "whole", steps=4)
    train(tmp_path / "run", steps=2)
    assert recorded(tmp_path / "run") == [(0, PLAIN.record())]
    monkeypatch.setitem(conv.AUTO, "cpu", "loop")
    assert Execution.of(TINY).conv == "loop"
    resumed = train(tmp_path / "run", steps=4, resume=True)
    assert recorded(tmp_path / "run") == [(0, PLAIN.record()), (2, PLAIN.record())]
    assert same(whole, resumed)
    train(tmp_path / "run", ensdiff.UNetConfig(channels=4, norm_groups=2, multipliers=(1,), conv="loop"), steps=5,
          resume=True)  # fmt: skip
    assert recorded(tmp_path / "run")[2:] == [(4, Execution("loop", 0, "image").record())]
    assert ensdiff.check_run(tmp_path / "run") == []
    assert ensdiff.load(tmp_path / "run").model.conv == "loop"


def test_where_batches_are_made_may_change_on_resuming(tmp_path):
    """Runs of versions without these settings, or with another default, are resumed."""
    train(tmp_path, steps=2, steps_per_call=1)
    before = json.loads((tmp_path / "run.json").read_text())
    assert before["train"]["steps_per_call"] == 1
    older = {**before, "train": {k: v for k, v in before["train"].items() if k not in ("pipeline", "steps_per_call")}}
    assert decided(older) == decided(before)
    train(tmp_path, steps=3, resume=True)
    assert json.loads((tmp_path / "run.json").read_text())["train"]["steps_per_call"] == 0
    assert [line["step"] for line in read_environments(tmp_path)] == [0, 2]


def test_a_run_without_records_of_executions_resumes(tmp_path):
    """A run of a version that did not record them continues with the same bits."""
    whole = train(tmp_path / "whole", steps=4)
    train(tmp_path / "run", steps=2)
    file = tmp_path / "run" / "environment.jsonl"
    (line,) = read_environments(tmp_path / "run")
    del line["execution"]
    file.write_text(seal_line(line) + "\n")
    resumed = train(tmp_path / "run", steps=4, resume=True)
    assert recorded(tmp_path / "run") == [(0, None), (2, PLAIN.record())]
    assert same(whole, resumed)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["conv"] == "auto"
