"""Training: causal isolation first, then resuming, sharding, compilation and failure."""

import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensdiff
from ensdiff.data import Splits
from ensdiff.ensemble import memory
from ensdiff.ensemble.flat import ravel
from ensdiff.ensemble.mesh import on_mesh
from ensdiff.training.config import StepSettings, TrainConfig, seed_of
from ensdiff.training.device import make_device_steps
from ensdiff.training.host import make_batch
from ensdiff.training.step import Batch, init_state, make_train_step, member_update, step_keys
from tests.helpers import CODE, SHORT, TINY, blobs

CONFIG = TrainConfig(
    steps=3, batch_size=4, learning_rate=1e-2, warmup=1, clip=0.5, ema=0.9, log_every=1, checkpoint_every=2
)
MODEL = ensdiff.UNetConfig(channels=4, norm_groups=2, multipliers=(1,), dropout=0.1)


def run(images, *, mesh=None, config=CONFIG, update=member_update, steps=3, code=CODE):
    """Take a few steps without `train`, so that all tests share one compilation per mesh."""
    dataset = ensdiff.data.arrays(images)
    splits = Splits.build(dataset, code)
    mesh = ensdiff.make_mesh(code.members, devices=jax.devices()[:1]) if mesh is None else mesh
    step_fn = make_train_step(MODEL, SHORT, config, mesh, update=update)
    state = on_mesh(init_state(MODEL, dataset.shape, code.members, config), mesh)
    for step in range(steps):
        batch = on_mesh(make_batch(dataset, splits, config, step), mesh, jax.sharding.PartitionSpec("member", "data"))
        state, metrics = step_fn(state, batch, np.int32(step), seed_of(config))
    return jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, metrics)


def same_members(a, b):
    """Return for each member whether all its arrays are equal bit for bit."""
    equal = [np.array([np.array_equal(x[k], y[k]) for k in range(len(x))]) for x, y in
             zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]  # fmt: skip
    return np.all(equal, axis=0)


def changed(unit):
    images = blobs()
    images[unit] = 255 - images[unit]
    return images


@pytest.mark.slow
def test_a_batch_in_micro_batches_trains_like_a_whole_one(monkeypatch):
    """Micro-batches of one or two images give the loss and the gradient of the whole batch."""
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:1])
    whole = run(blobs(), steps=2)
    train_step = sys.modules["ensdiff.training.step"]._train_step
    for held, number in ((1, 4), (2 * 8 * 8 * 4 * 4, 2)):
        monkeypatch.setattr(memory, "CACHED", {"cpu": held})
        train_step.cache_clear()
        try:
            split = run(blobs(), steps=2)
            assert memory.count_micro_batches(MODEL, (8, 8, 1), 4, mesh) == number
        finally:
            train_step.cache_clear()
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("unit", [0, 4])
@pytest.mark.parametrize("devices", [1, 2])
def test_causal_isolation(unit, devices):
    """If every pixel of one unit changes, exactly the members that did not see it stay the same bit for bit."""
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:devices])
    before, _ = run(blobs(), mesh=mesh)
    after, _ = run(changed(unit), mesh=mesh)
    np.testing.assert_array_equal(same_members(before, after), CODE.rows(unit)[0] == 0)


def clipped_together(settings, state, grads, step):
    """Clip by one norm over the gradients of all members, which would break isolation."""
    norm = jnp.sqrt(jax.lax.psum(optax.tree.norm(grads, squared=True), "members"))
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, settings.clip / norm), grads)
    return member_update(dataclasses.replace(settings, clip=0.0), state, grads, step)


def test_isolation_catches_a_global_norm_clip(monkeypatch):
    """Only a named `vmap` allows members to see each other at all."""

    def together(model, function, state_K, *stacked_K, in_place):
        return jax.vmap(function, axis_name="members")(state_K, *stacked_K)

    monkeypatch.setattr("ensdiff.training.step.update_members", together)
    config = dataclasses.replace(CONFIG, clip=0.01)
    before, _ = run(blobs(), config=config, update=clipped_together)
    after, _ = run(changed(0), config=config, update=clipped_together)
    assert not same_members(before, after)[CODE.rows(0)[0] == 0].any()


