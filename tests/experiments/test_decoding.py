"""Decoders on the command line: which one is found, and which one is refused."""

import json
import types

import numpy as np
import pytest
from absl import flags

import ensdiff
from ensdiff.data import pca
from ensdiff.models.space import PIXELS, Latents
from experiments import decoding

IMAGES = ensdiff.data.digits().images


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Return a function that calls `codec_of` for a run whose latents in ``z.npz`` have the given decoder."""
    (tmp_path / "run").mkdir()
    config = {"data": {"name": "latents", "path": str(tmp_path / "z.npz")}, "run_dir": str(tmp_path / "run")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(decoding.runs, "run_folder", lambda: tmp_path / "run")
    decoding.open_codec.cache_clear()

    def call(space, decode=None, decoder=None):
        arrays = {} if decoder is None else {"decoder": np.array(decoder)}
        np.savez(tmp_path / "z.npz", latents=np.zeros((1, 4, 4, 4), np.float16), **arrays)
        monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(decode=decode))
        return decoding.codec_of(types.SimpleNamespace(space=space))

    return call


def test_pixels_need_none(world):
    assert world(PIXELS) is None
    with pytest.raises(ValueError, match="--decode=x: the members generate pixels, which need no decoder"):
        world(PIXELS, decode="x")


def test_the_decoder_that_the_file_names(world, tmp_path, capsys):
    parts, other = pca.fit(IMAGES[:200], 4, 2), pca.fit(IMAGES[200:400], 4, 2)
    assert world(parts.space) is None
    assert world(parts.space, decoder="deep/z.pca.npz") is None  # it was moved
    assert not capsys.readouterr().out
    (tmp_path / "deep").mkdir()
    parts.save(tmp_path / "deep" / "z.pca.npz")
    found = world(parts.space, decoder="deep/../deep/z.pca.npz")
    assert (found.path, found.factor, found.grey) == (tmp_path / "deep" / "z.pca.npz", 2, True)
    latents = found.encode(IMAGES[:3])
    np.testing.assert_array_equal(latents, parts.encode(IMAGES[:3]))
    np.testing.assert_array_equal(found.decode(latents), parts.decode(latents))
    on_training = Latents(encoder=f"{parts.space.encoder}, fitted to the training data")
    assert world(on_training, decoder="deep/z.pca.npz") is not None
    for space in (other.space, Latents()):
        assert world(space, decoder="deep/z.pca.npz") is None
        assert "is left out: the latents were made by another" in capsys.readouterr().out
    (tmp_path / "deep" / "z.pca.npz").write_bytes(b"damaged")
    decoding.open_codec.cache_clear()
    assert world(parts.space, decoder="deep/z.pca.npz") is None
    assert "is left out: " in capsys.readouterr().out


def test_the_decoder_of_the_command_line(world, tmp_path):
    parts, path = pca.fit(IMAGES[:200], 4, 2), str(tmp_path / "z.pca.npz")
    parts.save(path)
    assert world(parts.space, decode=path).encoder == parts.space.encoder
    assert world(Latents(), decode=path) is not None  # the latents do not say what made them
    with pytest.raises(ValueError, match="but the latents were made by another: give the decoder of the training"):
        world(Latents(encoder="another"), decode=path)
    with pytest.raises(FileNotFoundError):
        world(parts.space, decode=str(tmp_path / "nowhere"))


@pytest.mark.torch
def test_the_folder_of_an_autoencoder(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    network = diffusers.AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    network.save_pretrained(tmp_path / "vae")
    found, same = decoding.open_codec(tmp_path / "vae"), ensdiff.interop.vae(tmp_path / "vae")
    assert (found.factor, found.grey, found.encoder) == (2, False, same.space.encoder)
    assert found.made(same.space)
    images = np.repeat(IMAGES[:2], 3, axis=-1)
    np.testing.assert_allclose(found.encode(images), same.encode(images).mean, atol=1e-6)
    assert found.decode(found.encode(images)).shape == (2, 8, 8, 3)
