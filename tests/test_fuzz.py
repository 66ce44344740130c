"""Arbitrary settings, codes and files raise only documented errors."""

import dataclasses
import gzip
import io
import json
import pathlib
import pickle
import struct
import tarfile
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import ensdiff
from ensdiff.data import Manifest
from ensdiff.data.pictures import read_pictures
from ensdiff.files.npy import map_npy
from ensdiff.interop import ctf
from ensdiff.interop.matrices import read_code
from tests.helpers import CODE, blobs

pytestmark = [pytest.mark.bad_input, pytest.mark.filterwarnings("ignore::UserWarning")]

DOCUMENTED = (ValueError, FileNotFoundError)
LONG = pytest.param(800, marks=pytest.mark.slow)


def check(examples, strategy, call):
    """Call with ``examples`` examples, and fail unless each returns or raises a documented error."""

    said: list[str] = []

    @settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(strategy)
    def fuzz(value):
        try:
            call(value)
        except DOCUMENTED as error:
            said.append(str(error))

    fuzz()
    assert all(said)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.lists(SCALARS, max_size=3).map(tuple))
SETTINGS = [ensdiff.TrainConfig, ensdiff.UNetConfig, ensdiff.Schedule, ensdiff.SamplerConfig, ensdiff.LossConfig]


@pytest.mark.parametrize("examples", [100, LONG])
@pytest.mark.parametrize("kind", SETTINGS, ids=[kind.__name__ for kind in SETTINGS])
def test_settings(kind, examples):
    names = [field.name for field in dataclasses.fields(kind)]
    good = {name: getattr(kind(), name) for name in names}

    def make(changes):
        made = kind(**changes)
        hash(made)
        assert json.dumps(dataclasses.asdict(made)) is not None

    pairs = st.dictionaries(st.sampled_from(names), VALUES, max_size=3)
    typed = st.fixed_dictionaries(
        {},
        optional={
            name: st.integers(-2, 100) if isinstance(value, int) else st.floats(allow_nan=True)
            for name, value in good.items()
            if isinstance(value, (int, float))
        },
    )
    check(examples, st.one_of(pairs, typed), make)


def mutated(content):
    """Yield the bytes with some replaced, cut off, repeated or inserted, and sometimes arbitrary bytes."""
    n = len(content)

    def change(edits):
        out = bytearray(content)
        for kind, place, value in edits:
            place = min(place, max(0, len(out) - 1))
            if kind == "set" and out:
                out[place] = value
            elif kind == "cut":
                del out[place:]
            elif kind == "drop":
                del out[place : place + value]
            else:
                out[place:place] = out[place : place + value] if kind == "repeat" else bytes([value] * 3)
        return bytes(out)

    edit = st.tuples(
        st.sampled_from(["set", "set", "set", "cut", "drop", "repeat", "put"]),
        st.one_of(st.integers(0, min(n, 200)), st.integers(0, n)),
        st.integers(0, 255),
    )
    return st.one_of(st.lists(edit, min_size=1, max_size=4).map(change), st.binary(max_size=200))


def dumped(save, *args, **options):
    stream = io.BytesIO()
    save(stream, *args, **options)
    return stream.getvalue()


def picture(kind):
    return dumped(lambda stream: Image.fromarray(blobs()[0, ..., 0]).save(stream, kind))


def idx(array):
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes())


def read_idx(path):
    folder = path.parent
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(3, dtype=np.uint8)))
    ensdiff.data.fashion_mnist(folder)


def read_universe(path):
    with ctf.read(path) as universe:
        _ = universe.factual
        universe.training(0)
        universe.counterfactual(0)


