"""A tiny Stable Diffusion pipeline, fine-tuned with artists as units by the programs, and opened again by diffusers.

Every program runs once, in the folder of one user, on one run: 8 adapters on 24 pictures of 4 artists.
"""

import dataclasses
import json
import re
import shutil
import types

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.ensemble.blending import blend
from ensdiff.interop import ctf, diffusers, lora
from ensdiff.interop.lora_files import open_adapters
from experiments import bases
from tests.interop import tiny_pipeline

pytestmark = [pytest.mark.torch, pytest.mark.slow]
pytest.importorskip("transformers", reason="needs the text extra")
pytest.importorskip("peft", reason="diffusers reads adapters with it")

ARTISTS = ["Smith, J. / studio", "ada", "bob", "cat lee"]
"""In the order of their groups; the artist of picture i is number i % 4."""
ADA = 1
PROMPTS = ["a red cat, ada", "a dog"]
ONE_LEVEL = {
    "block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}  # fmt: skip
"""Half the network, because every program compiles it."""
DRAWN = [*(f"--prompt={prompt}" for prompt in PROMPTS), "--steps=2", "--sampler=ddim", "--guidance=3"]
TRAINED = [
    "--config=adapters", "--config.code.members=8", "--config.adapters.rank=2", "--config.adapters.alpha=4.0",
    "--config.adapters.targets=attention/.*(query|key|value|out)/kernel$", "--config.base.dtype=float32",
    "--config.model.compute_dtype=float32", "--config.train.steps=3", "--config.train.batch_size=2",
    "--config.train.learning_rate=0.03", "--config.train.warmup=0", "--config.train.decay=constant",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(run, tmp_path_factory):
    """Return a folder as a user has it: a pipeline in models/sd, and captioned pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("user")
    tiny_pipeline.make(folder / "models" / "sd", unet=ONE_LEVEL)
    run.load(*tiny_pipeline.IMPORTS)
    (folder / "pictures").mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(24):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        picture[..., 0] = 60 * (i % 4)  # what an artist's pictures have in common
        Image.fromarray(picture).save(folder / "pictures" / f"{i:02d}.png")
        caption = "a red cat, ada" if i % 4 == ADA else "a dog"
        lines.append({"file_name": f"{i:02d}.png", "text": caption, "artist": ARTISTS[i % 4]})
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def go(run, place):
    """Return a function that runs a program in the user's folder, and returns its output."""

    def call(program, *args, fails=False):
        done = run(program, *args, folder=place)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    return call


@pytest.fixture(scope="module")
def trained(go, place):
    """Encode and train, and return the ensemble."""
    text = go("encode", "--pipeline=models/sd", "--images=pictures", "--size=16", "--groups=artist")
    assert "captions: 2 distinct ones of 12x16, float16" in text
    text = go("train", *TRAINED)
    assert "schedule of models/sd/scheduler/scheduler_config.json" in text
    assert "24 latents of 8x8x4 in 24 units, conditioned on 12x16 numbers" in text
    assert "warning: " not in text
    return ensdiff.load(place / "runs" / "adapters")


@pytest.fixture(scope="module")
def sampled(go, place, trained):
    """Sample with and without an artist, and return the arrays."""
    text = go("sample", "--run=runs/adapters", *DRAWN, "--groups", "--remove=ada")
    assert "decoder: models/sd" in text
    assert "ada is group 1" in text
    assert "row 1: a red cat, ada, a dog" in text
    assert (place / "runs" / "adapters" / "samples" / "samples_seed0_without_group_1.png").exists()
    with np.load(place / "runs" / "adapters" / "samples" / "samples_seed0.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def forgotten(go, place, trained):
    """Forget an artist without a name in the records, write the adapter that is left, and return the smaller run."""
    options = ["--run=runs/adapters", "--groups", "--units=ada"]
    wrong = go("forget", *options, "--out=runs/less", "--lora=runs/less/x.safetensors", fails=True)
    assert "is in the new run, whose certificate allows no other files" in wrong
    text = go("forget", *options, "--no_names", "--out=runs/less", "--lora=files/less.safetensors")
    assert "groups 1 (ada) are 6 units" in text
    assert "not covered: The base" in text
    assert "not covered: The encoder of the latents or conditions" in text
    assert "wrote files/less.safetensors, the average of 2 adapters" in text
    return ensdiff.load(place / "runs" / "less")


def test_removal_changes_pictures_and_equals_the_ablated_weights(trained, sampled, place):
    pipe = diffusers.pipeline(place / "models" / "sd")
    assert trained.code.group_code().names == tuple(ARTISTS)
    np.testing.assert_array_equal(sampled["cond"], pipe.text.encode(PROMPTS))
    weights_K = trained.code.group_code().ablate([[ADA]])[0]
    assert not weights_K[trained.code.rows(range(ADA, 24, 4)).any(0)].any()
    drawn = {"cond": sampled["cond"], "steps": 2, "sampler": "ddim", "guidance": 3.0}
    without = ensdiff.sample(trained, 0, 2, weights=weights_K, **drawn).images
    np.testing.assert_allclose(sampled["counterfactuals"][0], without, atol=1e-4)
    assert np.abs(sampled["counterfactuals"][0] - sampled["images"]).max() > 1e-2


def test_names_and_prompts_that_do_not_fit(go, trained, place):
    wrong = go("sample", "--run=runs/adapters", "--n=1", "--groups", "--remove=03.png", fails=True)
    assert "no group is called '03.png'" in wrong
    assert "In this run 03.png: a dog is a unit: leave out --groups to mean it" in wrong
    wrong = go("sample", "--run=runs/adapters", "--n=1", f"--prompt={'cat ' * 11}", fails=True)
    assert "has 11 tokens, and the text encoder takes at most 10" in wrong
    with pytest.raises(ValueError, match="attends to captions .tokens of width 16., and the data have none: encode"):
        bases.of_diffusers(place / "models" / "sd", types.SimpleNamespace(condition_spec=None))


def test_encoders_of_another_pipeline_are_a_warning(place, trained, tmp_path, capsys):
    """They are compared by their files: those of this pipeline under another name are the same."""
    data = ensdiff.data.latents(place / "latents.npz")
    shutil.copytree(place / "models" / "sd", tmp_path / "sd")
    assert bases.other_encoders(tmp_path / "sd", data) == []
    weights = tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (latents,) = bases.other_encoders(tmp_path / "sd", data)
    assert latents.startswith(
        f"the latents were encoded with other files ({data.space.encoder}) than those of {tmp_path}"
    )
    bases.of_diffusers(tmp_path / "sd" / "unet", data)
    assert capsys.readouterr().out == f"warning: {latents}\n"
    words = tmp_path / "sd" / "tokenizer" / "tokenizer.json"
    words.write_text(words.read_text() + "\n")
    assert [text.split()[1] for text in bases.other_encoders(tmp_path / "sd", data)] == ["latents", "captions"]
    (tmp_path / "sd" / "vae" / "config.json").unlink()
    assert [text.split()[1] for text in bases.other_encoders(tmp_path / "sd", data)] == ["captions"]


def test_attributions_and_the_report_show_artists_and_captions(go, trained, sampled, place):
    run = place / "runs" / "adapters"
    text = go("attribute", "--run=runs/adapters", *DRAWN, "--groups", "--method=exact", "--null=0")
    assert "sample 0 (a red cat, ada): " in text
    att = ensdiff.Attribution.load(run / "attribution" / "exact_seed0_groups")
    assert (att.settings["names"], att.settings["captions"]) == (ARTISTS, PROMPTS)
    assert np.sort(att.units, 1).tolist() == [[0, 1, 2, 3]] * 2
    own = np.linalg.norm((sampled["counterfactuals"][0] - sampled["images"]).reshape(2, -1), axis=1)
    np.testing.assert_allclose(att.influence[att.units == ADA], own, rtol=1e-3)
    page = (run / "attribution" / "exact_seed0_groups.html").read_text()
    assert [word for word in ("cat lee", "Smith, J. / studio", *PROMPTS) if word not in page] == []
    text = go("report", "--run=runs/adapters", *DRAWN, "--top=2", "--null=0", "--combined=0")
    assert "attribution: runs/adapters/attribution/exact_seed0_groups.json" in text  # of the same samples
    page = (run / "report" / "explorer.html").read_text()
    assert [word for word in (*ARTISTS, "01.png: a red cat, ada") if word not in page] == []
    found = json.loads(re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL).group(1))
    assert found["captions"] == PROMPTS
    assert "'--prompt=a red cat, ada' '--prompt=a dog'" in page  # in the command that draws these samples


def test_a_universe_has_the_captions_of_its_samples(go, trained, sampled, place):
    go("convert", "ctf", "--run=runs/adapters", *DRAWN, "--to=x.ctf")
    with ctf.read(place / "x.ctf") as universe:
        assert universe.conditions["captions"] == PROMPTS
        assert (universe.count, universe.image_shape, universe.units) == (2, (16, 16, 3), 24)
        factual, other = np.asarray(universe.factual), universe.counterfactual(ADA)
        assert np.abs(other.astype(int) - factual).max() > 0
    decoded = diffusers.pipeline(place / "models" / "sd").vae.decode(sampled["images"])
    assert np.abs(factual - 255 * decoded).max() < 0.51 + 1e-2
    wrong = go("convert", "diffusers", "--run=runs/adapters", "--to=shards", fails=True)
    assert "holds adapters, not whole networks" in wrong
    assert not (place / "shards").exists()


def test_the_forgotten_artist_is_gone(go, forgotten, sampled, place):
    """The certificate verifies, no record names the artist, and the smaller run generates the counterfactual."""
    assert "the certificate holds" in go("certify", "verify", "--run=runs/less")
    assert forgotten.members == 2
    assert not forgotten.code.rows(range(ADA, 24, 4)).any()
    assert forgotten.code.group_code().names == ("Smith, J. / studio", "group 1", "bob", "cat lee")
    records = [
        path for path in (place / "runs" / "less").rglob("*") if path.is_file() and "checkpoints" not in path.parts
    ]
    assert len(records) > 5
    assert [path.name for path in records if re.search(rb"\bada\b", path.read_bytes())] == []
    assert re.search(r"1 +group 1 +6 +yes +6 *\n", go("units", "--run=runs/less", "--groups"))
    text = go("sample", "--run=runs/less", *DRAWN, "--groups", "--remove=group 1", "--out=pictures_less")
    assert "no member of this run saw group 1: without it, the samples are the same" in text
    with np.load(place / "pictures_less" / "samples_seed0.npz") as file:
        np.testing.assert_allclose(file["images"], sampled["counterfactuals"][0], atol=1e-4)
        np.testing.assert_allclose(file["counterfactuals"][0], file["images"], atol=1e-4)


def test_diffusers_opens_the_average_and_predicts_the_same(forgotten, place):
    """The file that forget wrote, of the members that never saw the artist."""
    import torch
    from diffusers import StableDiffusionPipeline

    file = place / "files" / "less.safetensors"
    facts = open_adapters(file).facts
    assert (facts["kind"], facts["removed"]) == ("average", list(range(ADA, 24, 4)))
    one = blend(forgotten, np.full((1, 2), 0.5, np.float32))
    predict = jax.jit(one.model.apply)
    theirs = StableDiffusionPipeline.from_pretrained(place / "models" / "sd")
    rng = np.random.default_rng(1)
    x_BHWC, t_B = rng.normal(size=(2, 8, 8, 4)).astype(np.float32), np.array([10, 700])
    tokens = diffusers.pipeline(place / "models" / "sd").text.encode(["a dog, bob", "ada"])

    def predicted():
        x_BCHW = torch.tensor(x_BHWC.transpose(0, 3, 1, 2))
        with torch.no_grad():
            found = theirs.unet(x_BCHW, torch.tensor(t_B), torch.tensor(np.asarray(tokens))).sample
        return found.numpy().transpose(0, 2, 3, 1)

    base = predicted()
    theirs.load_lora_weights(str(file.parent), weight_name=file.name)
    expected = predicted()
    theta = jax.tree.map(lambda a: a[0], one.params)
    ours = np.asarray(predict(theta, x_BHWC, t_B.astype(np.float32), np.asarray(tokens)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * expected.std())
    assert np.abs(base - expected).max() > 100 * 2e-5 * expected.std()
    longer = lora.save(dataclasses.replace(forgotten, scale=2 * forgotten.scale), place / "longer", average=True).files[
        0
    ]
    once, scaled = lora.read(file), lora.read(longer)
    for name in once:
        np.testing.assert_allclose(scaled[name].delta(), 2 * once[name].delta(), rtol=1e-5, atol=1e-8)
    # one member alone, to which the scale of the mean does not apply
    saved = lora.save(forgotten, place / "members", members=[1])
    plain = dataclasses.replace(forgotten, scale=1.0)
    theirs.unload_lora_weights()
    theirs.load_lora_weights(str(saved.files[0].parent), weight_name=saved.files[0].name)
    whole = jax.tree.map(lambda a: a[0], blend(plain, np.eye(2, dtype=np.float32)[1:]).params)
    ours = np.asarray(predict(whole, x_BHWC, t_B.astype(np.float32), np.asarray(tokens)))
    np.testing.assert_allclose(ours, predicted(), rtol=0, atol=2e-5 * expected.std())


def test_a_smaller_rank_loses_something_and_an_existing_file_stays(go, forgotten, place):
    file = place / "small.safetensors"
    options = ["--run=runs/less", "--groups", "--units=cat lee", f"--lora={file}"]
    text = go("forget", *options, "--out=runs/lesser", "--rank=1")
    assert re.search(r"the average of 1 adapters, relative error 0\.\d+", text)
    assert {one.rank for one in lora.read(file).values()} == {1}
    assert "small.safetensors exists already" in go("forget", *options, "--out=runs/again", fails=True)
    assert not (place / "runs" / "again").exists()


def test_adapters_of_diffusers_are_the_ensemble(trained, place):
    """The written members, with the code beside them, have the same bits."""
    lora.save(trained, place / "all")
    base = diffusers.load([place / "models" / "sd"])
    found = lora.load(base, place / "all")
    assert (found.code, found.base_digest) == (trained.code, trained.base_digest)
    jax.tree.map(np.testing.assert_array_equal, found.params, trained.params)


def test_a_plan_reads_the_pipeline(go, place):
    text = go("plan", "--config=adapters", "--accelerator=h100", "--samples=2", "--image=8x8x4", "--units=24")
    assert "config.aot.unet" not in text
    assert re.search(r"parameters of the frozen base, once +\| [\d,]{5,6} +\|", text)
