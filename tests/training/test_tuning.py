"""Timing the ways to compute members: what is tried, what is chosen, and that the state is not touched."""

import contextlib
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.ensemble.mesh import on_mesh
from ensdiff.models.conv import STACKED
from ensdiff.runs.logs import read_environments
from ensdiff.training import tuning
from ensdiff.training.execution import Execution
from ensdiff.training.tuning import candidates, choose, is_measured, with_fused_attention
from tests.helpers import CODE, SHORT, TINY, blobs

MODEL = ensdiff.UNetConfig(conv="measure")
START = Execution.of(MODEL)


def pairs(members, platform, **changes):
    model = dataclasses.replace(MODEL, **changes)
    return [(c.conv, c.stack) for c in candidates(Execution.of(model), model, members, platform)]


def test_what_is_timed():
    assert pairs(16, "gpu") == [
        ("map", 1), ("grouped", 16), ("grouped", 4), ("matmul", 16), ("matmul", 4), ("loop", 4)
    ]  # fmt: skip
    assert pairs(20, "tpu") == [("map", 1), ("matmul", 20), ("matmul", 4), ("loop", 4)]
    assert pairs(4, "cpu") == [("map", 1), ("matmul", 4), ("loop", 4)]
    assert pairs(7, "cpu") == [("map", 1), ("matmul", 7)]
    assert pairs(1, "gpu") == pairs(1, "gpu", stack=4) == pairs(16, "gpu", stack=1) == [("map", 1)]
    assert pairs(16, "gpu", stack=8) == [("grouped", 8), ("matmul", 8), ("loop", 8)]
    assert max(len(pairs(n, platform)) for n in range(1, 40) for platform in ("cpu", "gpu", "tpu")) == 6


def test_every_form_is_timed_somewhere():
    """A form that no platform times and no table names would be dead."""
    assert {form for forms in tuning.FORMS.values() for form in forms} == set(STACKED)


def test_where_candidates_are_timed():
    mesh = ensdiff.make_mesh(4)
    assert is_measured(MODEL, mesh)
    assert not is_measured(ensdiff.UNetConfig(), mesh)  # a CPU
    assert not is_measured(ensdiff.UNetConfig(conv="map"), mesh)


@pytest.mark.parametrize(("changes", "platform", "serves"), [
    ({}, "gpu", True), ({}, "tpu", False), ({"compute_dtype": "float32"}, "gpu", False),
    ({"attention": "batch"}, "gpu", False), ({"middle_attention": False}, "gpu", False),
    ({"middle_attention": False, "attention_levels": (1,)}, "gpu", True),
])  # fmt: skip
def test_fused_attention_is_timed_where_a_kernel_serves(changes, platform, serves):
    model = dataclasses.replace(MODEL, **{"compute_dtype": "bfloat16", **changes})
    found = with_fused_attention(START, model, platform)
    assert (found is not None) == serves
    assert found is None or found == dataclasses.replace(START, attention="fused")


class Machine:
    """Steps whose time is simulated: each candidate takes its own number of seconds on a clock that only it moves."""

    def __init__(self, monkeypatch, seconds):
        self.seconds, self.clock, self.calls, self.alive = seconds, 0.0, [], []
        monkeypatch.setattr(tuning.time, "perf_counter", lambda: self.clock)

    @contextlib.contextmanager
    def steps_of(self, execution, steps):
        seconds, compiled = self.seconds[execution.conv, execution.stack, execution.attention], []

        def call(state, step, count):
            assert {step, step + count - 1} <= set(steps)
            self.calls.append((execution.conv, step, count))
            self.alive += jax.tree.leaves(state)
            if isinstance(seconds, Exception):
                raise seconds
            self.clock += seconds * count + (0 if compiled else 30.0)
            compiled.append(True)
            new = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)(state)
            return new, None

        yield types.SimpleNamespace(call=call, most=3)


def state():
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:2])
    return on_mesh({"a": np.arange(8.0, dtype=np.float32).reshape(4, 2), "n": np.arange(4, dtype=np.int32)}, mesh)


def nothing(_):
    return None


