"""The live explorer: its requests, answered in one process (test_serve_program runs the program as typed)."""

import base64
import collections
import contextlib
import dataclasses
import http.client
import io
import json
import threading

import jax
import numpy as np
import pytest
from PIL import Image

import ensdiff
from ensdiff.data.checked import from_images
from ensdiff.data.images import to_png
from tests.explorations import HOSTILE, groups, items, latents
from tests.helpers import TINY, blobs, random_ensemble

testclient = pytest.importorskip("starlette.testclient", reason="starlette is not installed: pip install -e '.[dev]'")

from experiments.live import asking
from experiments.live.app import build_app
from experiments.live.jobs import Worker
from experiments.live.session import MOST_SETS, Session
from tests.serving import NAMES, TOKEN, explored, served, session_of, slowly, source, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flat():
    return items(NAMES, top=6)


@pytest.fixture(scope="module")
def session(flat):
    return session_of(flat)


@pytest.fixture(scope="module")
def worker():
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def client(session, worker):
    with testclient.TestClient(build_app(session, worker, TOKEN), base_url="http://127.0.0.1:99") as client:
        client.base_url = f"http://127.0.0.1:99/{TOKEN}/"
        yield client


def events(answer):
    """Return the events of a computation."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]


def outcome(answer):
    """Return the result of a computation."""
    last = events(answer)[-1]
    assert "done" in last, last
    return last["done"]


def removed(client, units, sample=0, **more):
    return client.post("remove", json={"set": 0, "layer": 0, "sample": sample, "units": units, **more})


def png(uri):
    return base64.b64decode(uri.removeprefix("data:image/png;base64,"))


def picture(side=8, value=120):
    stream = io.BytesIO()
    Image.new("L", (side, side), value).save(stream, "PNG")
    return stream.getvalue()


def test_only_the_whole_address_is_answered(session, worker):
    app = build_app(session, worker, TOKEN)
    with testclient.TestClient(app, base_url="http://127.0.0.1:99", follow_redirects=False) as client:
        said = set()
        for path in (
            "/",
            "/wrong/",
            f"/{TOKEN}x/",
            f"/{TOKEN[:-1]}/",
            f"//{TOKEN}/",
            "/source/live.js",
            "/%ff/",
            "/remove",
        ):
            answer = client.get(path)
            said.add((answer.status_code, answer.text))
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert len(said) == 1
        assert said.pop()[0] == 403
        assert client.post("/remove", json={"units": [1]}).status_code == 403
        assert client.get(f"/{TOKEN}").headers["location"] == f"/{TOKEN}/"
        answer = client.get(f"/{TOKEN}/")
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        for host in ("evil.example", "evil.example:99", "127.0.0.1.evil.example:99", "", "10.0.0.7:99"):
            assert client.get(f"/{TOKEN}/", headers={"host": host}).status_code == 421
        assert client.get(f"/{TOKEN}/", headers={"host": "localhost:99"}).status_code == 200
        for origin in ("http://evil.example", "null", "http://127.0.0.1:98"):
            answer = client.post(f"/{TOKEN}/remove", json={"units": [1]}, headers={"origin": origin})
            assert answer.status_code == 403


def test_the_page_is_the_explorer_and_its_names_are_escaped(client):
    page = client.get("")
    assert "window.hacked" not in page.text.replace("\\u003cscript\\u003ewindow.hacked", "")
    assert "<script>" not in page.text
    assert "http-equiv" not in page.text
    for name in ("explorer.css", "explorer.js", "live.css", "live.js"):
        assert client.get(f"source/{name}").status_code == 200
    assert client.get("data/0/landscape-0-1").json()["units"]
    block = client.get("data/0/units-0-1").json()
    assert sorted(map(int, block)) == list(range(16, 20))
    assert block["17"][0] == "picture 17"
    assert client.get("data/0/units-0-0").json()["0"][0] == HOSTILE


def test_a_removal_is_the_counterfactual(client, flat):
    params, _, samples, _ = flat
    for sample, units in ((0, [3]), (2, [5, 7]), (1, [19])):
        found = outcome(removed(client, units, sample))
        expected = ensdiff.counterfactuals(params, samples[[sample]], [units])[0, 0]
        assert png(found["removal"][1]) == to_png(expected)
        distance = np.linalg.norm(expected - np.asarray(samples.images[sample]))
        assert found["removal"][0] == pytest.approx(distance, rel=1e-5)
        assert found["ids"] == units
        assert found["survivors"] == int(params.code.survivors(units).sum())


def test_units_by_name(client):
    assert outcome(removed(client, ["b & c"]))["ids"] == [1]
    assert outcome(removed(client, "ada l., 5"))["ids"] == [2, 5]
    assert client.post("units", json={"units": "Ada M.,3"}).json() == {"ids": [3]}
    answer = removed(client, "ada")
    assert answer.status_code == 400
    assert "id:2 (Ada L.)" in answer.json()["error"]
    assert "id:3 (Ada M.)" in answer.json()["error"]


def test_no_survivor_is_said(client, flat):
    code = flat[0].code
    pair = next([a, b] for a in range(20) for b in range(a) if not code.survivors([a, b]).any())
    answer = removed(client, pair)
    assert answer.status_code == 400
    assert "no member survives" in answer.json()["error"].lower()


BAD = {
    "no JSON": ("remove", b"{", 400),
    "not text": ("remove", b"\xff\xfe", 400),
    "a list": ("remove", b"[1]", 400),
    "NaN": ("remove", b'{"units": [1], "sample": NaN}', 400),
    "deep": ("remove", b"[" * 5000, 400),
    "twice": ("remove", b'{"units": [1], "units": [2]}', 400),
    "unknown field": ("remove", {"units": [1], "sample": 0, "path": "/etc/passwd"}, 400),
    "no sample": ("remove", {"units": [1]}, 400),
    "a far sample": ("remove", {"units": [1], "sample": 3}, 400),
    "a negative sample": ("remove", {"units": [1], "sample": -1}, 400),
    "true": ("remove", {"units": [1], "sample": True}, 400),
    "no units": ("remove", {"units": [], "sample": 0}, 400),
    "no such unit": ("remove", {"units": [20], "sample": 0}, 400),
    "a negative unit": ("remove", {"units": [-1], "sample": 0}, 400),
    "a huge unit": ("remove", {"units": [10**30], "sample": 0}, 400),
    "half a unit": ("remove", {"units": [1.5], "sample": 0}, 400),
    "an unknown name": ("remove", {"units": ["eve"], "sample": 0}, 400),
    "a long name": ("remove", {"units": ["x" * 1001], "sample": 0}, 400),
    "many units": ("remove", {"units": [1] * 65, "sample": 0}, 400),
    "no such set": ("remove", {"units": [1], "sample": 0, "set": 9}, 404),
    "no such layer": ("remove", {"units": [1], "sample": 0, "layer": 1}, 400),
    "an oversized body": ("remove", b" " * (asking.LARGEST_FIELDS + 1), 413),
    "many samples": ("draw", {"n": 17, "seed": 0}, 400),
    "no samples": ("draw", {"n": 0, "seed": 0}, 400),
    "a negative seed": ("draw", {"n": 1, "seed": -1}, 400),
    "a class": ("draw", {"n": 1, "seed": 0, "cond": "cat"}, 400),
    "a prompt": ("draw", {"n": 1, "seed": 0, "prompt": "a cat"}, 400),
    "guidance larger than a float": ("draw", b'{"n": 1, "seed": 0, "guidance": 1' + b"0" * 400 + b"}", 400),
    "guidance without a condition": ("draw", {"n": 1, "seed": 0, "guidance": 2}, 400),
    "no picture": ("attribute", b"GIF", 400),
    "PostScript": ("attribute", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", 400),
    "an empty picture": ("attribute", b"", 400),
    "many pixels": ("attribute", picture(4097), 413),
    "another method": ("attribute?method=exact", picture(), 400),
    "a file": ("attribute?path=/etc/passwd", picture(), 400),
    "GET": ("GET remove", b"", 405),
    "no such address": ("elsewhere", b"", 404),
    "no such part": ("GET data/0/units-0-9", b"", 404),
    "a part outside": ("GET data/0/..%2f..%2fetc", b"", 404),
    "no such source": ("GET source/write.py", b"", 404),
    "PUT": ("PUT remove", b"", 405),
}  # fmt: skip


@pytest.mark.bad_input
def test_bad_requests(client, worker):
    """Each is answered by a client's error with one sentence, and nothing is computed or changed."""
    for name, (path, body, status) in BAD.items():
        method, _, path = path.rpartition(" ")
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        answer = client.request(method or "POST", path, content=content)
        assert answer.status_code == status, (name, answer.text)
        said = answer.json()["error"]
        assert said[0].isupper(), (name, said)
        assert said.endswith("."), (name, said)
        assert "Traceback" not in said, (name, said)
        assert "/" not in said.replace("16,777,216", ""), (name, said)
        assert len(said) < 400, (name, said)
    assert worker.idle()
    assert outcome(removed(client, [3]))["ids"] == [3]


