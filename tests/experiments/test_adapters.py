"""Programs on adapters: the base that a config names or trains first, names of units, and what a plan says."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensdiff
from ensdiff.codes.unit_names import UnitNames
from ensdiff.ensemble.tracing import count_flops
from ensdiff.models import adapters
from ensdiff.models.space import Latents
from ensdiff.planning import estimates
from ensdiff.planning.flops import network_flops, train_step_flops
from experiments import bases, building, coding, lora, naming, records, targets
from experiments.abstract import AVERAGED, STEPS
from experiments.configs import adapters as large
from experiments.configs import adapters_digits
from tests.helpers import TINY

NAMES = UnitNames(["Ada, the first", "ada two", "bob"])


def refused():
    raise AssertionError("names were read")


def test_units_are_ids_or_names():
    assert [found.units for found in naming.removals(["3", "1, 2"], 4, refused)] == [[3], [1, 2]]
    assert naming.removals(["bob,0"], 3, NAMES)[0].units == [2, 0]
    assert naming.removals(["Ada, the first"], 3, NAMES)[0].units == [0]  # a name with a comma
    assert naming.removals(["ADA TWO"], 3, NAMES)[0].units == [1]
    assert naming.removals(["first,BO"], 3, NAMES)[0].units == [0, 2]


def test_units_that_cannot_be_removed_together_are_named():
    code = ensdiff.Code.from_matrix([[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    naming.check_removals(code, [[0], [1, 2]], NAMES)
    with pytest.raises(ensdiff.NoSurvivorError, match='^"Ada, the first", bob: no'):
        naming.check_removals(code, [[0, 2]], NAMES)
    with pytest.raises(ensdiff.NoSurvivorError, match="^no member survives the removal of units 0, 2"):
        naming.check_removals(code, [[0, 2]], refused)


def test_names_that_fit_several_units_or_none():
    with pytest.raises(ValueError, match=r"names of 2 units: id:0 \(Ada, the first\), id:1 \(ada two\); give"):
        naming.removals(["ada"], 3, NAMES)
    with pytest.raises(ValueError, match="no unit is called 'bobb'; similar names are 'bob'; expected a name or an id"):
        naming.removals(["bobb"], 3, NAMES)
    with pytest.raises(ValueError, match="the units of this run have no names"):
        naming.removals(["bob"], 3, lambda: None)
    with pytest.raises(ValueError, match="an empty text"):
        naming.removals([""], 3, NAMES)


def test_only_some_labels():
    """Classes keep their ids, and units their names."""
    data = building.load_data(building.section(adapters_digits.get_config(), "data"))
    assert (data.units, data.unit_names[0], data.condition_spec.leaves[0].classes) == (15, "5 (first third)", 10)
    assert sorted(set(data.condition.tolist())) == [5, 6, 7, 8, 9]
    again = building.read_items("digits", {"groups": "third", "condition": "label", "only": "5+6+7+8+9"})
    assert again.digest() == data.digest()
    with pytest.raises(ValueError, match="no item has the label '12'; labels are 0, 1"):
        building.read_items("digits", {"only": (1, 12)})


def test_a_code_of_units_inside_classes():
    config = adapters_digits.get_config()
    data = building.load_data(building.section(config, "data"))
    code = coding.build_code(building.section(config, "code"), data)
    assert code.group_code().names == tuple(f"digit {label}" for label in range(5, 10))
    for unit, name in enumerate(data.unit_names):
        assert f"digit {name[0]}" == code.group_code().names[code.group_of_unit()[unit]]
    assert (code.shares().min(), code.shares().max()) == (6, 10)  # as the config says
    assert coding.build_code({"members": 1}, data).members == 1
    mixed = data.regroup(np.arange(data.items) % 3)
    with pytest.raises(ValueError, match=r"the items of unit 0 \(0\) have different labels"):
        coding.build_code({"members": 8, "groups": "label"}, mixed)
    with pytest.raises(ValueError, match="expected a text with {} in the place of the class"):
        coding.build_code({"members": 8, "groups": "label", "group_names": "digit"}, data)


def small():
    config = adapters_digits.get_config()
    config.model.update(channels=4, multipliers=(1,), norm_groups=2, middle_attention=False)
    return config


@pytest.mark.parametrize(("changes", "message"), [
    ({"base": {}}, "config.adapters without config.base"),
    ({"base": {"run": "a", "diffusers": "b"}}, "expected run= or diffusers="),
    ({"base": {"run": "a", "stem": 1}}, "config.base.stem: no such field"),
    ({"base": {"diffusers": "a", "member": 1}}, "config.base.member is for a run"),
    ({"base": {"run": "nowhere"}}, "nowhere does not exist"),
])  # fmt: skip
def test_wrong_bases_are_refused(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small()
    for name, value in changes.items():
        config[name] = value
    data = building.load_data(building.section(config, "data"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        bases.start_of(config, data)


def test_a_base_from_elsewhere_stays_the_network_that_it_is():
    with pytest.raises(ValueError, match=r"config.model.channels is set, but the network is the base's"):
        bases.computed(TINY, {"channels": 8})
    assert bases.computed(TINY, {"compute_dtype": "bfloat16"}).compute_dtype == "bfloat16"
    with pytest.raises(ValueError, match="config.base.dtype='float16'"):
        bases.cast({}, "float16")


def test_adapters_of_shapes_cannot_be_trained():
    shapes = jax.eval_shape(TINY.init, jax.random.key(0))
    model = ensdiff.models.adapted(TINY, shapes, rank=2)
    assert (model.base_params, model.digest) == (None, "")
    data = ensdiff.data.digits().subset(range(6))
    with pytest.raises(ValueError, match="does not hold its base's parameters: make it with ensdiff.models.adapted"):
        ensdiff.train(data, ensdiff.Code.balanced(4, 6), model, steps=1, progress=False)


@pytest.mark.slow
def test_flops_and_memory_of_adapters():
    """No gradient of the base's kernels is counted, and the base is counted once."""
    network, shape = ensdiff.UNetConfig(channels=16, multipliers=(1,), middle_attention=False), (8, 8, 1)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    model = ensdiff.models.adapted(network, shapes, rank=1, stack=1)
    whole, low = network_flops(network, shape), network_flops(model, shape)
    extra = low.forward - whole.forward
    assert 0 < extra < 0.2 * whole.forward
    assert whole.train == pytest.approx(3 * whole.forward, rel=0.05)
    assert low.train == pytest.approx(2 * whole.forward + 3 * extra, rel=0.05)
    base, members = adapters.abstract_of(model)
    bound = jax.eval_shape(lambda base: base, base)

    def real(members, base, x, t):
        return jnp.square(model.bind(base).apply(members, x, t)).sum()

    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    counted = count_flops(jax.grad(real), members, bound, x, t)
    assert train_step_flops(model, shape, 3, 2) == 6 * counted
    train = ensdiff.TrainConfig(steps=3, batch_size=4)
    study = estimates.Study(model, shape, 4, 6, 2, train, 2, 5, combine="parameters", base_dtype="bfloat16")
    memory = estimates.training_memory(study)
    assert memory.base == 2 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert memory.total == sum(memory)
    more = estimates.training_memory(estimates.Study(model, shape, 8, 6, 2, train, base_dtype="bfloat16"))
    assert (more.base, more.params) == (memory.base, 2 * memory.params)
    jobs = estimates.job_flops(study)
    change = sum(2 * leaf["down"].size * leaf["up"].shape[-1] for leaf in _pairs(members))
    assert jobs["sampling"] == 4 * change + 2 * 5 * whole.forward
    assert jobs["landscape"] == 6 * jobs["sampling"]


