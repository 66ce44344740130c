"""Where batches are made: by a thread of the host, or by the devices. Neither changes what is trained."""

import dataclasses
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff import hosts
from ensdiff.codes.permute_jax import wide
from ensdiff.data import Splits
from ensdiff.data.splits_jax import batch_indices, mask, place_at
from ensdiff.ensemble.compiling import per_device
from ensdiff.runs.logs import read_environments
from ensdiff.training import device, loop
from ensdiff.training.config import TrainConfig
from ensdiff.training.device import SPECS, fits, make_device_steps, place_data
from ensdiff.training.host import BUFFERS, made_ahead, make_batch
from ensdiff.training.step import init_state
from ensdiff.training.stepper import CallLength
from tests.helpers import CODE, SHORT, TINY, blobs

CONFIG = TrainConfig(
    steps=5, batch_size=4, learning_rate=1e-2, warmup=1, clip=0.5, ema=0.9, log_every=1, checkpoint_every=2, seed=-3
)
DATA = ensdiff.data.arrays(blobs())
ONE = ensdiff.make_mesh(4, devices=jax.devices()[:1])


def train(data=DATA, mesh=ONE, **options):
    return ensdiff.train(data, CODE, TINY, CONFIG, schedule=SHORT, progress=False, mesh=mesh, **options)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a.params), leaves(b.params), strict=True))


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_results_keep_their_order_and_are_made_ahead():
    made, release = [], threading.Semaphore(0)

    def make(step):
        made.append(step)
        release.release()
        return step

    with made_ahead(make, range(3, 13)) as results:
        assert next(results) == 3
        for _ in range(1 + BUFFERS):
            assert release.acquire(timeout=60)
        assert not release.acquire(timeout=0.05)  # no further than that
        assert made == list(range(3, 4 + BUFFERS))
        assert list(results) == list(range(4, 13))
    assert threads() == []


@pytest.mark.parametrize("error", [ZeroDivisionError("in the thread"), KeyboardInterrupt(), SystemExit(3)])
def test_errors_of_the_thread_and_of_the_loop_end_both(error):
    def make(step):
        if step == 2:
            raise error
        return step

    taken = []
    with pytest.raises(type(error)), made_ahead(make, range(9)) as results:
        taken.extend(results)
    assert taken == [0, 1]
    assert threads() == []
    with pytest.raises(type(error)), made_ahead(lambda step: step, range(9)) as results:
        raise error.with_traceback(None) if next(results) == 0 else AssertionError
    assert threads() == []


@pytest.mark.parametrize("how", ["preempted", "diverged", "interrupted", "unreadable"])
def test_the_thread_ends_with_training(how, monkeypatch):
    """Also if training stops in the middle; and an error in reading images is raised as what it is."""
    seen = []

    def stop(done):
        seen.extend(threads())
        if how == "interrupted":
            raise KeyboardInterrupt
        return how == "preempted" and done == 2

    def poisoned(data, splits, config, step, *block):
        if how == "unreadable" and step == 4:
            raise OSError("the disk is gone")
        batch = make_batch(data, splits, config, step, *block)
        return batch._replace(mask_KB=batch.mask_KB * (np.inf if how == "diverged" else 1.0))

    monkeypatch.setattr(sys.modules["ensdiff.training.host"], "make_batch", poisoned)
    expected = {"preempted": ensdiff.Preempted, "diverged": ensdiff.DivergedError, "interrupted": KeyboardInterrupt,
                "unreadable": OSError}  # fmt: skip
    with pytest.raises(expected[how]):
        train(stop=stop, pipeline="host")
    assert seen
    assert threads() == []


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 2)])
def test_batches_on_devices_are_those_of_the_host(shape):
    """Images and masks of every member and position are equal, at several steps, however the mesh splits them."""
    devices = np.array(jax.devices()[: shape[0] * shape[1]], object).reshape(shape)
    mesh = jax.sharding.Mesh(devices, ("member", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    splits = Splits.build(DATA, CODE)
    placed = place_data(DATA, splits, 4, mesh)
    share = 4 // shape[1]
    P = jax.sharding.PartitionSpec

    def batch_of(data, first, later, seed):
        member_K = jax.lax.axis_index("member") * len(data.lists.size_K) + jnp.arange(len(data.lists.size_K))
        position_B = jax.lax.axis_index("data") * share + jnp.arange(share)
        place = place_at(first, 4, data.lists.size_K)
        index_KB = batch_indices(data.lists, seed, place, later, 4, member_K, position_B)
        return data.images_NHWC[index_KB], mask(data.lists, index_KB)

    batch_fn = per_device(batch_of, mesh, (SPECS, P(), P(), P()), P("member", "data"))
    for first, later in ((0, 0), (0, 7), (5, 3), (10**6, 1000)):
        images, masks = batch_fn(placed, np.int32(first), np.int32(later), wide(CONFIG.seed))
        expected = make_batch(DATA, splits, CONFIG, first + later)
        np.testing.assert_array_equal(images, expected.images_KBHWC)
        np.testing.assert_array_equal(masks, expected.mask_KB)


@pytest.mark.slow
def test_the_device_pipeline_trains_the_same_run(tmp_path):
    """Losses equal the host's up to rounding; and bit for bit for any steps per call, and for a resumed run."""
    with pytest.warns(UserWarning, match="steps_per_call=3 has no effect where the host makes the batches"):
        host = train(run_dir=tmp_path / "host", pipeline="host", steps_per_call=3)
    whole = train(run_dir=tmp_path / "whole", pipeline="device", steps_per_call=3, checkpoint_every=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), host.params, whole.params)
    lines = {name: ensdiff.read_metrics(tmp_path / name) for name in ("host", "whole")}
    assert [line["step"] for line in lines["whole"]] == [1, 2, 3, 4, 5]
    for a, b in zip(lines["host"], lines["whole"], strict=True):
        np.testing.assert_allclose(a["loss_K"], b["loss_K"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm_K"], b["grad_norm_K"], rtol=1e-4)
    assert same(whole, train(pipeline="device", steps_per_call=1))
    assert same(whole, train(pipeline="device", checkpoint_every=5))
    with pytest.raises(ensdiff.Preempted, match="at step 3 of 5"):
        train(run_dir=tmp_path / "cut", pipeline="device", steps_per_call=3, stop=lambda done: done >= 3,
              checkpoint_every=4)  # fmt: skip
    resumed = train(run_dir=tmp_path / "cut", resume=True)  # auto repeats what was recorded
    assert same(whole, resumed)
    assert [line["execution"]["pipeline"] for line in read_environments(tmp_path / "cut")] == ["device"] * 2
    assert [line["loss_K"] for line in ensdiff.read_metrics(tmp_path / "cut")] == [
        line["loss_K"] for line in lines["whole"]
    ]
    train(run_dir=tmp_path / "cut", resume=True, steps=6, pipeline="host")
    assert read_environments(tmp_path / "cut")[-1]["execution"]["pipeline"] == "host"
    certificate = ensdiff.certify(tmp_path / "cut", [3])
    result = certificate.verify(tmp_path / "cut", data=DATA, replay=6)
    assert result.ok, result.failures


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_causal_isolation_on_devices(devices):
    """If every pixel of one unit changes, exactly the members that did not see it stay the same bit for bit."""
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:devices])
    images = blobs()
    images[4] = 255 - images[4]
    before, after = (train(data, mesh, pipeline="device", steps=3) for data in (DATA, ensdiff.data.arrays(images)))
    equal = [np.array([np.array_equal(x[k], y[k]) for k in range(4)])
             for x, y in zip(leaves(before.params), leaves(after.params), strict=True)]  # fmt: skip
    np.testing.assert_array_equal(np.all(equal, axis=0), CODE.rows(4)[0] == 0)


@pytest.mark.slow
def test_batches_are_split_over_a_data_axis():
    mesh = jax.sharding.Mesh(np.array(jax.devices(), object).reshape(2, 2), ("member", "data"))
    one, split = (train(mesh=m, pipeline="device", steps=3) for m in (ONE, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), one.params, split.params)


def test_the_lowered_program_has_no_collective_and_no_grouped_convolution():
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:2])
    placed = place_data(DATA, Splits.build(DATA, CODE), 4, mesh)
    state = init_state(TINY, DATA.shape, 4, CONFIG, mesh)
    steps_fn = make_device_steps(TINY, SHORT, CONFIG, mesh)
    text = steps_fn.lower(state, placed, np.int32(0), np.int32(2), wide(0)).as_text()
    for collective in ("all_reduce", "all_gather", "reduce_scatter", "collective_permute", "all_to_all"):
        assert collective not in text
    for members in (2, 4):
        assert f"feature_group_count = {members} " not in text
        assert f"batch_group_count = {members} " not in text


