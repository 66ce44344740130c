"""Checkpoints of other implementations: round trips of names, and files that must be refused."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ensdiff
from ensdiff.ensemble import abstract_params
from ensdiff.interop import channels_last, diffusers, genens
from ensdiff.interop.tensors import names, stack
from tests.helpers import random_ensemble

DATA = pathlib.Path(__file__).parent / "data"

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


def test_numbers_of_the_reference(record_property):
    """A member of GenEns, with predictions and a sample that GenEns computed (float32, CPU) from them."""
    with np.load(DATA / "genens_member1.npz") as file:
        content = dict(file)
    state = {name.removeprefix("state/"): value for name, value in content.items() if name.startswith("state/")}
    config = genens.infer_config(state, "genens_member1.npz")
    params = stack([state], ["genens_member1.npz"], config, genens._style(config), (8, 8, 1), None)
    for name, got, want, allowed in (
        ("predictions", ensdiff.predict(params, channels_last(content["x"]), content["t"])[0], content["eps"], 2e-5),
        (
            "sample after 1,000 steps",
            ensdiff.sample(params, noise=channels_last(content["noise"]), sampler=genens.SAMPLER).images,
            content["sample"],
            1e-3,
        ),
    ):
        want = channels_last(want)
        error = np.abs(np.asarray(got) - want).max() / want.std()
        record_property("largest difference", f"{name} {error:.1e}, of the standard deviation (allowed {allowed:.0e})")
        assert error < allowed


def test_what_diffusers_cannot_represent(tiny, tmp_path):
    for change, message in (
        ({"time_layout": "interleaved"}, "time_layout='interleaved' has no counterpart in UNet2DModel"),
        ({"downsample": "pool"}, "downsample='pool' has no counterpart"),
        ({"upsample": "nearest"}, "upsample='nearest' has no counterpart"),
        ({"multipliers": (2, 2)}, "the first level has 8 channels and the first convolution 4"),
    ):
        other = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, **change))
        with pytest.raises(ValueError, match=message):
            diffusers.save(other, tmp_path / "x")
    with pytest.raises(ValueError, match=r"value_range=\(0.0, 1.0\)"):
        diffusers.save(dataclasses.replace(tiny, value_range=(0.0, 1.0)), tmp_path / "x")
    with pytest.raises(ValueError, match="format='pt': expected 'safetensors' or 'bin'"):
        diffusers.save(tiny, tmp_path / "x", format="pt")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="holds files already"):
        diffusers.save(tiny, tmp_path)


@st.composite
def unet_options(draw):
    """Arguments of a tiny UNet2DModel."""
    levels = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 4]))
    widths = [4 * draw(st.integers(1, 4)) for _ in range(levels)]
    down = [draw(st.booleans()) for _ in widths]
    up = [draw(st.booleans()) for _ in widths]
    return {
        "sample_size": 8, "in_channels": (channels := draw(st.sampled_from([1, 3]))), "out_channels": channels,
        "layers_per_block": draw(st.integers(1, 2)), "block_out_channels": widths, "norm_num_groups": groups,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in down],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in up],
        "attention_head_dim": draw(st.sampled_from([None, 2, 4])), "add_attention": draw(st.booleans()),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-6, 1e-2])), "flip_sin_to_cos": draw(st.booleans()),
        "freq_shift": draw(st.integers(0, 1)), "downsample_padding": draw(st.integers(0, 1)),
    }  # fmt: skip


def torch_model(options, seed):
    """A UNet2DModel with random parameters of which none is 0 or 1."""
    torch = pytest.importorskip("torch")
    model = pytest.importorskip("diffusers", reason="diffusers is not installed").UNet2DModel(**options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return model


def torch_prediction(model, x_BHWC, t_B):
    import torch

    with torch.no_grad():
        x = torch.from_numpy(np.moveaxis(x_BHWC, -1, 1).copy())
        return np.moveaxis(model(x, torch.from_numpy(t_B)).sample.numpy(), 1, -1)


@pytest.mark.torch
@settings(max_examples=8)
@given(unet_options(), st.integers(0, 2**31))
def test_random_configurations_of_diffusers_predict_the_same(tmp_path_factory, options, seed):
    pytest.importorskip("safetensors")
    models = [torch_model(options, seed + k) for k in range(2)]
    folder = tmp_path_factory.mktemp("zoo")
    for k, model in enumerate(models):
        model.save_pretrained(folder / f"Shard{k}")
    params = diffusers.load(folder)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 8, 8, options["in_channels"])).astype(np.float32)
    t = rng.integers(0, 1000, 2)
    eps_K = np.asarray(ensdiff.predict(params, x, t))
    for k, model in enumerate(models):
        want = torch_prediction(model, x, t)
        assume(want.std() > 0)
        assert np.abs(eps_K[k] - want).max() < 1e-4 * max(want.std(), np.abs(want).max())


@pytest.mark.torch
@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "change",
    [{}, {"attention_levels": (0,), "attention_levels_up": (1,), "time_layout": "cos_sin", "head_channels": 2,
          "downsample": "conv_end", "time_shift": 1, "middle_attention": False, "norm_epsilon": 1e-3}],
)  # fmt: skip
def test_saved_ensembles_predict_the_same_in_torch_and_come_back(tiny, tmp_path, format, change):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("safetensors")
    params = random_ensemble(model=dataclasses.replace(tiny.model, **change))
    params = dataclasses.replace(params, data_digest=64 * "a")
    diffusers.save(params, tmp_path / "out", format=format)
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2, 8, 8, 1)).astype(np.float32), np.array([3, 17])
    eps_K = np.asarray(ensdiff.predict(params, x, t))
    for k in range(params.members):
        shard = tmp_path / "out" / f"Shard{k}"
        if format == "safetensors":
            model = package.UNet2DModel.from_pretrained(shard).eval()
        else:
            model = package.UNet2DModel.from_config(json.loads((shard / "config.json").read_text())).eval()
            model.load_state_dict(torch.load(shard / "pytorch_model.bin", weights_only=True))
        want = torch_prediction(model, x, t)
        assert np.abs(eps_K[k] - want).max() < 2e-5 * want.std()
    schedule = package.DDPMScheduler.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), params.schedule.abar_T, rtol=1e-5)
    back = diffusers.load(tmp_path / "out")
    assert (back.code, back.schedule, back.image_shape) == (params.code, params.schedule, params.image_shape)
    assert back.data_digest == params.data_digest
    assert diffusers.load(tmp_path / "out", params.code).data_digest is None
    jax.tree.map(np.testing.assert_array_equal, back.params, params.params)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "code.npy"), params.code.matrix())


@pytest.mark.torch
def test_members_from_anywhere(tiny, tmp_path):
    pytest.importorskip("safetensors")
    diffusers.save(tiny, tmp_path / "all")
    homes = {"ada": 2, "bob": 0, "eve": 1}
    for name, k in homes.items():
        shutil.move(tmp_path / "all" / f"Shard{k}", tmp_path / name)
    code = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    np.save(tmp_path / "code.npy", code)
    zoo = diffusers.load([tmp_path / name for name in homes], tmp_path / "code.npy")
    for place, k in enumerate(homes.values()):
        jax.tree.map(lambda a, b, p=place, k=k: np.testing.assert_array_equal(a[p], b[k]), zoo.params, tiny.params)
    np.testing.assert_array_equal(zoo.code.matrix(), code)
    samples = ensdiff.sample(zoo, 0, 2, steps=2)
    only_eve = ensdiff.sample(zoo, 0, 2, steps=2, weights=[0, 0, 1])
    np.testing.assert_allclose(ensdiff.counterfactuals(zoo, samples, [3])[0], only_eve.images, atol=1e-6)
    assert ensdiff.attribute(zoo, samples, "differential", top=4).influence.shape == (2, 4)
    # names before diffusers 0.15, as in the first published DDPM checkpoints
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "bob" / diffusers.FILES[0]
    state = load_file(file)
    for old, new in diffusers.OLD_ATTENTION.items():
        state = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): v for name, v in state.items()}
    assert any(".query." in name for name in state)
    save_file(state, file)
    again = diffusers.load([tmp_path / name for name in homes])
    jax.tree.map(np.testing.assert_array_equal, again.params, zoo.params)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        diffusers.load([tmp_path / name for name in homes])
    config = json.loads((tmp_path / "eve" / "config.json").read_text())
    (tmp_path / "eve" / "config.json").write_text(json.dumps({**config, "norm_eps": 1e-3}))
    with pytest.raises(ValueError, match=r"ada.* and .*eve.* differ \(norm_epsilon: 1e-05 and 0.001\)"):
        diffusers.load([tmp_path / name for name in homes])
    (tmp_path / "eve" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="eve.*config.json is not a JSON file"):
        diffusers.load([tmp_path / name for name in homes])
    (tmp_path / "ada" / "scheduler_config.json").write_text('{"beta_schedule": "squaredcos_cap_v2"}')
    with pytest.raises(ValueError, match="beta_schedule='squaredcos_cap_v2' is not supported: expected 'linear'"):
        diffusers.load([tmp_path / "ada", tmp_path / "bob"])
    with pytest.raises(ValueError, match="no checkpoint given"):
        diffusers.load([])


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_without_the_extra_the_error_says_which(tmp_path, monkeypatch, missing):
    from ensdiff.interop.tensors import read_state_dict

    path = tmp_path / ("x.bin" if missing == "torch" else "x.safetensors")
    path.write_bytes(b"anything")
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    if missing == "safetensors":
        monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'ensdiff\[torch\]'"):
        read_state_dict(path)
