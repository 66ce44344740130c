"""Counterfactual universe files: round trips, interrupted writes, and refused files."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

import ensdiff
from ensdiff.data.images import to_uint8
from ensdiff.interop import ctf
from tests.faults import flip
from tests.helpers import blobs

GROUPS = ["b", "a", "a", "c", "d", "d", "d", "e", "f"]


@pytest.fixture(scope="module")
def landscape(tiny):
    samples = ensdiff.sample(tiny, 0, 3, steps=2)
    return tiny, samples, ensdiff.counterfactuals(tiny, samples, range(6))


@pytest.fixture(scope="module")
def whole(landscape, tmp_path_factory):
    params, samples, _ = landscape
    path = tmp_path_factory.mktemp("ctf") / "whole.ctf"
    ctf.write(path, params, samples, ensdiff.data.arrays(blobs())).close()
    return path


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_round_trip(landscape, tmp_path, groups):
    params, samples, counterfactuals = landscape
    data = ensdiff.data.arrays(blobs(6 if groups is None else len(groups)), groups)
    path = tmp_path / "some.ctf"
    with ctf.write(path, params, samples, data) as universe:
        assert (universe.units, universe.count, universe.image_shape) == (6, 3, (8, 8, 1))
        np.testing.assert_array_equal(universe.factual, to_uint8(samples.images))
        for unit, images in enumerate(universe.counterfactuals()):
            assert np.abs(images.astype(float) - 255 * counterfactuals[unit]).max() <= 0.5 + 1e-3
        for unit in range(6):
            np.testing.assert_array_equal(universe.training(unit), data.images[data.items_of(unit)])
        assert "3 samples of 8x8x1, 6 training units" in repr(universe)
        assert universe.unit_names == (None if groups is None else list("abcdef"))
        with pytest.raises(ValueError, match="unit 6 does not exist"):
            universe.counterfactual(6)
    assert [p.name for p in tmp_path.iterdir()] == ["some.ctf"]
    with pytest.raises(FileExistsError, match="exists already"):
        ctf.write(path, params, samples, data)


def test_layout_is_the_documented_one(whole):
    with tarfile.open(whole, "r:") as tar:
        names = sorted(tar.getnames())
        config = json.load(tar.extractfile("config.json"))
        sheet = np.asarray(Image.open(io.BytesIO(tar.extractfile("training_set.png").read())))
    assert names == sorted(
        ["config.json", "factual.png", "training_set.png", *(f"leave_{i}_out.png" for i in range(1, 7))]
    )
    assert config == {
        "Format": "ONEFILE", "TrainingUnits": 6, "NumberGenerated": 3, "TrainHeight": 8, "TrainWidth": 8,
        "TrainChannel": 1, "GenHeight": 8, "GenWidth": 8, "GenChannel": 1,
    }  # fmt: skip
    assert sheet.shape == (24, 16)  # a full grid, 3 rows of 2 tiles
    np.testing.assert_array_equal(sheet[8:16, 8:16], blobs()[3, ..., 0])


def test_colour_images_and_a_prime_number_of_tiles(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(ctf._picture(images))
    assert np.asarray(Image.open(tmp_path / "x.png")).shape == (28, 6, 3)


def test_an_interrupted_write_continues(landscape, whole, tmp_path, monkeypatch):
    params, samples, _ = landscape
    data = ensdiff.data.arrays(blobs())
    path = tmp_path / "x.ctf"
    computed, plain = [], ctf.ablated

    def ablated(params, samples, rows, index, resources):
        computed.append(len(rows) // len(samples))
        if len(computed) == 3:
            raise KeyboardInterrupt
        return plain(params, samples, rows, index, resources)

    monkeypatch.setattr(ctf, "ablated", ablated)
    monkeypatch.setattr(ctf, "STATES", 6)  # two units per call
    with pytest.raises(KeyboardInterrupt):
        ctf.write(path, params, samples, data)
    assert not path.exists()
    ctf.write(path, params, samples, data).close()
    assert computed == [2, 2, 2, 2]
    assert list(tmp_path.iterdir()) == [path]
    with ctf.read(path) as a, ctf.read(whole) as b:
        for x, y in zip(a.counterfactuals(), b.counterfactuals(), strict=True):
            np.testing.assert_array_equal(x, y)


def parts_of(path):
    with ctf.read(path) as universe:
        return [universe.config, universe.factual, *universe.counterfactuals(), *map(universe.training, range(6))]


def never(*_, **__):
    raise AssertionError("finished parts must not be recomputed")


def test_pictures_of_other_samples_are_not_taken(landscape, whole, tmp_path, monkeypatch):
    params, samples, _ = landscape
    data = ensdiff.data.arrays(blobs())
    path = tmp_path / "x.ctf"
    with monkeypatch.context() as patch:
        patch.setattr(ctf.Universe, "check", unreadable)
        with pytest.raises(ensdiff.DamagedError):
            ctf.write(path, params, ensdiff.sample(params, 1, 3, steps=2), data)
    ctf.write(path, params, samples, data).close()
    for found, expected in zip(parts_of(path), parts_of(whole), strict=True):
        assert np.array_equal(found, expected)
    assert list(tmp_path.iterdir()) == [path]


def unreadable(_):
    raise ensdiff.DamagedError("packed is damaged")


def test_damage_to_an_unfinished_file_is_not_packed(landscape, whole, tmp_path, monkeypatch):
    """Kept pictures are compared with their checksums; they are deleted after the packed file was checked."""
    params, samples, _ = landscape
    data = ensdiff.data.arrays(blobs())
    path, folder = tmp_path / "x.ctf", tmp_path / "x.ctf.partial"

    def another(_):
        path.write_bytes(b"a good one")

    def write():
        ctf.write(path, params, samples, data).close()

    with monkeypatch.context() as patch:
        patch.setattr(ctf.Universe, "check", unreadable)
        with pytest.raises(ensdiff.DamagedError, match="packed is damaged"):
            write()
        assert not path.exists()
        patch.setattr(ctf, "ablated", never)
        patch.setattr(ctf.Universe, "check", another)
        with pytest.raises(FileExistsError, match="appeared during the computation"):
            write()
        assert path.read_bytes() == b"a good one"
        path.unlink()
    [kept] = folder.glob("*.npz")
    flip(kept, kept.stat().st_size // 2)
    with pytest.warns(ensdiff.DamageWarning, match="is recomputed"):
        write()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == whole.read_bytes()


def test_check_reads_every_part(whole, tmp_path):
    """`Universe.check` finds damage in every part, also in those that are otherwise read only when used."""
    path = tmp_path / "x.ctf"
    with ctf.read(whole) as universe:
        universe.check()
        places = {member.name: member.offset_data for member in universe._members.values()}
    for name in ("factual.png", "leave_6_out.png", "training_set.png"):
        path.write_bytes(whole.read_bytes())
        flip(path, places[name] + 50)
        with ctf.read(path) as universe, pytest.raises(ensdiff.DamagedError, match=f"{name} does not match its check"):
            universe.check()


def test_other_data_are_refused(landscape, tmp_path):
    params, samples, _ = landscape
    with pytest.raises(ValueError, match="the data have 5 units of .*, the ensemble 6"):
        ctf.write(tmp_path / "x.ctf", params, samples, ensdiff.data.arrays(blobs(5)))
    with pytest.raises(ValueError, match="needs the noise of the samples"):
        ctf.write(tmp_path / "x.ctf", params, samples.images, ensdiff.data.arrays(blobs()))
    assert not list(tmp_path.iterdir())


def altered(whole, path, change):
    """Write a copy of the file with some members changed (bytes), removed (None) or added, and return its path."""
    with tarfile.open(whole, "r:") as tar:
        content = {name: tar.extractfile(name).read() for name in tar.getnames()} | change
    with tarfile.open(path, "w") as tar:
        for name, value in content.items():
            if value is not None:
                info = tarfile.TarInfo(name)
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    return path


def config_with(whole, **change):
    with ctf.read(whole) as universe:
        return json.dumps({**universe.config, **change}).encode()


def png(shape, mode="L"):
    stream = io.BytesIO()
    Image.new(mode, shape).save(stream, "PNG")
    return stream.getvalue()


def test_damaged_and_foreign_files(whole, tmp_path):
    path = tmp_path / "x.ctf"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ctf.read(path)
    for content in (b"", b"nothing of the kind", b"\x1f\x8b" + bytes(600)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a plain tar file|config.json is missing"):
            ctf.read(path)
    path.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(ValueError, match="is missing|truncated"):
        ctf.read(path)
    for change, message in (
        ({"config.json": None}, "config.json is missing"),
        ({"config.json": b"{"}, "config.json is not JSON"),
        ({"config.json": b"[]"}, "has no Format"),
        ({"config.json": config_with(whole, TrainingUnits=0)}, "TrainingUnits=0: expected an integer of at least 1"),
        ({"config.json": config_with(whole, GenWidth="8")}, "GenWidth='8'"),
        ({"config.json": config_with(whole, TrainingUnits=9)}, "leave_7_out.png, leave_8_out.png, leave_9_out.png is"),
        ({"config.json": config_with(whole, Format="MULTIFILE")}, r"has 0 files train_\*.png: expected 6"),
        ({"factual.png": None}, "factual.png is missing"),
        ({"training_set.png": None}, "training_set.png is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            ctf.read(altered(whole, path, change))
    for change, message in (
        ({"factual.png": b"no picture"}, "factual.png cannot be used"),
        ({"factual.png": png((8, 16))}, "8x16 pixels do not hold 3 tiles of 8x8"),
        ({"factual.png": png((9, 24))}, "9x24 pixels do not hold"),
        ({"factual.png": png((8, 24), "RGB")}, "mode RGB: expected 1 channels"),
        ({"factual.png": png((20_000, 20_000))}, "decompression bomb"),
    ):
        with ctf.read(altered(whole, path, change)) as universe, pytest.raises(ValueError, match=message):
            _ = universe.factual


@pytest.mark.parametrize("content", [b"[]", b'{"names": ["a"]}', b'{"names": [1, 2, 3, 4, 5, 6]}'])
def test_names_that_are_not_of_the_units_are_refused(whole, tmp_path, content):
    message = "units.json has no names: expected 6 texts, one per unit"
    path = altered(whole, tmp_path / "x.ctf", {"units.json": content})
    with ctf.read(path) as universe, pytest.raises(ValueError, match=message):
        universe.check()


def test_members_that_point_outside_are_not_followed(whole, tmp_path):
    """No archive is unpacked, and a link does not count as a file."""
    path = altered(whole, tmp_path / "x.ctf", {"factual.png": None, "../escaped": b"x"})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("factual.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ValueError, match="factual.png is missing"):
        ctf.read(path)
    assert not (tmp_path.parent / "escaped").exists()
