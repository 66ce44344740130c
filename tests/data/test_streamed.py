"""Readers that decode pictures one by one into a memory map: Hugging Face data sets and WebDataset shards."""

import gzip
import importlib
import io
import json
import os
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from ensdiff import data
from ensdiff.data import DataWarning, streamed
from ensdiff.files.npy import growing_npy, map_npy
from experiments.building import load_data


def pictures(count, side=6):
    shades = np.arange(count, dtype=np.uint8)[:, None, None, None] * 10
    return np.broadcast_to(shades, (count, side, side, 3)) + np.arange(3, dtype=np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write_shard(path, members):
    """Write a tar file with the members (name, content), in their order."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))


def sample(i, **more):
    """Return the members of one sample, with a picture of the shade 10 * i."""
    members = {"png": png(pictures(i + 1)[i]), "cls": str(i % 3).encode(), "txt": f"a picture, {i}\n".encode()}
    members["json"] = json.dumps({"artist": "ab"[i % 2], "year": 1900 + i}).encode()
    return [(f"{i:04}.{extension}", content) for extension, content in {**members, **more}.items()]


def shards(folder, order=((0, 1, 2), (3, 4))):
    for number, samples in enumerate(order):
        write_shard(folder / f"part-{number:03}.tar", [member for i in samples for member in sample(i)])
    return folder / "part-{000..001}.tar"


def test_webdataset(tmp_path):
    found = data.webdataset(
        shards(tmp_path / "s"), label="cls", group="json:artist", condition="json:year", cache=tmp_path / "cache"
    )
    np.testing.assert_array_equal(found.images, pictures(5))
    assert found.labels.tolist() == [0, 1, 2, 0, 1]
    assert list(found.unit_names) == ["a", "b"]
    assert found.unit_of_item.tolist() == [0, 1, 0, 1, 0]
    assert found.condition.tolist() == [1900, 1901, 1902, 1903, 1904]
    assert isinstance(found.images.base, np.memmap)


def test_samples_are_in_the_order_of_their_keys(tmp_path):
    """Shards that were shuffled when they were written give the same data set, also through a folder or wildcard."""
    plain = data.webdataset(shards(tmp_path / "s"), cache=tmp_path / "cache")
    shuffled = shards(tmp_path / "t", ((4, 0), (3, 1, 2)))
    for pattern in (shuffled, tmp_path / "t", tmp_path / "t" / "*.tar"):
        found = data.webdataset(pattern, caption="txt", cache=tmp_path / "cache")
        assert found.digest() == plain.digest()
        assert found.unit_names[3] == "0003: a picture, 3"
    assert plain.unit_names[3] == "0003"


@pytest.mark.parametrize(("members", "options", "message"), [
    ([*sample(0), *sample(1), *sample(0)], {}, "two samples have the key '0000'"),
    ([*sample(0), *sample(1)[:1], *sample(2)], {"label": "cls"}, "1 of 3 samples have no member 'cls' .* is 0001"),
    ([*sample(0), *sample(1)], {"image": "jpg"}, "no sample has a member jpg; they have cls, json, png, txt"),
    ([*sample(0), *sample(1)], {"group": "json:who"}, r"0000.json: it has no field 'who'; it has artist, year"),
    ([*sample(0), *sample(1, json=b"[1]")], {"group": "json:artist"}, "0001.json: it has no field .*; it has list"),
    ([*sample(0), *sample(1, png=b"no")], {}, "0001 cannot be read as a picture: it is damaged"),
    ([*sample(0), *sample(1, png=png(pictures(1, 7)[0]))], {}, "0001 is 7x7 with 3; give size="),
    ([*sample(0), *sample(1, cls=b"cat")], {"condition": "cls"}, "condition of 0001, 'cat': some are numbers"),
    ([*sample(0), *sample(1, cls=b"9999999999")], {"condition": "cls"}, "condition of 0001, .* more than 32 bits"),
    ([*sample(0, npy=npy(np.zeros(3))), *sample(1, npy=npy(np.zeros(4)))], {"condition": "npy"}, r"of 0001, .* \(4,\)"),
    ([*sample(0, npy=b"x"), *sample(1, npy=b"x")], {"condition": "npy"}, "0000.npy: not a readable .npy file"),
    ([*sample(0), *sample(1)], {"caption": "txt", "group": "json:artist"}, "give one of them"),
    ([*sample(0), *sample(1)], {"size": 0}, "size=0: expected at least 1"),
])  # fmt: skip
def test_bad_shards(tmp_path, members, options, message):
    write_shard(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=message):
        data.webdataset(tmp_path / "x.tar", cache=tmp_path / "cache", **options)
    assert not list((tmp_path / "cache").glob("*")) or not (tmp_path / "cache").exists()  # no half-written folder


def test_keys_of_two_shards(tmp_path):
    with pytest.raises(ValueError, match=r"the key '0002', in .*part-000.tar and in .*part-001.tar"):
        data.webdataset(shards(tmp_path / "s", ((0, 2), (1, 2))), cache=tmp_path)
    folders = [(f"{folder}/{name}", content) for folder in "ab" for name, content in sample(1)]
    write_shard(tmp_path / "x.tar", folders)
    assert list(data.webdataset(tmp_path / "x.tar", cache=tmp_path).unit_names) == ["a/0001", "b/0001"]


def test_shards_that_do_not_exist_or_are_compressed(tmp_path):
    shards(tmp_path / "s")
    with pytest.raises(FileNotFoundError, match=r"part-002.tar does not exist, the first of 4 shards of"):
        data.webdataset(tmp_path / "s" / "part-{000..003}.tar")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.webdataset(tmp_path / "*.tar")
    with pytest.raises(ValueError, match="expected 1 to 1000000 shards"):
        data.webdataset("{5..2}.tar")
    packed = tmp_path / "x.tar"
    packed.write_bytes(gzip.compress((tmp_path / "s" / "part-000.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"x.tar cannot be read as an uncompressed tar file"):
        data.webdataset(packed)
    whole = (tmp_path / "s" / "part-000.tar").read_bytes()
    for length in (8192, 8192 + 512, 8192 + 600):  # after the last member of a sample, after a header, in a content
        packed.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x.tar cannot be read .* copy it again"):
            data.webdataset(packed, label="cls", cache=tmp_path)
    packed.write_bytes(whole[:1024] + b"x" * 512 + whole[1536:])
    with pytest.raises(ValueError, match=r"x.tar cannot be read .* no end mark at byte 1024"):
        data.webdataset(packed, label="cls", cache=tmp_path)


def test_members_and_samples_that_are_left_out(tmp_path):
    link = tarfile.TarInfo("0009.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_shard(tmp_path / "x.tar", [*sample(0), *sample(1), *sample(2)[1:], ("README", b"x"), ("../../._x.png", b"x")])
    with tarfile.open(tmp_path / "x.tar", "a") as shard:
        shard.addfile(link)
    with pytest.warns(DataWarning) as caught:
        found = data.webdataset(tmp_path / "x.tar", cache=tmp_path)
    messages = sorted(str(warning.message) for warning in caught)
    assert messages[0].startswith("left out 1 of 3 samples without a picture (jpg;jpeg;png;webp), such as 0002")
    assert messages[1].startswith("left out 3 members of shards that belong to no sample, such as README")
    np.testing.assert_array_equal(found.images, pictures(2))


def test_decoded_pictures_are_kept_until_files_or_options_change(tmp_path, monkeypatch):
    decoded = []
    decode = streamed.decode_picture
    monkeypatch.setattr(streamed, "decode_picture", lambda *args: decoded.append(1) or decode(*args))
    pattern = shards(tmp_path / "s")
    first = data.webdataset(pattern, cache=tmp_path / "cache")
    assert len(decoded) == 5
    assert data.webdataset(pattern, cache=tmp_path / "cache").digest() == first.digest()
    assert len(decoded) == 5
    data.webdataset(pattern, size=4, cache=tmp_path / "cache")
    data.webdataset(pattern, label="cls", cache=tmp_path / "cache")
    assert len(decoded) == 15
    os.utime(tmp_path / "s" / "part-001.tar", ns=(1, 1))
    data.webdataset(pattern, cache=tmp_path / "cache")
    assert len(decoded) == 20
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data.webdataset(pattern)
    assert [path.name for path in (tmp_path / "home" / "ensdiff").iterdir()][0].startswith("s-")  # noqa: RUF015


def test_vectors_are_mapped_not_copied(tmp_path):
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_shard(tmp_path / "x.tar", [m for i in range(3) for m in sample(i, **{"emb.npy": npy(vectors[i])})])
    found = data.webdataset(tmp_path / "x.tar", condition="emb.npy", cache=tmp_path)
    np.testing.assert_array_equal(found.condition, vectors)
    assert isinstance(found.condition.base, np.memmap)


def test_arrays_that_grow(tmp_path):
    rows = np.arange(11 * 6, dtype=np.float16).reshape(11, 3, 2)
    with growing_npy(tmp_path / "x.npy") as file:
        for row in rows:
            file.append(row)
        with pytest.raises(ValueError, match=r"row 11 has shape \(2, 3\)"):
            file.append(rows[0].T)
        with pytest.raises(ValueError, match="dtype float32, the first has .* float16"):
            file.append(rows[0].astype(np.float32))
    np.testing.assert_array_equal(map_npy(tmp_path / "x.npy"), rows)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)
    with pytest.raises(ValueError, match="would be empty"), growing_npy(tmp_path / "y.npy"):
        pass


def test_labels_are_the_condition_of_a_config(tmp_path):
    options = {"name": "webdataset", "pattern": str(shards(tmp_path / "s")), "label": "cls", "cache": str(tmp_path)}
    assert load_data({**options, "condition": ""}).condition is None
    assert load_data({**options, "condition": "label"}).condition.tolist() == [0, 1, 2, 0, 1]
    held = load_data({**options, "condition": "label", "held_out": 3})
    assert held.condition_spec.leaves[0].classes == 3
    assert load_data({**options, "condition": "json:artist"}).condition_spec.leaves[0].names == ("a", "b")
    with pytest.raises(ValueError, match=r"config.data.condition='label': the data have no labels"):
        load_data({**options, "label": None, "condition": "label"})
    with pytest.raises(ValueError, match=r"config.data.condition='artist': digits takes none .*; expected 'label'"):
        load_data({"name": "digits", "condition": "artist"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Yield a folder with one Hugging Face data set in all forms on disk."""
    datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")
    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "TORCH_AVAILABLE", False)  # its import takes seconds
        yield saved_forms(datasets, tmp_path_factory)