def test_the_fastest_is_chosen_and_the_state_stays(monkeypatch):
    wrong = ValueError("no such kernel\nline 2")
    seconds = {("map", 1, "image"): 0.5, ("matmul", 4, "image"): 0.25, ("loop", 4, "image"): wrong}
    machine = Machine(monkeypatch, seconds)
    before = state()
    chosen = choose(candidates(START, MODEL, 4, "cpu"), nothing, machine.steps_of, before, 7)
    assert chosen.execution == dataclasses.replace(START, conv="matmul", stack=4)
    one, two, three = chosen.trials
    assert (one.compile_seconds, one.step_seconds, one.error) == (30.0, 0.5, None)
    assert (two.compile_seconds, two.step_seconds) == (30.0, 0.25)
    assert (three.step_seconds, three.error) == (None, "ValueError: no such kernel")
    for a, b in zip(jax.tree.leaves(chosen.state), jax.tree.leaves(state()), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding == b.sharding
    # compilation, one step, then the steps of two seconds in calls of at most three
    assert [call[1:] for call in machine.calls if call[0] == "map"] == [(7, 1), (8, 1), (9, 3), (12, 1)]
    assert all(leaf.is_deleted() for leaf in (*jax.tree.leaves(before), *machine.alive))
    record = json.loads(json.dumps(chosen.record("cpu", 7)))
    assert record["chosen"]["conv"] == "matmul"
    assert [trial["error"] for trial in record["trials"]] == [None, None, "ValueError: no such kernel"]


@pytest.mark.parametrize(("fused", "attention"), [(0.1, "fused"), (0.9, "image"), (OSError("cuDNN"), "image")])
def test_fused_attention_is_taken_if_it_is_faster(monkeypatch, fused, attention):
    seconds = {("map", 1, "image"): 0.5, ("matmul", 4, "image"): 0.6, ("map", 1, "fused"): fused}
    machine = Machine(monkeypatch, seconds)
    first = candidates(START, MODEL, 4, "cpu")[:2]
    chosen = choose(first, lambda e: dataclasses.replace(e, attention="fused"), machine.steps_of, state(), 0)
    assert len(chosen.trials) == 3
    assert chosen.execution == dataclasses.replace(START, attention=attention)


def test_if_nothing_works_every_error_is_told(monkeypatch):
    wrong = {"map": MemoryError("24 GiB"), "matmul": OSError(), "loop": OSError("x")}
    machine = Machine(monkeypatch, {(conv, 1 if conv == "map" else 4, "image"): e for conv, e in wrong.items()})
    message = r"none of the 3 ways .*conv=map, stack=1: MemoryError: 24 GiB; conv=matmul, stack=4: OSError: ; conv=loop"
    with pytest.raises(RuntimeError, match=message):
        choose(candidates(START, MODEL, 4, "cpu"), nothing, machine.steps_of, state(), 0)


def test_a_request_to_stop_ends_the_timing(monkeypatch):
    machine = Machine(monkeypatch, {("map", 1, "image"): 0.5, ("matmul", 4, "image"): 0.25, ("loop", 4, "image"): 0.1})
    asked = []

    def stop(done):
        asked.append(done)
        return len(asked) == 2

    with pytest.raises(ensdiff.Preempted, match="asked to stop at step 7, while ways .* since the newest checkpoint"):
        choose(candidates(START, MODEL, 4, "cpu"), nothing, machine.steps_of, state(), 7, stop=stop)
    assert asked == [7, 7]
    assert {call[0] for call in machine.calls} == {"map", "matmul"}


def test_a_single_way_is_not_timed():
    before = {"a": jnp.ones(2)}
    chosen = choose(candidates(START, MODEL, 1, "cpu"), nothing, None, before, 0)
    assert chosen.state is before
    assert chosen.execution == START


def test_the_slowest_process_counts_and_an_error_of_one_is_an_error_of_all(monkeypatch):
    machine = Machine(monkeypatch, {("map", 1, "image"): 0.5, ("matmul", 4, "image"): 0.25})

    def exchange(mine):
        other = (mine[0] + 3.0, None) if machine.calls[-1][0] == "matmul" else mine
        return [mine, other]

    monkeypatch.setattr(tuning.hosts, "exchange", exchange)
    first = candidates(START, MODEL, 4, "cpu")[:2]
    assert choose(first, nothing, machine.steps_of, state(), 0).execution == first[0]
    monkeypatch.setattr(tuning.hosts, "exchange", lambda mine: [mine, (0.0, "OSError: there")])
    with pytest.raises(RuntimeError, match="stack=1: OSError: there; conv=matmul"):
        choose(first, nothing, machine.steps_of, state(), 0)


def test_progress_says_what_is_going_on(monkeypatch, capsys):
    monkeypatch.setattr("ensdiff.terminal.interactive", lambda: True)
    machine = Machine(monkeypatch, {("map", 1, "image"): 0.5, ("matmul", 4, "image"): 0.25})
    choose(candidates(START, MODEL, 4, "cpu")[:2], nothing, machine.steps_of, state(), 0, progress=True)
    shown = capsys.readouterr().err
    assert "timing 2 ways to compute members: 100%" in shown
    assert "matmul x 4: 250 ms is the fastest" in shown


@pytest.mark.slow
def test_a_measured_run_resumes_bit_for_bit(tmp_path, monkeypatch):
    """The choice is recorded and repeated, with the bits of a run that asks for it and times nothing."""
    monkeypatch.setattr(tuning, "SECONDS", 0.01)
    data, plain = ensdiff.data.arrays(blobs()), dataclasses.replace(TINY, attention="batch")
    model = dataclasses.replace(plain, conv="measure")
    options = dict(schedule=SHORT, batch_size=2, learning_rate=1e-2, warmup=0, checkpoint_every=2, progress=False)
    options["mesh"] = ensdiff.make_mesh(4, devices=jax.devices()[:1])
    ensdiff.train(data, CODE, model, steps=2, run_dir=tmp_path / "run", **options)
    table = json.loads((tmp_path / "run" / "tuning.json").read_text())
    assert [(trial["conv"], trial["stack"]) for trial in table["trials"]] == [("map", 1), ("matmul", 4), ("loop", 4)]
    assert all(trial["step_seconds"] > 0 and trial["error"] is None for trial in table["trials"])
    assert table["step"] == 0

    def never(*args, **kwargs):
        raise AssertionError("a resumed run is not timed again")

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_try", never)
        resumed = ensdiff.train(data, CODE, model, steps=4, run_dir=tmp_path / "run", resume=True, **options)
    (tmp_path / "run" / "tuning.json").rename(tmp_path / "tuning.json")  # as if "measure" were asked for the first time
    monkeypatch.setattr(tuning, "_try", never)
    with pytest.raises(AssertionError, match="not timed again"):
        ensdiff.train(data, CODE, model, steps=6, run_dir=tmp_path / "run", resume=True, **options)
    lines = read_environments(tmp_path / "run")
    assert [line["execution"] for line in lines] == [table["chosen"]] * 2
    assert ensdiff.check_run(tmp_path / "run") == []
    assert resumed.model.conv == "measure"
    asked = dataclasses.replace(plain, conv=table["chosen"]["conv"], stack=table["chosen"]["stack"])
    whole = ensdiff.train(data, CODE, asked, steps=4, **options)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)