def test_a_body_without_its_length(client):
    def parts():
        for _ in range(20):
            yield b" " * 8192

    assert client.post("remove", content=parts()).status_code == 413


def test_many_removals_compile_nothing_and_start_no_thread(client, flat):
    code = flat[0].code
    pairs = [(a, b) for a in range(20) for b in range(a) if code.survivors([a, b]).any()]
    ways = [[a] for a in range(20)] + [list(pair) for pair in pairs][:40]
    outcome(removed(client, ways.pop()))
    outcome(removed(client, ways.pop()))
    compiled = collections.Counter()

    def listen(name, *_, **__):
        compiled[name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        before = threading.active_count()
        for i, units in enumerate(ways[:50]):
            assert outcome(removed(client, units, sample=i % 3))["survivors"]
        assert threading.active_count() <= before
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(ways[:50]) == 50
    assert compiled["/jax/core/compile/backend_compile_duration"] == 0, compiled


def test_other_samples(client, session, flat):
    params = flat[0]
    number = outcome(client.post("draw", json={"n": 2, "seed": 5}))["set"]
    samples = ensdiff.sample(params, 5, 2, steps=3)
    page = client.get("", params={"set": number})
    assert base64.b64encode(to_png(np.asarray(samples.images[1]))).decode() in page.text
    found = outcome(removed(client, [4], sample=1, set=number))
    expected = ensdiff.counterfactuals(params, samples, [4])[0, 1]
    assert png(found["removal"][1]) == to_png(expected)
    for seed in range(MOST_SETS):
        last = outcome(client.post("draw", json={"n": 1, "seed": seed}))["set"]
    assert len(session._sets) == MOST_SETS
    assert client.get("", params={"set": number}).status_code == 404
    assert client.get("", params={"set": last}).status_code == client.get("").status_code == 200


def test_a_picture_by_loss_and_by_gradients(client, flat):
    params = flat[0]
    found = outcome(client.post("attribute", content=picture()))
    assert len(found["rows"]) == 6
    assert found["title"] == "By loss"
    assert found["verdict"]
    att = ensdiff.attribute(
        params, np.full((1, 8, 8, 1), 120, np.uint8), "loss", top=6, null=5, loss=ensdiff.LossConfig(draws=64)
    )
    assert [row[0] for row in found["rows"]] == att.units[0].tolist()
    assert png(found["picture"]) == to_png(np.full((8, 8, 1), 120, np.uint8))
    found = outcome(client.post("attribute?method=d-trak", content=picture()))
    assert found["title"] == "By d-trak"
    assert found["verdict"] is None  # nothing was held out


def test_groups_are_a_layer(worker):
    world = groups()
    params, _, samples, _ = world
    session = session_of(world)
    with testclient.TestClient(build_app(session, worker, TOKEN), base_url="http://localhost:9") as client:
        client.base_url = f"http://localhost:9/{TOKEN}/"
        found = outcome(removed(client, "x", layer=1))
        assert found["ids"] == [1]
        expected = ensdiff.counterfactuals(params, samples, [1], code=params.code.group_code())[0, 0]
        assert png(found["removal"][1]) == to_png(expected)


def test_a_request_that_is_closed_ends_its_computation(flat):
    """As a browser does for a closed tab. Others wait for their turn, and are told so."""
    started = threading.Event()
    with served(session_of(flat, explore=lambda samples: slowly(started))) as (address, worker):
        host, path = address.removeprefix("http://").split("/", 1)
        one, other = (http.client.HTTPConnection(host, timeout=30) for _ in range(2))
        one.request("POST", f"/{path}draw", json.dumps({"n": 1, "seed": 0}))
        assert one.getresponse().readline().startswith(b"data: ")
        assert started.wait(60)
        other.request("POST", f"/{path}remove", json.dumps({"sample": 0, "units": [3]}))
        answer = other.getresponse()
        assert b"waiting for 1 other computation" in answer.readline()
        assert not worker.idle()
        one.close()  # with its response, which also holds the socket
        last = json.loads(answer.read().decode().strip().rpartition("data: ")[2])
        assert last["done"]["ids"] == [3]
        until(worker.idle)


@contextlib.contextmanager
def asking_of(session, worker):
    """Yield a client of a session."""
    with testclient.TestClient(build_app(session, worker, TOKEN), base_url="http://localhost:9") as client:
        client.base_url = f"http://localhost:9/{TOKEN}/"
        yield client


def test_classes_are_typed_and_latents_decoded(worker):
    params, data, samples, decode = latents()

    def encode(picture):
        return (picture[::2, ::2, [0, 1, 2, 0]] / 255.0).astype(np.float32)

    options = source(params, data, decode, picture=encode, grey=False, side=8, null=0)
    with asking_of(Session(options, explored(params, data, samples, decode)), worker) as client:
        page = client.get("").text
        assert '<option value="&lt;b&gt;dog&lt;/b&gt;">' in page
        assert "<b>dog" not in page
        assert 'name="prompt"' not in page
        found = outcome(client.post("draw", json={"n": 2, "seed": 3, "cond": "fox, <b>dog</b>", "guidance": 2}))
        expected = ensdiff.sample(params, 3, 2, steps=2, cond=["fox", "<b>dog</b>"], guidance=2.0)
        page = client.get("", params=found).text
        for picture in decode(np.asarray(expected.images)):
            assert base64.b64encode(to_png(picture)).decode() in page
        answer = outcome(removed(client, [5], sample=1, **found))
        without = ensdiff.counterfactuals(params, expected, [5])[0, 1]
        assert png(answer["removal"][1]) == to_png(decode(without[None])[0])
        assert answer["removal"][0] == pytest.approx(np.linalg.norm(without - expected.images[1]), rel=1e-4)
        for fields in ({"cond": "wolf"}, {"cond": "cat,fox,cat"}, {"prompt": "a cat"}, {"cond": "none", "guidance": 2}):
            answer = client.post("draw", json={"n": 2, **fields})
            assert answer.status_code == 400, fields
            assert "--" not in answer.json()["error"]
        answer = outcome(client.post("attribute?cond=cat", content=coloured()))
        values = encode(np.full((8, 8, 3), (10, 200, 30), np.uint8))[None]
        loss = ensdiff.LossConfig(draws=64)
        att = ensdiff.attribute(params, values, "loss", top=6, cond="cat", loss=loss)
        assert [row[0] for row in answer["rows"]] == att.units[0].tolist()
        other = outcome(client.post("attribute", content=coloured()))
        assert other["rows"] != answer["rows"]  # without condition


def coloured():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 200, 30)).save(stream, "PNG")
    return stream.getvalue()


