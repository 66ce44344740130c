"""Programs on a run whose conditions are embeddings of captions: prompts, their encoder, captions and guidance."""

import json
import shutil
import types

import numpy as np
import pytest

import ensdiff
from ensdiff.attribution.queries import other_conditions, query_settings
from ensdiff.interop import text_encoder
from ensdiff.models.condition import ConditionSpec
from experiments import prompts
from tests.experiments.test_encode_text import ROWS
from tests.interop import tiny_pipeline

pytestmark = [pytest.mark.torch, pytest.mark.slow]
SAMPLES = ["--steps=2", "--sampler=ddim", "--guidance=3"]


@pytest.fixture(scope="module")
def place(run, tmp_path_factory):
    """Return a folder with a pipeline, a file of latents that it made of captioned pictures, and a run on these."""
    for name in ("torch", "diffusers", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder = tmp_path_factory.mktemp("prompts")
    tiny_pipeline.make(folder / "sd")
    run.load(*tiny_pipeline.IMPORTS)
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
    asked = ["a red cat", "bob, a dog"]
    text = go("sample", *SAMPLES, *(f"--prompt={prompt}" for prompt in asked), "--remove=1", f"--out={tmp_path}")
    assert "row 1: a red cat, bob, a dog" in text
    params = ensdiff.load(trained)
    encoder = text_encoder(place / "sd")
    assert encoder.made(params.condition)
    np.testing.assert_array_equal(params.condition.null(1), encoder.null[None])
    samples = ensdiff.sample(
        params, 0, 2, steps=2, sampler="ddim", cond=encoder.encode(asked), guidance=3, captions=asked
    )
    none = ensdiff.sample(params, 0, 2, steps=2, sampler="ddim")
    with np.load(tmp_path / "samples_seed0.npz") as found:
        assert found["captions"].tolist() == asked
        np.testing.assert_array_equal(found["cond"], encoder.encode(asked))
        np.testing.assert_allclose(found["images"], samples.images, atol=1e-4)
        np.testing.assert_allclose(found["counterfactuals"], ensdiff.counterfactuals(params, samples, [1]), atol=1e-4)
        assert np.abs(found["images"] - none.images).max() > 1e-2
    assert "conditions: none (--prompt=" in go("sample", "--n=2", "--steps=2", f"--out={tmp_path}")


def test_saved_attributions_of_other_prompts_are_refused(trained, place):
    params, text = ensdiff.load(trained), text_encoder(place / "sd")
    cat, dog = (
        ensdiff.sample(params, 0, 1, steps=2, sampler="ddim", cond=text.encode([prompt]), captions=prompt)
        for prompt in ("a red cat", "a dog")
    )
    assert (cat.captions, cat[[0, 0]].captions) == (("a red cat",), ("a red cat",) * 2)
    settings = json.loads(json.dumps(query_settings(params, cat)))
    assert other_conditions(settings, params, cat) is None
    message = "its sample 0 has another condition (a red cat) than this one (a dog)"
    assert other_conditions(settings, params, dog) == message
    with pytest.raises(ValueError, match="expected 1 texts, one per image"):
        ensdiff.sample(params, 0, 1, steps=2, captions=["a", "b"])


@pytest.mark.parametrize(("args", "message"), [
    (["--prompt=a", "--prompt=b", "--n=3"], "2 times --prompt for 3 samples: expected one per sample, or one for all"),
    (["--prompt=a", "--cond=none"], "--prompt=a and --cond=none exclude each other"),
    (["--text=sd"], "--text=sd is for --prompt: leave it out"),
    (["--cond=3"], "--cond takes classes"),
])  # fmt: skip
def test_errors(go, trained, args, message):
    assert message in go("sample", "--steps=2", *args, fails=True)


def test_the_encoder_is_that_of_the_captions(trained, place, monkeypatch):
    """Named by the file of latents or by --text; another one, none and prompts that are too long are errors."""

    def found(prompts_, text=None, run_dir=trained):
        monkeypatch.setattr(prompts.flags, "FLAGS", types.SimpleNamespace(text=text))
        monkeypatch.setattr(prompts.runs, "run_folder", lambda: run_dir)
        return prompts.prompted(params, prompts_, 2, fixed=False)

    params, text = ensdiff.load(trained), text_encoder(place / "sd")
    asked = found(["a cat"], run_dir=trained)
    assert (asked.samples, asked.captions) == (2, ("a cat", "a cat"))
    np.testing.assert_array_equal(asked.cond, np.repeat(text.encode(["a cat"]), 2, axis=0))
    assert found(["a", "b", "c"], place / "sd", place).captions == ("a", "b", "c")
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(place / "sd" / name, place / "other" / name)
    config = place / "other" / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layer_norm_eps": 1e-3}))
    with pytest.raises(ValueError, match="but the captions were embedded by CLIPTextModel, SHA-256 of the files"):
        found(["a cat"], place / "other")
    with pytest.raises(ValueError, match=r"pass --text=..., a folder with the folders"):
        found(["a cat"], run_dir=place)
    with pytest.raises(ValueError, match="has 11 tokens, and the text encoder takes at most 10"):
        found(["cat " * 11])
    for spec, message in (
        (None, "have no condition"), (ConditionSpec.of(np.zeros(2, int)), "are conditioned on something else"),
    ):  # fmt: skip
        other = types.SimpleNamespace(condition=spec)
        with pytest.raises(ValueError, match=message):
            prompts.prompted(other, ["a cat"], 1)
