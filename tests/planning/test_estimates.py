"""Estimates of a study's needs compared with real arrays, compiled programs and codes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.ensemble.members import apply_member
from ensdiff.planning import estimates
from ensdiff.planning.estimates import ACCELERATORS, Study
from ensdiff.planning.lowering import read_lowered
from ensdiff.training.step import init_state
from experiments import abstract
from experiments.coding import describe_code, group_weight
from tests.helpers import random_ensemble

MODEL = ensdiff.UNetConfig(channels=8, norm_groups=4, multipliers=(1, 2), attention_levels=(1,))
SHAPE = (8, 8, 1)
TRAIN = ensdiff.TrainConfig(steps=3, batch_size=4, ema=0.9)
STUDY = Study(MODEL, SHAPE, 4, 6, 2, TRAIN, samples=2, sampling_steps=5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema": 0.0}])
def test_state_equals_the_bytes_of_real_arrays(changes):
    train = dataclasses.replace(TRAIN, **changes)
    study = dataclasses.replace(STUDY, train=train)
    state = init_state(MODEL, SHAPE, 4, train)
    memory = estimates.training_memory(study.on("cpu"))

    def held(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    assert (memory.params, memory.optimizer, memory.average) == (
        held(state.params), held(state.opt_state), held(state.ema),
    )  # fmt: skip
    assert memory.gradients * 4 == memory.params  # members run one after another
    assert estimates.parameter_count(MODEL) * 4 == sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_chips_share_members_and_then_images():
    one, two, eight = (estimates.training_memory(STUDY.on("tpu"), chips) for chips in (1, 2, 8))
    assert one.state == 2 * two.state == 4 * eight.state
    assert one.activations == two.activations == 2 * eight.activations  # 4 members x 2 data shards
    stacked = dataclasses.replace(STUDY, model=dataclasses.replace(MODEL, conv="grouped")).on("tpu")
    assert estimates.training_memory(stacked).gradients == one.params
    assert one.total == sum(one)


@pytest.mark.slow
def test_activations_bound_the_compilers_memory():
    """The temporary memory of a compiled step grows with the batch by 0.2 to 2 times the estimate per image."""

    def temporaries(batch):
        train = dataclasses.replace(TRAIN, batch_size=batch)
        model = dataclasses.replace(MODEL, conv="map", attention="batch")
        mesh = ensdiff.make_mesh(4, devices=jax.devices()[:1])
        case = abstract.Case(model, SHAPE, 4, 6, ensdiff.Schedule(), train, mesh)
        return abstract.lower(abstract.train_step(case), "cpu").compile().memory_analysis().temp_size_in_bytes

    grown = (temporaries(64) - temporaries(32)) / 32
    study = dataclasses.replace(STUDY.on("tpu"), train=dataclasses.replace(TRAIN, batch_size=1))
    assert 0.2 < grown / estimates.training_memory(study).activations < 2


def test_gradients_and_activations_follow_the_size_of_a_group():
    def memory(**changes):
        study = dataclasses.replace(STUDY, model=dataclasses.replace(MODEL, **changes))
        return estimates.training_memory(study, chips=1)

    one = memory(conv="map")
    for stack, together in ((1, 1), (2, 2), (3, 2), (0, 4)):
        found = memory(conv="matmul", stack=stack)
        assert found.state == one.state
        assert found.gradients == together * one.gradients
        assert found.activations == together * one.activations


@pytest.mark.slow
def test_flops_of_jobs_equal_those_of_compiled_programs():
    """FLOPs are within 5 % of XLA's count for a model with little padding, and of the lowered steps for others."""
    model = ensdiff.UNetConfig(channels=32, multipliers=(1,), norm_groups=4, middle_attention=False, conv="loop")
    shape = (64, 64, 1)
    study = Study(model, shape, 4, 6, 2, TRAIN, samples=2, sampling_steps=5)
    params = jax.eval_shape(
        lambda: jax.tree.map(lambda a: a[0], ensdiff.ensemble.members.init_params(model, shape, 1, 0))
    )
    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    compiled = jax.jit(lambda p, x, t: apply_member(model, p, x, t)).lower(params, x, t).compile()
    one = compiled.cost_analysis()["flops"]
    flops = estimates.job_flops(study)
    assert flops["sampling"] == pytest.approx(2 * 5 * 4 * one, rel=0.05)
    assert flops["landscape"] == pytest.approx(6 * 2 * 5 * (4 - 2) * one, rel=0.05)
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:1])
    case = abstract.Case(STUDY.model, SHAPE, 4, 6, ensdiff.Schedule(), TRAIN, mesh, samples=2)
    flops = estimates.job_flops(STUDY)
    for job, step, times in (("training", abstract.train_step, 3), ("jacobian", abstract.jacobian_step, 5)):
        lowered = read_lowered(abstract.lower(step(case), "cpu")).flops
        assert flops[job] == pytest.approx(times * lowered, rel=0.05), job


