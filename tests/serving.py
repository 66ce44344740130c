"""The live explorer in this process, for its tests: a session on a tiny ensemble, and a server in a thread."""

import contextlib
import pathlib
import threading
import time

from ensdiff import hosts
from ensdiff.report.explorer import explore
from ensdiff.sampling.captions import captions_of
from experiments.live.jobs import Worker
from experiments.live.session import Session, Source
from experiments.serve import listen, server_of
from tests.explorations import HOSTILE, exploration

TOKEN = "a-token"
NAMES = (HOSTILE, "b & c", "Ada L.", "Ada M.")


def explored(params, data, samples, decode=None):
    """Return an exploration without a null."""
    captions = captions_of(params, samples.cond, samples.captions)
    layer = explore(params, data, samples, top=4, combined=0, null=0)
    return exploration(samples, [layer], captions=captions, decode=decode)


def source(params, data, decode=None, **options):
    """Return the source of a session on a tiny ensemble, which explores new samples without a null."""

    def again(samples):
        return explored(params, data, samples, decode)

    values = {
        "run": pathlib.Path("runs/x"), "params": params, "data": data, "explore": again, "prompted": None,
        "picture": lambda picture: picture, "grey": True, "side": 8, "held_out": lambda: None, "null": 5,
    }  # fmt: skip
    return Source(**{**values, **options})


def session_of(world, **options):
    """Return a session on what `tests.explorations` returned."""
    params, data, samples, layers = world
    layers = layers if isinstance(layers, list) else [layers]
    return Session(source(params, data, **options), exploration(samples, layers))


@contextlib.contextmanager
def served(session):
    """Serve a session, and yield its address and its worker."""
    listening = listen(0)
    with Worker() as worker:
        server = server_of(session, worker, TOKEN)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server")
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/{TOKEN}/", worker
        finally:
            worker.close()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
    listening.close()


def slowly(started=None, ticks=24_000):
    """Compute nothing, for two minutes unless it is cancelled: longer than any test waits."""
    if started is not None:
        started.set()
    with hosts.progress_bar(ticks, "dawdling", "tick", shown=False) as bar:
        for _ in range(ticks):
            time.sleep(0.005)
            bar.update()


def until(condition, seconds=20):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