def test_a_wrong_index_never_teaches():
    """If batches are full of other members' items, the mask keeps every parameter as if the batch were empty."""
    dataset = ensdiff.data.arrays(blobs())
    splits = Splits.build(dataset, CODE)
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:1])
    step_fn = make_train_step(MODEL, SHORT, CONFIG, mesh, update=member_update)
    wrong = np.stack([np.resize(np.flatnonzero(CODE.matrix()[:, k] == 0), 4) for k in range(4)])
    mask = splits.mask(wrong)
    assert (mask == 0).all()
    start = init_state(MODEL, dataset.shape, 4, CONFIG)
    first = jax.tree.map(np.asarray, start.params)
    state, metrics = step_fn(on_mesh(start, mesh), Batch(dataset.images[wrong], mask), np.int32(5), seed_of(CONFIG))
    assert (np.asarray(metrics.loss_K) == 0).all()
    assert same_members(first, jax.tree.map(np.asarray, state.params)).all()


def test_a_members_step_copies_no_other_members_state():
    """On CPUs, replacing states in place made the compiler copy those of all members, for each of them."""
    dataset = ensdiff.data.arrays(blobs())
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:1])
    step_fn = make_train_step(MODEL, SHORT, CONFIG, mesh, update=member_update)
    state = jax.eval_shape(lambda: init_state(MODEL, dataset.shape, 4, CONFIG))
    batch = Batch(jax.ShapeDtypeStruct((4, 4, *dataset.shape), np.uint8), jax.ShapeDtypeStruct((4, 4), np.float32))
    text = step_fn.lower(state, batch, np.int32(5), seed_of(CONFIG)).compile().as_text()
    loops, outside = text.split("\nENTRY ")
    assert "f32[4,3,3," in loops  # kernels of all members
    assert "while(" in outside
    assert not re.findall(r"= f32\[4,3,3,.* copy\(", loops)


def test_loss_is_the_mean_over_members_own_images(rng):
    """The step's loss and gradient equal those of a loop over members, with the noise that the step draws."""
    dataset = ensdiff.data.arrays(blobs())
    splits = Splits.build(dataset, CODE)
    model = dataclasses.replace(MODEL, dropout=0.0)
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:1])
    state = init_state(model, dataset.shape, 4, CONFIG)
    params = jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), state.params)
    batch = make_batch(dataset, splits, CONFIG, 0)
    net = ensdiff.UNet(dataclasses.replace(model, conv="grouped"))

    @jax.jit
    @jax.value_and_grad
    def loss_of_one(p, images_BHWC, keys_B):
        def noisy(image, key):
            level, draw, _, _ = jax.random.split(key, 4)
            abar = jnp.asarray(SHORT.abar_T, jnp.float32)[jax.random.randint(level, (), 0, SHORT.timesteps)]
            eps = jax.random.normal(draw, (8, 8, 1))
            return jnp.sqrt(abar) * (image / 127.5 - 1) + jnp.sqrt(1 - abar) * eps, eps

        x, eps = jax.vmap(noisy)(images_BHWC.astype(jnp.float32), keys_B)
        t_B = jax.vmap(lambda key: jax.random.randint(jax.random.split(key, 4)[0], (), 0, SHORT.timesteps))(keys_B)
        return jnp.mean((net.apply({"params": p}, x, t_B) - eps) ** 2)

    losses, norms = [], []
    for k in range(4):
        keys_B = jnp.stack([step_keys(CONFIG.seed, 0, k, b) for b in range(4)])
        value, grad = loss_of_one(jax.tree.map(lambda a, k=k: a[k], params), batch.images_KBHWC[k], keys_B)
        losses.append(float(value))
        norms.append(float(optax.tree.norm(grad)))
    step_fn = make_train_step(model, SHORT, CONFIG, mesh)
    _, metrics = step_fn(on_mesh(state._replace(params=params), mesh), batch, np.int32(0), seed_of(CONFIG))
    np.testing.assert_allclose(metrics.loss_K, losses, rtol=1e-4)
    np.testing.assert_allclose(metrics.grad_norm_K, norms, rtol=1e-3)


def test_clip_and_average_are_per_member():
    grads = ravel({"w": jnp.array([3.0, 4.0])})
    state = init_state_of_one({"w": jnp.zeros(2)})
    new, norm = member_update(StepSettings.of(CONFIG), state, grads, jnp.int32(0))
    assert norm == 5
    decay = min(0.9, 1 / 10)
    np.testing.assert_allclose(new.ema["w"], (1 - decay) * new.params["w"], rtol=1e-6)


