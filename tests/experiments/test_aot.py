"""experiments.aot as a user types it: programs are lowered, and compiled for machines whose plugins are installed."""

import dataclasses
import importlib.util
import json

import jax
import pytest

import ensdiff
from ensdiff.ensemble.mesh import make_mesh
from ensdiff.models.space import PIXELS
from ensdiff.planning.estimates import ACCELERATORS, Study
from experiments import records, targets
from experiments.abstract import STEPS, abstract_mesh

pytestmark = pytest.mark.slow

TINY = [
    "--config=experiments/configs/digits.py", "--image=8,8,1", "--units=1400", "--config.model.channels=8",
    "--config.model.multipliers=(1,)", "--config.model.norm_groups=4", "--config.train.batch_size=4",
    "--config.code.members=16",
]  # fmt: skip


def steps_of(done, path, programs=STEPS):
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert [step["step"] for step in record["steps"]] == list(programs)
    for step in record["steps"]:
        assert step["flops"]["lowered"] == pytest.approx(step["flops"]["analytic"], rel=0.05), step["step"]
        assert step["lowered"]["grouped"] == 0
    return record, {step["step"]: step for step in record["steps"]}


def test_cuda_needs_nothing_but_jax(run, tmp_path):
    """Sixteen members on eight GPUs, two a GPU: the lowered programs hold the analytic FLOPs."""
    out = tmp_path / "aot.json"
    done = run("aot", "--topology=cuda:8", "--states=12", *TINY, f"--out={out}")
    record, steps = steps_of(done, out)
    assert record["mesh"] == {"member": 8, "data": 1}
    assert steps["train"]["lowered"]["collectives"] == steps["train_device"]["lowered"]["collectives"] == {}
    assert steps["train_device"]["flops"] == steps["train"]["flops"]
    assert list(steps["landscape"]["lowered"]["collectives"]) == ["all-reduce"]
    for text in ("2 members of 4 images per chip", "1 all-reduce", f"wrote {out}"):
        assert text in done.stdout


