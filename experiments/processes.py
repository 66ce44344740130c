"""Start a program as one of several processes, and end it so that no process waits forever for another."""

import os
import re
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from absl import flags

flags.DEFINE_bool(
    "distributed",
    None,
    "Run as one of several processes, which Slurm, Open MPI, Cloud TPU and Kubernetes describe. By default only if "
    "srun or mpirun started several, or with --coordinator.",
)
flags.DEFINE_string("coordinator", None, "Without a cluster: HOST:PORT of process 0, with a free port.")
flags.DEFINE_integer("num_processes", None, "Without a cluster: number of processes.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Without a cluster: number of this process, counted from 0.", lower_bound=0)
flags.DEFINE_integer("start_timeout", 300, "Seconds to wait until all processes have started.", lower_bound=1)

HEARTBEAT = 60
"""Seconds without a heartbeat after which the other processes assume that a process has died, and end."""
GRACE = 3
"""Seconds that process 0 waits after an error before it ends. Its end terminates the other processes, which may need
this time to report the same error."""


def wanted() -> bool:
    """Return whether this is one of several processes, according to flags or to srun or mpirun.

    Raises:
        ValueError: the flags contradict each other.
    """
    f = flags.FLAGS
    given = [name for name in ("coordinator", "num_processes", "process_id") if f[name].value is not None]
    if f.distributed is False and given:
        raise ValueError(f"--{given[0]} and --nodistributed exclude each other: leave one of them out")
    if f.distributed is not None or given:
        return bool(f.distributed or given)
    return any(int(os.environ.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))


def _explicit() -> dict[str, Any]:
    """Return the arguments of `jax.distributed.initialize` given by flags, or {} if the cluster provides them.

    Raises:
        ValueError: a flag is missing or has a bad value.
    """
    f = flags.FLAGS
    values = {"coordinator": f.coordinator, "num_processes": f.num_processes, "process_id": f.process_id}
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return {}
    if missing:
        raise ValueError(
            f"--{', --'.join(missing)} not given: --coordinator, --num_processes and --process_id belong together"
        )
    host, _, port = f.coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator={f.coordinator}: expected HOST:PORT, such as 10.0.0.1:29500")
    if f.process_id >= f.num_processes:
        raise ValueError(f"--process_id={f.process_id}: expected 0 .. {f.num_processes - 1} (see --num_processes)")
    if f.process_id == 0:
        _check_free(int(port))
    return {"coordinator_address": f.coordinator, "num_processes": f.num_processes, "process_id": f.process_id}


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ValueError(f"process 0 cannot listen on port {port}: {error.strerror}; choose another port") from None


def start(preemptible: bool = False) -> None:
    """Connect to the other processes. This must run before any other JAX operation.

    Args:
        preemptible: whether the program polls the result of `ensdiff.training.preemption.on_signals`.

    Raises:
        ValueError: the flags do not fit together, or they are incomplete and no cluster provides the rest.
    """
    import jax

    explicit = _explicit()
    seconds = flags.FLAGS.start_timeout
    # JAX's own timeout ends the process with a stack trace: print a clear message before that
    timer = threading.Timer(seconds, _give_up, (explicit, seconds))
    timer.daemon = True
    timer.start()
    # this service catches SIGTERM and leaves the rest to the program, so kill, scancel and kubectl delete would have no
    # effect on a program that does not poll it
    jax.config.update("jax_enable_preemption_service", preemptible)
    try:
        jax.distributed.initialize(
            **explicit,
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            cluster_detection_method="deactivate" if explicit else None,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed: no Slurm, Open MPI, Cloud TPU or Kubernetes job was found here ({error}); "
            "pass --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from None
    finally:
        timer.cancel()
    if jax.distributed.is_initialized() and jax.process_index() != 0:
        # discards all output of other processes, even from C++ libraries; errors go to stderr
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _give_up(explicit: dict[str, Any], seconds: float) -> NoReturn:
    where = explicit.get("coordinator_address")
    why = "the processes did not all start"
    if where and explicit["process_id"] > 0:
        host, _, port = where.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            why = f"no answer from the coordinator {where} ({error.strerror or error}): is process 0 running there?"
    print(
        f"error: gave up after {seconds:g} s: {why} (every process needs the same --coordinator and --num_processes, "
        "and its own --process_id; --start_timeout=SECONDS waits longer)",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def cpu_devices() -> int:
    """Return the number of CPU devices for this process: its share of the usable cores."""
    every = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    # a process that is bound to fewer cores already has its share
    return cores if cores < every else max(1, cores // _processes_here())


def _processes_here() -> int:
    """Return the number of processes on this machine, as far as flags and the environment tell."""
    f = flags.FLAGS
    if not wanted():
        return 1
    if f.coordinator:
        host = f.coordinator.rpartition(":")[0].strip("[]")
        return f.num_processes or 1 if host == "localhost" or host == "::1" or host.startswith("127.") else 1
    if size := os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
        return int(size)
    # such as "2(x3),1": take the largest, so that no machine has more devices than cores
    counts = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")
    return max(int(count.partition("(")[0]) for count in counts)


def end() -> None:
    """End after success: wait for the other processes and disconnect."""
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def hint(error: Exception) -> str:
    """Return a hint for an error that the death of another process may have caused, else an empty string."""
    import jax

    # XLA's errors begin with a status, and reach Python as several exception types
    lost = jax.distributed.is_initialized() and re.match("[A-Z_]+: ", str(error))
    return "another process may have ended: the log with the earliest error shows why" if lost else ""


def abandon(code: int) -> None:
    """End after an error, without waiting for the other processes as an ordinary exit would.

    The other processes notice immediately in an operation over the network, and otherwise after `HEARTBEAT` seconds.
    """
    import jax

    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(GRACE)
    os._exit(code)