def test_hours():
    flops = estimates.job_flops(STUDY.on("cpu"))
    cpu = estimates.job_hours(STUDY, ACCELERATORS["cpu2"], chips=8, share=0.01)
    assert cpu["training"] == pytest.approx(flops["training"] / 161e9 / 3600)  # measured: ignores chips and share
    assert cpu["jacobian"] == pytest.approx(flops["jacobian"] / 140e9 / 3600)
    v5e = estimates.job_hours(STUDY, ACCELERATORS["v5e"], share=0.5)
    assert v5e["landscape"] == pytest.approx(estimates.job_flops(STUDY.on("tpu"))["landscape"] / 98.5e12 / 3600)
    more = estimates.job_hours(STUDY, ACCELERATORS["v5e"], chips=7, share=0.5)
    assert more["training"] == pytest.approx(v5e["training"] / 4)  # 4 members with batches of 4 leave three chips idle
    half = dataclasses.replace(STUDY, model=dataclasses.replace(MODEL, compute_dtype="bfloat16"))
    a100 = ACCELERATORS["a100"]
    assert estimates.job_hours(half, a100)["sampling"] == pytest.approx(
        estimates.job_hours(STUDY, a100)["sampling"] / 2
    )
    for chips, share in ((0, 0.2), (1, 0.0), (1, 1.5)):
        with pytest.raises(ValueError, match="expected"):
            estimates.job_hours(STUDY, a100, chips, share)


@pytest.mark.parametrize(("members", "units"), [(4, 4), (5, 6), (8, 60)])
def test_code_estimate_equals_the_code(members, units):
    weight = members // 2
    code = ensdiff.Code.balanced(members, units, weight)
    e = estimates.code_estimate(members, weight, units)
    assert e.survivors == int(code.survivors(0).sum())
    assert e.null == len(code.unowned(None)) if e.null else e.words == units
    assert e.words == math.comb(members, weight)


def test_resolution_equals_that_of_an_attribution():
    """The estimated p, q and resolution are those of an attribution with all unowned words as its null."""
    params = random_ensemble(code=ensdiff.Code.balanced(5, 6, seed=0))
    samples = ensdiff.sample(params, 0, 1, steps=2)
    att = ensdiff.attribute(params, samples, "differential", top=6, null="all")
    e = estimates.code_estimate(5, 2, 6)
    assert att.resolution == pytest.approx(e.q)
    assert np.min(att.p_value) >= e.p
    assert att.null_BL.shape[1] == e.null


def test_a_code_that_cannot_answer_gives_a_warning():
    assert estimates.code_estimate(12, 6, 20).warning is None
    over = estimates.code_estimate(6, 3, 30)
    assert over.null == 0
    assert over.q == 1
    assert "only 20 code words" in over.warning
    assert "fits is 7" in over.warning
    coarse = estimates.code_estimate(16, 8, 1400)
    assert "Use 17 members, or larger units" in coarse.warning
    assert estimates.code_estimate(17, 8, 1400).warning is None


@pytest.mark.parametrize(("changes", "message"), [
    ({"units": 0}, "units=0"), ({"members": 1}, "at least 2 members"), ({"weight": 4}, "weight of 1"),
    ({"image_shape": (8, 8, 3)}, "image_channels=3"), ({"image_shape": (7, 8, 1)}, "multiples of 2"),
    ({"samples": 0}, "samples=0"),
])  # fmt: skip
def test_impossible_studies_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(STUDY, **changes)


def test_plan_as_typed(run):
    done = run("plan", "--image=28x28x1", "--units=1400", "--channels=16", "--multipliers=1,2", "--members=16")
    assert done.returncode == 0, done.stderr
    model = ensdiff.UNetConfig(channels=16, multipliers=(1, 2))
    count = estimates.parameter_count(model)
    for text in (
        f"{count:,}", f"{16 * count:,}", "cpu2 x 1", "v6e x 1", "no accelerator was timed", "12,870 distinct",
        "8 members survive", "q >= 0.12 (resolution)", "warning: one unit alone", "exact landscape",
    ):  # fmt: skip
        assert text in done.stdout, text


