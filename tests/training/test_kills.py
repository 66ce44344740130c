"""Training processes that are killed or stopped at random moments, compared with an undisturbed one."""

import json
import pathlib
import signal
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.runs.checkpoints import steps_of
from ensdiff.training.preemption import EXIT_CODE
from tests.faults import same
from tests.forks import Programs
from tests.helpers import blobs

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
EVERY = 2
"""Steps between checkpoints of the runs that are killed."""
KILLS = 12
ENDLESS = 10**6
"""Steps of those runs: more than any machine completes before it kills the run."""


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


@pytest.fixture
def trainer(run, tmp_path):
    """Return a trainer in a forked process: starting Python and its imports takes longer than the training."""
    return Trainer(run, tmp_path / "run.log")


class Trainer(NamedTuple):
    """Processes of ``experiments.train``, one after another, with one log."""

    programs: Programs
    log: pathlib.Path

    def start(self, args):
        return self.programs.start("experiments.train", *args, out=self.log, environment={"PYTHONUNBUFFERED": "1"})

    def finish(self, args):
        assert self.start(args).wait(300) == 0, self.said()

    def said(self):
        return self.log.read_text()[-4000:]


def logged(folder):
    """Return the newest step in the run's metrics, ignoring a line that is still being written."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def disturb(folder, trainer, args, rng, how=signal.SIGKILL, within=4):
    """Start training and end it by a signal, a random number of steps and a random moment after it resumed."""
    before = steps_of(folder)
    target = (before[-1] if before else 0) + int(rng.integers(1, within))
    process = trainer.start(args)
    try:
        deadline = time.monotonic() + 200
        while logged(folder) < target and process.poll() is None:
            assert time.monotonic() < deadline, trainer.said()
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.3)))
        process.send_signal(how)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    return code, logged(folder)


def undisturbed(folder, trainer, arguments, steps):
    """Train in one process without a stop or an intermediate checkpoint."""
    trainer.finish(arguments(folder, steps, f"--config.train.checkpoint_every={steps}"))
    return ensdiff.load(folder), [line["loss_K"] for line in ensdiff.read_metrics(folder)]


def test_many_kills(tmp_path, trainer, arguments, record_property):
    """Kills come at random moments of starting, training and writing; tests/runs/test_faults.py chooses moments."""
    folder, rng = tmp_path / "run", np.random.default_rng(int(time.time()))
    args = arguments(folder, ENDLESS, f"--config.train.checkpoint_every={EVERY}")
    for _ in range(KILLS):
        code, reached = disturb(folder, trainer, args, rng)
        assert code == -signal.SIGKILL, trainer.said()
        kept = steps_of(folder)
        # the newest checkpoint may not have been complete, but the one before it was
        assert (kept[-1] if kept else 0) >= reached - 2 * EVERY
        assert ensdiff.check_run(folder) == []
    steps = (kept[-1] if kept else 0) + EVERY + 1
    trainer.finish(arguments(folder, steps, f"--config.train.checkpoint_every={EVERY}"))
    whole, losses = undisturbed(tmp_path / "whole", trainer, arguments, steps)
    end = ensdiff.load(folder)
    assert same(end.params, whole.params)
    assert same(ensdiff.load(folder, average=False).params, ensdiff.load(tmp_path / "whole", average=False).params)
    assert [line["loss_K"] for line in ensdiff.read_metrics(folder)] == losses
    assert not [p.name for p in (folder / "checkpoints").iterdir() if not p.name.isdigit()]
    assert not (folder / "damaged").exists()
    record_property("count", ("kills survived", KILLS))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_the_stated_code(tmp_path, trainer, arguments, how, record_property):
    """Nothing is lost: the next run begins where this one stopped. Only here another process continues."""
    folder = tmp_path / "run"
    args = arguments(folder, ENDLESS, f"--config.train.checkpoint_every={ENDLESS}")
    code, reached = disturb(folder, trainer, args, np.random.default_rng(0), how)
    assert code == EXIT_CODE == 75, trainer.said()
    text = trainer.log.read_text()
    step = steps_of(folder)[-1]
    told = f"asked to stop at step {step} of {ENDLESS}: {folder} has the checkpoint; set resume to continue"
    assert f"stopped: {told}" in text
    assert text.endswith(" --config.resume=True\n")  # the command to continue
    assert "Traceback" not in text
    assert "error:" not in text
    assert step >= reached
    trainer.finish(arguments(folder, step + 2))
    whole, _ = undisturbed(tmp_path / "whole", trainer, arguments, step + 2)
    assert same(ensdiff.load(folder).params, whole.params)
    record_property("count", ("stops survived", 1))


def test_the_same_twice(tmp_path, trainer, arguments, run, typed):
    """Two processes give byte-identical samples and attributions. One is no fork, because forks share a hash seed."""
    folder = tmp_path / "run"
    trainer.finish(arguments(folder, 3))
    found = []
    for name, start in (("a", run), ("b", typed)):
        out = tmp_path / name
        args = [f"--run={folder}", "--n=3", "--steps=4", f"--out={out}"]
        for program, more in (("sample", []), ("attribute", ["--top=2", "--verify=3", "--null=0"])):
            done = start(program, *args, *more)
            assert done.returncode == 0, done.stderr
        with np.load(out / "screen_seed0.npz") as arrays:
            scores = {key: arrays[key] for key in arrays.files}
        found.append((scores, {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".png", ".json")}))
    assert jax.tree.structure(found[0][0]) == jax.tree.structure(found[1][0])
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert len(found[0][1]) >= 2
