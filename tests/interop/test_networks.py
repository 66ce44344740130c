"""Conditional networks and schedulers of diffusers: parity on random weights, what is read, and what comes back."""

import dataclasses
import inspect
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ensdiff
from ensdiff.ensemble.members import over_members
from ensdiff.interop import diffusers
from ensdiff.interop.options import EDM, FLOW, SCHEDULER
from ensdiff.interop.schedulers import schedule_of, scheduler_options
from ensdiff.models import DiTConfig, Latents, UNetConfig
from ensdiff.models.blocks import timestep_embedding
from ensdiff.models.dit import TIME_WIDTH
from tests.helpers import CODE, SHORT, TINY, random_ensemble

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
package = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytestmark = pytest.mark.torch

UNET = {
    "sample_size": 4, "in_channels": 2, "out_channels": 2, "layers_per_block": 1, "block_out_channels": [8],
    "norm_num_groups": 4, "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "add_attention": False,
}  # fmt: skip
DIT = {
    "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "num_layers": 2, "sample_size": 4,
    "num_embeds_ada_norm": 3,
}  # fmt: skip


def made(options, seed, kind="UNet2DModel", scale=0.3):
    """Return a model of diffusers with random parameters, none of them 0 or 1."""
    model = getattr(package, kind)(**options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(scale * torch.randn(value.shape, generator=generator))
    return model


def zoo(folder, *models):
    for k, model in enumerate(models):
        model.save_pretrained(folder / f"Shard{k}")
    return folder


def theirs(model, x_BHWC, t_B, cond):
    with torch.no_grad():
        x = torch.from_numpy(np.moveaxis(x_BHWC, -1, 1).copy())
        y = model(x, torch.from_numpy(t_B), class_labels=torch.from_numpy(cond)).sample
        return np.moveaxis(y.numpy(), 1, -1)


def ours(params, x_BHWC, t_B, cond):
    one = lambda theta: params.model.apply(theta, x_BHWC, t_B, cond)  # noqa: E731
    return np.asarray(jax.jit(lambda stacked: over_members(params.model, one, stacked))(params.params))


def check(params, models, cond, allowed=2e-5, seed=0, times=1000):
    """Compare predictions with conditions as ensdiff takes them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(cond), *params.image_shape)).astype(np.float32)
    t = rng.integers(0, times, len(cond)).astype(np.float32)
    for got, model in zip(ours(params, x, t, cond), models, strict=True):
        want = theirs(model, x, t, cond.astype(np.int64) if cond.dtype.kind == "i" else cond)
        assert np.abs(got - want).max() < allowed * max(want.std(), np.abs(want).max())


@settings(max_examples=4)
@given(
    st.fixed_dictionaries({
        "num_class_embeds": st.integers(1, 4), "in_channels": st.sampled_from([1, 4]),
        "block_out_channels": st.sampled_from([[8], [4, 8]]), "flip_sin_to_cos": st.booleans(),
    }),
    st.integers(0, 2**31),
)  # fmt: skip
def test_random_conditional_unets_predict_the_same(tmp_path_factory, some, seed):
    levels = len(some["block_out_channels"])
    options = {**UNET, **some, "out_channels": some["in_channels"], "down_block_types": levels * ["DownBlock2D"],
               "up_block_types": levels * ["UpBlock2D"]}  # fmt: skip
    models = [made(options, seed + k) for k in range(2)]
    params = diffusers.load(zoo(tmp_path_factory.mktemp("zoo"), *models))
    rows = options["num_class_embeds"]
    assert params.model.classes == rows
    assert params.condition == params.model.condition
    assert params.space == (ensdiff.models.Pixels() if options["in_channels"] == 1 else Latents())
    check(params, models, np.random.default_rng(seed).integers(0, rows, 3).astype(np.int32), 1e-4, seed)
    table = params.params["condition"]["table"]
    np.testing.assert_array_equal(table[:, rows], np.zeros_like(table[:, 0]))  # no class adds nothing


def test_the_last_row_of_a_table_may_be_that_of_no_class(tmp_path):
    models = [made({**UNET, "num_class_embeds": 4}, 0)]
    params = diffusers.load(zoo(tmp_path, *models), classes=3)
    assert params.model.classes == 3
    check(params, models, np.array([2, 3], np.int32))  # 3 is no class
    for wrong in (2, 5):
        with pytest.raises(ValueError, match=f"classes={wrong}: the network has a table for 4 classes"):
            diffusers.load(tmp_path, classes=wrong)


def test_a_vector_that_is_added_as_it_is(tmp_path):
    models = [made({**UNET, "class_embed_type": "identity"}, k) for k in range(2)]
    params = diffusers.load(zoo(tmp_path / "a", *models))
    assert params.model.condition_width == 32
    vectors = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    check(params, models, vectors)
    diffusers.save(params, tmp_path / "b")
    back = [package.UNet2DModel.from_pretrained(tmp_path / "b" / f"Shard{k}").eval() for k in range(2)]
    check(diffusers.load(tmp_path / "b"), back, vectors)
    kernel = params.params["condition"]["dense"]["kernel"]
    changed = {**params.params, "condition": {"dense": {**params.params["condition"]["dense"], "kernel": 2 * kernel}}}
    with pytest.raises(ValueError, match="is not the identity"):
        diffusers.save(dataclasses.replace(params, params=changed), tmp_path / "c")
    assert not (tmp_path / "c").exists()


@settings(max_examples=4)
@given(
    st.fixed_dictionaries({
        "num_attention_heads": st.integers(1, 2), "attention_head_dim": st.sampled_from([4, 8]),
        "in_channels": st.sampled_from([1, 4]), "num_layers": st.integers(1, 3), "patch_size": st.sampled_from([1, 2]),
        "num_embeds_ada_norm": st.integers(1, 4), "norm_eps": st.sampled_from([1e-5, 1e-2]),
    }),
    st.integers(0, 2**31),
)  # fmt: skip
def test_random_dits_predict_the_same_and_come_back(tmp_path_factory, some, seed):
    models = [made({**DIT, **some}, seed + k, "DiTTransformer2DModel", scale=0.15) for k in range(2)]
    folder = tmp_path_factory.mktemp("zoo")
    params = diffusers.load(zoo(folder / "a", *models))
    assert params.model.embedding == ("shared" if some["num_layers"] == 1 else "per_block")
    cond = np.random.default_rng(seed).integers(0, some["num_embeds_ada_norm"] + 1, 3).astype(np.int32)
    check(params, models, cond, seed=seed, times=20)  # for all times, see the test of sinusoids
    diffusers.save(params, folder / "b")
    back = [package.DiTTransformer2DModel.from_pretrained(folder / "b" / f"Shard{k}") for k in range(2)]
    for model, again in zip(models, back, strict=True):
        state = again.state_dict()
        assert set(state) == set(model.state_dict())
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(state[name], value)


def test_sinusoids_differ_by_the_rounding_of_frequencies():
    """At t = 999, the last bit of a frequency near 1 is worth 6e-5; exponents are float32 there and float64 here."""
    t = np.arange(1000)
    proj = package.models.embeddings.Timesteps(TIME_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=1)
    got = timestep_embedding(t, TIME_WIDTH, "cos_sin", shift=1)
    np.testing.assert_allclose(got, proj(torch.from_numpy(t)).numpy(), atol=2e-4)
    np.testing.assert_allclose(got[:10], proj(torch.from_numpy(t[:10])).numpy(), atol=3e-6)


def test_equal_embeddings_become_one(tmp_path):
    models = [made(DIT, k, "DiTTransformer2DModel", scale=0.15) for k in range(2)]
    for model in models:
        first, second = model.transformer_blocks
        second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    params = diffusers.load(zoo(tmp_path / "a", *models))
    assert params.model == DiTConfig(image_channels=4, width=8, depth=2, heads=2, mlp_norm_epsilon=1e-5, classes=3)
    check(params, models, np.array([0, 3], np.int32), times=20)
    diffusers.save(params, tmp_path / "b")
    back = diffusers.load(tmp_path / "b")
    assert (back.model, back.fingerprint, back.space) == (params.model, params.fingerprint, Latents())
    state = package.DiTTransformer2DModel.from_pretrained(tmp_path / "b" / "Shard1").state_dict()
    for name, value in models[1].state_dict().items():
        np.testing.assert_array_equal(state[name], value)


def test_conditional_ensembles_come_back_with_their_names(tmp_path):
    names = ensdiff.models.ConditionSpec.of(np.array([0, 1]), names=("cat", "dog"))
    model = dataclasses.replace(TINY, classes=2)
    params = random_ensemble(model=model, condition=names)
    diffusers.save(params, tmp_path)
    model = package.UNet2DModel.from_pretrained(tmp_path / "Shard1").eval()
    assert model.config.num_class_embeds == 3
    alone = [model]
    one = dataclasses.replace(
        params, params=jax.tree.map(lambda a: a[1:2], params.params), code=ensdiff.Code.undivided(1)
    )
    check(one, alone, np.array([0, 2], np.int32))
    back = diffusers.load(tmp_path)
    assert (back.model, back.condition, back.fingerprint) == (params.model, names, params.fingerprint)


@pytest.mark.parametrize(("change", "message"), [
    ({"out_channels": 8}, "in_channels=4, out_channels=8: .*also predicts a variance"),
    ({"dropout": 0.1}, "dropout=0.1 is not supported"),
    ({"attention_bias": False}, "attention_bias=False is not supported"),
    ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm=None is not supported"),
    ({"attention_head_dim": 3}, "width=6"),
    ({"_class_name": "PixArtTransformer2DModel"}, "expected 'UNet2DModel' or 'DiTTransformer2DModel'"),
    ({"_class_name": "UNet2DModel", "class_embed_type": "timestep"}, "class_embed_type='timestep' is not supported"),
    ({"_class_name": "UNet2DModel", "num_class_embeds": 3, "class_embed_type": "identity"}, "num_class_embeds=3"),
])  # fmt: skip
def test_what_is_not_supported_is_named(change, message):
    config = {"_class_name": "DiTTransformer2DModel", **DIT, **change}
    if config["_class_name"] == "UNet2DModel":
        config = {**UNET, **change}
    with pytest.raises(ValueError, match=message):
        diffusers.read_config(config)


@pytest.mark.parametrize(("model", "message"), [
    (DiTConfig(width=8, heads=2), "a DiT without classes"),
    (DiTConfig(width=8, heads=2, classes=2, mlp_ratio=2.0), "mlp_ratio=2.0"),
    (dataclasses.replace(TINY, condition_width=5), "condition_width=5"),
    (ensdiff.models.functions(lambda key: {"a": key}, print, name="mine"), "mine has no counterpart in diffusers"),
])  # fmt: skip
def test_networks_without_a_counterpart_are_not_saved(tmp_path, model, message):
    params = ensdiff.Ensemble({}, CODE, model, SHORT, (8, 8, 1))
    with pytest.raises(ValueError, match=message):
        diffusers.save(params, tmp_path / "x")


VARIANCE_PRESERVING = SCHEDULER["_class_name"].allowed


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_levels_are_those_of_the_scheduler(name, betas):
    kind = getattr(package, name)
    settings_ = {"beta_schedule": betas, "prediction_type": "v_prediction", "num_train_timesteps": 50}
    if "rescale_betas_zero_snr" in inspect.signature(kind.__init__).parameters and betas != "linear":
        settings_["rescale_betas_zero_snr"] = True
    scheduler = kind(**settings_)
    schedule = schedule_of(json.loads(scheduler.to_json_string()))
    assert schedule.prediction == "v"
    assert schedule.zero_terminal_snr == ("rescale_betas_zero_snr" in settings_)
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), schedule.abar_T, rtol=1e-4, atol=1e-6)
    assert schedule_of({"_class_name": name}) == schedule_of(json.loads(kind().to_json_string()))  # the same defaults


def test_flow_and_edm_are_those_of_the_scheduler():
    flow = package.FlowMatchEulerDiscreteScheduler(num_train_timesteps=20, shift=3.0)
    schedule = schedule_of(json.loads(flow.to_json_string()))
    np.testing.assert_allclose(flow.sigmas.numpy()[::-1], schedule.sigma_T, rtol=1e-5)
    np.testing.assert_allclose(flow.timesteps.numpy()[::-1], schedule.time_T, rtol=1e-5)
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    solver = package.DPMSolverMultistepScheduler(**options)
    expected = ensdiff.Schedule(kind="flow", prediction="flow", shift=3.0)
    assert schedule_of(json.loads(solver.to_json_string())) == expected
    edm = package.EDMEulerScheduler(sigma_data=0.7, sigma_max=20.0)
    schedule = schedule_of(json.loads(edm.to_json_string()))
    assert schedule == ensdiff.Schedule(kind="edm", prediction="edm", sigma_data=0.7, sigma_max=20.0)
    sigma, x, f = 3.0, torch.randn(5), torch.randn(5)
    rule = ensdiff.diffusion.schedule.conversion(schedule, 1.0, sigma)
    clean = (rule.clean_x * x + rule.clean_f * f) / rule.clean_over
    np.testing.assert_allclose(edm.precondition_outputs(x, f, torch.tensor(sigma)), clean, rtol=1e-5, atol=1e-6)
    time = schedule.time_of(np.ones(1), np.array([sigma]))
    np.testing.assert_allclose(edm.precondition_noise(sigma), time[0], rtol=1e-6)


SCHEDULES = [
    ensdiff.Schedule(50, 1e-3, 0.1), ensdiff.Schedule(kind="scaled_linear", prediction="v", zero_terminal_snr=True),
    ensdiff.Schedule(kind="cosine", prediction="clean"), ensdiff.Schedule(kind="flow", prediction="flow", shift=2.0),
    ensdiff.Schedule(kind="edm", prediction="edm", sigma_data=0.7, rho=5.0),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
def test_schedules_come_back(tmp_path, schedule):
    options = scheduler_options(schedule)
    assert schedule_of(options) == schedule
    (tmp_path / "scheduler_config.json").write_text(json.dumps(options))
    getattr(package, options["_class_name"]).from_pretrained(tmp_path)


def test_what_only_training_needs_comes_back_from_the_description(tmp_path):
    schedule = ensdiff.Schedule(kind="edm", prediction="edm", log_mean=-0.4)
    params = random_ensemble(schedule=schedule)
    diffusers.save(params, tmp_path)
    assert diffusers.load(tmp_path).schedule == schedule


@pytest.mark.parametrize(("schedule", "message"), [
    (ensdiff.Schedule(prediction="flow"), "prediction='flow' with kind='linear'"),
    (ensdiff.Schedule(kind="flow", prediction="v"), "prediction='v' with kind='flow'"),
    (ensdiff.Schedule(kind="edm", prediction="clean"), "prediction='clean' with kind='edm'"),
])  # fmt: skip
def test_schedules_without_a_counterpart_are_not_saved(tmp_path, schedule, message):
    with pytest.raises(ValueError, match=message):
        diffusers.save(random_ensemble(schedule=schedule), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_tables_name_the_classes():
    assert {*FLOW["_class_name"].allowed, *EDM["_class_name"].allowed, *VARIANCE_PRESERVING} <= set(dir(package))
    assert UNetConfig().condition is None