def init_state_of_one(params):
    from ensdiff.training.step import TrainState, optimizer

    return TrainState(params, optimizer(StepSettings.of(CONFIG)).init(ravel(params)), params)


@pytest.mark.parametrize(
    "shape", [(2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((2, 1), (4, 1), (1, 4)))]
)
def test_sharding_gives_the_same_result(shape):
    devices = np.array(jax.devices()[: shape[0] * shape[1]], object).reshape(shape)
    mesh = jax.sharding.Mesh(devices, ("member", "data"))
    one, one_metrics = run(blobs())
    many, metrics = run(blobs(), mesh=mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), one.params, many.params)
    np.testing.assert_allclose(one_metrics.loss_K, metrics.loss_K, rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_trains_float32_parameters():
    dataset = ensdiff.data.arrays(blobs())
    model = dataclasses.replace(MODEL, compute_dtype="bfloat16")
    ensemble = ensdiff.train(dataset, CODE, model, CONFIG, schedule=SHORT, progress=False)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(ensemble.params))
    full, _ = run(blobs())
    # three steps of a normalised optimiser give the same direction, but not the same numbers
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)]) for p in (full.ema, ensemble.params))
    assert 0 < np.abs(a - b).max() < 0.1


def test_lowered_step_has_no_collective_and_no_grouped_convolution():
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:2])
    dataset = ensdiff.data.arrays(blobs())
    step_fn = make_train_step(MODEL, SHORT, CONFIG, mesh, update=member_update)
    state = on_mesh(init_state(MODEL, dataset.shape, 4, CONFIG), mesh)
    batch = make_batch(dataset, Splits.build(dataset, CODE), CONFIG, 0)
    text = step_fn.lower(state, batch, np.int32(0), seed_of(CONFIG)).as_text()
    for collective in ("all_reduce", "all_gather", "reduce_scatter", "collective_permute", "all_to_all"):
        assert collective not in text
    for members in (2, 4):
        assert f"feature_group_count = {members} " not in text
        assert f"batch_group_count = {members} " not in text


def test_one_compilation():
    """The step is traced and compiled once for any number of steps."""
    traces = []

    def counted(*args):
        traces.append(1)
        return member_update(*args)

    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    dataset = ensdiff.data.arrays(blobs())
    splits = Splits.build(dataset, CODE)
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:2])
    step_fn = make_train_step(MODEL, SHORT, CONFIG, mesh, update=counted)
    state = on_mesh(init_state(MODEL, dataset.shape, 4, CONFIG), mesh)
    for step in range(4):
        batch = on_mesh(make_batch(dataset, splits, CONFIG, step), mesh, jax.sharding.PartitionSpec("member", "data"))
        state, _ = step_fn(state, batch, jnp.int32(step), seed_of(CONFIG))
        if step == 0:
            first = len(compiled)
    assert len(traces) == 1
    assert len(compiled) == first > 0


@pytest.mark.parametrize("make", [make_train_step, make_device_steps])
def test_configs_share_a_program_unless_a_setting_enters_it(make):
    """Seed, steps and intervals do not change the program; with a cosine schedule the steps do."""
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:1])

    def program(config, **other):
        return make(MODEL, SHORT, dataclasses.replace(config, **other), mesh)

    free = dict(seed=7, steps=9, log_every=5, checkpoint_every=7, keep=2, sample_every=3, pipeline="device")
    for option, value in free.items():
        assert program(CONFIG, **{option: value}) is program(CONFIG), option
    changes = dict(learning_rate=2e-2, warmup=2, clip=0.1, ema=0.5, flip=True, decay="cosine")
    found = {program(CONFIG, **{option: value}) for option, value in changes.items()} | {program(CONFIG)}
    assert len(found) == len(changes) + 1
    cosine = dataclasses.replace(CONFIG, decay="cosine")
    assert program(cosine, steps=9) is not program(cosine)
    assert program(cosine, seed=7, keep=2) is program(cosine)


def test_another_seed_and_number_of_steps_trace_nothing():
    traces = []

    def counted(*args):
        traces.append(1)
        return member_update(*args)

    for free in (dict(), dict(seed=1, steps=9, log_every=5, checkpoint_every=7, keep=2)):
        run(blobs(), config=dataclasses.replace(CONFIG, **free), update=counted, steps=1)
    assert len(traces) == 1
    run(blobs(), config=dataclasses.replace(CONFIG, learning_rate=2e-2), update=counted, steps=1)
    assert len(traces) == 2


