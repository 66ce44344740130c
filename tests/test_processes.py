"""Two processes over loopback compared with one: training, sampling, attribution, files, resuming, and failures."""

import functools
import json
import signal

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.runs.checkpoints import steps_of
from ensdiff.training.preemption import EXIT_CODE
from tests.distributed import LIMIT, Run, Teams, free_port
from tests.experiments.test_programs import TINY

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1200)]
UNTIL = {4: "samples"}
"""The last result to compute (`tests.distributed.everything`) with a total number of devices; by default all."""


def same(a, b):
    """Assert that all arrays of two trees are equal bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol=1e-4, atol=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def losses(folder):
    return [(line["step"], line["loss_K"], line["grad_norm_K"]) for line in ensdiff.read_metrics(folder)]


@pytest.fixture(scope="module")
def programs(run):
    """Return the server that forks programs: starting Python and its imports takes longer than the programs."""
    return run


@pytest.fixture(scope="module")
def team(tmp_path_factory, programs):
    """Yield ``team(processes, devices)("task")``, which runs a task of tests/distributed.py in shared processes.

    Tests that need the same team are adjacent, because few teams exist at a time.
    """
    teams = Teams(tmp_path_factory.mktemp("teams"), programs)
    yield teams
    teams.end()


@pytest.fixture(scope="module")
def one(tmp_path_factory, team):
    """Return ``one(devices)``: the results of one process with that many devices, and its run directory.

    For two devices these are all results, and for more the parameters and samples.
    """
    folder = tmp_path_factory.mktemp("one")

    @functools.cache
    def found(devices):
        run_dir = folder / f"run{devices}"
        return team(1, devices)("everything", run_dir=run_dir, steps=4, until=UNTIL.get(devices))[0], run_dir

    return found


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_with_another_number_of_processes(one, team, tmp_path, before, after):
    """The total is always two devices, so the parameters equal those of an uninterrupted run bit for bit."""
    expected, folder = one(2)
    run_dir = tmp_path / "run"
    for processes, steps in ((before, 2), (after, 4)):
        found = team(processes, 2 // processes)(
            "everything", run_dir=run_dir, steps=steps, resume=steps > 2, until="params"
        )
    for each in found:
        same(each["params"], expected["params"])
    assert losses(run_dir) == losses(folder)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["2", "4"]


@pytest.mark.faults
def test_a_damaged_checkpoint_on_two_processes(team, tmp_path):
    """Only one process reads the damaged part, but both take the older checkpoint, and end where one process ends."""
    from tests import faults

    run_dir, train = tmp_path / "run", dict(run_dir=tmp_path / "run", steps=4, until="params")
    both = team(2, 1)
    first = both("everything", **train)[0]
    for path in (run_dir / "checkpoints" / "4" / "state" / "ocdbt.process_1").rglob("d/*"):
        faults.cut(path)
    faults.cut(run_dir / "checkpoints" / "4" / "state" / "manifest.ocdbt")
    again = both("everything", resume=True, **train)
    for each in again:
        same(each["params"], first["params"])
    assert (run_dir / "damaged" / "4").is_dir()
    assert "checkpoints/4 is damaged" in both.said(0)
    assert "resuming at checkpoint 2" in both.said(0)
    assert "DamageWarning" not in both.said(1)


@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_do_what_one_does(one, team, tmp_path, devices):
    """Compare with one process that has the same total number of devices.

    No other test runs everything that the library computes over several processes: with one device each. With two
    each, the programs are those that every other test runs on four devices, so samples suffice.

    Parameters and losses are bit for bit the same: each device runs the same program on the same members with the same
    number of threads, and nothing is summed over devices. Samples are sums over members, which may be added in another
    order between processes than within one.
    """
    expected, folder = one(2 * devices)
    first, second = team(2, devices)("everything", run_dir=tmp_path / "run", steps=4, until=UNTIL.get(2 * devices))
    same(first, second)
    same(first["params"], expected["params"])
    same(first["loaded"], first["params"])
    same(first["fingerprint"], expected["fingerprint"])
    assert losses(tmp_path / "run") == losses(folder)
    close(first["samples"], expected["samples"])
    if devices == 1:
        same(first["saved"], first["params"])
        close(first["universe"], expected["universe"], atol=1)  # in units of 1/255: a rounded pixel
        for name in ("counterfactuals", "jacobian", "exact", "differential", "screen", "loss", "contrast"):
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


def test_gradients_on_the_disk(team, tmp_path):
    """Two processes write what one writes, and one continues what two began; the bits are the same."""
    (expected,) = team(1, 2)("gradients", folder=tmp_path / "one")
    both = team(2, 1)
    assert both("gradients", folder=tmp_path / "both", chunks=2) == ["process 0 stops", "process 1 stops"]
    found = both("gradients", folder=tmp_path / "two")
    for each in (*found, *both("gradients", folder=tmp_path / "both")):
        for name in ("train", "held_out"):
            np.testing.assert_array_equal(each[name], expected[name])
    assert "4 of 8 gradients are finished" in both.said(0)
    assert not both.said(1)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")}
    for folder in ("two", "both"):
        assert {path.relative_to(tmp_path / folder) for path in (tmp_path / folder).rglob("*.*")} == files
        for path in files:
            if path.name != ".lock":
                assert (tmp_path / folder / path).read_bytes() == (tmp_path / "one" / path).read_bytes(), path


@pytest.mark.parametrize("devices", [2, 1])
def test_primitives(team, tmp_path, devices):
    found = team(2, devices)("primitives", apart=tmp_path)
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


@pytest.mark.parametrize(("devices", "batch", "n"), [(2, 4, 1), (1, 4, 1), (1, 3, 2)])
def test_work_that_does_not_divide(team, devices, batch, n):
    """Three of four devices; a data axis over processes; or (batch 3 on two devices) the same work on both."""
    expected = team()("odd", batch=batch, n=n)[0]
    first, second = team(2, devices)("odd", batch=batch, n=n)
    same(first, second)
    close(first, expected, rtol=1e-3, atol=1e-4)


def test_the_device_pipeline_on_two_processes(team):
    """Each process places the lists of its own members; the parameters are bit for bit those of one process."""
    (expected,) = team(1, 2)("device_pipeline")
    for each in team(2, 1)("device_pipeline"):
        same(each, expected)


def test_one_device_gives_the_same_to_rounding(one, team, tmp_path):
    """Another number of devices changes the program on each device, so float rounding differs."""
    found = team()("everything", run_dir=tmp_path / "run", steps=4, until="samples")[0]
    expected, _ = one(2)
    close(found["params"], expected["params"], atol=2e-5)
    close(found["samples"], expected["samples"], atol=1e-4)


def pair(program, *args, port=None, ids=(0, 1), processes=2):
    """Return the commands of processes that work together."""
    flags = [f"--coordinator=127.0.0.1:{port or free_port()}", f"--num_processes={processes}"]
    return [[f"experiments.{program}", *flags, f"--process_id={i}", *args] for i in ids]


def finish(folder, commands, programs=None, limit=LIMIT, environments=None):
    started = Run(folder, commands, programs, environments)
    try:
        return started.wait(limit), started
    finally:
        started.end()


def train_arguments(run_dir, steps=2):
    return [
        "--config=experiments/configs/digits.py",
        f"--config.run_dir={run_dir}",
        f"--config.train.steps={steps}",
        *TINY,
    ]


def test_programs(programs, tmp_path):
    """Train, sample and attribute as a user does: files and lines are written once, and both processes show an error.

    No other test starts and successfully ends the programs over several processes.
    """
    run_dir = tmp_path / "run"
    codes, run = finish(tmp_path / "train", pair("train", *train_arguments(run_dir)), programs)
    assert codes == [0, 0], str(run)
    assert f"trained: {run_dir}" in run.text(0)
    assert run.text(1) == ""
    assert json.loads((run_dir / "config.json").read_text())["data"]["name"] == "digits"
    codes, run = finish(tmp_path / "again", pair("train", *train_arguments(run_dir)), programs)
    assert codes == [1, 1], str(run)
    for i in range(2):
        assert run.text(i).count("error: ") == 1
        assert "holds checkpoints already" in run.text(i)
        assert "Traceback" not in run.text(i)
    args = [f"--run={run_dir}", "--n=2", "--steps=3"]
    codes, run = finish(tmp_path / "sample", pair("sample", *args, "--remove=3"), programs)
    assert codes == [0, 0], str(run)
    assert len(list((run_dir / "samples").iterdir())) == 3
    args += ["--top=2", "--verify=3", "--null=3"]
    codes, run = finish(tmp_path / "attribute", pair("attribute", *args), programs)
    assert codes == [0, 0], str(run)
    assert {path.name for path in (run_dir / "attribution").iterdir()} == {
        f"screen_seed0.{kind}" for kind in ("json", "npz", "png", "html")
    }


def test_slurm_is_found(tmp_path):
    """The variables that srun sets suffice, without a flag. The port is derived from the job's number.

    This is the only test with new interpreters, as a cluster starts them; other tests fork.
    """
    port = free_port(range(65535 - 2**12 + 1, 2**16))
    common = {
        "SLURM_JOB_ID": str(port - (65535 - 2**12 + 1)), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip
    command = ["experiments.train", *train_arguments(tmp_path / "run", 1)]
    environments = [{**common, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    codes, run = finish(tmp_path, [command] * 2, environments=environments)
    assert codes == [0, 0], str(run)
    assert (tmp_path / "run" / "checkpoints" / "1" / "state" / "ocdbt.process_1").exists()


@pytest.mark.parametrize("process", [0, 1])
def test_a_start_without_the_other_gives_up(programs, tmp_path, process):
    commands = pair("train", *train_arguments(tmp_path / "run"), "--start_timeout=5", ids=[process])
    codes, run = finish(tmp_path, commands, programs, limit=90)
    assert codes == [1], str(run)
    assert run.text(0).count("error: gave up after 5 s") == 1
    assert ("no answer from the coordinator" in run.text(0)) == (process == 1)
    assert "Traceback" not in run.text(0)


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_of_one_ends_the_other(programs, tmp_path, tiny, wrong):
    """One process gets an invalid unit to remove, while the other waits for it in the next sum over members."""
    ensdiff.save(tiny, tmp_path / "run")
    args = [f"--run={tmp_path / 'run'}", "--n=2", "--steps=3"]
    commands = pair("sample", *args, "--remove=3")
    commands[wrong] = [arg.replace("--remove=3", "--remove=three") for arg in commands[wrong]]
    codes, run = finish(tmp_path / "logs", commands, programs, limit=120)
    assert codes[wrong] == 1, str(run)
    assert codes[1 - wrong] != 0, str(run)
    assert run.text(wrong).count("error: units 'three'") == 1
    assert "Traceback" not in run.text(wrong)
    assert "another process may have ended" in run.text(1 - wrong) or "another task died" in run.text(1 - wrong)


def train_without_end(folder, programs):
    """Start two training processes, and wait until they have taken some steps."""
    run = Run(folder, pair("train", *train_arguments(folder / "run", 10**6), "--config.train.log_every=1"), programs)
    metrics = folder / "run" / "metrics.jsonl"
    try:
        wait_for(lambda: metrics.exists() and metrics.stat().st_size, run)
    except BaseException:
        run.end()
        raise
    return run


@pytest.mark.faults
@pytest.mark.parametrize(("told", "how"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_stops_both_with_a_checkpoint(programs, tmp_path, told, how):
    """Both stop at the same step with its exit code; one process continues from there to the same end.

    No other test checks that processes agree on a signal that only one of them received.
    """
    run = train_without_end(tmp_path, programs)
    try:
        run.processes[told].send_signal(how)
        codes = run.wait(120)
    finally:
        run.end()
    assert codes == [EXIT_CODE, EXIT_CODE], str(run)
    (step,) = steps_of(tmp_path / "run")
    for i in range(2):
        assert f"stopped: asked to stop at step {step} of 1000000" in run.text(i)
        assert "error:" not in run.text(i)
        assert "Traceback" not in run.text(i)
    assert ensdiff.check_run(tmp_path / "run") == []
    assert [line["step"] for line in ensdiff.read_metrics(tmp_path / "run")] == list(range(1, step + 1))
    codes, run = finish(
        tmp_path / "again",
        pair("train", *train_arguments(tmp_path / "run", step + 2), "--config.resume=True"),
        programs,
    )
    assert codes == [0, 0], str(run)
    assert steps_of(tmp_path / "run") == [step, step + 2]


@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGKILL)])
def test_the_death_of_one_ends_the_other(programs, tmp_path, victim, how):
    """If one process is killed during training, the other ends with an error, well before the test's time limit."""
    run = train_without_end(tmp_path, programs)
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
