"""Two processes over loopback against one: training, sampling, attribution, files, resuming, and failures."""

import json
import signal
import sys

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.runs.checkpoints import steps_of
from ensdiff.training.preemption import EXIT_CODE
from tests.distributed import Run, free_port, work
from tests.experiments.test_programs import TINY

pytestmark = pytest.mark.multiprocess


def same(a, b):
    """Bit for bit, every array of two trees."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol=1e-4, atol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def losses(folder):
    return [(line["step"], line["loss_K"], line["grad_norm_K"]) for line in ensdiff.read_metrics(folder)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process with as many devices, by their number: what it found, and its run directory."""
    folder = tmp_path_factory.mktemp("one")
    return {
        devices: (
            work(folder / f"{devices}", "everything", devices=devices, run_dir=folder / f"run{devices}", steps=4)[0],
            folder / f"run{devices}",
        )
        for devices in (2, 4)
    }


@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_do_what_one_does(one, tmp_path, devices):
    """Against one process with the same devices in all.

    Parameters and losses are bit for bit the same: each device runs the same program on the same members with as many
    threads, and nothing is summed over devices. Samples are sums over members, which two ways of communicating may
    add in another order.
    """
    expected, folder = one[2 * devices]
    first, second = work(tmp_path, "everything", 2, devices, run_dir=tmp_path / "run", steps=4)
    same(first, second)
    same(first["params"], expected["params"])
    same(first["loaded"], first["params"])
    same(first["saved"], first["params"])
    same(first["fingerprint"], expected["fingerprint"])
    close(first["universe"], expected["universe"], atol=1)  # of 255: a rounded pixel
    assert losses(tmp_path / "run") == losses(folder)
    for name in ("samples", "counterfactuals", "jacobian", "exact", "differential", "screen", "loss", "contrast"):
        close(first[name], expected[name])
    names = [
        sorted(
            str(path.relative_to(at))
            for path in at.rglob("*")
            if "tfevents" not in path.name and path.name != ".lock" and path.is_file()
        )
        for at in (tmp_path / "run", folder)
    ]
    outside = [[name for name in some if not name.startswith("checkpoints/")] for some in names]
    assert (
        outside[0]
        == outside[1]
        == [
            "data.manifest",
            "environment.jsonl",
            "metrics.jsonl",
            "run.json",
            "samples/step_0000002.png",
            "samples/step_0000004.png",
        ]
    )
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert (tmp_path / "run" / "run.json").read_text() == (folder / "run.json").read_text()


def test_one_device_gives_the_same_to_rounding(one, tmp_path):
    """Another number of devices is another program a device, so float rounding differs."""
    found = work(tmp_path, "everything", devices=1, run_dir=tmp_path / "run", steps=4)[0]
    close(found["params"], one[2][0]["params"], atol=2e-5)
    close(found["samples"], one[2][0]["samples"], atol=1e-4)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_with_another_number_of_processes(one, tmp_path, before, after):
    """Two devices in all before and after, so that the parameters are bit for bit those of an uninterrupted run."""
    expected, folder = one[2]
    run_dir = tmp_path / "run"
    for processes, steps in ((before, 2), (after, 4)):
        found = work(
            tmp_path / str(steps), "everything", processes, 2 // processes, run_dir=run_dir, steps=steps,
            resume=steps > 2, train_only=True,
        )  # fmt: skip
    for each in found:
        same(each["params"], expected["params"])
    assert losses(run_dir) == losses(folder)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["2", "4"]


