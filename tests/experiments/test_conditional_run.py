"""Every program on one run of conditional members on latents: flow matching, classes, 4x4x4 latents of digits."""

import json
import pathlib
import re

import numpy as np
import pytest

import ensdiff
from ensdiff.data import pca
from ensdiff.interop import ctf

pytestmark = pytest.mark.slow

NAMES = ["zero", "one", "two"]
SMALL = [
    "--config.model.channels=4", "--config.model.multipliers=(1,)", "--config.model.norm_groups=2",
    "--config.model.middle_attention=False", "--config.schedule.kind=flow", "--config.schedule.prediction=flow",
    "--config.schedule.timesteps=20", "--config.code.members=4", "--config.code.weight=2",
]  # fmt: skip
SAMPLES = ["--n=3", "--steps=2", "--sampler=ddim"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with latents of 14 digits of three classes, in four groups, and their decoder."""
    folder = tmp_path_factory.mktemp("latents")
    digits = ensdiff.data.digits()
    parts = pca.fit(digits.images[1000:1200], 4, patch=2)
    parts.save(folder / "z.pca.npz")
    items = np.flatnonzero(digits.labels < 3)[:14]
    np.savez(
        folder / "z.npz", latents=parts.encode(digits.images[items]).astype(np.float16), scale=parts.space.scale,
        encoder=parts.space.encoder, decoder="z.pca.npz", condition=digits.labels[items], class_names=NAMES,
        labels=digits.labels[items], groups=np.array(list("abcd"))[np.arange(14) % 4],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def go(run, place):
    """Return a function that runs a program on the run, and returns its output."""

    def call(program, *args, run_dir="run", fails=False):
        done = run(program, *([f"--run={place / run_dir}"] if run_dir else []), *args)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return call


@pytest.fixture(scope="module")
def trained(go, place):
    """Train, and return the run directory."""
    text = go(
        "train", "--config=latents", f"--config.data.path={place / 'z.npz'}", "--config.data.groups=groups",
        f"--config.run_dir={place / 'run'}", "--config.data.held_out=2", "--config.train.steps=4",
        "--config.train.batch_size=2", "--config.train.log_every=2", "--config.train.sample_every=4",
        "--config.train.decay=constant", *SMALL, run_dir=None,
    )  # fmt: skip
    assert "12 latents of 4x4x4 in 4 units, conditioned on 3 classes" in text
    return place / "run"


def test_sample(go, trained, tmp_path):
    text = go("sample", *SAMPLES, "--remove=3", f"--out={tmp_path}")
    assert "conditions: each of the 3 classes in turn (--cond=none: none)" in text
    assert f"decoder: {trained.parent / 'z.pca.npz'}" in text
    assert "row 1: zero, one\nrow 2: two\n" in text
    with np.load(tmp_path / "samples_seed0.npz") as found:
        params = ensdiff.load(trained)
        samples = ensdiff.sample(params, 0, 3, steps=2, sampler="ddim", cond=NAMES)
        np.testing.assert_allclose(found["images"], samples.images, atol=1e-5)
        expected = ensdiff.counterfactuals(params, samples, [3])
        np.testing.assert_allclose(found["counterfactuals"], expected, atol=1e-5)
        assert (found["cond"].tolist(), found["captions"].tolist(), found["guidance"]) == ([0, 1, 2], NAMES, 1)
    text = go("sample", "--steps=2", "--sampler=heun", "--cond=two,0", "--guidance=2", f"--out={tmp_path}")
    assert "row 1: two, zero\n" in text
    with np.load(tmp_path / "samples_seed0.npz") as found:
        assert (found["cond"].tolist(), float(found["guidance"])) == ([2, 0], 2.0)
    assert "--cond=cat: the condition has no class 'cat'" in go("sample", "--cond=cat", fails=True)


def test_other_decoders(go, trained, tmp_path):
    """A rough view without a decoder, and no picture by the decoder of other latents."""
    other = pca.fit(ensdiff.data.digits().images[:200], 4, patch=2)
    other.save(tmp_path / "other.pca.npz")
    wrong = go("sample", *SAMPLES, f"--decode={tmp_path / 'other.pca.npz'}", f"--out={tmp_path}", fails=True)
    assert "but the latents were made by PCA of 2x2 patches" in wrong
    decoder = trained.parent / "z.pca.npz"
    try:
        decoder.rename(tmp_path / "elsewhere.npz")
        text = go("sample", *SAMPLES, f"--out={tmp_path}")
        assert "decoder: none found, so pictures show the first channels of the latents" in text
        assert "pass --decode=" in go("convert", "ctf", f"--to={tmp_path / 'x.ctf'}", fails=True)
        text = go("sample", *SAMPLES, f"--decode={tmp_path / 'elsewhere.npz'}", f"--out={tmp_path}")
        assert f"decoder: {tmp_path / 'elsewhere.npz'}" in text
    finally:
        (tmp_path / "elsewhere.npz").rename(decoder)


@pytest.mark.parametrize(("method", "options"), [
    ("exact", []), ("differential", []), ("loss", ["--draws=4"]),
    ("trak", ["--draws=4", "--gradients=draws=2,parts=1,dimension=8,ridge=0.1,normalize=False"]),
])  # fmt: skip
def test_attribute(go, trained, method, options):
    check_attribute(go, trained, method, options)


def check_attribute(go, trained, method, options):
    """Attribute by a method, and check what the program writes."""
    text = go("attribute", *SAMPLES, f"--method={method}", "--top=3", "--null=2", *options)
    assert "sample 1 (one): " in text
    att = ensdiff.Attribution.load(trained / "attribution" / f"{method}_seed0")
    assert att.settings["captions"] == NAMES
    assert att.distance == {"loss": "loss", "trak": att.distance}.get(method, "l2 over latents")
    if method != "loss":
        page = (trained / "attribution" / f"{method}_seed0.html").read_text()
        assert "one</span>, as generated" in page
        assert "<dt>encoder</dt><dd>PCA of 2x2 patches, " in page


def test_attribute_images_from_outside(go, trained, tmp_path):
    """They are encoded by the run's encoder, and scored with the condition that is given."""
    from ensdiff.data.images import to_png

    (tmp_path / "in").mkdir()
    image = ensdiff.data.digits().images[1300]
    (tmp_path / "in" / "x.png").write_bytes(to_png(image))
    text = go(
        "attribute", f"--images={tmp_path / 'in'}", "--cond=two", "--draws=4", "--null=0", "--top=2",
        f"--out={tmp_path}",
    )  # fmt: skip
    assert "sample 0 (two): " in text
    latents = pca.load(trained.parent / "z.pca.npz").encode(image[None])
    loss = ensdiff.LossConfig(draws=4, block=2)
    expected = ensdiff.attribute(ensdiff.load(trained), latents, "loss", top=2, null=0, loss=loss, cond="two")
    found = ensdiff.Attribution.load(tmp_path / "loss_images")
    np.testing.assert_allclose(found.influence, expected.influence, rtol=1e-3, atol=1e-4)


def test_report(go, trained, tmp_path):
    """A saved attribution of the same conditions is used; of other conditions it is left out."""
    check_attribute(go, trained, "screen", ["--verify=3"])
    text = go("report", *SAMPLES, "--combined=2", "--null=2")
    assert re.search(rf"attribution: {trained}/attribution/(exact|screen)_seed0.json", text)  # exact goes first
    page = re.search(r"explorer: (\S+)", text).group(1)
    page_text = pathlib.Path(page).read_text()
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', page_text, re.DOTALL).group(1))
    assert (data["captions"], data["height"], data["width"]) == (NAMES, 8, 8)
    assert "(L2 over latents)" in page_text
    text = go("report", *SAMPLES, "--cond=two", "--top=2", "--null=2", "--combined=0", f"--out={tmp_path}")
    assert re.search(r"left out: \S+/screen_seed0.json: its sample 0 has another condition \(zero\)", text)
    assert (
        f"--run={trained} --n=3 --seed=0 --steps=2 --sampler=ddim --cond=two"
        in (tmp_path / "explorer.html").read_text()
    )


def test_gradients(go, trained):
    text = go("gradients", "--outputs=loss", "--draws=2", "--parts=1", "--dimension=8")
    assert "gradients of loss of 12 and 2 held out items under 4 members" in text


def test_convert(go, trained, tmp_path):
    go("convert", "ctf", *SAMPLES, f"--to={tmp_path / 'x.ctf'}")
    with ctf.read(tmp_path / "x.ctf") as universe:
        assert universe.conditions["captions"] == NAMES
        assert universe.conditions["null"] == {"": 3}
        assert (universe.count, universe.image_shape, universe.units) == (3, (8, 8, 1), 4)
    wrong = go("convert", "diffusers", f"--to={tmp_path / 'shards'}", fails=True)
    assert "downsample='pool' has no counterpart in UNet2DModel" in wrong
    text = go("convert", "ctf", f"--from={tmp_path / 'x.ctf'}", f"--to={tmp_path / 'x.npz'}", run_dir=None)
    assert "unit_of_item, captions" in text
    with np.load(tmp_path / "x.npz") as found:
        assert found["captions"].tolist() == NAMES


def test_forget_and_certify(go, trained, tmp_path):
    encoder = "not covered: The encoder of the latents or conditions"
    text = go("forget", "--units=3", f"--out={tmp_path / 'less'}")
    assert encoder in text
    assert "the certificate holds" in go("certify", "verify", run_dir=tmp_path / "less")
    text = go("sample", *SAMPLES, "--cond=1", f"--out={tmp_path / 'out'}", run_dir=tmp_path / "less")
    assert "row 2: one" in text
    path = f"--certificate={tmp_path / 'certificate.json'}"
    assert encoder in go("certify", "create", "--units=3", path)
    text = go("certify", "verify", path, "--replay=4")
    assert encoder in text
    assert "the certificate holds" in text


def test_compare_and_contrast(go, trained, tmp_path):
    text = go("attribute", "--n=1", "--steps=2", "--sampler=ddim", "--draws=4", "--compare", "--guidance=2")
    row = next(line for line in text.splitlines() if line.strip("| ").startswith("exact"))
    assert "| 32 |" in re.sub(" +", " ", row)  # 4 units, 2 survivors, 2 steps, with and without the condition
    assert "AUC" in go("attribute", "--contrast", "--draws=4", "--top=2", f"--out={tmp_path}")


def test_plan_and_aot(go):
    config = ["--config=latents", "--config.model.classes=3", *SMALL]
    text = go("plan", *config, "--image=4x4x4", "--units=6", "--accelerator=cpu2", run_dir=None)
    assert "4x4x4, float32" in text
    text = go(
        "aot", "--topology=cuda:2", *config, "--image=4,4,4", "--units=6", "--config.train.batch_size=2",
        "--programs=train,landscape", run_dir=None,
    )  # fmt: skip
    assert "landscape: " in text
    for program, size in (("plan", "--image=4x4x4"), ("aot", "--image=4,4,4")):
        more = ["--topology=cuda:2"] if program == "aot" else []
        wrong = go(
            program, "--config=latents", "--config.data.condition=labels", size, "--units=6", *more, run_dir=None,
            fails=True,
        )  # fmt: skip
        assert "config.data.condition='labels', but the number of classes is not known without the data" in wrong
