"""Checkpoints of other implementations: round trips of parameter names, and refused files."""

import dataclasses
import inspect
import json
import os
import shutil
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ensdiff
from ensdiff.ensemble.members import abstract_params
from ensdiff.interop import channels_last, diffusers, genens
from ensdiff.interop.options import CONDITION_UNET, DIT, EDM, FLOW, GENENS, SCHEDULER, UNET
from ensdiff.interop.tensors import names, read_state_dict, stack
from ensdiff.interop.unet2d import OLD_ATTENTION
from ensdiff.models.blocks import timestep_embedding
from ensdiff.runs.description import describe
from tests.helpers import ROOT, random_ensemble

pytestmark = pytest.mark.slow

DATA = ROOT / "tests" / "data"

SMALL = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": [8, 16],
    "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def state_of(config, style, seed):
    """Return a random state dict in torch's layouts, and the same parameters in ours."""
    shapes = abstract_params(config, (8, 8, 1), 1)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape[1:]).astype(np.float32), shapes)
    state = {}
    for name, path in names(style, shapes).items():
        value = params
        for part in path:
            value = value[part]
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        convolution = value.ndim == 2 and ("attn.proj" in name)
        state[name] = np.ascontiguousarray(value[..., None, None] if convolution else value)
    return state, params


def test_diffusers_options():
    config = diffusers.read_config(SMALL)
    assert config.widths == (8, 16)
    assert (config.attention_levels, config.attention_levels_up) == ((1,), None)
    assert config.time_layout == "cos_sin"
    assert config.head_channels == 8
    for change, message in (
        ({"act_fn": "relu"}, "act_fn='relu' is not supported"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"out_channels": 2}, "expected equal"),
        ({"block_out_channels": [8]}, "expected equal numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            diffusers.read_config({**SMALL, **change})


# arguments of the classes in diffusers 0.42, and fields that earlier versions wrote into the same files
WRITTEN = {
    "UNet2DModel": """sample_size in_channels out_channels center_input_sample time_embedding_type time_embedding_dim
        freq_shift flip_sin_to_cos down_block_types mid_block_type up_block_types block_out_channels layers_per_block
        mid_block_scale_factor downsample_padding downsample_type upsample_type dropout act_fn attention_head_dim
        norm_num_groups attn_norm_num_groups norm_eps resnet_time_scale_shift add_attention class_embed_type
        num_class_embeds num_train_timesteps""",
    "UNet2DConditionModel": """sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift
        down_block_types mid_block_type up_block_types only_cross_attention block_out_channels layers_per_block
        downsample_padding mid_block_scale_factor dropout act_fn norm_num_groups norm_eps cross_attention_dim
        transformer_layers_per_block reverse_transformer_layers_per_block encoder_hid_dim encoder_hid_dim_type
        attention_head_dim num_attention_heads dual_cross_attention use_linear_projection class_embed_type
        addition_embed_type addition_time_embed_dim num_class_embeds upcast_attention resnet_time_scale_shift
        resnet_skip_time_act resnet_out_scale_factor time_embedding_type time_embedding_dim time_embedding_act_fn
        timestep_post_act time_cond_proj_dim conv_in_kernel conv_out_kernel projection_class_embeddings_input_dim
        attention_type class_embeddings_concat mid_block_only_cross_attention cross_attention_norm
        addition_embed_type_num_heads""",
    "EMAModel": "decay min_decay optimization_step update_after_step use_ema_warmup inv_gamma power",
    "DDPMScheduler": """num_train_timesteps beta_start beta_end beta_schedule trained_betas variance_type clip_sample
        prediction_type thresholding dynamic_thresholding_ratio clip_sample_range sample_max_value timestep_spacing
        steps_offset rescale_betas_zero_snr predict_epsilon timestep_values tensor_format""",
    "DDIMScheduler": """num_train_timesteps beta_start beta_end beta_schedule trained_betas clip_sample set_alpha_to_one
        steps_offset prediction_type thresholding dynamic_thresholding_ratio clip_sample_range sample_max_value
        timestep_spacing rescale_betas_zero_snr predict_epsilon timestep_values tensor_format""",
    "DiTTransformer2DModel": """num_attention_heads attention_head_dim in_channels out_channels num_layers dropout
        norm_num_groups attention_bias sample_size patch_size activation_fn num_embeds_ada_norm upcast_attention
        norm_type norm_elementwise_affine norm_eps""",
    "EulerDiscreteScheduler": """num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type
        interpolation_type use_karras_sigmas use_exponential_sigmas use_beta_sigmas sigma_min sigma_max
        timestep_spacing timestep_type steps_offset rescale_betas_zero_snr final_sigmas_type clip_sample
        set_alpha_to_one skip_prk_steps""",
    "FlowMatchEulerDiscreteScheduler": """num_train_timesteps shift use_dynamic_shifting base_shift max_shift
        base_image_seq_len max_image_seq_len invert_sigmas shift_terminal use_karras_sigmas use_exponential_sigmas
        use_beta_sigmas time_shift_type stochastic_sampling""",
    "EDMEulerScheduler": """sigma_min sigma_max sigma_data sigma_schedule num_train_timesteps prediction_type rho
        final_sigmas_type""",
}
TABLES = {"EMAModel": UNET} | {
    name: table for table in (UNET, CONDITION_UNET, DIT, SCHEDULER, FLOW, EDM) for name in table["_class_name"].allowed
}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_field_of_past_versions_is_classified(name):
    metadata = ["_class_name", "_diffusers_version", "_name_or_path", "_use_default_values"]
    assert not {*WRITTEN[name].split(), *metadata} - set(TABLES[name])


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(set(TABLES) - {"EMAModel"}))
def test_every_field_of_the_installed_version_is_classified(name):
    package = pytest.importorskip("diffusers", reason="diffusers is not installed")
    written = getattr(package, name)
    fields = set(inspect.signature(written.__init__).parameters) - {"self", "args", "kwargs"}
    assert not fields - set(TABLES[name]), "fields that interop/options.py does not list"
    options = json.loads(written(**({"block_out_channels": (32,), "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",)} if name == "UNet2DModel" else {})).to_json_string())  # fmt: skip
    assert not set(options) - set(TABLES[name]), "fields that this version writes"
    for field, option in TABLES[name].items():  # accepted values include the default
        if option.allowed and field in options:
            assert options[field] in option.allowed, field


