"""The parts of the live explorer's server that need no run: its worker, and what it says of errors."""

import pathlib
import threading

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[dev]'")

from experiments.live import asking
from experiments.live.jobs import LONGEST_QUEUE, BusyError, Worker
from tests.serving import slowly, until


def test_errors_of_computations_name_no_path():
    run = pathlib.Path("/srv/runs/x")
    said = asking.sentence(ValueError("/srv/runs/x/a.npz and /home/me/b c: is 8x8/4"), run)
    assert said == "A.npz and a file of the server c: is 8x8/4."
    assert asking.sentence(KeyError("/home/me"), run).startswith("The computation failed (KeyError).")
    assert asking.sentence(OSError(2, "No such file", "/home/me/x"), run).endswith("'a file of the server'.")
    assert asking.sentence(MemoryError(), run) == "Out of memory."
    for path in ("'/home/me/my pictures/x'", "file:///home/me/x", "../../me/x"):
        assert "me" not in asking.sentence(ValueError(f"{path} is bad"), run)


def test_a_cancelled_computation_frees_the_worker():
    started = threading.Event()
    with Worker() as worker:
        job = worker.submit(lambda: slowly(started))
        started.wait(10)
        waiting = [worker.submit(lambda: 1) for _ in range(LONGEST_QUEUE)]
        assert worker.before(waiting[0]) == 1
        assert worker.before(waiting[2]) == 3
        with pytest.raises(BusyError):
            worker.submit(lambda: 1)
        waiting[0].cancel()
        assert waiting[0].state.over
        assert worker.before(waiting[2]) == 2
        until(lambda: job.state.share)
        assert job.state.text.startswith("dawdling: ")
        job.cancel()
        until(worker.idle)
        assert job.state.text == "cancelled"
        assert [other.state.result for other in waiting] == [None] + [1] * (LONGEST_QUEUE - 1)
        last = worker.submit(lambda: slowly(started))
    assert last.state.over
    assert last.state.text == "cancelled"
    with pytest.raises(BusyError):
        worker.submit(lambda: 1)


def test_a_failed_computation_frees_the_worker(capsys):
    with Worker() as worker:
        job = worker.submit(lambda: 1 / 0)
        until(lambda: job.state.over)
        assert isinstance(job.state.error, ZeroDivisionError)
        other = worker.submit(lambda: 2)
        until(lambda: other.state.over)
    assert other.state.result == 2
    assert "ZeroDivisionError" in capsys.readouterr().err