@pytest.mark.parametrize(("devices", "batch", "n"), [(1, 4, 1), (2, 4, 1), (1, 3, 2)])
def test_work_that_does_not_divide(tmp_path, devices, batch, n):
    """A data axis over processes; three of four devices; and (batch 3 on two devices) the same work on both."""
    expected = work(tmp_path / "one", "odd", batch=batch, n=n)[0]
    first, second = work(tmp_path / "two", "odd", 2, devices, batch=batch, n=n)
    same(first, second)
    close(first, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("devices", [1, 2])
def test_primitives(tmp_path, devices):
    found = work(tmp_path, "primitives", 2, devices, apart=tmp_path)
    whole = np.arange(24.0).reshape(4, 6)
    for i, each in enumerate(found):
        for name in ("same", "other split", "whole", "other devices", "other devices, whole", "assembled"):
            np.testing.assert_array_equal(each[name], whole, err_msg=name)
        np.testing.assert_array_equal(each["key"], jax.random.key_data(jax.random.key(3)))
        assert each["own rows"] == ([[0.0], [12.0]] if devices == 1 else [[0.0, 6.0], [12.0, 18.0]])[i]
        assert each["members"] == slice(2 * i, 2 * i + 2)
        assert [value["process"] for value in each["exchanged"]] == [0, 1]
        assert len(each["exchanged"][1]["pad"]) == 300
        assert each["decided"] == "by 0"
        assert each["calls"] == (1 if i == 0 else 0)
        assert each["decide raised"] == "FileExistsError: process 0 says no"
        assert each["together raised"] == "FileExistsError: process 1 says no"
        assert "process 1 does not see" in each["unshared raised"]
        assert each["writer"] == (i == 0)


def programs(program, *args, port=None, ids=(0, 1), processes=2):
    flags = [f"--coordinator=127.0.0.1:{port or free_port()}", f"--num_processes={processes}"]
    return [[sys.executable, "-m", f"experiments.{program}", *flags, f"--process_id={i}", *map(str, args)] for i in ids]


def finish(folder, commands, limit=240, environments=None):
    run = Run(folder, commands, environments=environments)
    try:
        return run.wait(limit), run
    finally:
        run.end()


def train_arguments(run_dir, steps=2):
    return [
        "--config=experiments/configs/digits.py",
        f"--config.run_dir={run_dir}",
        f"--config.train.steps={steps}",
        *TINY,
    ]


@pytest.mark.timeout(1200)
def test_programs(tmp_path):
    """Train, sample and attribute as a user types them: files and lines once, and a refusal that both understand."""
    run_dir = tmp_path / "run"
    codes, run = finish(tmp_path / "train", programs("train", *train_arguments(run_dir)))
    assert codes == [0, 0], str(run)
    assert f"trained: {run_dir}" in run.text(0)
    assert run.text(1) == ""
    assert json.loads((run_dir / "config.json").read_text())["data"]["name"] == "digits"
    codes, run = finish(tmp_path / "again", programs("train", *train_arguments(run_dir)))
    assert codes == [1, 1], str(run)
    for i in range(2):
        assert run.text(i).count("error: ") == 1
        assert "holds checkpoints already" in run.text(i)
        assert "Traceback" not in run.text(i)
    codes, run = finish(tmp_path / "sample", programs("sample", f"--run={run_dir}", "--n=2", "--steps=3", "--remove=3"))
    assert codes == [0, 0], str(run)
    assert len(list((run_dir / "samples").iterdir())) == 3
    args = [f"--run={run_dir}", "--n=2", "--steps=3", "--top=2", "--verify=3", "--null=3"]
    codes, run = finish(tmp_path / "attribute", programs("attribute", *args))
    assert codes == [0, 0], str(run)
    assert {path.name for path in (run_dir / "attribution").iterdir()} == {
        f"screen_seed0.{kind}" for kind in ("json", "npz", "png", "html")
    }


def test_slurm_is_found(tmp_path):
    """What srun sets is enough: no flag at all. The port follows from the job's number."""
    port = free_port(range(65535 - 2**12 + 1, 2**16))
    common = {
        "SLURM_JOB_ID": str(port - (65535 - 2**12 + 1)), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "experiments.train", *train_arguments(tmp_path / "run", 1)]
    environments = [{**common, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    codes, run = finish(tmp_path, [command] * 2, environments=environments)
    assert codes == [0, 0], str(run)
    assert (tmp_path / "run" / "checkpoints" / "1" / "state" / "ocdbt.process_1").exists()


@pytest.mark.parametrize("process", [0, 1])
def test_a_start_without_the_other_gives_up(tmp_path, process):
    commands = programs("train", *train_arguments(tmp_path / "run"), "--start_timeout=5", ids=[process])
    codes, run = finish(tmp_path, commands, limit=90)
    assert codes == [1], str(run)
    assert run.text(0).count("error: gave up after 5 s") == 1
    assert ("nothing answers at the coordinator" in run.text(0)) == (process == 1)
    assert "Traceback" not in run.text(0)


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_of_one_ends_the_other(tmp_path, tiny, wrong):
    """One process is told to remove a unit that is none; the other waits for it in the next sum over members."""
    ensdiff.save(tiny, tmp_path / "run")
    args = [f"--run={tmp_path / 'run'}", "--n=2", "--steps=3"]
    commands = programs("sample", *args, "--remove=3")
    commands[wrong] = [arg.replace("--remove=3", "--remove=three") for arg in commands[wrong]]
    codes, run = finish(tmp_path / "logs", commands, limit=120)
    assert codes[wrong] == 1, str(run)
    assert codes[1 - wrong] != 0, str(run)
    assert run.text(wrong).count("error: units 'three'") == 1
    assert "Traceback" not in run.text(wrong)
    assert "another process may have ended" in run.text(1 - wrong) or "another task died" in run.text(1 - wrong)


def train_without_end(folder):
    """Two training processes that have taken some steps."""
    run = Run(folder, programs("train", *train_arguments(folder / "run", 10**6), "--config.train.log_every=1"))
    metrics = folder / "run" / "metrics.jsonl"
    try:
        wait_for(lambda: metrics.exists() and metrics.stat().st_size, run)
    except BaseException:
        run.end()
        raise
    return run


@pytest.mark.faults
@pytest.mark.parametrize(("told", "how"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_stops_both_with_a_checkpoint(tmp_path, told, how):
    """At the same step, with the exit code for it; one process goes on from there to the same end."""
    run = train_without_end(tmp_path)
    try:
        run.processes[told].send_signal(how)
        codes = run.wait(120)
    finally:
        run.end()
    assert codes == [EXIT_CODE, EXIT_CODE], str(run)
    (step,) = steps_of(tmp_path / "run")
    for i in range(2):
        assert f"stopped: asked to stop, at step {step} of 1000000" in run.text(i)
        assert "error:" not in run.text(i)
        assert "Traceback" not in run.text(i)
    assert ensdiff.check_run(tmp_path / "run") == []
    assert [line["step"] for line in ensdiff.read_metrics(tmp_path / "run")] == list(range(1, step + 1))
    codes, run = finish(
        tmp_path / "again",
        programs("train", *train_arguments(tmp_path / "run", step + 2), "--config.resume=True"),
    )
    assert codes == [0, 0], str(run)
    assert steps_of(tmp_path / "run") == [step, step + 2]


@pytest.mark.faults
def test_a_damaged_checkpoint_on_two_processes(tmp_path):
    """Only one process reads what is damaged; both take the older checkpoint, and end where one process ends."""
    from tests import faults

    run_dir, steps = tmp_path / "run", dict(train_only=True, run_dir=tmp_path / "run")
    first = work(tmp_path / "first", "everything", 2, steps=4, **steps)[0]
    for path in (run_dir / "checkpoints" / "4" / "state" / "ocdbt.process_1").rglob("d/*"):
        faults.cut(path)
    faults.cut(run_dir / "checkpoints" / "4" / "state" / "manifest.ocdbt")
    again = work(tmp_path / "again", "everything", 2, steps=4, resume=True, **steps)
    for each in again:
        same(each["params"], first["params"])
    assert (run_dir / "damaged" / "4").is_dir()
    log = (tmp_path / "again" / "process0.log").read_text()
    assert "checkpoints/4 is damaged" in log
    assert "resuming at checkpoint 2" in log
    assert "DamageWarning" not in (tmp_path / "again" / "process1.log").read_text()


@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGKILL)])
def test_the_death_of_one_ends_the_other(tmp_path, victim, how):
    """Killed in the middle of training; the other ends with an error, well before the test's time is up."""
    run = train_without_end(tmp_path)
    try:
        run.processes[victim].send_signal(how)
        codes = run.wait(120)
    finally:
        run.end()
    assert codes[victim] == -how
    assert codes[1 - victim] not in (0, None), str(run)
    assert "another process may have ended" in run.text(1 - victim) or "another task died" in run.text(1 - victim)


def wait_for(condition, run, limit=180):
    import time

    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, str(run)
        assert all(process.poll() is None for process in run.processes), str(run)
        time.sleep(0.1)
