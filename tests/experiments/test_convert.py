"""`experiments.convert` on the command line, in both directions."""

import dataclasses
import json

import numpy as np
import pytest

import ensdiff
from ensdiff.codes.unit_names import UnitNames
from ensdiff.interop import ctf
from tests.helpers import blobs


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """Return a folder with a run directory that has names but no config, and with its training data without names."""
    folder = tmp_path_factory.mktemp("convert")
    ensdiff.save(dataclasses.replace(tiny, unit_names=UnitNames("abcdef")), folder / "run")
    np.savez(folder / "train.npz", images=blobs())
    return folder


@pytest.mark.slow
def test_universe_and_back(run, tiny, saved, tmp_path):
    path = tmp_path / "x.ctf"
    args = ["ctf", f"--run={saved / 'run'}", "--n=2", "--steps=3", f"--to={path}"]
    done = run("convert", *args)
    assert done.returncode == 1
    assert "does not name its training data: pass --data=" in done.stderr
    assert not path.exists()
    done = run("convert", *args, f"--data=npz,path={saved / 'train.npz'}")
    assert done.returncode == 0, done.stderr
    assert f"wrote {path}" in done.stdout
    samples = ensdiff.sample(tiny, 0, 2, steps=3)
    expected = ensdiff.counterfactuals(tiny, samples, range(6))
    with ctf.read(path) as universe:
        for unit in range(6):
            assert np.abs(universe.counterfactual(unit) - 255.0 * expected[unit]).max() < 0.51
    done = run("convert", "ctf", f"--from={path}", f"--to={tmp_path / 'x.npz'}")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "x.npz") as file:
        assert file["counterfactuals"].shape == (6, 2, 8, 8, 1)
        np.testing.assert_array_equal(file["training"], blobs())
        np.testing.assert_array_equal(file["unit_of_item"], range(6))
        assert file["unit_names"].tolist() == list("abcdef")


@pytest.mark.torch
def test_diffusers_and_back(run, deep, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    ensdiff.save(deep, tmp_path / "run")
    done = run("convert", "diffusers", f"--run={tmp_path / 'run'}", f"--to={tmp_path / 'models'}")
    assert done.returncode == 0, done.stderr
    done = run("convert", "diffusers", f"--from={tmp_path / 'models'}", f"--to={tmp_path / 'back'}")
    assert done.returncode == 0, done.stderr
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    back = ensdiff.load(tmp_path / "back")
    assert back.code == deep.code
    np.testing.assert_allclose(ensdiff.predict(back, x, 3), ensdiff.predict(deep, x, 3), atol=1e-6)
    code = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
    np.save(tmp_path / "code.npy", code)
    sources = [f"--from={tmp_path / 'models' / f'Shard{k}'}" for k in range(4)]
    done = run("convert", "diffusers", *sources, f"--code={tmp_path / 'code.npy'}", f"--to={tmp_path / 'zoo'}")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(ensdiff.load(tmp_path / "zoo").code.matrix(), code)


@pytest.mark.torch
def test_genens(run, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from tests.interop.test_interop import DATA

    with np.load(DATA / "genens_member1.npz") as file:
        content = dict(file)
    state = {n.removeprefix("state/"): torch.tensor(v) for n, v in content.items() if n.startswith("state/")}
    for k in range(2):
        torch.save({"epoch": 0, "model_state_dict": state}, tmp_path / f"MNIST_split{k}_ckpt.pt")
    done = run("convert", "genens", f"--from={tmp_path}", "--image_size=8", f"--to={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "--sampler=genens" in done.stdout
    eps = ensdiff.predict(ensdiff.load(tmp_path / "run"), np.moveaxis(content["x"], 1, -1), content["t"])
    np.testing.assert_allclose(np.moveaxis(np.asarray(eps), -1, 2), np.stack([content["eps"]] * 2), atol=1e-4)


@pytest.mark.parametrize(("args", "message"), [
    ([], "no command given: expected one of genens, diffusers, ctf"),
    (["png"], "unknown command 'png'"),
    (["ctf"], "no output given: pass --to"),
    (["ctf", "--to=x"], "pass either --from=... to read other files, or --run=..."),
    (["ctf", "--from=none.ctf", "--to=x.npz"], "none.ctf does not exist"),
    (["ctf", "--from=README.md", "--to=x.npz"], "is not a plain tar file"),
    (["genens", "--run=x", "--to=y"], "GenEns checkpoints cannot be written"),
    (["genens", "--from=tests", "--to=y"], "holds splits []"),
    (["diffusers", "--from=tests", "--to=y"], "has no folders Shard0, Shard1"),
])  # fmt: skip
def test_errors_are_one_line(run, args, message):
    done = run("convert", *args)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_explains_each_direction(run):
    shown = run("convert", "--help")
    for text in ("Commands:", "genens", "diffusers", "ctf", "python -m experiments.convert ctf --run="):
        assert text in shown.stdout + shown.stderr


def test_config_json_of_the_unet_is_checked(run, tmp_path):
    (tmp_path / "unet.json").write_text("{")
    (tmp_path / "Shard0").mkdir()
    (tmp_path / "Shard0" / "pytorch_model.bin").write_bytes(b"")
    done = run("convert", "diffusers", f"--from={tmp_path}", f"--unet={tmp_path / 'unet.json'}", "--to=y")
    assert done.returncode == 1
    assert "unet.json is not a JSON file" in done.stderr
    (tmp_path / "unet.json").write_text(json.dumps({"act_fn": "gelu"}))
    done = run("convert", "diffusers", f"--from={tmp_path}", f"--unet={tmp_path / 'unet.json'}", "--to=y")
    assert "act_fn='gelu' is not supported" in done.stderr
