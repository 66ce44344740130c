"""Untrusted files run no code, write nothing to paths that they name, and cannot exhaust memory."""

import ast
import gzip
import html.parser
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

import ensdiff
from ensdiff.files.checksums import read_lines, read_sealed
from ensdiff.files.npy import most_bytes, read_npy, read_npz
from ensdiff.files.reading import open_regular
from ensdiff.interop import ctf
from ensdiff.interop.matrices import read_code
from ensdiff.interop.tensors import read_state_dict
from ensdiff.report import Page, attribution_sections, write_page
from ensdiff.runs.checkpoints import open_checkpoint
from tests.helpers import ROOT, blobs

pytestmark = pytest.mark.bad_input

SOURCES = [*sorted((ROOT / "ensdiff").rglob("*.py")), *sorted((ROOT / "experiments").rglob("*.py"))]


def calls(tree):
    """Yield every call with its dotted name and its keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node


ALLOWED = {("ensdiff/hosts.py", "pickle.loads"), ("ensdiff/runs/pieces.py", "np.load")}
"""Exceptions: messages between processes of one program, and the program's own files after a check of their sums."""


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_sources_read_nothing_unguarded(path):
    """No source calls a function that may run code, or that writes to paths from an archive, without a guard."""
    place = path.relative_to(ROOT).as_posix()
    for name, keywords, _ in calls(ast.parse(path.read_text())):
        if (place, name) in ALLOWED:
            continue
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"), name
        assert name not in ("np.load", "numpy.load", "np.fromfile", "pandas.read_pickle"), "use ensdiff.files.npy"
        assert not name.startswith(("yaml.", "marshal.", "shelve.", "dill.")), name
        assert not name.endswith((".extractall", ".unpack_archive")), name
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
        if name == "Image.open":
            assert "formats" in keywords, "Pillow starts other programs for some formats"
        if name == "Environment":
            assert keywords.get("autoescape") == "True"
        assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("shell", "False") == "False"


def test_the_audit_finds_unsafe_calls():
    source = "np.load(f, allow_pickle=True)\nImage.open(g)\ntorch.load(h)\npickle.loads(i)"
    assert [(name, keywords) for name, keywords, _ in calls(ast.parse(source))] == [
        ("np.load", {"allow_pickle": "True"}), ("Image.open", {}), ("torch.load", {}), ("pickle.loads", {}),
    ]  # fmt: skip


