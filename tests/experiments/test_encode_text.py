"""Encoding pictures and captions by a pipeline with random weights, on the command line."""

import json
import os

import numpy as np
import pytest

from ensdiff import data
from ensdiff.interop import text_encoder, vae
from tests.interop import tiny_pipeline

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ROWS = [
    ("a/0.png", "a red cat", "ada"),
    ("a/1.png", "a dog", "bob"),
    ("b.png", "a red cat", "ada"),
    ("c.png", "", "eve"),
]


@pytest.fixture(scope="module")
def models(run, tmp_path_factory):
    for name in ("torch", "diffusers", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder = tmp_path_factory.mktemp("models") / "sd"
    tiny_pipeline.make(folder)
    run.load(*tiny_pipeline.IMPORTS)
    return folder


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, _, _ in ROWS:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name)
    lines = [json.dumps({"file_name": name, "text": text, "artist": artist}) for name, text, artist in ROWS]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_a_pipeline_encodes_pictures_and_captions(run, models, pictures, tmp_path):
    out = tmp_path / "z" / "z.npz"
    done = run("encode", f"--pipeline={models}", f"--images={pictures}", "--size=16", "--groups=artist", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "4 latents of 8x8x4" in done.stdout
    assert f"captions: 3 distinct ones of {tiny_pipeline.TOKENS}x{tiny_pipeline.WIDTH}, float16" in done.stdout
    assert "groups: 3, with their pictures: ada (2), bob (1), eve (1)" in done.stdout
    assert "left out" not in done.stderr
    text = text_encoder(models)
    assert text.describe() in done.stdout
    found = data.latents(out, groups="groups")
    rows = text.encode([caption for _, caption, _ in ROWS])
    np.testing.assert_array_equal(found.condition, rows.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(found.condition_spec.null(1), text.null[None])
    assert text.made(found.condition_spec)
    assert found.condition_spec.captions(found.condition)[0] == f"{tiny_pipeline.TOKENS}x{tiny_pipeline.WIDTH} numbers"
    assert list(found.unit_names) == ["ada", "bob", "eve"]
    assert found.unit_of_item.tolist() == [0, 1, 0, 2]
    assert data.latents(out).unit_names[1] == "a/1.png: a dog"
    assert found.space == vae(models).space
    images = data.folder(pictures, size=16).images
    np.testing.assert_array_equal(found.images, vae(models).encode(images).mean.astype(np.float16))
    with np.load(out) as file:
        assert file["captions"].tolist() == [caption for _, caption, _ in ROWS]
        assert len(file["condition"]) == 3
        assert os.path.realpath(out.parent / str(file["text"])) == os.path.realpath(models)
        assert os.path.realpath(out.parent / str(file["decoder"])) == os.path.realpath(models)


def test_groups_without_captions(run, pictures, tmp_path):
    np.savez(tmp_path / "fit.npz", images=np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    out, fit = tmp_path / "z.npz", f"--fit=npz,path={tmp_path / 'fit.npz'}"
    args = ["--pca=3", fit, f"--images={pictures}", "--size=16", "--groups=artist", f"--out={out}"]
    done = run("encode", *args)
    assert done.returncode == 0, done.stderr
    found = data.latents(out, groups="groups")
    assert (list(found.unit_names), found.condition_spec) == (["ada", "bob", "eve"], None)


@pytest.mark.parametrize(("args", "message"), [
    (["--images=digits"], "need --images to be a folder with metadata.jsonl, and not digits"),
    (["--images={}", "--caption=title"], "line 1: it has no 'title'; it has 'file_name', 'text', 'artist'"),
    (["--images={}", "--groups=who"], "line 1: it has no 'who'; it has 'file_name', 'text', 'artist'"),
    (["--images={}", "--pipeline=nowhere"], "--pipeline=nowhere: there is no such folder"),
    (["--images={}", "--pipeline={}"], "has no folder vae: expected the folder of a StableDiffusionPipeline"),
    (["--images={}", "--vae=x"], "one of --vae=..., --pipeline=... and --pca=..."),
    (["--images={}", "--pca=3"], "one of --vae=..., --pipeline=... and --pca=..."),
    (["--images={}", "--caption=long"], "tokens, and the text encoder takes at most 10"),
])  # fmt: skip
def test_errors(run, models, pictures, tmp_path, args, message):
    if "--caption=long" in args:
        lines = [{"file_name": name, "long": "cat " * 11} for name, _, _ in ROWS]
        (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "z.npz"
    done = run("encode", f"--pipeline={models}", *(arg.format(pictures) for arg in args), "--size=16", f"--out={out}")
    assert done.returncode == 1
    assert message in done.stderr
    assert not out.exists()