def test_words_of_a_hierarchical_code():
    """Its limits are those of the code that `build_code` makes: words of groups, and words inside of one."""
    values = {"members": 8, "groups": "label"}
    of_groups = group_weight(values, 8)
    study = dataclasses.replace(STUDY, members=8, weight=of_groups // 2, units=12)
    text = describe_code(study, of_groups)
    code = ensdiff.Code.hierarchical(8, np.arange(12) // 4)
    assert (code.groups.weight, code.weight) == (of_groups, study.weight) == (6, 3)
    for words in (
        "28 distinct words of 6 of 8 members for the groups", "2 members survive the removal of a group",
        "In each group, 20 words of 3 of its 6 members, of 12 units in all", "5 members survive the removal of a unit",
        "q > 0.6 among all units", "warning: a unit cannot be attributed among all units at level 0.1",
    ):  # fmt: skip
        assert words in text, words
    assert "warning" not in describe_code(dataclasses.replace(study, units=2), of_groups)
    assert group_weight({"members": 8}, 8) is None


@pytest.mark.slow
def test_plan_reads_a_config_and_flags_go_first(run):
    done = run(
        "plan", "--config=experiments/configs/cifar10_paper.py", "--members=256", "--chips=8", "--accelerator=v5e",
        "--units=1000000", "--weight=2", "--steps=7",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "32x32x3, bfloat16" in done.stdout
    assert "35,746,307" in done.stdout  # 36 million, as in Ho et al. 2020
    assert "20.26 of 16 !" in done.stdout
    assert "7 steps of 128 images" in done.stdout
    assert "cpu2 x" not in done.stdout
    assert "warning: 1000000 units, but 256 members of weight 2 have only 32640 code words" in done.stdout


SMALL = ["--image=8x8x1", "--units=60", "--members=8", "--channels=8", "--multipliers=1", "--batch=2"]


@pytest.mark.slow
def test_plan_reads_the_folder_of_a_config(run, tmp_path):
    """The number of units is that of pictures or subfolders, and nothing but names is read if the size is given."""
    for place in ("ada/1.png", "ada/2.png", "bob/1.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"not read")
    args = ["plan", "--config=folder", f"--config.data.path={tmp_path}", "--accelerator=cpu2"]
    done = run(*args)
    assert done.returncode == 0, done.stderr
    assert "| 16x16x3, float32" in done.stdout
    assert "for 3 units" in done.stdout
    assert "for 2 units" in run(*args, "--config.data.groups=folder").stdout
    assert "for 9 units" in run(*args, "--units=9").stdout
    done = run("plan", "--config=folder", "--config.data.path=none")
    assert (done.returncode, done.stderr) == (1, "error: none does not exist\n")


@pytest.mark.slow
def test_plan_counts_compiled_steps(run):
    """Steps are lowered for GPUs without any GPU, and their FLOPs are shown beside the analytic ones."""
    done = run("plan", *SMALL, "--compile=cuda:2")
    assert done.returncode == 0, done.stderr
    assert "compiling for cuda:2: jacobian, 1 samples, 8 tangents, 4 members per chip" in done.stdout
    assert "analytic" in done.stdout


@pytest.mark.slow
def test_plan_compiles_for_a_tpu(run):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install -e '.[aot]'")
    done = run("plan", *SMALL, "--compile=v5e:2x4", environment={"XLA_FLAGS": ""})  # libtpu exits on CPU flags
    assert done.returncode == 0, done.stderr
    assert "peak GiB" in done.stdout


@pytest.mark.parametrize(("args", "message"), [
    ([], "--image=HxWxC and --units=N"), (["--image=8x8", "--units=6"], "--image=8x8"),
    (["--image=8x8x1", "--units=6", "--accelerator=v9"], "expected all, or some of cpu2"),
    (["--image=8x8x1", "--units=6", "--chips=0"], "at least one chip"),
    (["--image=8x8x1", "--units=6", "--multipliers=a"], "expected numbers"),
    (["--image=9x8x1", "--units=6"], "multiples of 2"),
    (["--image=8x8x1", "--units=6", "--steps=0"], "steps=0"),
    (["--image=8x8x1", "--units=6", "--compile=v9:2x2"], "--compile=v9:2x2"),
    (["--image=8x8x1", "--units=6", "--out=a.json"], "pass --compile=h100:1"),
])  # fmt: skip
def test_plan_errors_are_one_line(run, args, message):
    done = run("plan", *args)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