class Call:
    """An object whose pickle calls any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".pkl", ".npy", ".npz"])
@pytest.mark.parametrize("inside", ["alone", "in a list", "in an array"])
def test_pickles_are_not_run(tmp_path, suffix, inside):
    mark = tmp_path / "ran"
    value = Call(pathlib.Path.touch, mark)
    if inside == "in a list":
        value = [[0, 1], value]
    if inside == "in an array":
        value = np.array([value, 1], object)
    path = tmp_path / f"code{suffix}"
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.array([value], object), allow_pickle=True)
            archive.writestr("code.npy", stream.getvalue())
    elif suffix == ".npy":
        np.save(path, np.array([value], object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match="code"):
        read_code(path)
    if suffix == ".npz":
        with pytest.raises(ValueError, match="Python objects, which would have to be unpickled"):
            ensdiff.data.npz(path, "code")
    assert not mark.exists()
    path.with_suffix(".raw").write_bytes(pickle.dumps(Call(pathlib.Path.touch, mark)))
    pickle.loads(path.with_suffix(".raw").read_bytes())
    assert mark.exists()  # the payload does run when it is unpickled


@pytest.mark.torch
def test_torch_checkpoints_are_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    from ensdiff.interop.tensors import read_state_dict

    mark = tmp_path / "ran"
    torch.save({"a": torch.zeros(2), "b": Call(pathlib.Path.touch, mark)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not a checkpoint of tensors alone"):
        read_state_dict(tmp_path / "x.pt")
    assert not mark.exists()


def test_archive_members_do_not_leave_their_file(tmp_path):
    """Archives are never unpacked: names of members are looked up, but not used as paths."""
    inside = tmp_path / "inside"
    inside.mkdir()
    npz = inside / "x.npz"
    stream = io.BytesIO()
    np.save(stream, blobs())
    with zipfile.ZipFile(npz, "w") as archive:
        for name in ("../escaped.npy", "/tmp/ensdiff_escaped.npy", "images.npy"):
            archive.writestr(name, stream.getvalue())
    assert set(read_npz(npz)) == {"../escaped", "/tmp/ensdiff_escaped", "images"}
    assert ensdiff.data.npz(npz).items == 6
    with tarfile.open(inside / "x.ctf", "w") as tar:
        for name, kind, link in (
            ("../escaped", tarfile.REGTYPE, ""),
            ("config.json", tarfile.SYMTYPE, "/etc/passwd"),
            ("factual.png", tarfile.LNKTYPE, "../escaped"),
            ("training_set.png", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
    with pytest.raises(ValueError, match="config.json is missing"):
        ctf.read(inside / "x.ctf")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inside", "x.ctf", "x.npz"]


def header(shape, descr="|u1"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return np.lib.format.magic(1, 0) + struct.pack("<H", len(text)) + text.encode()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
import ensdiff
from ensdiff.interop import ctf
from ensdiff.files.npy import read_npy, read_npz
for read, path in ((read_npy, "a.npy"), (read_npz, "b.npz"), (ctf.read, "c.ctf"), (ctf.read, "d.ctf")):
    try:
        read(sys.argv[1] + "/" + path)
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_sizes_that_files_claim_are_not_believed(tmp_path):
    """A process with little address space refuses files that claim a terabyte array, a sparse array or 2^31 units."""
    (tmp_path / "a.npy").write_bytes(header((10**6, 10**6)) + b"few")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header((10**6, 10**6)) + bytes(2**20))
    config = {"Format": "ONEFILE", "TrainingUnits": 2**31, "NumberGenerated": 1}
    config |= {part + size: 8 for part in ("Train", "Gen") for size in ("Height", "Width")}
    config |= {"TrainChannel": 1, "GenChannel": 1}
    with tarfile.open(tmp_path / "c.ctf", "w") as tar:
        content = json.dumps(config).encode()
        info = tarfile.TarInfo("config.json")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    with tarfile.open(tmp_path / "d.ctf", "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("config.json")
        info.type, info.size = tarfile.GNUTYPE_SPARSE, 2**40
        tar.addfile(info)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert "has 1000000000000 bytes, but the file holds 3" in lines[0]
    assert "the file holds 1048576" in lines[1]
    assert "leave_1_out.png" in lines[2]
    assert "config.json is missing" in lines[3] or "not a plain tar" in lines[3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((2, 3)) + bytes(7), "has 6 bytes, but the file holds 7"),
        (header((2, 3)) + bytes(5), "has 6 bytes, but the file holds 5"),
        (header((10**6, 10**6)) + b"few", "has 1000000000000 bytes, but the file holds 3"),
        (header((-2, -3)) + bytes(6), r"shape \(-2, -3\)"),
        (header(()) + bytes(2), "has 1 bytes, but the file holds 2"),
        (header((2,), "<f8") + bytes(15), "has 16 bytes, but the file holds 15"),
    ],
    ids=["more", "fewer", "few", "negative", "scalar", "floats"],
)
def test_an_array_must_match_its_header(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.npy is not a readable .npy file: .*{message}"):
        read_npy(tmp_path / "a.npy")
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as archive:
            archive.writestr("images.npy", content)
        with pytest.raises(ValueError, match=f"a.npz is not a readable .npz file: .*{message}"):
            read_npz(tmp_path / "a.npz")


def claim(path, sizes):
    """Change the sizes of members that the directory of a zip file claims."""
    content, place = bytearray(path.read_bytes()), 0
    for size in sizes:
        place = content.index(b"PK\x01\x02", place + 1)
        struct.pack_into("<I", content, place + 24, size)
    path.write_bytes(content)


@pytest.mark.parametrize("sizes", [[2**30], [2**27 + 1, 2**27 + 1]], ids=["one", "all together"])
def test_a_small_archive_does_not_become_a_large_one(tmp_path, sizes):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(len(sizes)):
            archive.writestr(f"images{n}.npy", header((2**10, 2**10)) + bytes(2**20))
    assert read_npz(path)["images0"].shape == (2**10, 2**10)  # compressed 1,000 to 1, but small
    claim(path, sizes)
    with pytest.raises(ValueError, match=rf"x.npz: it has \d{{4}} bytes.* would expand to {sum(sizes)}.*numpy.savez"):
        read_npz(path)
    with pytest.raises(ValueError, match="would expand"):
        ensdiff.data.npz(path, "images0", groups=f"images{len(sizes) - 1}")
    assert most_bytes(1) == 2**28
    assert most_bytes(2**30) == 100 * 2**30


def test_two_arrays_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("code", "code.npy"):
            archive.writestr(name, header((1,)) + b"1")
    with pytest.raises(ValueError, match="x.npz: it holds two arrays named 'code'"):
        read_npz(tmp_path / "x.npz")


def test_compressed_data_sets_do_not_grow_without_bound(tmp_path, monkeypatch):
    names = [f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for name in names:
        with gzip.open(tmp_path / name, "wb") as file:
            file.write(struct.pack(">HBB3I", 0, 8, 3, 2**10, 2**10, 2**10) + bytes(2**20))
    with pytest.raises(ValueError, match=f"{names[0]} would expand to {2**30} bytes"):
        ensdiff.data.fashion_mnist(tmp_path)
    monkeypatch.setattr("ensdiff.data.readers.MOST_TEXT", 1000)
    with gzip.open(tmp_path / "mnist.csv.gz", "wt") as file:
        file.write("0," * 501)
    with pytest.raises(ValueError, match=r"mnist.csv.gz cannot be read .*: more than 1000 characters"):
        ensdiff.data.mnist5k(tmp_path / "mnist.csv.gz")


def test_arrays_of_every_kind_survive_the_checks(tmp_path):
    arrays = [
        np.zeros((0, 3)), np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array(3),
        np.array(["a", "bcd"]), np.array([True, False]), np.zeros((2, 2), ">f4"), np.array([], "U1"),
    ]  # fmt: skip
    for array in arrays:
        np.save(tmp_path / "a.npy", array)
        np.savez_compressed(tmp_path / "a.npz", a=array, other=np.zeros(3))
        for found in (read_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz", ["a"])["a"]):
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found, array)


def test_a_stream_that_ends_before_its_array(tmp_path):
    """A zip member with fewer bytes than its directory entry claims is refused."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header((100, 100)) + bytes(100))
    claim(path, [len(header((100, 100))) + 10_000])
    with pytest.raises(ValueError, match="x.npz is not a readable .npz file"):
        read_npz(path)


