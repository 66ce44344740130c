"""Ensembles of low-rank adapters: what they predict in diffusers, files that come back, and refused requests."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.codes import NoSurvivorError
from ensdiff.files.checksums import DamagedError
from ensdiff.interop import diffusers, lora
from ensdiff.interop.lora_files import DIFFUSERS, Factors, open_adapters, write
from ensdiff.interop.lora_members import targets_for
from ensdiff.models import adapters, factors
from ensdiff.models.parameters import named, nested
from tests.helpers import CODE, DEEP, SHORT, random_ensemble

pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch

ATTENTION = r"(query|key|value|out)/kernel$"
LAYOUTS = ("diffusers", "kohya")


@pytest.fixture(scope="module")
def base():
    """Return the ensemble of one member that adapters are added to; it has every kind of kernel."""
    return random_ensemble(ensdiff.Code.undivided(1), DEEP)


def adapted_ensemble(base, rank=2, alpha=3.0, code=CODE, seed=0, scale=0.3, **settings):
    """Return members with random factors, none of them 0."""
    start = jax.tree.map(lambda a: a[0], base.params)
    model = adapters.adapted(base.model, start, rank=rank, alpha=alpha, **settings)
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    draw = lambda a: jax.numpy.asarray(scale * rng.normal(size=(code.members, *a.shape)), "float32")  # noqa: E731
    return ensdiff.Ensemble(
        jax.tree.map(draw, shapes), code, model.without_base(), base.schedule, base.image_shape, base.space,
        base.condition, base=start, combine="parameters", base_digest=model.digest,
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(base):
    return adapted_ensemble(base)


def changes(params, k):
    """Return what member k adds to each kernel of the base, in float64 and by loops over the rank."""
    flat = {path: np.asarray(leaf[k], np.float64) for path, leaf in named(params.params).items()}
    total = {}
    for path in {path.rpartition("/")[0] for path in flat}:
        down, up = flat[f"{path}/down"], flat[f"{path}/up"]
        total[path] = params.model.alpha / params.model.rank * sum(
            down[..., r, None] * up[r] for r in range(params.model.rank)
        )  # fmt: skip
    return total


def same(one, two):
    assert (one.model, one.code.matrix().tolist()) == (two.model, two.code.matrix().tolist())
    assert (one.fingerprint, one.base_digest) == (two.fingerprint, two.base_digest)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [2.0, 0.5])
def test_members_come_back_bit_for_bit(tmp_path, base, layout, alpha):
    params = adapted_ensemble(base, alpha=alpha)
    written = lora.save(params, tmp_path / "a", format=layout)
    assert (len(written.files), written.relative_error) == (4, 0.0)
    back = lora.load(base, tmp_path / "a")
    same(back, params)
    assert back.data_digest is None
    jax.tree.map(np.testing.assert_array_equal, back.params, params.params)
    jax.tree.map(np.testing.assert_array_equal, back.base, params.base)
    for file, again in zip(written.files, lora.save(back, tmp_path / "b", format=layout).files, strict=True):
        one, two = open_adapters(file), open_adapters(again)
        assert one.facts == two.facts
        jax.tree.map(np.testing.assert_array_equal, one.factors, two.factors)


def test_any_scale_comes_back(tmp_path, base, params):
    """alpha / r = 3 / 2 is no power of two: kohya's layout holds it, and diffusers' has its product."""
    for layout in LAYOUTS:
        lora.save(params, tmp_path / layout, format=layout)
    same(lora.load(base, tmp_path / "kohya"), params)
    back = lora.load(base, tmp_path / "diffusers")
    assert (back.model.alpha, back.model.rank) == (2.0, 2)
    for k in range(4):
        want, got = changes(params, k), changes(back, k)
        for path in want:
            np.testing.assert_allclose(got[path], want[path], rtol=1e-6, atol=1e-7)


def test_only_members_that_saw_nothing_are_written(tmp_path, base, params):
    survivors = np.flatnonzero(CODE.survivors([0])).tolist()
    written = lora.save(params, tmp_path / "a", removed=[0])
    assert [path.parent.name for path in written.files] == [f"member{k}" for k in survivors]
    facts = open_adapters(written.files[1]).facts
    assert (facts["removed"], facts["member"], facts["kind"]) == ([0], survivors[1], "member")
    back = lora.load(base, tmp_path / "a")
    np.testing.assert_array_equal(back.code.matrix(), CODE.matrix()[:, survivors])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[np.array(survivors)]), back.params, lora.load(
        base, [*lora.save(params, tmp_path / "all").files]).params)  # fmt: skip
    one = lora.save(params, tmp_path / "b", members=[survivors[0]], removed=[0])
    assert [path.parent.name for path in one.files] == [f"member{survivors[0]}"]
    saw = np.flatnonzero(~CODE.survivors([0])).tolist()
    with pytest.raises(ValueError, match=f"members {saw[0]} saw units that are removed"):
        lora.save(params, tmp_path / "c", removed=[0], members=saw[:1])
    with pytest.raises(NoSurvivorError):
        lora.save(params, tmp_path / "c", removed=range(6))
    with pytest.raises(ValueError, match="members=\\[7\\]: expected distinct member numbers, 0 .. 3"):
        lora.save(params, tmp_path / "c", members=[7])
    assert not (tmp_path / "c").exists()


def test_groups_are_removed_by_another_code(tmp_path, base):
    code = ensdiff.Code.hierarchical(4, np.array([0, 0, 1, 1]), 2, 1)
    params = adapted_ensemble(base, code=code, targets=ATTENTION)
    written = lora.save(params, tmp_path / "a", removed=[1], code=code.group_code())
    assert [int(path.parent.name[6:]) for path in written.files] == np.flatnonzero(
        code.group_code().survivors([1])
    ).tolist()
    assert {"removed_code", "code"} <= set(open_adapters(written.files[0]).facts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_average_is_the_average_of_the_changes(tmp_path, base, params, layout):
    """(8): one file whose product is the mean of the survivors' products, and its best approximation by a rank."""
    keep = np.flatnonzero(CODE.survivors([0]))
    want = {path: sum(changes(params, k)[path] for k in keep) / len(keep) for path in changes(params, 0)}
    table = lora.modules_of(base.model)
    written = lora.save(params, tmp_path / "a", removed=[0], average=True, format=layout)
    (file,) = written.files
    assert file.name == (DIFFUSERS if layout == "diffusers" else "average.safetensors")
    assert written.relative_error == 0
    found = lora.read(file, list(table.values()))
    assert {one.rank for one in found.values()} == {2 * len(keep)}
    for path, total in want.items():
        got = found[table[path]].delta()
        got = got.T if got.ndim == 2 else got.transpose(2, 3, 1, 0)
        np.testing.assert_allclose(got, total, rtol=1e-5, atol=1e-6)
    small = lora.save(params, tmp_path / "b", removed=[0], average=True, format=layout, rank=2)
    assert 0.05 < small.relative_error < 0.9
    found = lora.read(tmp_path / "b", list(table.values()))
    lost = total = 0.0
    for path, value in want.items():
        got = found[table[path]].delta()
        got = got.T if got.ndim == 2 else got.transpose(2, 3, 1, 0)
        lost, total = lost + np.square(got - value).sum(), total + np.square(value).sum()
    np.testing.assert_allclose(small.relative_error, np.sqrt(lost / total), rtol=1e-4)
    facts = open_adapters(small.files[0]).facts
    assert facts["relative_error"] == small.relative_error
    assert facts["weights"] == {str(k): 1 / len(keep) for k in keep}
    assert lora.save(params, tmp_path / "c", average=True, rank=99, format=layout).relative_error == 0