@pytest.fixture(scope="module")
def universe(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("ctf") / "x.ctf"
    ctf.write(path, tiny, ensdiff.sample(tiny, 0, 3, steps=2), ensdiff.data.arrays(blobs())).close()
    return path.read_bytes()


MATRIX = CODE.matrix()
TABLE = "\n".join(",".join(["7"] * 785) for _ in range(2)).encode()


def shard():
    """Return a tar file of two samples."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for i in range(2):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(picture("PNG"))
            archive.addfile(info, io.BytesIO(picture("PNG")))
    return stream.getvalue()


READERS = {
    "images.npz": (lambda: dumped(np.savez, images=blobs()), ensdiff.data.npz),
    "small.npz": (lambda: dumped(np.savez_compressed, images=blobs()), ensdiff.data.npz),
    "code.npy": (lambda: dumped(np.save, MATRIX), read_code),
    "rows.npy": (lambda: dumped(np.save, MATRIX), lambda path: np.array(map_npy(path))),
    "code.npz": (lambda: dumped(np.savez, code=MATRIX), read_code),
    "code.pkl": (lambda: pickle.dumps(MATRIX), read_code),
    "old.pkl": (lambda: pickle.dumps(MATRIX, protocol=0), read_code),
    "code.json": (lambda: json.dumps(CODE.to_dict()).encode(), read_code),
    "a.png": (lambda: picture("PNG"), lambda path: read_pictures(path.parent)),
    "a.jpg": (lambda: picture("JPEG"), lambda path: read_pictures(path.parent)),
    "a.gif": (lambda: picture("GIF"), lambda path: read_pictures(path.parent)),
    "a.bmp": (lambda: picture("BMP"), lambda path: read_pictures(path.parent)),
    "a.tif": (lambda: picture("TIFF"), lambda path: read_pictures(path.parent)),
    "a.webp": (lambda: picture("WEBP"), lambda path: read_pictures(path.parent)),
    "train-images-idx3-ubyte.gz": (lambda: idx(np.arange(3 * 784).reshape(3, 28, 28).astype(np.uint8)), read_idx),
    "mnist_5k.csv.gz": (lambda: gzip.compress(TABLE), ensdiff.data.mnist5k),
    "shard.tar": (shard, lambda path: ensdiff.data.webdataset(path, cache=path.parent)),
    "latents.npz": (lambda: dumped(np.savez, latents=blobs() / 4.0, scale=2.0), ensdiff.data.latents),
    "conditional.manifest": (
        lambda: ensdiff.data.arrays(blobs(), condition=np.arange(len(blobs()))).manifest().to_bytes(),
        lambda path: Manifest.from_bytes(path.read_bytes()),
    ),
    "data.manifest": (
        lambda: ensdiff.data.arrays(blobs()).manifest().to_bytes(),
        lambda path: Manifest.from_bytes(path.read_bytes()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("examples", [40, LONG])
@pytest.mark.parametrize("name", READERS)
def test_files(name, examples):
    content, read = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        path.write_bytes(content())
        read(path)  # the unchanged file can be read

        def call(changed):
            path.write_bytes(changed)
            read(path)

        check(examples, mutated(content()), call)


@pytest.mark.parametrize("examples", [40, LONG])
def test_universes(universe, examples, tmp_path):
    path = tmp_path / "x.ctf"

    def call(changed):
        path.write_bytes(changed)
        read_universe(path)

    call(universe)
    check(examples, mutated(universe), call)


@pytest.mark.parametrize("examples", [40, LONG])
def test_saved_attributions(tiny, examples, tmp_path):
    att = ensdiff.attribute(tiny, ensdiff.sample(tiny, 0, 3, steps=2), "loss", top=2, null=0)
    att.save(tmp_path / "att")
    good = {suffix: (tmp_path / f"att{suffix}").read_bytes() for suffix in (".npz", ".json")}

    def call(change):
        suffix, content = change
        for name, whole in good.items():
            (tmp_path / f"att{name}").write_bytes(content if name == suffix else whole)
        ensdiff.Attribution.load(tmp_path / "att")

    call((".json", good[".json"]))
    check(examples, st.one_of(*(st.tuples(st.just(name), mutated(whole)) for name, whole in good.items())), call)


HIERARCHY = ensdiff.Code.hierarchical(6, np.arange(12) // 4, group_weight=4, weight=2)
JSON = st.recursive(SCALARS.filter(lambda v: not isinstance(v, bytes)), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6)  # fmt: skip


@pytest.mark.parametrize("examples", [100, LONG])
@pytest.mark.parametrize("code", [CODE, ensdiff.Code.from_matrix(MATRIX, list("abcdef")), HIERARCHY], ids=repr)
def test_serial_codes(code, examples):
    good = code.to_dict()
    changes = st.dictionaries(st.sampled_from([*good, "names", "groups", "matrix"]), JSON, max_size=2)
    inside = st.dictionaries(st.sampled_from(["count", "weight", "of_unit", "matrix"]), JSON, max_size=2)
    dropped = st.lists(st.sampled_from(list(good)), max_size=1)

    def read(change):
        values, some, lost = change
        out = {name: value for name, value in {**good, **values}.items() if name not in lost}
        if isinstance(out.get("groups"), dict):
            out["groups"] = {**out["groups"], **some}
        made = ensdiff.Code.from_dict(json.loads(json.dumps(out)))
        assert made.members >= 1
        made.rows([0, made.units - 1])
        if made.groups is not None:
            made.group_code().rows(made.group_of_unit()[:1])

    check(examples, st.tuples(changes, inside, dropped), read)
    check(examples, JSON, lambda values: ensdiff.Code.from_dict(values))


@pytest.mark.parametrize("examples", [60, LONG])
def test_matrices(examples):
    shapes = st.lists(st.lists(st.one_of(st.integers(-1, 2), st.floats(), st.booleans()), max_size=4), max_size=4)
    check(examples, shapes, lambda rows: ensdiff.Code.from_matrix(np.asarray(rows)))


@pytest.mark.parametrize("examples", [60, LONG])
def test_images_and_groups(examples):
    arrays = st.one_of(
        st.lists(st.integers(0, 5), max_size=5).map(lambda shape: np.zeros(shape, np.uint8)),
        st.lists(st.floats(), min_size=4, max_size=4).map(lambda v: np.array(v).reshape(2, 2, 1, 1)),
        VALUES,
    )
    check(examples, st.tuples(arrays, VALUES), lambda pair: ensdiff.data.arrays(*pair))
