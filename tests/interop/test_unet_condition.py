"""The U-Net of Stable Diffusion: parity with diffusers on random weights, its files, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ensdiff
from ensdiff.interop import diffusers
from ensdiff.interop.networks import names_of
from ensdiff.interop.options import CONDITION_UNET
from ensdiff.interop.weights import INDEX
from ensdiff.models import Latents, UNetConfig
from ensdiff.planning.estimates import parameter_count
from tests.helpers import TINY

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
package = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytestmark = pytest.mark.torch

ONE = {
    "sample_size": 4, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": [8, 16],
    "norm_num_groups": 4, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": 6, "attention_head_dim": 2,
}  # fmt: skip
"""As Stable Diffusion 1: one number of heads, 1x1 convolutions."""
TWO = {**ONE, "attention_head_dim": [1, 4], "use_linear_projection": True, "upcast_attention": True}
"""As Stable Diffusion 2: as many heads as the width allows, dense projections."""


def made(options, seed=0, scale=0.3):
    """Return a U-Net of diffusers with random parameters, none of them 0 or 1."""
    model = package.UNet2DConditionModel(**options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(scale * torch.randn(value.shape, generator=generator))
    return model


def theirs(model, x_BHWC, t_B, cond):
    with torch.no_grad():
        x = torch.from_numpy(np.moveaxis(x_BHWC, -1, 1).copy())
        y = model(x, torch.from_numpy(np.asarray(t_B)), torch.from_numpy(cond)).sample
        return np.moveaxis(y.numpy(), 1, -1)


def check(got, want, allowed):
    assert np.abs(got - want).max() < allowed * want.std()


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


LEVELS = {
    "first": (["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]),
    "last": (["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]),
    "down only": (["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], ["UpBlock2D", "UpBlock2D"]),
}


@pytest.mark.slow
@settings(max_examples=6)
@given(
    st.sampled_from([ONE, TWO]),
    st.fixed_dictionaries({
        "transformer_layers_per_block": st.sampled_from([1, 2, [2, 1]]), "cross_attention_dim": st.integers(1, 9),
        "attention_head_dim": st.sampled_from([1, 4, [2, 4], [8, 1]]), "norm_eps": st.sampled_from([1e-5, 1e-3]),
        "flip_sin_to_cos": st.booleans(), "freq_shift": st.sampled_from([0, 1]), "in_channels": st.sampled_from([1, 4]),
        "downsample_padding": st.sampled_from([0, 1]), "layers_per_block": st.sampled_from([1, [1, 1]]),
    }),
    st.sampled_from(sorted(LEVELS)),
    st.integers(1, 5),
    st.integers(0, 2**31),
)  # fmt: skip
def test_random_unets_predict_the_same(tmp_path_factory, like, some, levels, length, seed):
    down, up = LEVELS[levels]
    options = {**like, **some, "out_channels": some["in_channels"], "down_block_types": down, "up_block_types": up}
    reference, folder = made(options, seed), tmp_path_factory.mktemp("unet")
    reference.save_pretrained(folder)
    model, params = diffusers.load_unet(folder, context_length=length)
    x, cond = drawn((3, 4, 4, options["in_channels"]), seed), drawn((3, length, options["cross_attention_dim"]), seed)
    t = np.random.default_rng(seed).integers(0, 1000, 3).astype(np.float32)
    check(jax.jit(model.apply)(params, x, t, cond), theirs(reference, x, t, cond), 2e-5)


SCHEDULERS = {
    "one": (ONE, {"prediction_type": "epsilon"}, 3.0),
    "two": (TWO, {"prediction_type": "v_prediction"}, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_samples_are_the_same(tmp_path, name):
    """20 steps of DDIM, with and without guidance; a condition of zeros is none."""
    options, more, guidance = SCHEDULERS[name]
    scheduler = package.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, **more
    )
    reference = made(options, 3, scale=0.2)
    reference.save_pretrained(tmp_path / "Shard0")
    scheduler.save_pretrained(tmp_path / "Shard0")
    params = diffusers.load(tmp_path, context_length=5)
    assert params.schedule.prediction == {"epsilon": "noise", "v_prediction": "v"}[more["prediction_type"]]
    noise, cond = drawn((2, 4, 4, 4)), drawn((2, 5, 6), 1)
    scheduler.set_timesteps(20)
    state = torch.from_numpy(np.moveaxis(noise, -1, 1).copy())
    for t in scheduler.timesteps:
        times, given_ = np.full(2, float(t), np.float32), np.moveaxis(state.numpy(), 1, -1)
        found = theirs(reference, given_, times, cond)
        if guidance != 1:
            without = theirs(reference, given_, times, np.zeros_like(cond))
            found = without + guidance * (found - without)
        state = scheduler.step(torch.from_numpy(np.moveaxis(found, -1, 1).copy()), t, state).prev_sample
    draws = np.concatenate(
        [noise[None], np.zeros((20, *noise.shape), np.float32)]
    )  # without eta, only the first counts
    samples = ensdiff.sample(
        params, noise=draws, cond=cond, guidance=guidance, sampler=ensdiff.SamplerConfig("ddim", steps=20, clip=False)
    )
    want = np.moveaxis(state.numpy(), 1, -1)
    check(samples.images, want, 1e-3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a U-Net of diffusers, and the folder where it is stored."""
    reference, folder = made(ONE), tmp_path_factory.mktemp("one")
    reference.save_pretrained(folder / "unet")
    return reference, folder


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_unet_comes_back(place, tmp_path):
    reference, folder = place
    model, params = diffusers.load_unet(folder)  # a pipeline's folder
    assert (model.context_width, model.context_length, model.heads) == (6, 77, (2,))
    diffusers.save_unet(model, params, tmp_path / "new", image_size=4)
    again = package.UNet2DConditionModel.from_pretrained(tmp_path / "new")
    state = again.state_dict()
    assert set(state) == set(reference.state_dict())
    for name, value in reference.state_dict().items():
        np.testing.assert_array_equal(state[name], value)
    for name, value in reference.config.items():
        assert name.startswith("_") or again.config[name] == value, name
    back = diffusers.load_unet(tmp_path / "new")
    assert back.model == model
    equal(back.params, params)
    with pytest.raises(FileExistsError, match="already holds files"):
        diffusers.save_unet(model, params, tmp_path / "new")
    diffusers.save_unet(model, params, tmp_path / "open")
    assert "sample_size" not in json.loads((tmp_path / "open" / "config.json").read_text())


