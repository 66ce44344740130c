"""The server's addresses. Everything is below the token, for this machine only, and bounded.

A computation is answered by server-sent events in the response to its own request: when the page goes away, so does the
request, and with it the computation.
"""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from . import asking
from .asking import Refused
from .jobs import BusyError, Cancelled, Job, Worker
from .session import METHODS, Session, check_picture, class_names, takes_prompts

POLICY = (
    "default-src 'none'; img-src data:; style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
HOSTS = ("127.0.0.1", "localhost")
"""The names of this machine in a request. Others mean that another site's name was made to point here."""
PATIENCE = 30.0
"""Seconds in which the body of a request must arrive."""
LOOK, ALIVE = 0.05, 1.0
"""Seconds between looks at a computation, and between events of one that makes no progress."""


class Guard:
    """ASGI middleware: refuses requests without the token or for another host, and adds headers to every answer."""

    def __init__(self, app: Any, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        given, slash, rest = scope["path"].removeprefix("/").partition("/")
        allowed = hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.token)
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            answer: Any = _error(421, "This server answers only requests to 127.0.0.1 or localhost.")
        elif not allowed:
            answer = _error(403, "Open the whole address that experiments.serve printed: it holds a token.")
        elif headers.get(b"origin", f"http://{host}") != f"http://{host}":
            answer = _error(403, "This server answers only its own page.")
        elif not slash:
            answer = Response(status_code=307, headers={"Location": f"/{given}/"})
        else:
            path = f"/{rest}"
            scope = {**scope, "path": path, "raw_path": path.encode("utf-8", "surrogateescape")}
            answer = self.app
        await answer(scope, receive, with_headers)


class Events(StreamingResponse):
    """The events of a computation. However the response ends, the computation does too."""

    def __init__(self, job: Job, worker: Worker, run: Any) -> None:
        super().__init__(_events(job, worker, run), media_type="text/event-stream")
        self.job = job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        except (ClientDisconnect, OSError):
            pass
        finally:
            self.job.cancel()


async def _events(job: Job, worker: Worker, run: Any) -> AsyncIterator[str]:
    said, since = None, 0.0
    while True:
        state = job.state
        if state.over:
            break
        before = worker.before(job)
        text = f"waiting for {before} other computation{'s' * (before != 1)}" if before else state.text
        event = {"progress": {"text": text, "share": None if before else state.share}}
        if event != said or since >= ALIVE:
            yield _event(event)
            said, since = event, 0.0
        await asyncio.sleep(LOOK)
        since += LOOK
    if isinstance(state.error, Cancelled):
        yield _event({"error": "The computation was cancelled."})
    elif state.error is not None:
        yield _event({"error": asking.sentence(state.error, run)})
    else:
        yield _event({"done": state.result})


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, allow_nan=False)}\n\n"


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)