@pytest.mark.slow
def test_a_run_whose_rate_decays_cannot_be_made_longer(tmp_path):
    """The message says why, and which runs can."""
    options = dict(schedule=SHORT, progress=False, run_dir=tmp_path / "run", decay="cosine")
    ensdiff.train(ensdiff.data.arrays(blobs()), CODE, MODEL, CONFIG, **options, steps=1)
    with pytest.raises(ValueError, match=r"train\.steps: was 1, is 3 \(with decay='cosine' .* decay='constant' can be"):
        ensdiff.train(ensdiff.data.arrays(blobs()), CODE, MODEL, CONFIG, **options, steps=3, resume=True)


def test_train_writes_a_run_that_loads_and_resumes_bit_for_bit(tmp_path):
    data = ensdiff.data.arrays(blobs())
    options = dict(schedule=SHORT, progress=False)
    whole = ensdiff.train(data, CODE, MODEL, CONFIG, **options, run_dir=tmp_path / "whole", steps=5)
    ensdiff.train(data, CODE, MODEL, CONFIG, **options, run_dir=tmp_path / "cut", steps=2)
    # the config of the first two steps differs only in the number of steps
    resumed = ensdiff.train(data, CODE, MODEL, CONFIG, **options, run_dir=tmp_path / "cut", steps=5, resume=True)
    assert same_members(whole.params, resumed.params).all()
    loaded = ensdiff.load(tmp_path / "cut")
    assert same_members(whole.params, loaded.params).all()
    assert loaded.code == CODE
    assert loaded.model == MODEL
    assert loaded.schedule == SHORT
    steps = [line["step"] for line in ensdiff.read_metrics(tmp_path / "cut")]
    assert steps == [1, 2, 3, 4, 5]
    lines = ensdiff.read_metrics(tmp_path / "cut"), ensdiff.read_metrics(tmp_path / "whole")
    assert [line["loss_K"] for line in lines[0]] == [line["loss_K"] for line in lines[1]]
    assert len(lines[0][0]["loss_K"]) == 4
    assert list((tmp_path / "cut" / "tensorboard").iterdir())
    raw = ensdiff.load(tmp_path / "cut", average=False)
    assert not same_members(raw.params, loaded.params).any()
    with pytest.raises(ValueError, match=r"trained for 5 steps already, more than steps=4: give at least 5"):
        ensdiff.train(data, CODE, MODEL, CONFIG, **options, run_dir=tmp_path / "cut", steps=4, resume=True)
    with pytest.raises(ValueError, match=r"train\.decay: was 'constant', is 'cosine'\. Use"):
        ensdiff.train(
            data, CODE, MODEL, CONFIG, **options, run_dir=tmp_path / "cut", steps=5, decay="cosine", resume=True
        )
    with pytest.raises(FileExistsError, match="set resume"):
        ensdiff.train(data, CODE, MODEL, CONFIG, **options, run_dir=tmp_path / "cut")
    other = dataclasses.replace(MODEL, blocks=2)
    with pytest.raises(ValueError, match=r"cannot be resumed.*model\.blocks: was 1, is 2"):
        ensdiff.train(data, CODE, other, CONFIG, **options, run_dir=tmp_path / "cut", resume=True)
    with pytest.raises(ValueError, match=r"train\.batch_size: was 4, is 3"):
        ensdiff.train(data, CODE, MODEL, CONFIG, **options, run_dir=tmp_path / "cut", resume=True, batch_size=3)
    changed_data = ensdiff.data.arrays(changed(0))
    with pytest.raises(ValueError, match="data: 1 of 6 training items are not among the data: item 0 of unit 0"):
        ensdiff.train(changed_data, CODE, MODEL, CONFIG, **options, run_dir=tmp_path / "cut", resume=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint 3; it has 2, 4, 5"):
        ensdiff.load(tmp_path / "cut", step=3)
    text = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert text["train"]["steps"] == 5
    assert text["data"]["units"] == 6


def test_old_checkpoints_are_dropped(tmp_path):
    data = ensdiff.data.arrays(blobs())
    config = dataclasses.replace(CONFIG, checkpoint_every=1, keep=2)
    ensdiff.train(data, CODE, MODEL, config, schedule=SHORT, progress=False, run_dir=tmp_path, steps=5)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "5"]


