"""Encoding pictures by principal components, on the command line."""

import numpy as np
import pytest

from ensdiff import data
from ensdiff.data import pca


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder with two files of pictures, one of which holds conditions."""
    folder = tmp_path_factory.mktemp("encode")
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
    about = {
        "labels": np.arange(8) % 3,
        "condition": [0, 1] * 4,
        "class_names": ["cat", "dog"],
        "who": list("aabbccdd"),
    }
    np.savez(folder / "train.npz", images=images[:8], **about)
    tree = {"condition/text": np.arange(16).reshape(8, 2), "condition/size": np.ones(8, np.float32)}
    np.savez(folder / "tree.npz", images=images[:8], **tree)
    np.savez(folder / "other.npz", images=images[8:])
    np.savez(folder / "both.npz", images=images[6:])
    return folder


def test_components_of_other_pictures(run, pictures, tmp_path):
    out = tmp_path / "deep" / "z.npz"
    train = f"npz,path={pictures / 'train.npz'},labels=labels,groups=who"
    other = f"npz,path={pictures / 'other.npz'}"
    done = run("encode", "--pca=3", "--patch=2", f"--images={train}", f"--fit={other}", f"--out={out}", "--batch=5")
    assert done.returncode == 0, done.stderr
    assert "8 latents of 2x2x3, float16" in done.stdout
    found = data.latents(out, groups="groups")
    components = pca.fit(data.npz(pictures / "other.npz").images, 3, 2)
    assert found.space == components.space
    assert pca.load(tmp_path / "deep" / "z.pca.npz").digest() == components.digest()
    images = data.npz(pictures / "train.npz").images
    np.testing.assert_array_equal(found.images, components.encode(images).astype(np.float16))
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert list(found.unit_names) == ["a", "b", "c", "d"]
    assert found.condition_spec.captions(found.condition)[:2] == ["cat", "dog"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["z.npz", "z.pca.npz"]


def test_components_of_training_pictures_need_a_word(run, pictures, tmp_path):
    """They would let every picture influence every member, so this never happens by accident."""
    train, both = (f"npz,path={pictures / name}.npz" for name in ("train", "both"))
    common = ["--pca=3", "--patch=2", f"--images={train}", f"--out={tmp_path / 'z.npz'}"]
    for args, message in (
        ([], "--pca needs --fit=..., pictures that are not training data: statistics of the training pictures let"),
        ([f"--fit={both}", "--fit_on_training"], "--pca needs --fit="),
        ([f"--fit={both}"], "2 of the 6 pictures in --fit are also in --images, such as item 0"),
        ([f"--fit={train}"], "8 of the 8 pictures in --fit are also in --images"),
    ):
        done = run("encode", *common, *args)
        assert done.returncode == 1
        assert message in done.stderr
        assert not list(tmp_path.iterdir())
    common[2] = f"--images=npz,path={pictures / 'tree.npz'}"
    done = run("encode", *common, "--fit_on_training")
    assert done.returncode == 0, done.stderr
    condition = data.latents(tmp_path / "z.npz").condition
    assert condition["text"].tolist() == np.arange(16).reshape(8, 2).tolist()
    assert condition["size"].dtype == np.float32
    assert "warning: the components are fitted to the training pictures: statistics of" in done.stdout
    assert data.latents(tmp_path / "z.npz").space.encoder.endswith("fitted to the training data")


@pytest.mark.parametrize(("args", "message"), [
    (["--pca=3"], "pass --images=... and one of --vae=..., --pipeline=... and --pca=..."),
    (["--images=digits"], "pass --images=... and one of"),
    (["--images=digits", "--pca=3", "--vae=x"], "pass --images=... and one of"),
    (["--images=nothing", "--pca=3", "--fit=digits"], "unknown data set 'nothing'"),
    (["--images=folder,nothing", "--pca=3", "--fit=digits"], "expected a folder, or a reader and its options"),
    (["--images=digits", "--vae=nowhere"], "--vae=nowhere: there is no such folder"),
    (["--images={}/latents.npy", "--pca=3", "--fit=digits"], "unknown data set"),
    (["--images=latents,path={}/z.npy", "--pca=3", "--fit=digits"], "holds latents: expected pictures"),
])  # fmt: skip
def test_errors(run, tmp_path, args, message):
    np.save(tmp_path / "z.npy", np.zeros((3, 2, 2, 4), np.float16))
    done = run("encode", *(arg.format(tmp_path) for arg in args), folder=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
