"""Serve the explorer of a run on this machine: remove any units, draw other samples, attribute a picture of your own.

The page is that of experiments.report, but nothing has to be computed in advance. The program prints its address, which
only this machine can open and which holds a random token. Ctrl-C ends it. It needs the extra "serve".

Examples:
  python -m experiments.serve runs/digits
  python -m experiments.serve --run=runs/digits --n=16 --top=16 --null=199
  python -m experiments.serve runs/classes --cond=3 --guidance=2 --port=8080
"""

import contextlib
import os
import pathlib
import secrets
import signal
import socket
import sys
from typing import Any

from absl import flags

from . import common, decoding, facts, report, runs

flags.adopt_module_key_flags(common)
flags.adopt_module_key_flags(runs)
for _name in [
    "step",
    "combine",
    "scale",
    "n",
    "seed",
    "steps",
    "sampler",
    "eta",
    "cond",
    "prompt",
    "text",
    "guidance",
    "decode",
    "data",
    "top",
    "null",
    "level",
    "landscape",
    "memory",
]:
    flags.declare_key_flag(_name)
PORT = flags.DEFINE_integer("port", 0, "The port on 127.0.0.1; 0 takes a free one.", 0, 65535)


def main(run: str | None = None) -> None:
    """Draw the first samples, remove their most influential units, and serve the page until a signal ends it."""
    import jax

    from ensdiff.files.reading import installed

    with installed("the live explorer needs Starlette and uvicorn", "serve"):
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    if jax.process_count() > 1:
        raise ValueError("experiments.serve runs in one process: start it without --distributed and --coordinator")
    if run is not None:
        runs.set_run(run)
    listening = listen(PORT.value)
    params = runs.load_run()
    data = runs.training_data()
    serve(session_of(params, data), listening)


def listen(port: int) -> socket.socket:
    """Return a socket on this machine's own address, which no other machine reaches.

    Raises:
        OSError: the port is in use or not allowed.
    """
    found = socket.socket()
    if os.name == "posix":
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError as error:
        found.close()
        raise OSError(f"--port={port}: {error.strerror or error}; leave it out for a free port") from None
    return found


def session_of(params: Any, data: Any) -> Any:
    """Draw the first samples, compute what their page shows, and return the `Session`."""
    from .live.session import Session, Source

    samples = runs.draw_samples(params)
    decode = decoding.decoder_of(params, samples.images)
    layers = new_layers(params, data, samples, progress=True, reuse=True)
    first = exploration_of(params, data, samples, layers, decode)
    picture, side, grey = picture_function(params)
    source = Source(
        pathlib.Path(runs.run_folder()),
        params,
        data,
        explore=lambda drawn: exploration_of(params, data, drawn, new_layers(params, data, drawn), decode),
        prompted=prompted(params),
        picture=picture,
        grey=grey,
        side=side,
        held_out=runs.unseen_data,
        null=null(),
        memory_budget=memory_budget(),
    )
    return Session(source, first)


def memory_budget() -> int | None:
    """Return --memory in bytes."""
    return None if report.MEMORY.value is None else round(report.MEMORY.value * 2**30)


def null() -> Any:
    """Return --null, by default as many null ablations as a verdict needs."""
    return "auto" if report.NULL.value is None else runs.null_value(report.NULL.value)


def exploration_of(params: Any, data: Any, samples: Any, layers: list[Any], decode: Any) -> Any:
    """Return the content of the page for some samples."""
    import ensdiff
    from ensdiff.report.explorer import Exploration
    from ensdiff.sampling.captions import captions_of

    return Exploration(
        f"What {len(samples)} samples of {data.name} depend on",
        samples,
        layers,
        "",
        [*facts.facts(params, data), *facts.sampler_facts(samples)],
        ensdiff.read_metrics(runs.run_folder()),
        captions=captions_of(params, samples.cond, samples.captions),
        decode=decode,
    )


def new_layers(params: Any, data: Any, samples: Any, *, progress: bool = False, reuse: bool = False) -> list[Any]:
    """Compute the layers of samples.

    Sets of units are removed when the page asks for them. Single items of groups get no null unless --null asks for
    one, so that the page opens soon.

    Args:
        params: the ensemble.
        data: its training data.
        samples: the samples.
        progress: whether to show progress bars.
        reuse: whether to use attributions of these samples that experiments.attribute saved.
    """
    from ensdiff.report.explorer import explore

    kinds = report.kinds_of(params)
    return [
        explore(
            params,
            data,
            samples,
            report.saved(params, samples, groups) if reuse else None,
            scores=report.scored(params, samples, groups) if reuse else None,
            groups=groups,
            top=report.given(report.TOP, 32),
            combined=0,
            null=0 if len(kinds) > 1 and not groups and report.NULL.value is None else null(),
            level=report.given(report.LEVEL, 0.1),
            landscape=report.LANDSCAPE.value,
            seed=flags.FLAGS.seed,
            memory_budget=memory_budget(),
            progress=progress,
        )
        for groups in kinds
    ]


def prompted(params: Any) -> Any:
    """Return the function that embeds prompts for a number of samples."""

    def embed(prompts: list[str], count: int) -> tuple[Any, Any]:
        from .prompts import prompted

        found = prompted(params, prompts, count)
        return found.cond, found.captions

    return embed


def picture_function(params: Any) -> tuple[Any, int, bool]:
    """Return how a picture becomes an image of the members' space, the side of pictures, and whether they are grey.

    The function is None if the members' images are not square, or no encoder of their latents is known.
    """
    from ensdiff.models.space import Latents

    H, W, C = params.image_shape
    if not isinstance(params.space, Latents):
        return (lambda picture: picture) if H == W else None, H, C == 1
    codec = decoding.codec_of(params)
    if codec is None:
        return None, H, C == 1
    return (lambda picture: codec.encode(picture[None])[0]) if H == W else None, H * codec.factor, codec.grey


def server_of(session: Any, worker: Any, token: str) -> Any:
    """Return the uvicorn server of a session. It ends its computations when a signal comes."""
    import uvicorn

    from .live.app import build_app

    class Server(uvicorn.Server):
        """A server that ends its computations first, so that no response keeps it waiting."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            worker.close(timeout=0)
            super().handle_exit(sig, frame)

    return Server(
        uvicorn.Config(
            build_app(session, worker, token), loop="asyncio", http="h11", ws="none", lifespan="off",
            log_level="warning", access_log=False, proxy_headers=False, server_header=False, limit_concurrency=64,
            timeout_graceful_shutdown=3,
        )
    )  # fmt: skip


def serve(session: Any, listening: socket.socket) -> None:
    """Serve a session until SIGINT or SIGTERM."""
    from .live.jobs import Worker

    worker, token = Worker(), secrets.token_urlsafe(24)
    server = server_of(session, worker, token)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    listening.listen()  # who reads the address may ask at once
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after the server has ended
        print(f"explorer: http://127.0.0.1:{listening.getsockname()[1]}/{token}/")
        print("Only this machine can open it, by the whole address. Ctrl-C ends it.", flush=True)
        server.run(sockets=[listening])
    print("stopped", flush=True)
    if not worker.close():  # a compilation cannot be interrupted
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    flags.FLAGS.set_default("combined", 0)
    common.run(main, __doc__, optional="run")
