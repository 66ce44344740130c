"""Checkpoints of other implementations: round trips of names, and files that must be refused."""

import json
import os

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.ensemble import abstract_params
from ensdiff.interop import diffusers, genens
from ensdiff.interop.tensors import names

SMALL = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": [8, 16],
    "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def state_of(config, style, seed):
    """A random state dict with torch's layouts, and the parameters that it stands for."""
    shapes = abstract_params(config, (8, 8, 1), 1)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape[1:]).astype(np.float32), shapes)
    state = {}
    for name, path in names(config, style, shapes).items():
        value = params
        for part in path:
            value = value[part]
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        convolution = value.ndim == 2 and ("attn.proj" in name)
        state[name] = np.ascontiguousarray(value[..., None, None] if convolution else value)
    return state, params


def test_diffusers_options():
    config = diffusers.unet_config(SMALL)
    assert config.widths == (8, 16)
    assert config.attention_levels == config.attention_levels_up == (1,)
    assert config.time_layout == "cos_sin"
    assert config.head_channels == 8
    for change, message in (
        ({"act_fn": "relu"}, "act_fn='relu' is not supported"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"out_channels": 2}, "expected equal"),
        ({"block_out_channels": [8]}, "expected equal numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            diffusers.unet_config({**SMALL, **change})


@pytest.mark.torch
def test_round_trips_and_errors(tmp_path):
    torch = pytest.importorskip("torch")
    config = diffusers.unet_config(SMALL)
    style = diffusers._style(config)
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    truth = []
    for k in range(2):
        state, params = state_of(config, style, k)
        truth.append(params)
        folder = tmp_path / f"Shard{k}"
        folder.mkdir()
        torch.save({n: torch.tensor(v) for n, v in state.items()}, folder / "pytorch_model.bin")
    loaded = diffusers.load(tmp_path)
    for k in range(2):
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a[k], b), loaded.params, truth[k])
    # a zoo of members trained elsewhere is an ensemble like any other
    zoo = diffusers.load(tmp_path, np.array([[1, 0], [0, 1]]))
    samples = ensdiff.sample(zoo, 0, 1, steps=2)
    assert ensdiff.counterfactuals(zoo, samples, [0]).shape == (1, 1, 8, 8, 1)
    assert ensdiff.attribute(zoo, samples, "exact", top=2).units.shape == (1, 2)

    with pytest.raises(ValueError, match="for 3 members, 2 checkpoints"):
        diffusers.load(tmp_path, np.eye(3))
    file = tmp_path / "Shard1" / "pytorch_model.bin"
    whole = file.read_bytes()
    torch.save({n: torch.tensor(v) for n, v in state.items() if n != "conv_out.bias"}, file)
    with pytest.raises(ValueError, match=r"Shard1.*missing \['conv_out.bias'\]"):
        diffusers.load(tmp_path)
    torch.save({n: torch.tensor(v if n != "conv_in.bias" else v[:3]) for n, v in state.items()}, file)
    with pytest.raises(ValueError, match=r"conv_in.bias has shape \(3,\), which does not fit \(8,\)"):
        diffusers.load(tmp_path)
    file.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        diffusers.load(tmp_path)

    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(ran),))

    torch.save({"conv_in.bias": Evil()}, file)
    with pytest.raises(ValueError, match="not a checkpoint of tensors alone"):
        diffusers.load(tmp_path)
    assert not ran.exists()
    file.unlink()
    with pytest.raises(FileNotFoundError, match="holds none of diffusion_pytorch_model"):
        diffusers.load(tmp_path)


@pytest.mark.torch
def test_genens_round_trip(tmp_path):
    torch = pytest.importorskip("torch")
    config = ensdiff.UNetConfig(
        channels=32, multipliers=(1, 2), blocks=2, attention_levels=(1,), norm_groups=32, time_layout="interleaved",
        dropout=0.1,
    )  # fmt: skip
    truth = []
    for k in range(2):
        state, params = state_of(config, genens._style(config), k)
        truth.append(params)
        tensors = {n: torch.tensor(v) for n, v in state.items()} | {genens.TABLE: torch.zeros(1000, 32)}
        torch.save({"epoch": 0, "model_state_dict": tensors}, tmp_path / f"MNIST_split{k}_ckpt.pt")
    loaded = genens.load(tmp_path, image_size=8)
    assert loaded.model == config
    for k in range(2):
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a[k], b), loaded.params, truth[k])
    with pytest.raises(FileNotFoundError, match=r"expected 0, 1"):
        genens.load(tmp_path / "nothing")
    torch.save({"weights": 3}, tmp_path / "MNIST_split1_ckpt.pt")
    with pytest.raises(ValueError, match="no state dict under 'model_state_dict'"):
        genens.load(tmp_path)