def test_divergence_names_member_and_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    data = ensdiff.data.arrays(blobs())

    def poisoned(dataset, splits, config, step, *block):
        batch = make_batch(dataset, splits, config, step, *block)
        mask = batch.mask_KB.copy()
        if step == 3:
            mask[2, 0] = np.inf
        return batch._replace(mask_KB=mask)

    monkeypatch.setattr(sys.modules["ensdiff.training.host"], "make_batch", poisoned)
    with pytest.raises(ensdiff.DivergedError, match=r"member 2 diverged at step 3.*checkpoint is step 2"):
        ensdiff.train(data, CODE, MODEL, CONFIG, schedule=SHORT, progress=False, run_dir=tmp_path, steps=9)
    loaded = ensdiff.load(tmp_path)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(loaded.params))


def test_sample_grids(tmp_path):
    data = ensdiff.data.arrays(blobs())
    ensdiff.train(data, CODE, MODEL, CONFIG, schedule=SHORT, progress=False, run_dir=tmp_path, sample_every=2)
    grids = list((tmp_path / "samples").iterdir())
    assert [p.name for p in grids] == ["step_0000002.png"]
    assert grids[0].read_bytes().startswith(b"\x89PNG")


def test_save_and_load_without_training(tmp_path, tiny):
    known = dataclasses.replace(tiny, data_digest="0" * 64)
    ensdiff.save(known, tmp_path / "saved")
    assert ensdiff.check_run(tmp_path / "saved") == []
    assert ensdiff.load(tmp_path / "saved").data_digest == known.data_digest
    loaded = ensdiff.load(tmp_path / "saved")
    assert same_members(loaded.params, tiny.params).all()
    assert loaded.fingerprint == tiny.fingerprint  # saved from four devices, loaded on one
    assert ensdiff.load(tmp_path / "saved", members=[0, 3]).fingerprint != tiny.fingerprint
    with pytest.raises(FileExistsError):
        ensdiff.save(tiny, tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match="does not exist; train with"):
        ensdiff.load(tmp_path / "nothing")


@pytest.mark.parametrize(("options", "message"), [
    (dict(steps=0), "steps=0"),
    (dict(learning_rate=0.0), "positive"),
    (dict(ema=1.0), "decay in"),
    (dict(decay="linear"), "one of 'constant', 'cosine'"),
    (dict(clip=-1.0), "clip=-1.0"),
    (dict(steps_per_call=-1), "steps_per_call=-1"),
    (dict(seed=2**63), "seed=9223372036854775808: expected a signed integer of 64 bits"),
    (dict(pipeline="tape"), "one of 'auto', 'host', 'device'"),
])  # fmt: skip
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_settings_that_the_steps_end_before():
    late, fine = TrainConfig(steps=50, sample_every=51), TrainConfig(steps=100, sample_every=100)
    assert [text.split(":")[0] for text in late.unreached()] == [
        "warmup=100 is more than steps=50",
        "sample_every=51 is more than steps=50",
    ]
    assert "ends at 0.0001 and never reaches 0.0002" in late.unreached()[0]
    assert fine.unreached() == []
    data = ensdiff.data.arrays(blobs())
    code = ensdiff.Code.balanced(4, 5)
    with pytest.warns(UserWarning, match="warmup=9 is more than steps=3"), pytest.raises(ValueError, match="5 units"):
        ensdiff.train(data, code, TINY, CONFIG, warmup=9)


def test_data_and_model_must_fit():
    data = ensdiff.data.arrays(blobs())
    with pytest.raises(ValueError, match="the code is for 5 units"):
        ensdiff.train(data, ensdiff.Code.balanced(4, 5), TINY)
    with pytest.raises(ValueError, match="set image_channels=1"):
        ensdiff.train(data, CODE, ensdiff.UNetConfig(image_channels=3))
    with pytest.raises(ValueError, match="multiples of 16"):
        ensdiff.train(data, CODE, ensdiff.UNetConfig(multipliers=(1, 1, 1, 1, 1)))


def test_every_image_of_every_member_and_step_has_its_own_key():
    """Two members that draw the same picture at the same place of a batch still get other noise."""
    places = [
        (seed, step, member, place) for seed in (0, 1) for step in (0, 1) for member in (0, 2) for place in (0, 3)
    ]
    keys = {np.asarray(jax.random.key_data(step_keys(np.uint32(seed), *rest))).tobytes() for seed, *rest in places}
    assert len(keys) == len(places)
