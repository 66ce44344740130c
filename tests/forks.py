"""A server that runs programs and workers in forks of a process with their imports.

Starting Python and importing JAX takes seconds; forking this server takes almost no time. Each program still has its
own process, with the exit code, the signals and the output that a user sees. The server never uses a JAX device, so a
fork is safe.

The server answers each line of JSON on stdin by one line on stdout. {"what", "args", "folder", "environment", "out",
"err"} starts a module or a script and is answered by {"pid"}. {"poll": pid} is answered by {"returncode"}, which is
null while the process runs. {"load": [module, ...]} imports modules and is answered by {}.
"""

import importlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

from tests.helpers import ROOT


class Done(NamedTuple):
    """The exit code and the output of a program."""

    returncode: int
    stdout: str
    stderr: str


class Started:
    """A process that the server started, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, ask, pid):
        self._ask, self.pid, self.returncode = ask, pid, None

    def poll(self):
        if self.returncode is None:
            self.returncode = self._ask(poll=self.pid)["returncode"]
        return self.returncode

    def wait(self, timeout=None):
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:  # the server never waits, so it still answers if a test is interrupted
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(9)


class Programs:
    """The server's client, for use in a ``with`` statement."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        )  # fmt: skip

    def _ask(self, **request):
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def load(self, *modules):
        """Import modules in the server, so that programs which need them start faster from now on."""
        self._ask(load=modules)

    def start(self, what, *args, out, err=None, folder=ROOT, environment=()):
        """Start a module, or a script by its path. Its output is appended to the files ``out`` and ``err``.

        If ``err`` is None, errors go to ``out``. ``environment`` replaces variables; variables that JAX reads on import
        have no effect, except for ``JAX_NUM_CPU_DEVICES``.
        """
        answer = self._ask(
            what=str(what), args=list(map(str, args)), folder=str(folder), out=str(out), err=str(err or out),
            environment=dict(environment),
        )  # fmt: skip
        return Started(self._ask, answer["pid"])

    def __call__(self, program, *args, folder=ROOT, environment=()):
        """Run a program of ``experiments``, or a script by its path, to its end; see `start` for ``environment``."""
        what = program if isinstance(program, pathlib.Path) else f"experiments.{program}"
        with tempfile.TemporaryDirectory() as logs:
            out, err = (pathlib.Path(logs) / name for name in ("out", "err"))
            program = self.start(what, *args, out=out, err=err, folder=folder, environment=environment)
            try:
                code = program.wait()
            except BaseException:  # such as the time limit of a test
                program.kill()
                raise
            return Done(code, *(path.read_bytes().decode(errors="replace") for path in (out, err)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait()


def serve():
    """Answer requests until stdin ends."""
    import matplotlib  # noqa: F401
    import ml_collections.config_flags  # noqa: F401
    import sklearn.datasets  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401

    import ensdiff  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "what" in request:
            child = os.fork()
            if not child:
                act(**request)
            answer = {"pid": child}
        elif "load" in request:
            for name in request["load"]:
                importlib.import_module(name)
            answer = {}
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = {"returncode": os.waitstatus_to_exitcode(status) if pid else None}
        print(json.dumps(answer), flush=True)


def act(what, args, folder, out, err, environment):
    """Run the program in the child process, and exit."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    os.chdir(folder)
    os.environ.update(environment)
    if "JAX_NUM_CPU_DEVICES" in environment:
        import jax

        jax.config.update("jax_num_cpu_devices", int(environment["JAX_NUM_CPU_DEVICES"]))
    script = what.endswith(".py")
    sys.argv = [what if script else f"{what.replace('.', '/')}.py", *args]
    code = 0
    try:
        if script:
            sys.path.insert(0, os.path.dirname(what))
            runpy.run_path(what, run_name="__main__")
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