def _pairs(tree):
    return [tree] if set(tree) == {"down", "up"} else [pair for part in tree.values() for pair in _pairs(part)]


def test_the_large_config_is_stable_diffusion():
    model = bases._architecture({"diffusers": "nowhere"}, large.get_config().aot.unet.to_dict())[0]
    assert (model.widths, model.context_width, model.heads) == ((320, 640, 1280, 1280), 768, (8,))


TINY_FLAGS = [
    "--config.model.channels=4", "--config.model.multipliers=(1,)", "--config.model.norm_groups=2",
    "--config.model.middle_attention=False", "--config.adapters.rank=1", "--config.train.batch_size=2",
    "--config.train.steps=4", "--config.train.checkpoint_every=2", "--config.train.warmup=1",
    "--config.base.train.steps=3", "--config.base.train.batch_size=2", "--config.base.train.warmup=1",
]  # fmt: skip
SAMPLES = ["--cond=5,7", "--steps=2", "--sampler=ddim"]


@pytest.fixture(scope="module")
def go(run, tmp_path_factory):
    """Return a function that runs a program on one small run of adapters, which is trained first."""
    place = tmp_path_factory.mktemp("adapters")

    def call(program, *args, run_dir="run", fails=False):
        done = run(program, *([f"--run={place / run_dir}"] if run_dir else []), *args)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    folders = [f"--config.run_dir={place / 'run'}", f"--config.base.run={place / 'base'}"]
    call.train = ["train", "--config=adapters_digits", *folders, *TINY_FLAGS]
    call.place = place
    call.text = call(*call.train, run_dir=None)
    return call


