"""An autoencoder of diffusers with random weights: what is encoded and decoded, and its errors."""

import hashlib
import json

import numpy as np
import pytest

from ensdiff import data
from ensdiff.interop import vae
from ensdiff.interop.vae import description_of
from ensdiff.models.space import Latents

pytestmark = pytest.mark.torch
CONFIG = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 3, "scaling_factor": 0.4, "shift_factor": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return an autoencoder with random weights and the folder in which it was saved."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(**CONFIG).eval()
    folder = tmp_path_factory.mktemp("vae")
    network.save_pretrained(folder / "pipeline" / "vae")
    return network, folder / "pipeline"


def test_encode_and_decode(saved, rng):
    """Equal to the network called picture by picture, in any batches; uint8 and floats mean the same."""
    import torch

    network, folder = saved
    images = rng.integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)
    found = vae(folder, batch=2)
    posterior = found.encode(images)
    assert posterior.mean.shape == posterior.deviation.shape == (5, 4, 6, 3)
    assert found.factor == 2
    again = found.decode(posterior.mean)
    assert again.shape == (5, 8, 12, 3)
    with torch.no_grad():
        for i, image in enumerate(images):
            x = torch.tensor(image.transpose(2, 0, 1)[None] / 127.5 - 1, dtype=torch.float32)
            one = network.encode(x).latent_dist
            np.testing.assert_allclose(posterior.mean[i], one.mean[0].permute(1, 2, 0), atol=1e-4)
            np.testing.assert_allclose(posterior.deviation[i], one.std[0].permute(1, 2, 0), rtol=1e-3)
            picture = network.decode(one.mean).sample[0].permute(1, 2, 0).numpy()
            np.testing.assert_allclose(again[i], np.clip(picture / 2 + 0.5, 0, 1), atol=1e-4)
    np.testing.assert_allclose(found.encode(images / 255.0).mean, posterior.mean, atol=1e-4)
    grey = found.encode(images[..., :1])
    np.testing.assert_allclose(grey.mean, found.encode(np.repeat(images[..., :1], 3, -1)).mean, atol=1e-5)


def test_space_and_digest(saved):
    _, folder = saved
    found = vae(folder / "vae")
    content = (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert found.digest == hashlib.sha256(content).hexdigest()
    assert (found.shift, found.scale) == ((0.1,), (0.4,))
    assert found.space == Latents((0.1,), (0.4,), f"AutoencoderKL, SHA-256 of the weights {found.digest}")
    assert description_of(folder) == description_of(folder / "vae") == found.space.encoder


def test_means_and_deviations_of_channels(saved, tmp_path):
    """Such a configuration scales each channel: the diffusion model receives (z - mean) * scale / deviation."""
    network, _ = saved
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"latents_mean": [1.0, 2.0, 3.0], "latents_std": [0.5, 1.0, 2.0]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = vae(tmp_path)
    assert found.shift == (1.0, 2.0, 3.0)
    assert found.scale == (0.8, 0.4, 0.2)


def test_errors(saved, tmp_path):
    _, folder = saved
    found = vae(folder)
    with pytest.raises(ValueError, match="pictures of 7x8: expected sides that are multiples of 2"):
        found.encode(np.zeros((1, 7, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="2 channels: expected 3, or 1"):
        found.encode(np.zeros((1, 8, 8, 2), np.uint8))
    with pytest.raises(ValueError, match=r"expected \(N, h, w, 3\)"):
        found.decode(np.zeros((1, 4, 4, 4)))
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="class 'UNet2DModel': expected 'AutoencoderKL'"):
        vae(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "vae" / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        vae(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read as an autoencoder"):
        vae(tmp_path)


def test_the_program_encodes_a_folder(saved, run, tmp_path, rng):
    from PIL import Image

    _, folder = saved
    for artist in "ab":
        (tmp_path / "mine" / artist).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                tmp_path / "mine" / artist / f"{i}.png"
            )
    out = tmp_path / "z.npz"
    done = run("encode", f"--vae={folder}", f"--images={tmp_path / 'mine'}", f"--out={out}", "--batch=3", "--size=8")
    assert done.returncode == 0, done.stderr
    found = data.latents(out)
    pictures = data.folder(tmp_path / "mine", size=8)
    posterior = vae(folder).encode(pictures.images)
    np.testing.assert_array_equal(found.images, posterior.mean.astype(np.float16))
    np.testing.assert_array_equal(np.load(out)["deviation"], posterior.deviation.astype(np.float16))
    assert found.space == vae(folder).space
    assert list(found.unit_names) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert list(data.latents(out, groups="groups").unit_names) == ["a", "b"]
    assert str(np.load(out)["images_digest"]) == pictures.digest()