def test_an_average_with_weights(tmp_path, base, params):
    weights = np.array([0.7, 0.0, -0.1, 0.4])
    (file,) = lora.save(params, tmp_path / "a", average=True, weights=weights).files
    found = lora.read(file)
    want = sum(w * changes(params, k)["middle_block0/conv1/kernel"] for k, w in enumerate(weights))
    got = found["mid_block.resnets.0.conv1"]
    assert got.rank == 6
    np.testing.assert_allclose(got.delta().transpose(2, 3, 1, 0), want, atol=1e-5)
    alone = lora.load(base, [file])  # as one member, of whose data nothing is known
    assert (alone.members, alone.code.units, alone.model.rank) == (1, 1, 6)
    with pytest.raises(ValueError, match="is an average of several members"):
        lora.load(base, [file, file])
    with pytest.raises(ValueError, match="members .* saw units that are removed"):
        lora.save(params, tmp_path / "b", average=True, weights=weights, removed=[0])
    for request, message in (
        ({"weights": weights}, "pass average=True"), ({"rank": 2}, "pass average=True"),
        ({"average": True, "rank": 0}, "rank=0"), ({"average": True, "weights": [weights]}, "expected one row"),
        ({"average": True, "weights": weights, "members": [1]}, "both choose members"),
        ({"format": "lycoris"}, "format="),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            lora.save(params, tmp_path / "b", **request)
    assert not (tmp_path / "b").exists()


def test_members_of_different_shapes_are_one_ensemble(tmp_path, base):
    """Other ranks, alphas and modules in each file: padded, and their scales multiplied into ``up``."""
    table = lora.modules_of(base.model)
    shapes = {path: leaf.shape[1:] for path, leaf in named(base.params).items()}
    rng = np.random.default_rng(0)

    def member(number, rank, alpha, paths):
        out = {}
        for path in paths:
            *kernel, C, D = shapes[path]
            down, up = rng.normal(size=(rank, C, *kernel)), rng.normal(size=(D, rank, *(1,) * len(kernel)))
            out[table[path]] = Factors(down.astype(np.float32), up.astype(np.float32), alpha)
        write(tmp_path / f"{number}.safetensors", out, "kohya", {})
        return out

    everything = sorted(table)
    attention = [path for path in everything if "_attention/" in path]
    given = [member(0, 3, 1.0, attention[:2]), member(1, 5, 2.5, attention), member(2, 1, -4.0, [everything[0]])]
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    code = np.array([[1, 0, 0], [0, 1, 1]])
    params = lora.load(base, files, code, combine="predictions")
    assert (params.model.rank, params.model.alpha, params.combine) == (5, 5.0, "predictions")
    assert params.code.matrix().tolist() == code.tolist()
    for k, own in enumerate(given):
        total = changes(params, k)
        assert set(total) == {*attention, everything[0]}
        for path, got in total.items():
            want = own[table[path]].delta() if table[path] in own else np.zeros(shapes[path][::-1])
            want = want.transpose(2, 3, 1, 0) if len(shapes[path]) == 4 and table[path] in own else want.T
            np.testing.assert_allclose(got, want.reshape(got.shape), rtol=1e-5, atol=1e-6)
    # with one scale for all, nothing is rounded, whatever the ranks
    equal = [member(0, 2, 0.75, attention[:2]), member(1, 4, 1.5, attention)]
    params = lora.load(base, files[:2])
    assert (params.model.rank, params.model.alpha) == (4, 1.5)
    for k, own in enumerate(equal):
        for name, one in own.items():
            path = next(p for p in attention if table[p] == name)
            parts = factors.factors_of(params.params)[path]
            np.testing.assert_array_equal(parts["up"][k, : one.rank], one.up.T)
            np.testing.assert_array_equal(parts["down"][k, :, : one.rank], one.down.T)
            assert not np.any(parts["up"][k, one.rank :])
    ensdiff.predict(params, np.zeros((1, 8, 8, 1), np.float32), 3)


def test_a_dense_layer_takes_a_1x1_convolution(tmp_path, base):
    """kohya's tools write the factors of some dense layers as convolutions of 1x1."""
    name = "mid_block.attentions.0.to_q"
    C, D = base.params["middle_block0_attention"]["query"]["kernel"].shape[1:]
    rng = np.random.default_rng(0)
    down, up = (rng.normal(size=shape).astype(np.float32) for shape in ((2, C), (D, 2)))
    for number, one in enumerate((Factors(down, up, 1.0), Factors(down[..., None, None], up[..., None, None], 1.0))):
        write(tmp_path / f"{number}.safetensors", {name: one}, "kohya", {})
    params = lora.load(base, [tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    jax.tree.map(lambda a: np.testing.assert_array_equal(a[0], a[1]), params.params)


def test_files_of_another_base_are_refused(tmp_path, base, params):
    files = lora.save(params, tmp_path / "a").files
    wide = random_ensemble(ensdiff.Code.undivided(1), dataclasses.replace(DEEP, channels=8))
    with pytest.raises(ValueError, match=r"member0\S+: the adapter of conv_in is for a weight of shape \(4, 1, 3, 3\), "
                       r"and the base's is \(8, 1, 3, 3\)"):  # fmt: skip
        lora.load(wide, files)
    shallow = random_ensemble(ensdiff.Code.undivided(1), dataclasses.replace(DEEP, multipliers=(1,)))
    with pytest.raises(ValueError, match="which the network does not have: the file was made for another base"):
        lora.load(shallow, files)
    other = dataclasses.replace(base, params=jax.tree.map(lambda a: a + 1, base.params))
    with pytest.raises(ValueError, match="was made on another base: the digest"):
        lora.load(other, files)
    with pytest.raises(ValueError, match="expected the ensemble of one member"):
        lora.load(params, files)


def test_codes_and_folders_that_do_not_fit(tmp_path, base, params):
    files = lora.save(params, tmp_path / "a").files
    with pytest.raises(ValueError, match="the code is for 2 members, but 4 files were given"):
        lora.load(base, files, np.eye(2))
    with pytest.raises(ValueError, match="no file given"):
        lora.load(base, [])
    assert lora.load(base, files).code.matrix().tolist() == np.eye(4).tolist()
    with pytest.raises(FileNotFoundError, match="holds no members such as member0"):
        lora.load(base, tmp_path)
    first, second = (path.read_bytes() for path in files[:2])
    files[0].write_bytes(second)
    with pytest.raises(DamagedError, match="member0/pytorch_lora_weights.safetensors differ, or are missing"):
        lora.load(base, tmp_path / "a")
    assert lora.load(base, tmp_path / "a", CODE).code == CODE
    files[0].write_bytes(first)
    description = tmp_path / "a" / "ensdiff.json"
    description.write_text(description.read_text().replace('"members": [', '"members": [7,'))
    with pytest.raises(DamagedError):
        lora.load(base, tmp_path / "a")
    with pytest.raises(FileExistsError, match="already holds files"):
        lora.save(params, tmp_path / "a")


def test_what_has_no_place_in_a_file_of_adapters(tmp_path, base, tiny):
    with pytest.raises(ValueError, match="the members are .*, not adapters"):
        lora.save(tiny, tmp_path / "a")
    with pytest.raises(ValueError, match="head/bias.* are trained as a whole"):
        lora.save(adapted_ensemble(base, train_also="head/bias"), tmp_path / "a")
    model = dataclasses.replace(DEEP, condition_width=3)
    told = random_ensemble(ensdiff.Code.undivided(1), model, condition=model.condition)
    with pytest.raises(ValueError, match="condition/dense/kernel have no counterpart in diffusers"):
        lora.save(adapted_ensemble(told), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_targets_are_exact():
    paths = ["head/kernel", "a/head/kernel", "a.b/q/kernel", "axb/q/kernel", "a/b/bias"]
    for chosen in (["head/kernel"], ["a.b/q/kernel"], paths[:2], paths[:4], ["a.b/q/kernel", "head/kernel"]):
        assert [path for path in paths if re.search(targets_for(chosen, paths), path)] == [
            path for path in paths if path in chosen
        ]
    assert targets_for(paths[:4], paths) == "kernel$"
    assert targets_for(paths[2:4], paths) == "(^|/)(q)/kernel$"


class TestInDiffusers:
    """Adapters that were written here, in a U-Net of diffusers."""

    @pytest.fixture
    def unet(self, base, tmp_path):
        """Return a function that makes the base as diffusers has it."""
        package = pytest.importorskip("diffusers", reason="diffusers is not installed")
        pytest.importorskip("peft", reason="peft is not installed")
        from diffusers.loaders.peft import PeftAdapterMixin

        class Adaptable(package.UNet2DModel, PeftAdapterMixin):
            pass

        diffusers.save(base, tmp_path / "models")
        return lambda: Adaptable.from_pretrained(tmp_path / "models" / "Shard0").eval()

    def predict(self, unet, x_BHWC, t):
        import torch

        with torch.no_grad():
            y = unet(torch.from_numpy(np.moveaxis(x_BHWC, -1, 1).copy()), t).sample
        return np.moveaxis(y.numpy(), 1, -1)

    @pytest.mark.slow
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_predictions_are_equal(self, tmp_path, base, params, unet, layout, record_property):
        from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

        members = lora.save(params, tmp_path / "members", format=layout).files
        average = lora.save(params, tmp_path / "average", format=layout, removed=[0], average=True).files
        x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
        keep = np.flatnonzero(CODE.survivors([0]))
        mean = {path: sum(changes(params, k)[path] for k in keep) / len(keep) for path in changes(params, 0)}
        theta = {path: (leaf + mean.get(path, 0))[None] for path, leaf in named(params.base).items()}
        whole = dataclasses.replace(base, params=nested({p: jax.numpy.asarray(a, "float32") for p, a in theta.items()}))
        wanted = [*ensdiff.predict(params, x, 7), ensdiff.predict(whole, x, 7)[0]]
        before = self.predict(unet(), x, 7)
        for file, want in zip([*members, *average], wanted, strict=True):
            state, alphas = Loader.lora_state_dict(str(file.parent), weight_name=file.name)
            model = unet()
            model.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
            got = self.predict(model, x, 7)
            error = np.abs(got - np.asarray(want)).max() / np.asarray(want).std()
            record_property("largest difference", f"{layout} {file.parent.name} {error:.1e} (allowed 2e-05)")
            assert error < 2e-5
            assert np.abs(before - got).max() > 0.05

    @pytest.mark.slow
    def test_members_that_peft_trained(self, tmp_path, base, unet):
        """A dense layer and convolutions of 1x1, 3x3 and stride 2, with other alphas and ranks in each file."""
        import peft
        import torch

        x = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)
        wanted = []
        for k, (rank, alpha) in enumerate(((2, 3), (4, 1))):
            config = peft.LoraConfig(
                r=rank, lora_alpha=alpha, rank_pattern={"conv1": 3},
                target_modules=["to_q", "to_out.0", "conv1", "conv_shortcut", "downsamplers.0.conv"][: 3 + k * 2],
            )  # fmt: skip
            model = peft.get_peft_model(unet(), config)
            generator = torch.Generator().manual_seed(k)
            with torch.no_grad():
                for name, value in model.named_parameters():
                    if "lora_" in name:
                        value.copy_(0.3 * torch.randn(value.shape, generator=generator))
            model.save_pretrained(tmp_path / str(k))
            wanted.append(self.predict(model, x, 9))
        params = lora.load(base, [tmp_path / "0", tmp_path / "1"], np.eye(2))
        assert params.schedule == SHORT
        for got, want in zip(np.asarray(ensdiff.predict(params, x, 9)), wanted, strict=True):
            assert np.abs(got - want).max() < 2e-5 * want.std()
        config = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
        (tmp_path / "1" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
        with pytest.raises(ValueError, match=r"1/adapter_config.json: use_dora=True is not supported"):
            lora.load(base, [tmp_path / "0", tmp_path / "1"])


class TestInAPipeline:
    """A tiny Stable Diffusion pipeline: adapters of its U-Net with cross-attention."""

    @pytest.fixture
    def folder(self, tmp_path):
        for package in ("diffusers", "transformers", "peft"):
            pytest.importorskip(package, reason=f"{package} is not installed")
        from tests.interop import tiny_pipeline

        tiny_pipeline.make(tmp_path / "pipeline")
        return tmp_path / "pipeline"

    @pytest.mark.slow
    def test_a_pipeline_opens_members_and_averages(self, tmp_path, folder, record_property):
        """Written here, opened by ``load_lora_weights``, and equal in prediction; written there, and read here."""
        import torch
        from diffusers import StableDiffusionPipeline
        from peft.utils import get_peft_model_state_dict

        base = diffusers.load([folder])
        params = adapted_ensemble(base)
        H, W, C = params.image_shape
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, H, W, C)).astype(np.float32)
        tokens = rng.normal(size=(2, *base.condition.leaves[0].shape)).astype(np.float32)
        wanted = np.asarray(ensdiff.predict(params, x, 7, tokens))
        mean = None
        for layout in LAYOUTS:
            lora.save(params, tmp_path / layout, format=layout)
            (average,) = lora.save(params, tmp_path / f"{layout}_average", average=True, format=layout).files
            if mean is None:
                mean = ensdiff.predict(lora.load(base, [average]), x, 7, tokens)
            member = tmp_path / layout / {"diffusers": "member1", "kohya": "member1.safetensors"}[layout]
            place = {"diffusers": average.parent, "kohya": average}[layout]
            for name, path, want in (("average", place, np.asarray(mean[0])), ("member", member, wanted[1])):
                pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
                pipeline.load_lora_weights(path)
                with torch.no_grad():
                    x_BCHW = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
                    got = pipeline.unet(x_BCHW, 7, torch.from_numpy(tokens)).sample.numpy()
                error = np.abs(np.moveaxis(got, 1, -1) - want).max() / want.std()
                record_property("largest difference", f"{layout} {name} in a pipeline {error:.1e} (allowed 2e-05)")
                assert error < 2e-5
                assert np.abs(want - wanted[0]).max() > 0.05
        same(lora.load(base, tmp_path / "kohya"), params)
        # what diffusers writes of member 1 of kohya's files, with alpha in its header
        ((name, config),) = pipeline.unet.peft_config.items()
        StableDiffusionPipeline.save_lora_weights(
            tmp_path / "theirs", unet_lora_layers=get_peft_model_state_dict(pipeline.unet, adapter_name=name),
            unet_lora_adapter_metadata=config.to_dict(),
        )  # fmt: skip
        back = lora.load(base, [tmp_path / "theirs"])
        assert (back.model.alpha, back.model.rank) == (3.0, 2)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[1]), back.params, params.params)