def test_ensembles_come_back(tmp_path):
    for k in range(2):
        made(TWO, k).save_pretrained(tmp_path / "a" / f"Shard{k}")
    params = diffusers.load(tmp_path / "a", context_length=5)
    assert (params.image_shape, params.space) == ((4, 4, 4), Latents())
    assert params.condition.leaves[0].shape == (5, 6)
    diffusers.save(params, tmp_path / "b")
    back = diffusers.load(tmp_path / "b")
    assert (back.fingerprint, back.model, back.condition) == (params.fingerprint, params.model, params.condition)
    assert diffusers.load(tmp_path / "b", context_length=9).condition.leaves[0].shape == (9, 6)


def test_names_are_those_of_the_modules(place, tmp_path):
    reference, folder = place
    model, params = diffusers.load_unet(folder)
    found = names_of(model)
    wanted = {name for name, module in reference.named_modules() if getattr(module, "weight", torch.ones(1)).ndim > 1}
    assert set(found.values()) == wanted
    modules = dict(reference.named_modules())
    for path, name in found.items():
        kernel = params
        for part in path.split("/"):
            kernel = kernel[part]
        weight = modules[name].weight.detach().numpy()
        np.testing.assert_array_equal(kernel, weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0))
    assert found["down0_block0_attention/block0/cross/key/kernel"] == (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    )


