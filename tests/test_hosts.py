"""Support for several processes, as far as one process can test it; tests/test_processes.py runs two."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import ensdiff
from ensdiff import hosts
from ensdiff.data import Splits, batch_indices
from ensdiff.ensemble.mesh import make_mesh
from ensdiff.training.host import make_batch
from ensdiff.training.loop import TrainConfig, init_state
from experiments import processes
from tests.helpers import CODE, TINY, blobs


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of a device that a mesh uses."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


@given(st.integers(1, 24), st.integers(1, 5), st.integers(1, 4), st.one_of(st.none(), st.integers(1, 12)))
def test_a_mesh_of_several_processes(members, count, each, batch):
    """Every process takes an almost equal part; members and batch divide; each process holds adjacent members."""
    devices = [Device(2048 * process + i, process) for i in range(each) for process in range(count)]
    mesh = make_mesh(members, batch, devices)
    used = [device.process_index for device in mesh.devices.flat]
    shares = collections.Counter(used)
    assert len(set(mesh.devices.flat)) == len(used)
    assert sorted(shares) == list(range(count))
    assert max(shares.values()) - min(shares.values()) <= 1
    assert members % mesh.shape["member"] == 0
    assert batch is None or batch % mesh.shape["data"] == 0
    assert used == sorted(used)
    assert ("copy" in mesh.shape) == (mesh.shape["member"] * mesh.shape["data"] < count)


def test_members_and_batch_over_processes():
    """All devices split members if they divide; otherwise the mesh has a data axis, or copies if nothing divides."""
    four = [Device(i + 2048 * process, process) for process in range(2) for i in range(2)]
    shapes = [dict(make_mesh(*work, four).shape) for work in ((16, None), (2, 8), (3, 1), (1, 1))]
    assert shapes == [
        {"member": 4, "data": 1},
        {"member": 2, "data": 2},
        {"member": 3, "data": 1},
        {"copy": 2, "member": 1, "data": 1},
    ]
    rows = make_mesh(2, 8, four).devices  # the sum over a batch stays within a process
    assert [[device.process_index for device in row] for row in rows] == [[0, 0], [1, 1]]


def test_one_process_places_and_fetches():
    mesh = make_mesh(4)
    tree = {"a": np.arange(8.0).reshape(4, 2), "b": None}
    placed = hosts.place(tree, mesh, P("member"))
    assert placed["a"].sharding.spec == P("member")
    assert hosts.local(placed)["a"] is placed["a"]
    np.testing.assert_array_equal(hosts.fetch(placed)["a"], tree["a"])
    whole = hosts.assemble(tree["a"], mesh, P("member"), (4, 2))
    np.testing.assert_array_equal(whole, tree["a"])
    assert hosts.local_block(mesh, P("member"), (4, 2)) == (slice(0, 4), slice(0, 2))
    assert hosts.local_members(make_mesh(4, devices=jax.devices()[:1]), 4) == slice(0, 4)
    assert hosts.is_writer()
    assert hosts.exchange(3) == [3]
    assert hosts.decide(lambda: 4) == hosts.together(lambda: 4) == 4
    with pytest.raises(KeyError):
        hosts.decide(lambda: {}["nothing"])


def test_initial_parameters_on_a_mesh_are_the_same():
    """Initial parameters and optimiser state, computed on their devices, equal those of one device bit for bit."""
    config = TrainConfig(ema=0.9)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("member", "data"))
    placed = init_state(TINY, (8, 8, 1), 4, config, mesh)
    jax.tree.map(np.testing.assert_array_equal, init_state(TINY, (8, 8, 1), 4, config), placed)
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding.spec == P("member")
        assert leaf.addressable_shards[0].data.shape[0] == 2


def test_a_process_reads_only_its_own_images():
    """With splits for two members of four, the batches are those of the whole, and no other image is read."""
    data = ensdiff.data.arrays(blobs())
    held = slice(2, 4)
    own = Splits.build(data, CODE, held)
    assert [len(items) for items in own.items_of_member[:2]] == [0, 0]
    whole, config, touched = Splits.build(data, CODE), TrainConfig(batch_size=4), []

    class Watched(np.ndarray):
        def __getitem__(self, index):
            touched.append(np.asarray(index))
            return super().__getitem__(index)

    watched = ensdiff.data.Dataset(data.images.view(Watched), data.unit_of_item, data.unit_names)
    batch = make_batch(watched, own, config, 7, held, slice(1, 3))
    assert [index.tolist() for index in touched] == [batch_indices(whole, 0, 7, 4)[2:4, 1:3].tolist()]
    everything = make_batch(data, whole, config, 7)
    np.testing.assert_array_equal(batch.images_KBHWC, everything.images_KBHWC[2:4, 1:3])
    np.testing.assert_array_equal(batch.mask_KB, everything.mask_KB[2:4, 1:3])


@pytest.fixture
def given_flags():
    """Return a function that sets flags of the programs for one test."""
    saved = flags.FLAGS.flag_values_dict()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    names = ("distributed", "coordinator", "num_processes", "process_id")
    yield lambda **values: [flags.FLAGS[name].__setattr__("value", values.get(name)) for name in names]
    for name in names:
        flags.FLAGS[name].value = saved[name]


@pytest.mark.parametrize(("values", "environment", "expected"), [
    ({}, {}, False),
    ({"distributed": True}, {}, True),
    ({"coordinator": "a:1"}, {}, True),
    ({}, {"SLURM_STEP_NUM_TASKS": "2"}, True),
    ({}, {"SLURM_STEP_NUM_TASKS": "1"}, False),
    ({}, {"OMPI_COMM_WORLD_SIZE": "4"}, True),
    ({"distributed": False}, {"SLURM_STEP_NUM_TASKS": "2"}, False),
])  # fmt: skip
def test_when_a_program_is_one_of_several(given_flags, monkeypatch, values, environment, expected):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given_flags(**values)
    assert processes.wanted() == expected


@pytest.mark.parametrize(("values", "message"), [
    ({"coordinator": "10.0.0.1:29500"}, "--num_processes, --process_id not given"),
    ({"coordinator": "10.0.0.1", "num_processes": 2, "process_id": 0}, "expected HOST:PORT"),
    ({"coordinator": "h:0", "num_processes": 2, "process_id": 0}, "expected HOST:PORT"),
    ({"coordinator": "h:29500", "num_processes": 2, "process_id": 2}, "expected 0 .. 1"),
])  # fmt: skip
def test_flags_that_do_not_fit(given_flags, values, message):
    given_flags(**values)
    with pytest.raises(ValueError, match=message):
        processes.start()


def test_a_contradiction_and_a_port_in_use(given_flags):
    import socket

    given_flags(distributed=False, process_id=1)
    with pytest.raises(ValueError, match="--process_id and --nodistributed exclude each other"):
        processes.wanted()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        given_flags(coordinator=f"localhost:{taken.getsockname()[1]}", num_processes=2, process_id=0)
        with pytest.raises(ValueError, match="choose another port"):
            processes.start()


@pytest.mark.parametrize(("values", "environment", "bound", "expected"), [
    ({}, {}, 8, 8),
    ({"coordinator": "127.0.0.1:9", "num_processes": 4}, {}, 8, 2),
    ({"coordinator": "10.0.0.1:9", "num_processes": 4}, {}, 8, 8),
    ({"distributed": True}, {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, 8, 4),
    ({"distributed": True}, {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, 4, 4),  # srun bound the process to its cores
    ({"distributed": True}, {"OMPI_COMM_WORLD_LOCAL_SIZE": "16"}, 8, 1),
])  # fmt: skip
def test_share_of_the_cores(given_flags, monkeypatch, values, environment, bound, expected):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(bound)), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given_flags(**values)
    assert processes.cpu_devices() == expected


class Cancelled(Exception):
    """What a watcher raises to end a computation."""


def test_a_watcher_sees_the_progress_of_a_computation_and_can_end_it(tiny):
    samples = ensdiff.sample(tiny, 0, 3, steps=3)
    seen = []
    with hosts.watched(seen.append):
        without = ensdiff.counterfactuals(tiny, samples, [2], chunk=2)
    steps = [hosts.Progress("sampling", step, 3, "sampling step") for step in (1, 2, 3)]
    bar = [hosts.Progress("counterfactuals", done, 3, "image") for done in (0, 2, 3)]
    assert seen == [bar[0], *steps, bar[1], *steps, bar[2]]
    assert hosts._WATCHER.get() is None

    def watcher(progress):
        ended.append(progress)
        if progress.done == 2 and progress.unit == "sampling step":
            raise Cancelled

    ended = []
    with pytest.raises(Cancelled), hosts.watched(watcher):
        ensdiff.counterfactuals(tiny, samples, [2], chunk=2)
    assert ended == seen[:3]
    assert hosts._WATCHER.get() is None
    np.testing.assert_array_equal(ensdiff.counterfactuals(tiny, samples, [2], chunk=2), without)
    assert len(ended) == 3
