"""The program for accelerators: its clock and report under a stub clock, and small real steps."""

import json

import numpy as np
import pytest

from experiments.device import check, plan
from experiments.on_device import card, checks, journal, profiling, speed
from tests.helpers import TINY, random_ensemble


class Now:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def now():
    return Now()


def start(folder, steps, seconds, now):
    clock = journal.Clock(seconds, now)
    return journal.Journal(folder, "Title", steps, clock), clock


def events(folder):
    return [(line["step"], line["event"]) for line in journal.read(folder)]


def test_steps_run_in_order_while_there_is_time(tmp_path, now):
    def takes(seconds, rows=1):
        def run(left):
            for row in range(rows):
                if left() <= 0:
                    return
                now.time += seconds
                yield {"row": row, "left": left()}

        return run

    steps = [
        journal.Step("a", "First", 10, takes(10, 9), kept=0.5),  # may use 50 of 100 s
        journal.Step("b", "Second", 1, takes(1), kept=0.5),
        journal.Step("c", "Third", 60, takes(60)),
        journal.Step("d", "Fourth", 50, takes(20), note="How to read it."),
    ]
    journal.run(steps, *start(tmp_path, steps, 100, now))
    rows = [line for line in journal.read(tmp_path) if line["event"] == "row"]
    assert [(line["step"], line["left"]) for line in rows] == [("a", 50 - 10 * i) for i in range(1, 6)] + [("d", 30)]
    text = (tmp_path / journal.REPORT).read_text()
    assert "partial" not in text
    assert "## Second\n\nLeft out: needs 1 s, 0 s left." in text
    assert "## Third\n\nLeft out: needs 60 s, 50 s left." in text
    assert "Took 20 s. How to read it." in text
    assert [text.index(f"## {step.title}") for step in steps] == sorted(text.index(f"## {s.title}") for s in steps)


def test_a_step_that_fails_ends_alone(tmp_path, now):
    def fails(left):
        yield {"before": 1}
        raise RuntimeError("no such\n kernel")

    steps = [
        journal.Step("a", "First", 0, fails),
        journal.Step("b", "Second", 0, lambda left: [{"finding": "It works.", "x": 2.5}, {"table": "Other", "y": 1}]),
    ]
    journal.run(steps, *start(tmp_path, steps, 1, now))
    assert events(tmp_path) == [
        ("a", "start"), ("a", "row"), ("a", "error"), ("b", "start"), ("b", "row"), ("b", "row"), ("b", "end"),
        ("program", "end"),
    ]  # fmt: skip
    text = (tmp_path / journal.REPORT).read_text()
    assert "Failed after 0 s: `RuntimeError: no such kernel`." in text
    assert "- It works." in text
    assert "### Other" in text


def test_a_killed_program_leaves_what_it_has(tmp_path, now):
    seen = []

    def killed(left):
        yield {"number": np.float32(3.5)}
        seen.append((tmp_path / journal.REPORT).read_text())  # what a SIGKILL here would leave
        raise SystemExit(9)

    steps = [journal.Step("a", "First", 0, killed), journal.Step("b", "Second", 0, lambda left: [])]
    written, clock = start(tmp_path, steps, 1, now)
    with pytest.raises(SystemExit):
        journal.run(steps, written, clock)
    text = (tmp_path / journal.REPORT).read_text()
    assert text == seen[0]
    assert "This report is partial" in text
    assert "| 3.5 |".replace(" ", "") in text.replace(" ", "")
    assert "## Second\n\nNot reached." in text
    with open(tmp_path / journal.RESULTS, "a") as file:
        file.write('{"step": "a", "ev')  # a line that was cut
    assert events(tmp_path) == [("a", "start"), ("a", "row")]
    assert journal.report("Title", steps, journal.read(tmp_path)) == text


def test_the_plan(tmp_path):
    small, full = plan(True, None, tmp_path), plan(False, None, tmp_path)
    names = [step.name for step in full]
    assert names[:-1] == [step.name for step in small]
    assert names[:3] == ["versions", "parity", "isolation"]
    assert len(set(names)) == len(names)
    assert all(s.needs <= f.needs for s, f in zip(small, full, strict=False))
    assert sum(step.needs for step in small) < 60
    kept = [step.kept for step in full]
    assert kept == sorted(kept, reverse=True)  # what a step keeps is for the later ones


