"""Programs on a run whose conditions are embeddings of captions: prompts, their encoder, captions and guidance."""

import json
import shutil

import numpy as np
import pytest

import ensdiff
from ensdiff.interop import text_encoder
from tests.experiments.test_encode_text import ROWS
from tests.interop import tiny_pipeline

pytestmark = [pytest.mark.torch, pytest.mark.slow]
SAMPLES = ["--steps=2", "--sampler=ddim", "--guidance=3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a pipeline, a file of latents that it made of captioned pictures, and a run on these."""
    for name in ("torch", "diffusers", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder = tmp_path_factory.mktemp("prompts")
    tiny_pipeline.make(folder / "sd")
    text, rng = text_encoder(folder / "sd"), np.random.default_rng(0)
    captions = [caption for _, caption, _ in ROWS]
    np.savez(
        folder / "z.npz", latents=rng.normal(size=(4, 4, 4, 4)).astype(np.float16), scale=0.18215, encoder="unknown",
        condition=text.encode(captions).astype(np.float16), condition_null=text.null, captions=captions, text="sd",
        condition_encoder=text.describe(), groups=["ada", "bob", "ada", "eve"],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def go(run, place):
    def call(program, *args, fails=False, run_dir="run"):
        done = run(program, *([f"--run={place / run_dir}"] if run_dir else []), *args)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return call


@pytest.fixture(scope="module")
def trained(go, place):
    text = go(
        "train", "--config=latents", f"--config.data.path={place / 'z.npz'}", f"--config.run_dir={place / 'run'}",
        "--config.data.groups=groups", "--config.train.steps=8", "--config.train.batch_size=2",
        "--config.train.learning_rate=0.1",
        "--config.train.warmup=0", "--config.model.channels=4", "--config.model.multipliers=(1,)",
        "--config.model.norm_groups=2", "--config.code.members=4", "--config.code.weight=2", run_dir=None,
    )  # fmt: skip
    assert f"conditioned on {tiny_pipeline.TOKENS}x{tiny_pipeline.WIDTH} numbers" in text
    return place / "run"


def test_prompts_are_embedded_and_shown(go, trained, place, tmp_path):
    prompts = ["a red cat", "bob, a dog"]
    text = go("sample", *SAMPLES, *(f"--prompt={prompt}" for prompt in prompts), "--remove=1", f"--out={tmp_path}")
    assert "row 1: a red cat, bob, a dog" in text
    params = ensdiff.load(trained)
    encoder = text_encoder(place / "sd")
    assert encoder.made(params.condition)
    np.testing.assert_array_equal(params.condition.null(1), encoder.null[None])
    samples = ensdiff.sample(
        params, 0, 2, steps=2, sampler="ddim", cond=encoder.encode(prompts), guidance=3, captions=prompts
    )
    none = ensdiff.sample(params, 0, 2, steps=2, sampler="ddim")
    with np.load(tmp_path / "samples_seed0.npz") as found:
        assert found["captions"].tolist() == prompts
        np.testing.assert_array_equal(found["cond"], encoder.encode(prompts))
        np.testing.assert_allclose(found["images"], samples.images, atol=1e-4)
        np.testing.assert_allclose(found["counterfactuals"], ensdiff.counterfactuals(params, samples, [1]), atol=1e-4)
        assert np.abs(found["images"] - none.images).max() > 1e-2
    text = go("sample", "--n=3", "--steps=2", "--prompt=a cat", f"--text={place / 'sd'}", f"--out={tmp_path}")
    assert "row 1: a cat, a cat\nrow 2: a cat" in text
    assert "conditions: none (--prompt=" in go("sample", "--n=2", "--steps=2", f"--out={tmp_path}")


def test_attributions_reports_and_files_show_prompts(go, trained, tmp_path):
    options = [*SAMPLES, "--n=1", "--prompt=a red cat"]
    go("attribute", *options, "--method=exact", "--null=0", "--top=2")
    att = ensdiff.Attribution.load(trained / "attribution" / "exact_seed0")
    assert att.settings["captions"] == ["a red cat"]
    assert "a red cat" in (trained / "attribution" / "exact_seed0.html").read_text()
    text = go("report", *options, "--null=0", "--combined=0")
    assert "attribution: " in text  # the saved one is of the same samples
    page = (trained / "report" / "explorer.html").read_text()
    assert "--prompt=a red cat" in page
    text = go("report", *options[:-1], "--prompt=a dog", "--null=0", "--combined=0", f"--out={tmp_path}")
    assert "its sample 0 has another condition (a red cat) than this one (a dog)" in text
    go("convert", "ctf", *options, f"--to={tmp_path / 'x.ctf'}", f"--decode={trained.parent / 'sd'}", fails=True)


@pytest.mark.parametrize(("args", "message"), [
    (["--prompt=a", "--prompt=b", "--n=3"], "2 times --prompt for 3 samples: expected one per sample, or one for all"),
    (["--prompt=a", "--cond=none"], "--prompt=a and --cond=none exclude each other"),
    (["--text={}/sd"], "is for --prompt: leave it out"),
    (["--prompt=a", "--text={}/other"], "but the captions were embedded by CLIPTextModel, SHA-256 of the files"),
    (["--prompt=" + "cat " * 11], "has 11 tokens, and the text encoder takes at most 10"),
    (["--cond=3"], "--cond takes classes"),
])  # fmt: skip
def test_errors(go, trained, place, args, message):
    if not (place / "other").exists():
        for name in ("text_encoder", "tokenizer"):
            shutil.copytree(place / "sd" / name, place / "other" / name)
        config = place / "other" / "text_encoder" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"layer_norm_eps": 1e-3}))
    assert message in go("sample", "--steps=2", *(arg.format(place) for arg in args), fails=True)


def test_an_encoder_that_moved_is_asked_for(go, trained, place):
    (place / "sd").rename(place / "moved")
    try:
        assert "pass --text=..., a folder with the folders" in go("sample", "--steps=2", "--prompt=a cat", fails=True)
    finally:
        (place / "moved").rename(place / "sd")