def test_prompts_are_typed(worker):
    """The text encoder is a stand-in: tests/experiments/test_prompts.py tests real ones."""
    rows = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    data = from_images(blobs(12), condition=rows).with_condition(
        rows, null=np.zeros(3, np.float32), encoder="a text encoder"
    )
    model = dataclasses.replace(TINY, condition_width=3)
    params = random_ensemble(ensdiff.Code.balanced(6, 12, seed=0), model, condition=data.condition_spec)
    samples = ensdiff.sample(params, 0, 2, steps=2, cond=rows[:2], captions=["one", "two"])

    def embed(prompts, count):
        assert prompts == ["a <b>cat"]
        return np.ones((count, 3), np.float32), ("a <b>cat",) * count

    options = source(params, data, prompted=embed, null=0)
    with asking_of(Session(options, explored(params, data, samples)), worker) as client:
        assert 'name="prompt"' in client.get("").text
        found = outcome(client.post("draw", json={"n": 1, "seed": 3, "prompt": " a <b>cat "}))
        page = client.get("", params=found).text
        assert '"captions":["a \\u003cb\\u003ecat"]' in page
        expected = ensdiff.sample(params, 3, 1, steps=2, cond=np.ones((1, 3), np.float32))
        assert base64.b64encode(to_png(np.asarray(expected.images[0]))).decode() in page
        assert client.post("draw", json={"n": 1, "cond": "cat"}).status_code == 400
        assert client.post("draw", json={"n": 1, "prompt": "x" * 1001}).status_code == 400
        assert outcome(client.post("attribute?prompt=a+%3Cb%3Ecat", content=picture()))["rows"]


def test_without_squares_or_an_encoder_no_picture_is_attributed(flat, worker):
    with asking_of(session_of(flat, picture=None), worker) as client:
        assert 'id="own"' not in client.get("").text
        answer = client.post("attribute", content=picture())
        assert answer.status_code == 400
        assert "Pictures cannot be attributed" in answer.json()["error"]