@pytest.mark.torch
def test_irrelevant_fields_of_a_scheduler_leave_the_noise_levels_alone():
    package = pytest.importorskip("diffusers", reason="diffusers is not installed")
    others = {
        "clip_sample": False, "clip_sample_range": 2.0, "thresholding": True, "dynamic_thresholding_ratio": 0.5,
        "sample_max_value": 3.0, "timestep_spacing": "trailing", "steps_offset": 1, "set_alpha_to_one": False,
        "variance_type": "fixed_large",
    }  # fmt: skip
    abar_T = ensdiff.Schedule().abar_T
    for scheduler in (package.DDPMScheduler, package.DDIMScheduler):
        fields = set(inspect.signature(scheduler.__init__).parameters)
        irrelevant = {name for name, option in SCHEDULER.items() if option.use == "irrelevant"}
        assert fields & irrelevant <= set(others)
        found = scheduler(**{name: value for name, value in others.items() if name in fields})
        np.testing.assert_allclose(found.alphas_cumprod.numpy(), abar_T, rtol=2e-5)
        assert found.alphas_cumprod[-1] > 0


def test_honoured_fields_are_honoured():
    """Another value of any honoured field gives another network, schedule or image size."""
    changes = {
        "sample_size": 16, "in_channels": 3, "out_channels": 3, "freq_shift": 1, "flip_sin_to_cos": False,
        "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 24], "layers_per_block": 2, "downsample_padding": 0, "dropout": 0.1,
        "attention_head_dim": 4, "norm_num_groups": 2, "norm_eps": 1e-6, "add_attention": False,
        "class_embed_type": "identity", "num_class_embeds": 5,
    }  # fmt: skip
    assert set(changes) == {name for name, option in UNET.items() if option.use == "honoured"}
    base = diffusers.read_config(SMALL)
    for name, value in changes.items():
        channels = {"in_channels": 3, "out_channels": 3} if name.endswith("_channels") and value == 3 else {}
        config = {**SMALL, **channels, name: value}
        assert name == "sample_size" or diffusers.read_config(config) != base, name
    for name, option in UNET.items():
        if option.use == "irrelevant":
            assert diffusers.read_config({**SMALL, name: 7}) == base
        elif option.allowed:
            with pytest.raises(ValueError, match=f"the config: {name}='other' is not supported: expected"):
                diffusers.read_config({**SMALL, name: "other"})
    with pytest.raises(ValueError, match=r"the config: quantize='int8' is unknown to ensdiff, so it is not ignored"):
        diffusers.read_config({**SMALL, "quantize": "int8"})
    for name, value in (("block_out_channels", 8), ("block_out_channels", ["8", 16]), ("norm_num_groups", None)):
        with pytest.raises(ValueError, match=f"the config: {name}="):
            diffusers.read_config({**SMALL, name: value})