def test_half_precision_and_several_files(place, tmp_path):
    reference, folder = place
    _, params = diffusers.load_unet(folder)
    half = diffusers.load_unet(folder, dtype="bfloat16").params
    equal(half, jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params))
    with pytest.raises(ValueError, match="dtype='float16': expected one of 'float32', 'bfloat16'"):
        diffusers.load_unet(folder, dtype="float16")

    reference.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert (tmp_path / "many" / INDEX).exists()
    equal(diffusers.load_unet(tmp_path / "many").params, params)

    both = tmp_path / "both"
    made(ONE, 5).half().save_pretrained(both, variant="fp16")
    rounded = jax.tree.map(lambda a: a.astype(jnp.float16).astype(jnp.float32), params)
    lone = diffusers.load_unet(both).params
    reference.half().save_pretrained(both, variant="other")
    with pytest.raises(ValueError, match="holds the variants fp16, other: pass variant="):
        diffusers.load_unet(both)
    equal(diffusers.load_unet(both, variant="other").params, rounded)
    equal(diffusers.load_unet(both, variant="fp16").params, lone)
    reference.save_pretrained(both, variant="fp16", max_shard_size="50KB")
    (both / "diffusion_pytorch_model.fp16.safetensors").unlink(missing_ok=True)
    equal(diffusers.load_unet(both, variant="fp16").params, rounded)
    with pytest.raises(FileNotFoundError, match=r"holds none of diffusion_pytorch_model.bf16.safetensors"):
        diffusers.load_unet(both, variant="bf16")
    reference.float()


@pytest.mark.parametrize(("change", "message"), [
    (lambda listed: listed.update({"conv_in.bias": "../other.safetensors"}), r"'../other.safetensors' is not a safe"),
    (lambda listed: listed.pop("conv_in.bias"), "disagree about the tensors conv_in.bias"),
    (lambda listed: listed.update({"extra": listed["conv_in.bias"]}), "disagree about the tensors extra"),
    (lambda listed: listed.clear(), "expected a weight_map"),
])  # fmt: skip
def test_a_wrong_index_is_refused(place, tmp_path, change, message):
    place[0].save_pretrained(tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / INDEX).read_text())
    change(index["weight_map"])
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        diffusers.load_unet(tmp_path)


def test_folders_without_a_unet(place, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config.json, and no folder unet"):
        diffusers.load_unet(tmp_path)
    options = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "num_embeds_ada_norm": 3}
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "DiTTransformer2DModel", **options}))
    with pytest.raises(ValueError, match="holds no U-Net, but a network for DiTConfig"):
        diffusers.load_unet(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", **ONE}))
    with pytest.raises(FileNotFoundError, match="holds none of diffusion_pytorch_model.safetensors"):
        diffusers.load_unet(tmp_path)
    place[0].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DConditionModel", **ONE, "cross_attention_dim": 5})
    )
    with pytest.raises(ValueError, match=r"attn2.to_k.weight has shape \(8, 6\), which does not fit \(5, 8\) here"):
        diffusers.load_unet(tmp_path)


def read(**changes):
    return diffusers.read_config({"_class_name": "UNet2DConditionModel", **ONE, **changes})


def test_honoured_fields_are_honoured():
    changes = {
        "sample_size": 16, "in_channels": 3, "out_channels": 3, "freq_shift": 1, "flip_sin_to_cos": False,
        "down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
        "block_out_channels": [8, 24], "layers_per_block": 2, "downsample_padding": 0, "dropout": 0.1,
        "attention_head_dim": 4, "norm_num_groups": 2, "norm_eps": 1e-6, "cross_attention_dim": 7,
        "transformer_layers_per_block": [1, 2], "use_linear_projection": True,
    }  # fmt: skip
    assert set(changes) == {name for name, option in CONDITION_UNET.items() if option.use == "honoured"}
    for name, value in changes.items():
        channels = {"in_channels": 3, "out_channels": 3} if name.endswith("_channels") and value == 3 else {}
        assert name == "sample_size" or read(**{**channels, name: value}) != read(), name
    for name, option in CONDITION_UNET.items():
        if option.use == "irrelevant":
            assert read(**{name: 7}) == read()
        elif option.allowed and name != "_class_name":
            with pytest.raises(ValueError, match=f"the config: {name}='other' is not supported: expected"):
                read(**{name: "other"})
    assert read(attention_head_dim=[2, 2], transformer_layers_per_block=[1, 1], cross_attention_dim=[6, 6]) == read()