@pytest.mark.slow
def test_the_base_is_trained_once(go):
    assert f"training the base first: {go.place / 'base'}" in go.text
    assert "15 units" in go.text
    text = go(*go.train, "--config.resume=True", run_dir=None)
    assert "training the base" not in text
    wrong = go(*go.train, "--config.base.train.batch_size=4", "--config.resume=True", run_dir=None, fails=True)
    assert "holds another base: train.batch_size differ" in wrong
    base, params = ensdiff.load(go.place / "base"), ensdiff.load(go.place / "run")
    assert params.combine == "parameters"
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), base.params, params.base)


@pytest.mark.slow
def test_sampling_without_names(go, tmp_path):
    text = go("sample", *SAMPLES, "--groups", "--remove=digit 7", f"--out={tmp_path}")
    assert "digit 7 is group 2" in text
    with np.load(tmp_path / "samples_seed0.npz") as found:
        params = ensdiff.load(go.place / "run")
        samples = ensdiff.sample(params, 0, 2, steps=2, sampler="ddim", cond=[5, 7])
        expected = ensdiff.counterfactuals(params, samples, [2], code=params.code.group_code())
        np.testing.assert_allclose(found["counterfactuals"], expected, atol=1e-5)
    text = go("sample", *SAMPLES, "--remove=7 (last", "--combine=predictions", f"--out={tmp_path}")
    assert "7 (last is unit 8" in text
    with np.load(tmp_path / "samples_seed0.npz") as found:
        params = ensdiff.load(go.place / "run", combine="predictions")
        samples = ensdiff.sample(params, 0, 2, steps=2, sampler="ddim", cond=[5, 7])
        np.testing.assert_allclose(found["images"], samples.images, atol=1e-5)
        np.testing.assert_allclose(found["counterfactuals"], ensdiff.counterfactuals(params, samples, [8]), atol=1e-5)
    wrong = go("sample", *SAMPLES, "--remove=third", f"--out={tmp_path}", fails=True)
    assert "'third' is in the names of 15 units: id:0 (5 (first third)), id:1 (5 (second third))" in wrong


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), [
    ("exact", []), ("differential", []), ("loss", ["--draws=4"]),
    ("combined", ["--draws=4", "--gradients=draws=2,parts=1,dimension=8,ridge=0.1,normalize=False"]),
])  # fmt: skip
def test_attributing(go, method, options):
    text = go("attribute", *SAMPLES, f"--method={method}", "--groups", "--top=3", "--null=20", *options)
    assert "sample 1 (class 7): " in text
    assert re.search(r"groups: .*= digit \d", text)
    att = ensdiff.Attribution.load(go.place / "run" / "attribution" / f"{method}_seed0_groups")
    assert att.settings["names"] == [f"digit {label}" for label in range(5, 10)]


@pytest.mark.slow
def test_the_report_names_units_and_groups(go, tmp_path):
    go("report", *SAMPLES, "--n=2", "--top=3", "--combined=1", "--null=5", f"--out={tmp_path}")
    page = (tmp_path / "explorer.html").read_text()
    assert "digit 7" in page
    assert "7 (second third)" in page