def zoo_of_configs(folder, *schedulers):
    """Return members' folders with configurations, and with empty files of weights that are never read."""
    members = []
    for k, scheduler in enumerate(schedulers):
        member = folder / f"member{k}"
        member.mkdir(parents=True)
        (member / diffusers.FILES[0]).touch()
        (member / "config.json").write_text(json.dumps(SMALL))
        if scheduler is not None:
            (member / "scheduler_config.json").write_text(json.dumps(scheduler))
        members.append(member)
    return members


@pytest.mark.parametrize(
    ("schedulers", "message"),
    [
        ([{"rescale_betas_zero_snr": True}], "member0.*: prediction='noise' with zero_terminal_snr=True"),
        ([{}, {"rescale_betas_zero_snr": "yes"}], "member1.*: rescale_betas_zero_snr='yes' is not supported"),
        ([{"_class_name": "ScoreSdeVeScheduler"}], "_class_name='ScoreSdeVeScheduler'.*expected 'DDPMScheduler' or"),
        ([{"prediction_type": "score"}], "prediction_type='score' is not supported: expected 'epsilon' or 'v_pred"),
        ([{"prediction_type": "flow_prediction"}], "'flow_prediction' with use_flow_sigmas=False: expected"),
        ([{}, {"prediction_type": "v_prediction"}], "member0.* and .*member1.* differ .prediction: 'noise' and 'v'"),
        ([{"predict_epsilon": False}], "predict_epsilon=False is not supported"),
        ([{"variance_type": "learned_range"}], "variance_type='learned_range' is not supported"),
        ([{"trained_betas": [0.1, 0.2]}], "trained_betas=.0.1, 0.2. is not supported: expected None"),
        ([{"beta_schedule": "sigmoid"}], "beta_schedule='sigmoid' is not supported: expected 'linear' or 'scaled"),
        ([{"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}], "timestep_type='continuous' is"),
        ([{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}], "use_dynamic_shifting=T"),
        ([{"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}], "prediction_type='v_pred.* is not"),
        ([{}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}], "differ .kind: 'linear' and 'flow'; prediction:"),
        ([{"shift": 3.0}], "shift=3.0 is unknown to ensdiff, so it is not ignored"),
        ([{"beta_start": "low"}], "scheduler_config.json: beta_start='low': expected a finite number"),
        ([{"beta_end": 0.02}, {"beta_end": 0.03}], r"member0.* and .*member1.* differ .beta_end: 0.02 and 0.03"),
        ([{}, {"num_train_timesteps": 500, "beta_start": 1e-3}],
         r"differ .timesteps: 1000 and 500; beta_start: 0.0001 and 0.001"),
        ([{}, None], "member0.* gives its member's noise levels, but there is no scheduler_config.json with .*member1"),
        ([None, {}], "member1.* gives its member's noise levels, but there is no scheduler_config.json with .*member0"),
    ],
)  # fmt: skip
def test_refused_schedulers(tmp_path, schedulers, message):
    with pytest.raises(ValueError, match=message):
        diffusers.load(zoo_of_configs(tmp_path, *schedulers))


def test_schedulers_that_agree(tmp_path):
    """Schedulers are found in each place; they may differ only in fields that set how they would sample."""
    different = {"beta_start": 2e-4, "num_train_timesteps": 500}
    sampling = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.42.1", "clip_sample": False}
    members = zoo_of_configs(tmp_path / "a", different, {**different, **sampling})
    files = [member / diffusers.FILES[0] for member in members]
    assert diffusers._common_schedule(None, files, []) == ensdiff.Schedule(500, 2e-4)
    assert diffusers._common_schedule(None, [tmp_path / "other" / "x.bin"], []) == ensdiff.Schedule()
    pipelines = zoo_of_configs(tmp_path / "b", None, None)
    for member in pipelines:
        (member / "scheduler").mkdir()
        (member / "scheduler" / "scheduler_config.json").write_text(json.dumps(different))
    files = [member / "unet" / diffusers.FILES[0] for member in pipelines]
    assert diffusers._common_schedule(None, files, []) == ensdiff.Schedule(500, 2e-4)
    root = tmp_path / "a"  # one for all members, which none may contradict
    (root / "scheduler_config.json").write_text(json.dumps({**different, "beta_start": 3e-4}))
    files = [root / "Shard0" / "x.bin", members[0] / diffusers.FILES[0]]
    assert diffusers._common_schedule(root, files[:1], []) == ensdiff.Schedule(500, 3e-4)
    with pytest.raises(ValueError, match="member0.* differ .beta_start: 0.0003 and 0.0002"):
        diffusers._common_schedule(root, files, [])


def test_a_description_must_agree_with_the_configurations_beside_it(deep, tmp_path):
    [shard] = zoo_of_configs(tmp_path, {})
    shard.rename(tmp_path / "Shard0")
    options = diffusers.model_options(deep)
    (tmp_path / "Shard0" / "config.json").write_text(json.dumps({**options, "norm_eps": 1e-3}))
    (tmp_path / "ensdiff.json").write_text(json.dumps(describe(deep)))
    with pytest.raises(ValueError, match=r"ensdiff.json and .*Shard0 differ .norm_epsilon: 1e-05 and 0.001"):
        diffusers.load(tmp_path)
    (tmp_path / "Shard0" / "config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match=r"ensdiff.json and .*scheduler_config.json differ .timesteps: 20 and 1000"):
        diffusers.load(tmp_path)


def test_the_page_shows_the_tables():
    """The tables of docs/interop.md equal those made from the code."""
    page = (ROOT / "docs" / "interop.md").read_text()
    for table in (UNET, CONDITION_UNET, DIT, SCHEDULER, FLOW, EDM, GENENS):
        rows = ["| Field | | Accepted | Meaning |", "|---|---|---|---|"]
        for name, option in table.items():
            allowed = ", ".join(f"`{json.dumps(value)}`" for value in option.allowed) or "any"
            rows.append(f"| `{name}` | {option.use} | {allowed} | {option.why} |")
        assert "\n".join(rows) in page


@pytest.mark.torch
def test_round_trips_and_errors(tmp_path):
    torch = pytest.importorskip("torch")
    config = diffusers.read_config(SMALL)
    style = diffusers.naming(config)
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
    # members trained elsewhere form an ensemble like any other
    zoo = diffusers.load(tmp_path, np.array([[1, 0], [0, 1]]))
    samples = ensdiff.sample(zoo, 0, 1, steps=2)
    assert ensdiff.counterfactuals(zoo, samples, [0]).shape == (1, 1, 8, 8, 1)
    assert ensdiff.attribute(zoo, samples, "exact", top=2).units.shape == (1, 2)

    with pytest.raises(ValueError, match="for 3 members, but 2 checkpoints"):
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
    table = np.array(timestep_embedding(jax.numpy.arange(1000), 32, "interleaved"))
    for k in range(2):
        state, params = state_of(config, genens._style(config), k)
        truth.append(params)
        tensors = {n: torch.tensor(v) for n, v in state.items()} | {genens.TABLE: torch.tensor(table)}
        torch.save({"epoch": 0, "loss": 0.1, "model_state_dict": tensors}, tmp_path / f"MNIST_split{k}_ckpt.pt")
    loaded = genens.load(tmp_path, image_size=8)
    assert loaded.model == config
    for k in range(2):
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a[k], b), loaded.params, truth[k])
    with pytest.raises(FileNotFoundError, match=r"expected 0, 1"):
        genens.load(tmp_path / "nothing")
    for change, message in (
        ({"ema_state_dict": {}}, "split1.*: ema_state_dict={} is unknown to ensdiff, so it is not ignored"),
        ({"model_state_dict": {**tensors, genens.TABLE: torch.tensor(table[:500])}}, r"shape \(500, 32\): expected"),
        ({"model_state_dict": {**tensors, genens.TABLE: torch.tensor(table[:, ::-1].copy())}}, "interleaved sinusoids"),
        ({"model_state_dict": {**tensors, "head.bias": torch.arange(32)}}, "head.bias has dtype int64: expected float"),
    ):
        torch.save({"epoch": 0, "model_state_dict": tensors, **change}, tmp_path / "MNIST_split1_ckpt.pt")
        with pytest.raises(ValueError, match=message):
            genens.load(tmp_path, image_size=8)
    torch.save({"weights": 3}, tmp_path / "MNIST_split1_ckpt.pt")
    with pytest.raises(ValueError, match="no state dict under 'model_state_dict'"):
        genens.load(tmp_path)


def test_numbers_of_the_reference(record_property):
    """Predictions and a sample equal those that GenEns computed from the same member (float32, CPU)."""
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


def test_what_diffusers_cannot_represent(deep, tmp_path):
    for change, message in (
        ({"time_layout": "interleaved"}, "time_layout='interleaved' has no counterpart in UNet2DModel"),
        ({"downsample": "pool"}, "downsample='pool' has no counterpart"),
        ({"upsample": "nearest"}, "upsample='nearest' has no counterpart"),
        ({"multipliers": (2, 2)}, "the first level has 8 channels and the first convolution 4"),
    ):
        other = dataclasses.replace(deep, model=dataclasses.replace(deep.model, **change))
        with pytest.raises(ValueError, match=message):
            diffusers.save(other, tmp_path / "x")
    with pytest.raises(ValueError, match=r"Pixels\(low=0.0, high=1.0\)"):
        diffusers.save(dataclasses.replace(deep, space=ensdiff.models.Pixels(0.0, 1.0)), tmp_path / "x")
    with pytest.raises(ValueError, match="format='pt': expected one of 'safetensors', 'bin'"):
        diffusers.save(deep, tmp_path / "x", format="pt")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="already holds files"):
        diffusers.save(deep, tmp_path)


@st.composite
def unet_options(draw):
    """Draw arguments of a tiny UNet2DModel."""
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
    """Return a UNet2DModel with random parameters, none of them 0 or 1."""
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
def test_saved_ensembles_predict_the_same_in_torch_and_come_back(deep, tmp_path, format, change):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("safetensors")
    params = random_ensemble(model=dataclasses.replace(deep.model, **change))
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
    assert (back.data_digest, back.model, back.fingerprint) == (params.data_digest, params.model, params.fingerprint)
    assert diffusers.load(tmp_path / "out", params.code).data_digest is None
    jax.tree.map(np.testing.assert_array_equal, back.params, params.params)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "code.npy"), params.code.matrix())


@pytest.mark.torch
def test_a_saved_folder_holds_what_was_saved(deep, tmp_path):
    """The code of a saved folder is used only for the members that it describes, in their order."""
    pytest.importorskip("safetensors")
    diffusers.save(deep, tmp_path)
    zero, two, away = (tmp_path / name for name in ("Shard0", "Shard2", "away"))

    def swap():
        zero.rename(away)
        two.rename(zero)
        away.rename(two)

    swap()
    with pytest.raises(ensdiff.DamagedError, match="Shard0 holds what was Shard2; Shard2 holds what was Shard0.*code="):
        diffusers.load(tmp_path)
    assert diffusers.load(tmp_path, deep.code).code == deep.code  # a code for the members in this order
    swap()
    weights = two / diffusers.FILES[0]
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(ensdiff.DamagedError, match="Shard2 differs"):
        diffusers.load(tmp_path)
    weights.write_bytes(whole)
    file = tmp_path / "ensdiff.json"
    text = file.read_text()
    file.write_text(text.replace(f'"units": {deep.code.units}', f'"units": {deep.code.units - 1}'))
    with pytest.raises(ensdiff.DamagedError, match="ensdiff.json is damaged"):
        diffusers.load(tmp_path)
    file.write_text(text)
    matrix = np.load(tmp_path / "code.npy")
    np.save(tmp_path / "code.npy", matrix[::-1])
    with pytest.raises(ensdiff.DamagedError, match="code.npy holds another code than .*ensdiff.json"):
        diffusers.load(tmp_path)
    file.unlink()
    np.testing.assert_array_equal(diffusers.load(tmp_path).code.matrix(), matrix[::-1])


def test_two_files_of_one_member_are_refused(tmp_path):
    for name, message in (("Shard00", "Shard00: expected"), ("Shard\N{ARABIC-INDIC DIGIT ONE}", "expected shards")):
        folder = tmp_path / name
        for shard in ("Shard0", name):
            (folder / shard).mkdir(parents=True)
        with pytest.raises(ValueError, match=message):
            diffusers.load(folder)
    for names_of, message in (
        (("epoch10_split0", "epoch10_split1", "epoch20_split0"), "epoch10_split0.* and .*epoch20_split0.* different"),
        (("epoch10_split0", "epoch20_split1"), "epoch10_split0.* and .*epoch20_split1.* of different epochs or runs"),
        (("a_split0", "a_split00"), "split '00' is not a number"),
    ):
        folder = tmp_path / "-".join(names_of)
        folder.mkdir()
        for name in names_of:
            (folder / f"{name}_ckpt.pt").touch()
        with pytest.raises(ValueError, match=message):
            genens.load(folder)


@pytest.mark.torch
def test_members_from_anywhere(deep, tmp_path):
    pytest.importorskip("safetensors")
    diffusers.save(deep, tmp_path / "all")
    homes = {"ada": 2, "bob": 0, "eve": 1}
    for name, k in homes.items():
        shutil.move(tmp_path / "all" / f"Shard{k}", tmp_path / name)
    code = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    np.save(tmp_path / "code.npy", code)
    zoo = diffusers.load([tmp_path / name for name in homes], tmp_path / "code.npy")
    for place, k in enumerate(homes.values()):
        jax.tree.map(lambda a, b, p=place, k=k: np.testing.assert_array_equal(a[p], b[k]), zoo.params, deep.params)
    np.testing.assert_array_equal(zoo.code.matrix(), code)
    samples = ensdiff.sample(zoo, 0, 2, steps=2)
    only_eve = ensdiff.sample(zoo, 0, 2, steps=2, weights=[0, 0, 1])
    np.testing.assert_allclose(ensdiff.counterfactuals(zoo, samples, [3])[0], only_eve.images, atol=1e-6)
    assert ensdiff.attribute(zoo, samples, "differential", top=4).influence.shape == (2, 4)
    # parameter names before diffusers 0.15, as in the first published DDPM checkpoints
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "bob" / diffusers.FILES[0]
    state = load_file(file)
    for old, new in OLD_ATTENTION.items():
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
    (tmp_path / "ada" / "scheduler_config.json").write_text('{"beta_schedule": "sigmoid"}')
    with pytest.raises(ValueError, match="beta_schedule='sigmoid' is not supported: expected 'linear'"):
        diffusers.load([tmp_path / "ada", tmp_path / "bob"])
    with pytest.raises(ValueError, match="no checkpoint given"):
        diffusers.load([])


@pytest.mark.torch
def test_errors_name_tensors_that_are_not_plain_arrays(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    base, path = torch.arange(6.0).reshape(2, 3), tmp_path / "x.pt"
    plain = {
        "whole": base, "transposed": base.T, "part": base[:, 1:], "half": base.half(), "brain": base.bfloat16(),
        "parameter": torch.nn.Parameter(base), "negative": torch._neg_view(base), "strided": base[::2, ::2],
        "none": torch.zeros(0, 3), "number": torch.tensor(3.0), "double": base.double(),
    }  # fmt: skip
    torch.save(plain, path)
    for name, found in read_state_dict(path).items():
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, plain[name].detach().resolve_neg().float().numpy())
    torch.save({"n": torch.arange(3), "b": torch.tensor([True])}, path)
    assert [found.dtype.name for found in read_state_dict(path).values()] == ["int64", "bool"]
    save_file({"brain": base.bfloat16(), "n": torch.arange(3)}, tmp_path / "x.safetensors")
    found = read_state_dict(tmp_path / "x.safetensors")
    assert (found["brain"].dtype, found["n"].dtype) == (np.float32, np.int64)
    for tensor, message in (
        (base.to_sparse(), "is sparse .sparse_coo.: save tensor.to_dense"),
        (base.to_sparse_csr(), "is sparse .sparse_csr."),
        (base.to("meta"), "is on the meta device, without data"),
        (torch.complex(base, base), "is complex .complex64.: expected real numbers"),
        (torch.quantize_per_tensor(base, 0.1, 0, torch.qint8), "is quantised .qint8.: save tensor.dequantize"),
        (base.to(torch.float8_e4m3fn), "has dtype float8_e4m3fn: expected one of float16"),
        (torch.zeros(1).expand(10**6, 10**6), "repeats elements by its strides .0, 0.: save tensor.clone"),
        (base.ravel().as_strided((3, 3), (1, 1)), "repeats elements by its strides .1, 1."),
        (torch.nested.nested_tensor([base]), "is nested"),
    ):
        torch.save({"fine": base, "a.weight": tensor}, path)
        with pytest.raises(ValueError, match=f"x.pt: a.weight .*{message}"):
            read_state_dict(path)
    # torch.load would expand these records 1,000 times
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    with pytest.raises(ValueError, match=r"bomb.pt: its records claim 4\d{6} bytes, but the file has \d{4}\."):
        read_state_dict(tmp_path / "bomb.pt")


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, missing):
    path = tmp_path / ("x.bin" if missing == "torch" else "x.safetensors")
    path.write_bytes(b"anything")
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    if missing == "safetensors":
        monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'ensdiff\[torch\]'"):
        read_state_dict(path)
