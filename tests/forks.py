"""Programs run one after another, each in a fork of a process that has imported what they import.

Starting a program takes seconds of imports; forking this server takes none. A program still has a process of its own,
with the exit code and the output that a user sees. The server never touches a JAX device, so a fork is safe.

A line of JSON on stdin, {"program", "args"}, is answered by one on stdout, {"returncode", "stdout", "stderr"}.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from typing import NamedTuple

from tests.helpers import ROOT


class Done(NamedTuple):
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str


class Programs:
    """The server's client; use it in a ``with`` statement."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        )  # fmt: skip

    def __call__(self, program, *args):
        self.server.stdin.write(json.dumps({"program": program, "args": list(map(str, args))}) + "\n")
        self.server.stdin.flush()
        return Done(**json.loads(self.server.stdout.readline()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait()


def serve():
    """Answer until stdin ends."""
    import matplotlib  # noqa: F401
    import ml_collections.config_flags  # noqa: F401
    import sklearn.datasets  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401

    import ensdiff  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                act(request["program"], request["args"], out.fileno(), err.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        print(json.dumps({"returncode": code, "stdout": texts[0], "stderr": texts[1]}), flush=True)


def act(program, args, out, err):
    """In the child: be the program, and end."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = [f"experiments/{program}.py", *args]
    code = 0
    try:
        runpy.run_module(f"experiments.{program}", run_name="__main__", alter_sys=True)
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
