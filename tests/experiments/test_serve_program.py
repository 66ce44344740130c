"""experiments.serve as it is typed: it starts, prints its address, answers, and ends on a signal with exit code 0."""

import http.client
import json
import signal
import subprocess
import threading

import numpy as np
import pytest

from tests.faults import train
from tests.helpers import ROOT, blobs, command, environment

pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[dev]'")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Train a tiny run, and return the arguments that serve it."""
    folder = tmp_path_factory.mktemp("serve")
    train(folder / "run")
    np.savez(folder / "pictures.npz", images=blobs())
    return [folder / "run", f"--data=npz,path={folder / 'pictures.npz'}", "--n=2", "--steps=3", "--null=0"]


def started(options):
    """Start the program, and return the process, and the address that it prints."""
    process = subprocess.Popen(
        command("serve", *options),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    errors: list[str] = []
    threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True).start()
    for line in process.stdout:
        if line.startswith("explorer: "):
            return process, line.removeprefix("explorer: ").strip()
    raise AssertionError(f"it ended with {process.wait()}: {errors}")


def asked(address, path, method="GET", body=None):
    host, _, token = address.removeprefix("http://").strip("/").partition("/")
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.request(method, f"/{token}/{path}" if path is not None else "/", body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_it_answers_and_ends_on_ctrl_c(options):
    process, address = started(options)
    try:
        assert address.startswith("http://127.0.0.1:")
        assert len(address.strip("/").rpartition("/")[2]) >= 32
        assert asked(address, None)[0] == 403
        status, page = asked(address, "")
        assert status == 200
        assert "What 2 samples of pictures depend on" in page
        status, text = asked(address, "remove", "POST", json.dumps({"sample": 1, "units": [3]}))
        assert json.loads(text.strip().rpartition("data: ")[2])["done"]["ids"] == [3]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert process.stdout.read().splitlines()[-1] == "stopped"


def test_it_ends_on_sigterm_while_it_computes(options):
    process, address = started(options)
    answers = []
    body = json.dumps({"n": 16, "seed": 1})
    asking = threading.Thread(target=lambda: answers.append(asked(address, "draw", "POST", body)), daemon=True)
    try:
        asking.start()
        asking.join(1)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    asking.join(10)
    assert not asking.is_alive()


def test_the_port_is_taken(options, typed):
    from experiments.serve import listen

    with listen(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        done = typed("serve", *options, f"--port={port}")
    assert done.returncode == 1
    assert f"--port={port}: " in done.stderr
    assert "leave it out for a free port" in done.stderr
    assert "Traceback" not in done.stderr
