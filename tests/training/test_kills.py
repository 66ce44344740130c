"""Training processes that are killed or told to stop at random moments, against one that nobody disturbed."""

import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.runs.checkpoints import steps_of
from ensdiff.training.preemption import EXIT_CODE
from tests.faults import same
from tests.helpers import ROOT, blobs, command, environment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
EVERY = 2
"""Steps between checkpoints of the runs that are killed."""
ENDLESS = 10**6
"""Steps of those runs: none gets so far, however fast the machine, before it is killed."""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(data, images=blobs())

    def make(run_dir, steps, *more):
        return [
            "--config=tests/fault_config.py", f"--config.data.path={data}", f"--config.run_dir={run_dir}",
            f"--config.train.steps={steps}", "--config.resume=True", *more,
        ]  # fmt: skip

    return make


def start(args, log):
    with log.open("ab") as file:
        return subprocess.Popen(command("train", *args), cwd=ROOT, env=environment(), stdout=file, stderr=file)


def finish(args, log):
    process = start(args, log)
    code = process.wait(300)
    assert code == 0, log.read_text()[-4000:]


def logged(folder):
    """The newest step in the run's metrics; reading does not disturb a line that is being written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def disturb(folder, args, log, rng, how=signal.SIGKILL, within=4):
    """Start training and end it by a signal, some random steps and a random moment after it resumed."""
    before = steps_of(folder)
    target = (before[-1] if before else 0) + int(rng.integers(1, within))
    process = start(args, log)
    try:
        deadline = time.monotonic() + 200
        while logged(folder) < target and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.3)))
        process.send_signal(how)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    return code, logged(folder)


def undisturbed(folder, arguments, steps):
    """One process without a stop, that writes no checkpoint before the end."""
    finish(arguments(folder, steps, f"--config.train.checkpoint_every={steps}"), folder.with_suffix(".log"))
    return ensdiff.load(folder), [line["loss_K"] for line in ensdiff.read_metrics(folder)]


def kill_often(tmp_path, arguments, kills, seed):
    folder, log, rng = tmp_path / "run", tmp_path / "run.log", np.random.default_rng(seed)
    args = arguments(folder, ENDLESS, f"--config.train.checkpoint_every={EVERY}")
    for _ in range(kills):
        code, reached = disturb(folder, args, log, rng)
        assert code == -signal.SIGKILL, log.read_text()[-4000:]
        kept = steps_of(folder)
        # the newest checkpoint may have been under way, and the one before was waited for
        assert (kept[-1] if kept else 0) >= reached - 2 * EVERY
        assert ensdiff.check_run(folder) == []
    steps = (kept[-1] if kept else 0) + EVERY + 1
    finish(arguments(folder, steps, f"--config.train.checkpoint_every={EVERY}"), log)
    whole, losses = undisturbed(tmp_path / "whole", arguments, steps)
    end = ensdiff.load(folder)
    assert same(end.params, whole.params)
    assert same(ensdiff.load(folder, average=False).params, ensdiff.load(tmp_path / "whole", average=False).params)
    assert [line["loss_K"] for line in ensdiff.read_metrics(folder)] == losses
    assert not [p.name for p in (folder / "checkpoints").iterdir() if not p.name.isdigit()]
    assert not (folder / "damaged").exists()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_many_kills(tmp_path, arguments, kills, record_property):
    kill_often(tmp_path, arguments, kills, seed=int(time.time()))
    record_property("count", ("kills survived", kills))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_the_stated_code(tmp_path, arguments, how, record_property):
    """Nothing is lost: the next run begins where this one was stopped."""
    folder, log = tmp_path / "run", tmp_path / "run.log"
    args = arguments(folder, ENDLESS, f"--config.train.checkpoint_every={ENDLESS}")
    code, reached = disturb(folder, args, log, np.random.default_rng(0), how)
    assert code == EXIT_CODE == 75, log.read_text()[-4000:]
    text = log.read_text()
    step = steps_of(folder)[-1]
    assert f"stopped: asked to stop, at step {step} of {ENDLESS}: {folder} has it; set resume to go on" in text
    assert "Traceback" not in text
    assert "error:" not in text
    assert step >= reached
    finish(arguments(folder, step + 2), log)
    whole, _ = undisturbed(tmp_path / "whole", arguments, step + 2)
    assert same(ensdiff.load(folder).params, whole.params)
    record_property("count", ("stops survived", 1))


@pytest.mark.slow
def test_the_same_twice(tmp_path, arguments, typed):
    """Samples and attributions of two processes, byte for byte."""
    folder = tmp_path / "run"
    finish(arguments(folder, 3), tmp_path / "run.log")
    found = []
    for name in ("a", "b"):
        out = tmp_path / name
        args = [f"--run={folder}", "--n=3", "--steps=4", f"--out={out}"]
        for program, more in (("sample", []), ("attribute", ["--top=2", "--verify=3", "--null=0"])):
            done = typed(program, *args, *more)
            assert done.returncode == 0, done.stderr
        with np.load(out / "screen_seed0.npz") as arrays:
            scores = {key: arrays[key] for key in arrays.files}
        found.append((scores, {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".png", ".json")}))
    assert jax.tree.structure(found[0][0]) == jax.tree.structure(found[1][0])
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert len(found[0][1]) >= 2
