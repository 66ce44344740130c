"""Runs of several JAX processes on this machine, and teams of such processes that do one job after another."""

import contextlib
import faulthandler
import multiprocessing.connection
import os
import pathlib
import socket
import subprocess
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 500
"""Time limit of a run or a job, in seconds."""
THREADS = 4
"""XLA's threads in each process. The default is the larger of the numbers of cores and devices. The number of threads
changes the rounding of sums that are split among them, such as the weight gradient of a convolution."""

PROCESSES = 4
"""Largest number of processes of all teams at the same time."""


def free_port(candidates=(0,)):
    """Return a free port: the system's choice, or the first free port among some candidates."""
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    raise AssertionError("no free port")


def variables(devices=1, **more):
    """Return the environment variables of one of several processes."""
    return {
        "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", "NPROC": str(THREADS), "PYTHONUNBUFFERED": "1",
        **more,
    }  # fmt: skip


class Run:
    """Processes that a test starts, each with a log.

    Each command is a module and its arguments. ``programs`` (`tests.forks.Programs`) forks the processes; without it,
    each one is a new interpreter, as a user would start it.
    """

    def __init__(self, folder, commands, programs=None, environments=None):
        self.logs = [folder / f"process{i}.log" for i in range(len(commands))]
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = []
        for i, ((module, *args), log) in enumerate(zip(commands, self.logs, strict=True)):
            environment = variables(**(environments[i] if environments else {}))
            if programs is not None:
                self.processes.append(programs.start(module, *args, out=log, environment=environment))
                continue
            with log.open("wb") as file:
                command = [sys.executable, "-m", module, *map(str, args)]
                self.processes.append(
                    subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=file, stderr=file)
                )

    def wait(self, limit=LIMIT):
        """Return the exit codes. After ``limit`` seconds, end all processes and fail with all logs."""
        deadline = time.monotonic() + limit
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"not done after {limit} s\n{self}") from None

    def end(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def text(self, i):
        return self.logs[i].read_text(errors="replace")

    def __str__(self):
        return "\n".join(f"--- {log.name}:\n{self.text(i)[-6000:]}" for i, log in enumerate(self.logs))


class Team:
    """Connected processes that do one job after another, so that later jobs reuse compiled programs."""

    def __init__(self, folder, programs, processes, devices):
        port = free_port()
        bind = {"JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_CPU_DEVICES": str(devices)}
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(LIMIT)
            commands = [["tests.distributed", server.getsockname()[1], port, processes, i] for i in range(processes)]
            self.run = Run(folder, commands, programs, [bind] * processes)
            self.lines = {}
            try:
                for _ in range(processes):
                    line = multiprocessing.connection.Connection(server.accept()[0].detach())
                    self.lines[line.recv()] = line
            except BaseException:
                self.end()
                raise
        self.logged = [0] * processes

    def __call__(self, task, **options):
        """Run ``task`` (the name of a function below) in every process, and return its results from all of them."""
        self.logged = [log.stat().st_size for log in self.run.logs]
        deadline = time.monotonic() + LIMIT
        answers, waiting = {}, {line: i for i, line in self.lines.items()}
        try:
            for line in waiting:
                line.send((task, options))
            while waiting:
                ready = multiprocessing.connection.wait(waiting, max(0.1, deadline - time.monotonic()))
                assert ready, f"not done after {LIMIT} s"
                for line in ready:
                    i = waiting.pop(line)
                    ok, answers[i] = line.recv()
                    assert ok, f"process {i}: {answers[i]}"
        except (AssertionError, EOFError, OSError) as error:
            self.end()
            raise AssertionError(f"{task}: {error or type(error).__name__}\n{self.run}") from None
        return [answers[i] for i in sorted(answers)]

    def said(self, i):
        """Return what a process logged during the last job."""
        return self.run.logs[i].read_bytes()[self.logged[i] :].decode(errors="replace")

    @property
    def alive(self):
        return all(process.poll() is None for process in self.run.processes)

    def end(self):
        self.run.end()
        for line in self.lines.values():
            line.close()


class Teams:
    """One team for each number of processes and devices, started at its first use.

    The least recently used teams are ended if there would be more than `PROCESSES` processes: each takes about 1 GB.
    """

    def __init__(self, folder, programs):
        self.folder, self.programs, self.teams = folder, programs, {}

    def __call__(self, processes=1, devices=1):
        team = self.teams.pop((processes, devices), None)
        if team is None or not team.alive:
            while self.teams and processes + sum(count for count, _ in self.teams) > PROCESSES:
                self.teams.pop(next(iter(self.teams))).end()
            folder = self.folder / f"{processes}x{devices}_{time.monotonic_ns()}"
            team = Team(folder, self.programs, processes, devices)
        self.teams[processes, devices] = team  # the newest is last
        return team

    def end(self):
        for team in self.teams.values():
            team.end()


def everything(run_dir, steps, resume=False, until=None):
    """Train, load, sample, remove units, attribute by every method, write a universe, save; return NumPy arrays.

    ``until`` names the last result to compute: "params" or "samples".
    """
    import dataclasses

    import numpy as np

    import ensdiff
    from ensdiff import hosts
    from ensdiff.attribution.contrast import unit_losses
    from ensdiff.interop import ctf
    from tests.helpers import SHORT, blobs
    from tests.training.test_train import CONFIG, MODEL

    code = ensdiff.Code.balanced(members=4, units=3, seed=0)
    data = ensdiff.data.arrays(blobs(3))
    trained = ensdiff.train(
        data, code, MODEL, CONFIG, schedule=SHORT, run_dir=run_dir, steps=steps, resume=resume,
        sample_every=2,
    )  # fmt: skip
    found = {"params": hosts.fetch(trained.params)}
    if until == "params":
        return found
    params = ensdiff.load(run_dir)
    found["loaded"] = hosts.fetch(params.params)
    found["fingerprint"] = np.frombuffer(bytes.fromhex(params.fingerprint), np.uint8)
    samples = ensdiff.sample(params, 0, 3, steps=4)
    found["samples"] = np.asarray(samples.images)
    if until == "samples":
        return found
    found["counterfactuals"] = ensdiff.counterfactuals(params, samples, [0, 1])
    found["jacobian"] = ensdiff.jacobian(params, samples)
    for method in ("exact", "differential", "screen"):
        verify = 2 if method == "screen" else None
        att = ensdiff.attribute(params, samples, method, top=2, verify=verify, null=3, features=halves)
        found[method] = {name: getattr(att, name) for name in ("units", "influence", "p_value", "null_BL")}
    att = ensdiff.attribute(params, samples, "loss", top=2, null=3, loss=ensdiff.LossConfig(draws=8, block=4))
    found["loss"] = {name: getattr(att, name) for name in ("units", "influence", "p_value", "null_BL")}
    found["contrast"] = unit_losses(params, data)
    with ctf.write(run_dir.with_suffix(".ctf"), params, samples, data) as universe:
        found["universe"] = np.stack(list(universe.counterfactuals())).astype(float)
    ensdiff.save(dataclasses.replace(params, params=found["loaded"]), run_dir.with_suffix(".saved"))
    found["saved"] = hosts.fetch(ensdiff.load(run_dir.with_suffix(".saved")).params)
    return found


def halves(images):
    """Return features of images that differ from their pixels."""
    return images[:, ::2] * 2.0


def odd(batch, n):
    """Return results of three members, which two processes cannot share: data are split, or a device is left over."""
    import numpy as np

    import ensdiff
    from ensdiff import hosts
    from tests.helpers import SHORT, blobs
    from tests.training.test_train import CONFIG, MODEL

    code = ensdiff.Code.balanced(members=3, units=3, weight=2, seed=0)
    data = ensdiff.data.arrays(blobs(3))
    params = ensdiff.train(data, code, MODEL, CONFIG, schedule=SHORT, batch_size=batch)
    device = ensdiff.train(data, code, MODEL, CONFIG, schedule=SHORT, batch_size=batch, pipeline="device")
    samples = ensdiff.sample(params, 0, n, steps=3)
    return {
        "params": hosts.fetch(params.params),
        "params of the device pipeline": hosts.fetch(device.params),
        "samples": np.asarray(samples.images),
        "jacobian": ensdiff.jacobian(params, samples),
        "predictions": hosts.fetch(ensdiff.predict(params, np.asarray(samples.images), 3)),
    }


def device_pipeline():
    """Train on data in device memory, with calls of several steps whose number the processes agree on."""
    import ensdiff
    from ensdiff import hosts
    from tests.helpers import CODE, SHORT, blobs
    from tests.training.test_train import CONFIG, MODEL

    data = ensdiff.data.arrays(blobs())
    params = ensdiff.train(
        data, CODE, MODEL, CONFIG, schedule=SHORT, steps=12, checkpoint_every=12, pipeline="device", progress=False
    )
    return hosts.fetch(params.params)


def gradients(folder, chunks=None):
    """Write a store of gradients and return its gradients; with ``chunks``, stop after that number of chunks."""
    import jax
    import numpy as np

    import ensdiff
    from ensdiff.attribution.gradients import GradientConfig, store
    from tests.helpers import blobs, random_ensemble

    compute, calls = store.projected_gradients, []

    def limited(*args, **options):
        if len(calls) == chunks:
            raise ValueError(f"process {jax.process_index()} stops")
        calls.append(1)
        return compute(*args, **options)

    store.projected_gradients = limited
    try:
        config = GradientConfig(draws=4, parts=2, dimension=64)
        data, others = ensdiff.data.arrays(blobs()), ensdiff.data.arrays(blobs(2, seed=1))
        found = store.write_gradients(
            folder, random_ensemble(), data, ["loss"], config, held_out=others, chunk=2, say=print
        )
    except ValueError as error:
        return str(error)
    finally:
        store.projected_gradients = compute
    return {"calls": np.array(len(calls)), **{f: np.asarray(getattr(found, f)("loss")) for f in ("train", "held_out")}}


def primitives(apart):
    """Return the parts of placed arrays in each process, and the errors that processes pass to each other."""
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec as P

    from ensdiff import hosts
    from ensdiff.ensemble.mesh import make_mesh
    from ensdiff.runs.directory import RunDirectory

    me = jax.process_index()
    found = {}
    whole = np.arange(24.0).reshape(4, 6)
    wide, narrow = make_mesh(4), make_mesh(2, batch=1)
    placed = hosts.place(whole, wide, P("member"))
    found["own rows"] = np.unique([shard.data[0, 0] for shard in placed.addressable_shards]).tolist()
    for name, (mesh, spec) in {
        "same": (wide, P("member")),
        "other split": (wide, P(None, "data")),
        "whole": (wide, P()),
        "other devices": (narrow, P("member")),
        "other devices, whole": (narrow, P()),
    }.items():
        found[name] = hosts.fetch(hosts.place(placed, mesh, spec))
    key = hosts.place(jax.random.key(3), wide, P())
    found["key"] = np.asarray(jax.random.key_data(hosts.local(key)))
    block = hosts.local_block(wide, P("member"), whole.shape)
    found["assembled"] = hosts.fetch(hosts.assemble(whole[block], wide, P("member"), whole.shape))
    found["members"] = hosts.local_members(wide, 4)
    found["exchanged"] = hosts.exchange({"process": me, "pad": "x" * 300 * me})
    calls = []
    found["decided"] = hosts.decide(lambda: calls.append(1) or f"by {me}")
    found["calls"] = len(calls)

    def fail(process):
        if me == process:
            raise FileExistsError(f"process {me} says no")
        return me

    (apart / str(me)).mkdir()
    os.chdir(apart / str(me))  # so that "run" is another folder in each process
    for name, attempt in {
        "decide": lambda: hosts.decide(lambda: fail(0)),
        "together": lambda: hosts.together(lambda: fail(1)),
        "unshared": lambda: RunDirectory.open("run", keep=1, resume=False),
    }.items():
        try:
            attempt()
        except (OSError, RuntimeError) as error:
            found[f"{name} raised"] = f"{type(error).__name__}: {error}"
    hosts.exchange("end")
    found["writer"] = hosts.is_writer()
    return found


def main(address, port, processes, i):
    """Do jobs until the test's process closes the connection."""
    import jax

    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, i, cluster_detection_method="deactivate")
    line = multiprocessing.connection.Connection(socket.create_connection(("127.0.0.1", address)).detach())
    line.send(i)
    here = pathlib.Path.cwd()
    while True:
        task, options = line.recv()
        faulthandler.dump_traceback_later(LIMIT - 20)  # logs the position if it hangs
        try:
            answer = True, globals()[task](**options)
        except Exception:
            answer = False, traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        os.chdir(here)
        sys.stdout.flush()
        line.send(answer)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