def saved_forms(datasets, tmp_path_factory):
    root = tmp_path_factory.mktemp("huggingface")
    features = datasets.Features({
        "image": datasets.Image(), "raw": datasets.Value("binary"), "pixels": datasets.Array3D((6, 6, 3), "uint8"),
        "label": datasets.ClassLabel(names=["dog", "cat", "elk"]), "text": datasets.Value("string"),
        "artist": datasets.Value("string"), "vector": datasets.Sequence(datasets.Value("float32"), length=2),
    })  # fmt: skip
    images = pictures(5)
    columns = {
        "image": [Image.fromarray(image) for image in images], "raw": [png(image) for image in images],
        "pixels": list(images), "label": [i % 3 for i in range(5)], "text": [f"number {i}" for i in range(5)],
        "artist": list("ababa"), "vector": [[i, 0.5] for i in range(5)],
    }  # fmt: skip
    table = datasets.Dataset.from_dict(columns, features=features)
    table.save_to_disk(str(root / "saved"))
    datasets.DatasetDict({"train": table, "test": table.select([0, 1])}).save_to_disk(str(root / "splits"))
    (root / "parquet").mkdir()
    table.to_parquet(str(root / "parquet" / "train-00000-of-00001.parquet"))
    (root / "pictures").mkdir()
    with open(root / "pictures" / "metadata.jsonl", "w") as file:
        for i, image in enumerate(images):
            (root / "pictures" / f"{i}.png").write_bytes(png(image))
            file.write(json.dumps({"file_name": f"{i}.png", "artist": "ab"[i % 2], "text": f"number {i}"}) + "\n")
    return root