@pytest.mark.slow
def test_certificate_and_forgetting(go):
    text = go("forget", "--units=6,7", f"--out={go.place / 'without'}")
    assert "unit 6 is 7 (first third), " in text
    assert "the certificate holds" in go("certify", "verify", "--replay=2", run_dir="without")
    left, whole = ensdiff.load(go.place / "without"), ensdiff.load(go.place / "run")
    assert not left.code.rows([6, 7]).any()
    jax.tree.map(np.testing.assert_array_equal, left.base, whole.base)
    kept = json.loads((go.place / "without" / "certificate.json").read_text())["members"]["held"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[np.array(kept)]), left.params, whole.params)
    go("sample", *SAMPLES, f"--out={go.place / 'pictures'}", run_dir="without")


@pytest.mark.slow
def test_average_as_one_file_is_refused_for_whole_arrays(go):
    file = go.place / "average.safetensors"
    text = go("forget", "--units=0", f"--out={go.place / 'not'}", f"--lora={file}", fails=True)
    assert "also train whole arrays (train_also='condition/table$'), which have no place in such a file" in text
    assert not (go.place / "not").exists()


def test_average_as_one_file_is_refused_for_kernels_without_a_counterpart(monkeypatch, tmp_path):
    """Of a DiT, the default targets also find the table of patches: `lora.check` says so before anything is written."""
    from ensdiff.runs.description import describe

    base = ensdiff.models.DiTConfig(width=8, depth=1, heads=1, classes=3)
    shapes = jax.eval_shape(base.init, jax.random.key(0))
    for kernels, wrong in (("kernel$", "embedding/time1/kernel, .*, patches/kernel have no"), ("query/kernel", None)):
        model = ensdiff.models.adapted(base, shapes, rank=1, targets=kernels)
        params = ensdiff.Ensemble(None, ensdiff.Code.balanced(4, 6), model, ensdiff.Schedule(), (8, 8, 1))
        monkeypatch.setattr("ensdiff.runs.checkpoints.run_description", lambda run, params=params: describe(params))
        file = str(tmp_path / "x.safetensors")
        if wrong is None:
            lora.check("run", file, "out")
            continue
        with pytest.raises(ValueError, match=f"of the adapters of run, those of {wrong} counterpart in diffusers"):
            lora.check("run", file, "out")


@pytest.mark.slow
def test_compiled_figures_belong_to_the_config():
    """What a plan of the config `adapters` says of an H100 was compiled for exactly these settings."""
    config = large.get_config()
    model, schedule, train = bases.planned(config, 4, **building.stated_condition(config))
    study = estimates.Study(
        model, (64, 64, 4), 32, 2000, 12, train, condition=model.condition, combine="parameters", base_dtype="bfloat16"
    )
    machine = targets.Target("gpu", 1, targets.CARDS["h100"].memory)
    case = records.case_of(study, schedule, Latents(), machine)
    record = records.find(case, "h100")
    assert record is not None
    steps = {step["step"]: step for step in record["steps"]}
    assert list(steps) == ["train", "blend", "averaged"]
    assert all(step["fits"] for step in steps.values())
    for name, step in steps.items():
        now = (STEPS | AVERAGED)[name](case)
        assert (step["work"], step["flops"]["analytic"]) == (now.note, now.flops), name
        assert step["flops"]["lowered"] == pytest.approx(now.flops, rel=0.01)


@pytest.mark.slow
def test_plan(run):
    done = run("plan", "--config=adapters_digits", "--accelerator=h100", "--samples=2")
    assert re.search(r"parameters of the frozen base, once +\| 153,121", done.stdout), done.stdout + done.stderr
    assert "one averaged network each" in done.stdout
    few = [
        "--config.aot.unet.down_block_types=('CrossAttnDownBlock2D','DownBlock2D')",
        "--config.aot.unet.up_block_types=('UpBlock2D','CrossAttnUpBlock2D')",
    ]
    done = run(
        "plan", "--config=adapters", "--accelerator=h100", "--samples=2", *few,
        "--config.aot.unet.block_out_channels=(32,32)", "--config.aot.unet.layers_per_block=1",
    )  # fmt: skip
    assert "planned for the network of config.aot.unet" in done.stdout, done.stderr
    assert "- base, bfloat16" in done.stdout