def test_which_data_fit(monkeypatch):
    """Data go to the devices if a quarter of their memory holds them; on CPUs only if the user asks for it."""
    splits = Splits.build(DATA, CODE)
    need = DATA.images.nbytes + 4 * 6 + 4 * (4 * 3 + 6)
    for memory, expected in ((4 * need, True), (4 * need - 4, False)):
        monkeypatch.setattr(device, "UNKNOWN_MEMORY", memory)
        assert fits(DATA, splits, 4, ONE) is expected
    assert loop._pipeline(DATA, splits, CONFIG, ONE) == "host"
    monkeypatch.setattr(loop, "platform", lambda mesh: "gpu")
    with pytest.warns(UserWarning, match="more than a quarter of a device's memory"):
        assert loop._pipeline(DATA, splits, CONFIG, ONE) == "host"
    monkeypatch.undo()
    monkeypatch.setattr(loop, "platform", lambda mesh: "gpu")
    assert loop._pipeline(DATA, splits, CONFIG, ONE) == "device"
    assert loop._pipeline(DATA, splits, dataclasses.replace(CONFIG, pipeline="host"), ONE) == "host"
    assert not fits(DATA, splits, 2**22, ONE)
    with pytest.raises(ValueError, match=r"batches of 4194304: expected .* use pipeline='host'"):
        place_data(DATA, splits, 2**22, ONE)


def test_calls_become_as_long_as_their_time_allows():
    """Half a second at most, at most eight times as long as the last one, and shorter again if steps get slower."""
    length, counts, now = CallLength(), [], 0.0
    for seconds in [9.0] + [0.0021] * 5 + [0.09] * 3 + [2.0] * 2:
        counts.append(length.next())
        length.measured(counts[-1], now, now + counts[-1] * seconds)
        now += counts[-1] * seconds
    assert counts == [1, 1, 8, 64, 238, 238, 238, 5, 5, 5, 1]
    assert [CallLength(7).next(), CallLength(1).next()] == [7, 1]


def test_time_in_the_queue_does_not_count():
    length = CallLength()
    length.measured(1, 0.0, 5.0)
    length.measured(1, 1.0, 5.1)  # made at 1.0, but the devices were busy until 5.0
    assert length.next() == 5


def test_processes_agree_on_the_length_of_calls(monkeypatch):
    """Process 0 is asked at calls 1, 2, 4, 8, ..., and its answer holds until the next of these."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    asked = []
    monkeypatch.setattr(hosts, "decide", lambda choose: asked.append(choose()) or 10 * len(asked))
    length = CallLength()
    assert [length.next() for _ in range(9)] == [10, 20, 20, 30, 30, 30, 30, 40, 40]
    assert len(asked) == 4