def test_groups_of_members_are_counted(run, tmp_path):
    """Eight members per GPU in groups of two, as grouped convolutions."""
    out = tmp_path / "aot.json"
    done = run(
        "aot", "--topology=cuda:2", "--programs=train", *TINY, "--config.model.conv=grouped", "--config.model.stack=3",
        f"--out={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "conv grouped, 2 of 8 members of a device together" in done.stdout
    (step,) = json.loads(out.read_text())["steps"]
    assert step["lowered"]["grouped"] > 4
    assert step["flops"]["lowered"] == pytest.approx(step["flops"]["analytic"], rel=0.05)


PLAIN = {"XLA_FLAGS": ""}
"""libtpu reads these flags too, and ends the process at those of CPUs."""


@pytest.mark.parametrize(("topology", "mesh", "programs"), [
    ("v5e:2x4", (8, 1), STEPS), ("v4:2x2x1", (8, 1), ["loss"]), ("v6e:2x2", (4, 1), ["loss"]),
])  # fmt: skip
def test_tpu_programs_fit_without_a_tpu(run, tmp_path, topology, mesh, programs):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install -e '.[aot]'")
    out = tmp_path / "aot.json"
    done = run(
        "aot", f"--topology={topology}", f"--programs={','.join(programs)}", "--states=12", *TINY, f"--out={out}",
        environment=PLAIN,
    )  # fmt: skip
    record, steps = steps_of(done, out, programs)
    assert tuple(record["mesh"].values()) == mesh
    for step in steps.values():
        assert step["fits"]
        assert 0 < step["bytes"]["arguments"] < step["bytes"]["peak"] < 2**30
    if "train" in steps:
        assert steps["train"]["compiled"]["collectives"] == steps["train_device"]["compiled"]["collectives"] == {}
        assert steps["landscape"]["compiled"]["collectives"]["all-reduce"]["number"] >= 1
        for name in ("train", "train_device"):  # the state is donated
            assert steps[name]["bytes"]["aliased"] > 0.9 * steps[name]["bytes"]["outputs"]


def test_gpu_programs_fit_without_a_gpu(run, tmp_path):
    """The compiler for GPUs takes each program, for two cards that are only described to it."""
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("compiling for GPUs needs JAX's CUDA plugin: pip install -e '.[cuda12]'")
    out = tmp_path / "aot.json"
    done = run("aot", "--topology=h100:2", "--states=12", *TINY, f"--out={out}", environment=PLAIN)
    _, steps = steps_of(done, out)
    for step in steps.values():
        assert step["fits"]
        assert 0 < step["bytes"]["arguments"] < step["bytes"]["peak"] < 2**30
    assert steps["train"]["compiled"]["collectives"] == steps["train_device"]["compiled"]["collectives"] == {}
    assert steps["landscape"]["compiled"]["collectives"]["all-reduce"]["number"] >= 1
    assert steps["train"]["bytes"]["aliased"] > 0.9 * steps["train"]["bytes"]["outputs"]


def test_targets(monkeypatch):
    assert targets.target("cuda:3", "topology") == targets.Target("gpu", 3, None)
    assert targets.target("cuda", "topology").total == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for text, extra in (("h100:2", "cuda12"), ("v5e:2x4", "aot")):
        with pytest.raises(ImportError, match=rf"pip install -e '\.\[{extra}\]'"):
            targets.target(text, "topology")
    for text in ("h100:0", "h100:2x2", "cuda:0", "b7:2", "h100:", "", "v5e:0x4", "v5e:2"):
        with pytest.raises(ValueError, match=f"--topology={text}: expected GPUs and their number"):
            targets.target(text, "topology")


def test_cards_have_the_memory_that_plans_assume():
    for name, card in targets.CARDS.items():
        assert card.memory == pytest.approx(ACCELERATORS[name].memory, rel=0.02)
        assert f"device_memory_size: {card.memory}\n" in card.described()


def test_a_record_belongs_to_one_case(tmp_path):
    """A plan takes kept figures only of the very same shapes and settings, whatever their file is called."""
    machine = targets.Target("gpu", 1, 80 * 2**30)
    study = Study(ensdiff.UNetConfig(channels=8, multipliers=(1,)), (8, 8, 1), 4, 6, 2, ensdiff.TrainConfig())
    case = records.case_of(study, ensdiff.Schedule(), PIXELS, machine)
    records.keep(str(tmp_path / "a.json"), case, "h100", [{"step": "train"}])
    found = records.find(case, "h100", tmp_path)
    assert (found["file"], found["steps"]) == ("a.json", [{"step": "train"}])
    assert records.find(case, "a100", tmp_path) is None
    batch = dataclasses.replace(study.train, batch_size=48)
    model = dataclasses.replace(study.model, channels=16)
    for changes in (
        {"train": batch}, {"members": 8}, {"image_shape": (16, 16, 1)}, {"model": model}, {"units": 5},
    ):  # fmt: skip
        other = records.case_of(dataclasses.replace(study, **changes), ensdiff.Schedule(), PIXELS, machine)
        assert records.find(other, "h100", tmp_path) is None, changes
    rate = dataclasses.replace(study, train=dataclasses.replace(study.train, learning_rate=1.0))  # the same programs
    assert records.find(records.case_of(rate, ensdiff.Schedule(), PIXELS, machine), "h100", tmp_path)


def test_what_does_not_fit_is_said(run, tmp_path):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install -e '.[aot]'")
    done = run(
        "aot", "--topology=v5e:2x2", "--programs=landscape", *TINY, "--config.model.multipliers=(1,)",
        "--states=4000000", "--config.code.members=4", "--units=6", environment=PLAIN,
    )  # fmt: skip
    assert done.returncode == 1
    assert "these steps do not fit in the 16 GiB of a device: landscape" in done.stderr
    assert "too much" in done.stdout


@pytest.mark.parametrize(("args", "message"), [
    (["--topology=v5e"], "v5e:2x4"),
    (["--topology=v9:2x2"], "known chips"), (["--topology=h100:2x2"], "GPUs and their number"),
    (["--topology=cuda:2", "--programs=training"], "expected some of train"),
    (["--topology=cuda:2", "--mesh=3x1"], "a divisor of the 16 members"),
    (["--topology=cuda:2", "--image=8x8"], "--image=8x8"),
])  # fmt: skip
def test_errors_are_one_line(run, args, message):
    done = run("aot", *TINY, *args)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_data_sizes_must_be_known(run):
    done = run("aot", "--topology=cuda:2", "--config=experiments/configs/digits.py")
    assert "--image=H,W,C and --units=N" in done.stderr


@pytest.mark.parametrize(("members", "batch", "devices"), [(16, 4, 8), (20, 128, 8), (1, 6, 4), (3, 4, 1)])
def test_abstract_mesh_is_what_make_mesh_makes(members, batch, devices):
    shape = dict(abstract_mesh(members, batch, devices).shape)
    assert shape["member"] * shape["data"] <= devices
    if devices <= len(jax.devices()):
        assert shape == dict(make_mesh(members, batch, jax.devices()[:devices]).shape)