def test_wrong_flags_are_refused_before_the_first_step(tmp_path):
    """A file that the last step would miss costs no time of a borrowed device."""
    (tmp_path / "file").touch()
    np.savez(tmp_path / "plain.npz", images=np.zeros((4, 8, 8), np.uint8))
    for minutes in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected a finite number"):
            check(minutes, tmp_path / "new")
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        check(1.0, tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"no\.npz"):
        plan(True, str(tmp_path / "no.npz"), tmp_path)
    with pytest.raises(ValueError, match="labels"):
        plan(True, str(tmp_path / "plain.npz"), tmp_path)


def test_without_the_time_of_a_step_nothing_is_said_about_waiting(monkeypatch):
    """Compared with a step that failed, no step would seem to wait."""
    monkeypatch.setattr(speed.jobs, "ensemble", lambda _: random_ensemble())
    monkeypatch.setattr(speed.jobs, "train_job", lambda *_: 1 // 0)
    settings = {"small": speed.Setting(members=4, channels=4, multipliers=(1,), side=8, batch=2)}
    (row,) = speed.pipelines(lambda: 1.0, settings, [{"pipeline": "host"}], {}, 4)
    assert "ZeroDivisionError" in row["error"]
    assert "finding" not in row


def test_versions_name_the_device(capsys):
    rows = list(card.versions(lambda: 9.0))
    assert any("devices" in row.values() for row in rows)
    assert "jax" in rows[-1]["finding"]
    json.dumps(rows, default=journal._plain)


def test_peaks():
    assert [card.peak(kind) for kind in ("NVIDIA H200", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S", "NVIDIA L4")] == [
        989e12, 312e12, 362e12, 121e12,
    ]  # fmt: skip
    assert card.peak("TPU v5 lite") == 197e12


@pytest.mark.slow
def test_isolation_is_found_and_its_failure_too(monkeypatch):
    """Trains three ensembles for four steps: the only test of what the step reports."""
    ways = [{"conv": "map"}]
    row, *findings = checks.isolation(lambda: 9.0, ways, TINY, 8, 4)
    assert row["equal runs are equal"]
    assert row["isolated"]
    assert row["members changed"] == "3 of 6, 3 saw the unit"
    assert not findings
    leaky = [np.zeros((6, 3)), np.ones((6, 2))]
    runs = iter([leaky, leaky, [leaf + 1 for leaf in leaky]])
    monkeypatch.setattr(checks, "_train", lambda *_: next(runs))
    row, finding = checks.isolation(lambda: 9.0, ways, TINY, 8, 4)
    assert not row["isolated"]
    assert finding["finding"] == "**conv=map: members are not isolated.**"
    monkeypatch.setattr(checks, "_train", lambda *_: 1 // 0)
    (row,) = checks.isolation(lambda: 9.0, ways, TINY, 8, 4)
    assert row["error"].startswith("ZeroDivisionError")


@pytest.mark.slow
def test_a_profile_finds_the_products():
    import jax
    import jax.numpy as jnp

    a = jnp.ones((256, 256))
    product = jax.jit(lambda a: jnp.sin(a @ a))
    product(a).block_until_ready()
    rows = list(profiling.profile(lambda: product(a).block_until_ready(), 3))
    kernels = {row["kernel"]: row for row in rows if row.get("table") == "Longest kernels"}
    assert any(row["matrix units"] and row["launches per call"] == 1 for row in kernels.values()), kernels
    (summary,) = (row for row in rows if row.get("table") == "Summary")
    assert 0 < summary["share in matrix units"] <= 1
    assert 0 <= summary["share of time idle"] < 1


@pytest.mark.slow
def test_the_program_ends_in_its_time(run, tmp_path):
    """Runs the program itself, with a box that is too small for its steps: only this shows that it stops by itself."""
    done = run("device", f"--out={tmp_path}", "--small", "--minutes=0.4")
    assert done.returncode == 0, done.stderr
    lines = journal.read(tmp_path)
    assert ("versions", "end") in events(tmp_path)
    assert any(line["event"] in ("skipped", "cut") for line in lines)
    assert lines[-1]["at"] < 24 + 20 + 5
    assert "## A real run" in (tmp_path / journal.REPORT).read_text()