@pytest.mark.parametrize(("change", "message"), [
    ({"in_channels": 9}, "in_channels=9, out_channels=4: expected equal"),  # inpainting
    ({"addition_embed_type": "text_time"}, "addition_embed_type='text_time' is not supported.*Stable Diffusion XL"),
    ({"num_attention_heads": 8}, "num_attention_heads=8 is not supported: expected None"),
    ({"num_class_embeds": 1000}, "num_class_embeds=1000 is not supported"),
    ({"mid_block_type": None}, "mid_block_type=None is not supported"),
    ({"only_cross_attention": [True, False]}, r"only_cross_attention=\[True, False\] is not supported"),
    ({"cross_attention_dim": [6, 7]}, r"cross_attention_dim=\[6, 7\] is not supported: expected the same number"),
    ({"layers_per_block": [1, 2]}, r"layers_per_block=\[1, 2\] is not supported: expected the same number"),
    ({"attention_head_dim": [2]}, r"attention_head_dim=\[2\] is not supported: expected 2 numbers"),
    ({"attention_head_dim": [2, 4, 4]}, r"attention_head_dim=\[2, 4, 4\] is not supported: expected a positive"),
    ({"attention_head_dim": 3}, "3 heads do not divide the width 16 of level 1"),
    ({"transformer_layers_per_block": [[1], [1]]}, "transformer_layers_per_block=.* is not supported: expected a"),
    ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "block 'AttnDownBlock2D' is not supported: exp"),
    ({"up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"]}, "block 'SimpleCrossAttnUpBlock2D' is not supp"),
    ({"block_out_channels": 8}, "block_out_channels=8: expected a list"),
    ({"resnet_out_scale_factor": 1.4}, "resnet_out_scale_factor=1.4 is not supported"),
    ({"ip_adapter": 3}, "ip_adapter=3 is unknown to ensdiff"),
])  # fmt: skip
def test_what_is_not_supported_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        read(**change)


def test_networks_without_a_counterpart_are_not_saved(tmp_path):
    tokens = dataclasses.replace(TINY, image_channels=4, context_width=3, norm_groups=2)
    for change, message in (
        ({"middle_attention": False, "attention_levels": (0,)}, "middle_attention=False has no counterpart in UNet2DC"),
        ({"downsample": "pool"}, "downsample='pool' has no counterpart in UNet2DConditionModel"),
    ):
        with pytest.raises(ValueError, match=message):
            diffusers.save_unet(dataclasses.replace(tokens, **change), {}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


# what Stable Diffusion's own files say
SD15 = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
SD21 = {
    **SD15, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "dual_cross_attention": False,
    "num_class_embeds": None, "only_cross_attention": False, "sample_size": 96, "upcast_attention": True,
    "use_linear_projection": True,
}  # fmt: skip


@pytest.mark.parametrize(("options", "count"), [(SD15, 859_520_964), (SD21, 865_910_724)], ids=["1.5", "2.1"])
@pytest.mark.slow
def test_the_size_of_stable_diffusion(options, count):
    """The numbers are those of the published models; 2.1 has 64 channels in each head."""
    model = diffusers.read_config(options)
    assert parameter_count(model) == count
    assert model.condition.leaves[0].shape == (77, options["cross_attention_dim"])
    if options is SD21:
        assert model.heads == (5, 10, 20, 20)
    with torch.device("meta"):
        reference = package.UNet2DConditionModel(**{k: v for k, v in options.items() if not k.startswith("_")})
    assert sum(value.numel() for value in reference.parameters()) == count
    weights = {name.removesuffix(".weight") for name, value in reference.named_parameters() if value.ndim > 1}
    assert set(names_of(model).values()) == weights


def test_a_unet_of_diffusers_without_tokens_loads_too(tmp_path):
    options = {**ONE, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    del options["cross_attention_dim"]
    package.UNet2DModel(**options).save_pretrained(tmp_path)
    model, params = diffusers.load_unet(tmp_path)
    assert isinstance(model, UNetConfig)
    assert model.context_width is None
    with pytest.raises(ValueError, match="context_length=3: the network takes no tokens"):
        diffusers.load_unet(tmp_path, context_length=3)
    diffusers.save_unet(model, params, tmp_path / "again")
    equal(diffusers.load_unet(tmp_path / "again").params, params)
