"""Checkpoints of older formats: a run that was written in one of them continues, and forgets units, like any other."""

import sys

import jax
import numpy as np
import optax
import pytest

import ensdiff
from ensdiff.ensemble.flat import in_rows, ravel, unravel
from ensdiff.ensemble.members import abstract_params
from ensdiff.files.checksums import read_sealed
from ensdiff.runs.checkpoints import open_checkpoint, read_shapes
from ensdiff.training.step import StepSettings, TrainState, make_train_step
from tests.faults import reseal
from tests.helpers import CODE, SHORT, blobs

pytestmark = pytest.mark.slow

MODEL = ensdiff.UNetConfig(channels=4, norm_groups=2, multipliers=(1,))
OPTIONS = dict(
    schedule=SHORT, progress=False, batch_size=4, learning_rate=1e-2, warmup=1, clip=0.5, checkpoint_every=2, ema=0.9
)


def adam_over_the_tree(settings):
    """Return the optimiser of formats 1 and 2, in which every moment is a tree like the parameters."""
    rate = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup)
    return optax.chain(optax.clip_by_global_norm(settings.clip), optax.adam(rate))


def update_of_a_tree(settings, state, gradient_R128, step):
    gradient = unravel(gradient_R128, state.params)
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = adam_over_the_tree(settings).update(gradient, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    done = jax.numpy.asarray(step, "float32")
    decay = jax.numpy.minimum(settings.ema, (1.0 + done) / (10.0 + done))
    ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
    return TrainState(params, opt_state, ema), optax.tree.norm(gradient)


def train_in_format_2(monkeypatch, data, run_dir, steps):
    """Train with the optimiser and write with the layout of format 2."""
    loop, host, description = (
        sys.modules[f"ensdiff.{name}"] for name in ("training.loop", "training.host", "runs.description")
    )
    init_state = loop.init_state

    def init(model, image_shape, members, config, *more):
        state = init_state(model, image_shape, members, config, *more)
        optimizer = adam_over_the_tree(StepSettings.of(config))
        opt_state = jax.jit(jax.vmap(optimizer.init), out_shardings=state.opt_state[1][0].count.sharding)(state.params)
        return state._replace(opt_state=opt_state)

    with monkeypatch.context() as patch:
        patch.setattr(description, "FORMAT", 2)
        patch.setattr(loop, "init_state", init)
        patch.setattr(host, "make_train_step", lambda *args: make_train_step(*args, update=update_of_a_tree))
        ensdiff.train(data, CODE, MODEL, run_dir=run_dir, steps=steps, **OPTIONS)


def test_a_run_in_the_layout_of_format_2_is_resumed(tmp_path, monkeypatch):
    """Two steps of the old optimiser and three of the new one equal five of the new one, up to rounding."""
    data = ensdiff.data.arrays(blobs())
    train_in_format_2(monkeypatch, data, tmp_path / "old", steps=2)
    before = open_checkpoint(tmp_path / "old", 2)
    shapes = read_shapes(before)
    assert before.description["format"] == 2
    assert len(jax.tree.leaves(shapes["opt_state"])) == 2 * len(jax.tree.leaves(shapes["params"])) + 2
    whole = ensdiff.train(data, CODE, MODEL, run_dir=tmp_path / "new", steps=5, **OPTIONS)
    resumed = ensdiff.train(data, CODE, MODEL, run_dir=tmp_path / "old", steps=5, resume=True, **OPTIONS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole.params, resumed.params)
    after = open_checkpoint(tmp_path / "old", 5)
    assert after.description["format"] == 5
    size = sum(leaf[0].size for leaf in jax.tree.leaves(whole.params))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(read_shapes(after)["opt_state"])) == [
        (4,),
        (4,),
        (4, -(-size // 128), 128),
        (4, -(-size // 128), 128),
    ]
    first = ensdiff.load(tmp_path / "old", step=2)
    assert jax.tree.structure(first.params) == jax.tree.structure(whole.params)


def test_a_run_in_the_layout_of_format_2_forgets(tmp_path, monkeypatch):
    data = ensdiff.data.arrays(blobs())
    train_in_format_2(monkeypatch, data, tmp_path / "old", steps=2)
    certificate = ensdiff.forget(tmp_path / "old", [3], tmp_path / "without")
    assert certificate.verify(tmp_path / "without").ok
    shapes = read_shapes(open_checkpoint(tmp_path / "without", 2))
    assert len(jax.tree.leaves(shapes["opt_state"])) == 4


def test_a_finished_run_in_format_2_that_is_resumed_can_be_certified(tmp_path, monkeypatch):
    """Resuming rewrites run.json in the new format, although no checkpoint is written."""
    data = ensdiff.data.arrays(blobs())
    train_in_format_2(monkeypatch, data, tmp_path / "old", steps=2)
    ensdiff.train(data, CODE, MODEL, run_dir=tmp_path / "old", steps=2, resume=True, **OPTIONS)
    assert read_sealed(tmp_path / "old" / "run.json")["format"] == 5
    assert open_checkpoint(tmp_path / "old", 2).description["format"] == 2
    assert ensdiff.certify(tmp_path / "old", [3]).verify(tmp_path / "old").ok
    assert ensdiff.forget(tmp_path / "old", [3], tmp_path / "without").verify(tmp_path / "without").ok


def test_certificates_of_format_1_hash_the_arrays_as_they_were_written(tmp_path, monkeypatch):
    """So a certificate made by an older version still holds."""
    data = ensdiff.data.arrays(blobs())
    train_in_format_2(monkeypatch, data, tmp_path / "old", steps=2)
    written = open_checkpoint(tmp_path / "old", 2).description["sums"]

    def older(text):
        text.update(format=1)
        del text["sums"]

    reseal(tmp_path / "old" / "checkpoints" / "2", older)
    certificate = ensdiff.certify(tmp_path / "old", [3])
    for k, parts in certificate.values["parameters"]["sha256"].items():
        assert parts == {part: sums[int(k)] for part, sums in written.items()}


def test_a_run_in_the_layout_of_format_3_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    """Its moments are the same numbers, as one vector per member and without the zeros at the end."""
    step, description = (sys.modules[f"ensdiff.{name}"] for name in ("training.step", "runs.description"))
    data, options = ensdiff.data.arrays(blobs()), {**OPTIONS, "clip": 0.0}
    size = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(MODEL, (8, 8, 1), 1)))

    def forget_programs():
        for cached in (step._train_step, step._init_optimizer):
            cached.cache_clear()

    with monkeypatch.context() as patch:
        patch.setattr(description, "FORMAT", 3)
        patch.setattr(step, "ravel", lambda tree: ravel(tree).reshape(-1)[:size])
        patch.setattr(step, "unravel", lambda vector, like: unravel(in_rows(vector), like))
        forget_programs()
        ensdiff.train(data, CODE, MODEL, run_dir=tmp_path / "old", steps=2, **options)
    forget_programs()
    before = open_checkpoint(tmp_path / "old", 2)
    assert before.description["format"] == 3
    assert [leaf.shape for leaf in jax.tree.leaves(read_shapes(before)["opt_state"])].count((4, size)) == 2
    whole = ensdiff.train(data, CODE, MODEL, steps=5, **options)
    resumed = ensdiff.train(data, CODE, MODEL, run_dir=tmp_path / "old", steps=5, resume=True, **options)
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


def test_members_are_joined_in_one_documented_order(rng):
    tree = {"b": rng.normal(size=(2, 100)), "a": {"d": rng.normal(size=4), "c": rng.normal(size=())}}
    rows = ravel(tree)
    vector = np.concatenate([[tree["a"]["c"]], tree["a"]["d"], tree["b"].ravel(), np.zeros(51)]).astype("f4")
    np.testing.assert_array_equal(rows, vector.reshape(2, 128))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype("f4")), unravel(rows, tree), tree)