def build_app(session: Session, worker: Worker, token: str) -> Any:
    """Return the ASGI application that serves a session at ``/TOKEN/``."""
    run = session.source.run
    spec = session.source.params.condition
    drawing = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def call(request: Request) -> Response:
            try:
                return await answer(request)
            except Refused as error:
                return _error(error.status, asking.sentence(error, run))
            except BusyError:
                return _error(429, "Too many computations are waiting: try again when one is done.")
            except ClientDisconnect:
                return Response(status_code=400)

        return call

    async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(drawing, function, *args)

    async def fields(request: Request, *names: str) -> dict[str, Any]:
        values = asking.fields_of(await body(request, asking.LARGEST_FIELDS, "The request"))
        asking.only(values, *names)
        return values

    def computed(compute: Callable[[], Any]) -> Response:
        return Events(worker.submit(compute), worker, run)

    async def page(request: Request) -> Response:
        return HTMLResponse(session.shown(request.query_params).html)

    async def source(request: Request) -> Response:
        from ensdiff.report.explorer.live import live_source

        name = request.path_params["name"]
        try:
            content = live_source(name)
        except KeyError:
            raise Refused(404, "The page has no such part.") from None
        return Response(content, media_type="text/css" if name.endswith(".css") else "text/javascript")

    async def part(request: Request) -> Response:
        values = {"set": request.path_params["set"]}
        content = await in_thread(session.part, values, request.path_params["name"])
        return Response(content, media_type="application/json")

    async def units(request: Request) -> Response:
        values = await fields(request, "set", "layer", "units")
        _, layer = session.layer(session.shown(values), values)
        return JSONResponse({"ids": session.units(layer, asking.units_of(values))})

    async def remove(request: Request) -> Response:
        values = await fields(request, "set", "layer", "sample", "units")
        found = session.shown(values)
        number, layer = session.layer(found, values)
        sample = asking.whole(values, "sample", 0, len(found.exploration.samples) - 1)
        ids = session.units(layer, asking.units_of(values))
        session.survivors(layer, ids)
        known = found.removals.get((number, sample, tuple(ids)))
        if known is not None:
            return Response(_event({"done": known}), media_type="text/event-stream")
        return computed(lambda: session.remove(found, number, sample, ids))

    async def draw(request: Request) -> Response:
        values = await fields(request, "n", "seed", "cond", "prompt", "guidance")
        n = asking.whole(values, "n", 1, asking.MOST_SAMPLES)
        seed = asking.whole(values, "seed", 0, 2**31 - 1, default=0)
        guidance = asking.number(values, "guidance", 100)
        cond, prompt = condition(values, n)
        if guidance is not None and prompt is None and (spec is None or cond == "none"):
            raise Refused(400, f"guidance={guidance:g} needs a condition: leave it out, or give a condition.")
        return computed(lambda: session.draw(n, seed, cond, prompt, guidance))

    async def attribute(request: Request) -> Response:
        values = request.query_params
        asking.only(values, "set", "layer", "method", "cond", "prompt")
        _, layer = session.layer(session.shown(values), values)
        if session.source.picture is None:
            raise Refused(400, "Pictures cannot be attributed here: the images are no squares, or no encoder is known.")
        method = values.get("method", "loss")
        if method not in METHODS:
            raise Refused(400, f"method={method[:40]!r}: expected one of {', '.join(METHODS)}.")
        cond, prompt = condition(values, 1)
        content = await body(request, asking.LARGEST_FILE, "The picture")
        check_picture(content)
        return computed(lambda: session.attribute(layer, method, content, cond, prompt))

    def condition(values: Any, n: int) -> tuple[str | None, str | None]:
        from ..conditions import asked

        cond, prompt = asking.text(values, "cond"), asking.text(values, "prompt")
        if cond is not None and class_names(spec) is None:
            raise Refused(400, "The members of this run are not conditioned on classes: leave the class out.")
        if prompt is not None and not takes_prompts(spec):
            raise Refused(400, "The members of this run are not conditioned on texts: leave the prompt out.")
        try:
            asked(spec, cond, n)
        except ValueError as error:
            raise Refused(400, f"Class {str(error).removeprefix('--cond=')}.") from None
        return cond, prompt

    async def missing(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return _error(status, "There is nothing here." if status == 404 else "This address takes other requests.")

    routes = [
        Route("/", guarded(page)),
        Route("/source/{name}", guarded(source)),
        Route("/data/{set}/{name}", guarded(part)),
        *(Route(f"/{f.__name__}", guarded(f), methods=["POST"]) for f in (units, remove, draw, attribute)),
    ]
    app = Starlette(routes=routes, exception_handlers={404: missing, 405: missing, 500: _failed})
    app.router.redirect_slashes = False
    return Guard(app, token)


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, "The server made a mistake. Where it was started, there is more about it.")


async def body(request: Request, most: int, what: str) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: it has more than ``most`` bytes, or does not arrive in time.
    """
    too_large = Refused(413, f"{what} is too large: expected at most {most:,} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:18]) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"{what} did not arrive within {PATIENCE:g} seconds.") from None
    return b"".join(parts)