@pytest.mark.parametrize("form", ["saved", "parquet", "pictures", "splits"])
def test_huggingface(saved, form, tmp_path):
    split = {"split": "train"} if form == "splits" else {}
    found = data.huggingface(saved / form, group="artist", cache=tmp_path, **split)
    np.testing.assert_array_equal(found.images, pictures(5))
    assert found.unit_of_item.tolist() == [0, 1, 0, 1, 0]
    named = data.huggingface(saved / form, caption="text", cache=tmp_path, **split)
    assert named.unit_names[4] == "item 4: number 4"
    assert named.regroup(list("ababa")).digest() == found.digest()
    if form != "pictures":
        labelled = data.huggingface(saved / form, label="label", condition="label", cache=tmp_path, **split)
        assert labelled.labels.tolist() == ["dog", "cat", "elk", "dog", "cat"]
        assert labelled.condition.tolist() == [0, 1, 2, 0, 1]
        assert labelled.condition_spec.leaves[0].names == ("dog", "cat", "elk")


def test_columns_of_other_types(saved, tmp_path):
    for image in ("raw", "pixels"):
        found = data.huggingface(saved / "saved", image=image, condition="vector", cache=tmp_path)
        np.testing.assert_array_equal(found.images, pictures(5))
        assert found.condition.tolist() == [[i, 0.5] for i in range(5)]
    grey = data.huggingface(saved / "saved", size=3, mode="L", cache=tmp_path)
    assert grey.shape == (3, 3, 1)
    assert not list((saved / "saved").glob("cache*"))  # nothing is written beside the data