HOSTILE = [
    '"><img src=x onerror=alert(1)>',
    "<script>alert(1)</script>",
    "' onload='x",
    "{{ 7 * 7 }}",
    "</article>&amp;",
]


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def test_names_in_the_report_are_text(tiny, tmp_path):
    """HTML in unit names, titles and facts is shown as text, from the data set to the page."""
    names = [*HOSTILE, "honest"]
    data = ensdiff.data.from_images(blobs(), names=names, name=HOSTILE[0])
    samples = ensdiff.sample(tiny, 0, 3, steps=2)
    att = ensdiff.attribute(tiny, samples, "exact", top=6, null=0)
    sections = attribution_sections(tiny, data, samples, att)
    path = write_page(
        tmp_path / "page.html", Page(HOSTILE[1], [HOSTILE[2]], [(HOSTILE[0], HOSTILE[1])], samples=sections)
    )
    page = Tags()
    page.feed(path.read_text())
    assert "script" not in page.names
    assert not [entry for entry in page.attributes if entry[1].startswith("on")]
    assert all(value.startswith("data:") for tag, name, value in page.attributes if name == "src")
    text = "".join(page.text)
    for name in names:
        assert name in text
    assert page.names.count("article") == 3 * 6


def test_a_picture_of_every_kind_is_read(tmp_path):
    """Every format in the list of suffixes can be decoded."""
    for number, kind in enumerate(("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")):
        Image.fromarray(blobs()[number, ..., 0]).save(tmp_path / f"{number}.{kind.lower()}", kind)
    assert ensdiff.data.folder(tmp_path).items == 6


@pytest.mark.timeout(60)
def test_nobody_waits_for_a_pipe(tmp_path):
    """A pipe in place of a file is refused, because reading it might never end."""

    def pipe(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        return path

    readers = {
        "a.npz": ensdiff.data.npz, "a.csv.gz": ensdiff.data.mnist5k, "a.npy": read_code, "a.pkl": read_code,
        "a.json": read_code, "a.pt": read_state_dict, "a.safetensors": read_state_dict, "a.ctf": ctf.read,
        "pictures/b.png": lambda path: ensdiff.data.folder(path.parent), "run.json": read_sealed,
        "idx/train-images-idx3-ubyte.gz": lambda path: ensdiff.data.fashion_mnist(path.parent), "lines": read_lines,
        "checkpoints/4/_CHECKPOINT_METADATA": lambda path: open_checkpoint(path.parents[2], 4),
        "certificate.json": ensdiff.Certificate.load, "any": open_regular,
    }  # fmt: skip
    pipe("idx/train-labels-idx1-ubyte.gz")
    for name, read in readers.items():
        with pytest.raises((ValueError, FileNotFoundError), match=pathlib.Path(name).name):
            read(pipe(name))
    with pytest.raises(ValueError, match="expected a regular file"):
        open_regular(tmp_path)
    (tmp_path / "link").symlink_to(ROOT / "pyproject.toml")
    with open_regular(tmp_path / "link") as file:
        assert file.read(1) == b"["


def test_the_caller_s_limit_on_pictures_is_left_alone(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    ensdiff.data.folder(tmp_path)
    assert before == Image.MAX_IMAGE_PIXELS