def test_huggingface_errors(saved, tmp_path):
    with pytest.raises(ValueError, match=r"no column 'artst' for group=; it has image, raw, .*artist"):
        data.huggingface(saved / "saved", group="artst", cache=tmp_path)
    with pytest.raises(ValueError, match="split=None of .*: expected one of train, test"):
        data.huggingface(saved / "splits", cache=tmp_path)
    with pytest.raises(ValueError, match="has no splits, but split='train'"):
        data.huggingface(saved / "saved", split="train", cache=tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        data.huggingface("ylecun/mnist")
    with pytest.raises(ValueError, match="text.* cannot be read as a picture|cannot be read as a picture"):
        data.huggingface(saved / "saved", image="text", cache=tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(saved / "saved", broken)
    (broken / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="broken cannot be read as a data set"):
        data.huggingface(broken, cache=tmp_path)


def test_huggingface_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'ensdiff\[datasets\]'"):
        data.huggingface(tmp_path)


def test_the_cache_is_not_in_the_way_of_moved_data(saved, tmp_path):
    """The same files elsewhere are the same data, and a config finds them by its paths."""
    moved = pathlib.Path(shutil.copytree(saved / "parquet", tmp_path / "moved"))
    options = {
        "name": "huggingface",
        "path": str(moved),
        "label": "label",
        "condition": "label",
        "cache": str(tmp_path),
    }
    found = load_data({**options, "cache": str(tmp_path)})
    assert found.condition.tolist() == [1, 0, 2, 1, 0]  # the sorted order of the names
    assert data.readers.path_options("huggingface") == ("path", "cache")


@pytest.mark.parametrize("name", ["huggingface", "webdataset", "latents"])
def test_configs_have_all_options_of_their_readers(name):
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    assert set(config.data) == {"held_out", "condition", "name", *data.readers.options_of(name)}
