"""Files of low-rank adapters: parity with peft and diffusers, and refused files."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.interop.lora_average import compress, weighted_sum
from ensdiff.interop.lora_config import PEFT, alpha_rule
from ensdiff.interop.lora_files import HEADER, Factors, open_adapters, read, write
from ensdiff.interop.lora_keys import split
from tests.helpers import ROOT

torch = pytest.importorskip("torch")
numpy_files = pytest.importorskip("safetensors.numpy")
pytestmark = pytest.mark.torch

MODULE = "mid_block.attentions.0.to_q"
CONV = "up_blocks.1.resnets.0.conv1"


def random_factors(seed=0, rank=2, alpha=2.0, shape=(4, 3), kernel=()):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return Factors(draw(rank, shape[1], *kernel), draw(shape[0], rank, *(1,) * len(kernel)), alpha)


def saved(path, state, **header):
    numpy_files.save_file(state, path, metadata={"format": "pt", **header})
    return path


def pair(module=MODULE, down="lora_A.weight", up="lora_B.weight", prefix="unet.", **more):
    """Return a state dict with the factors of one module."""
    factors = random_factors(**more)
    return {f"{prefix}{module}.{down}": factors.down, f"{prefix}{module}.{up}": factors.up}


class Layers(torch.nn.Module):
    """A dense layer and convolutions of 1x1 and 3x3, under names such as a U-Net has."""

    def __init__(self):
        super().__init__()
        self.to_q = torch.nn.Linear(6, 5)
        self.proj_in = torch.nn.Conv2d(6, 4, 1)
        self.conv1 = torch.nn.Conv2d(6, 7, 3, padding=1, stride=2)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_equal_those_of_peft(tmp_path, rslora, record_property):
    """A dense layer and convolutions, alpha other than the rank, and patterns of both."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    base = Layers()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = peft.LoraConfig(
        r=4, lora_alpha=3, target_modules=["to_q", "proj_in", "conv1"], rank_pattern={"conv1": 2}, use_rslora=rslora,
        alpha_pattern={"^proj_in": 7},
    )  # fmt: skip
    model = randomised(peft.get_peft_model(base, config))
    model.save_pretrained(tmp_path)
    found = read(tmp_path, modules=["to_q", "proj_in", "conv1"])
    assert {name: one.rank for name, one in found.items()} == {"to_q": 4, "proj_in": 4, "conv1": 2}
    if not rslora:
        assert {name: one.alpha for name, one in found.items()} == {"to_q": 3, "proj_in": 7, "conv1": 3}
    merged = model.merge_and_unload().state_dict()
    for name, one in found.items():
        want = merged[f"{name}.weight"].numpy()
        got = before[f"{name}.weight"].numpy() + one.delta()
        error = np.abs(got - want).max() / want.std()
        record_property("largest difference", f"merged {name} {error:.1e} (allowed 1e-06)")
        assert error < 1e-6


def test_every_layout_is_read_alike(tmp_path):
    """The names that diffusers, its older versions, peft and kohya gave to the same two arrays."""
    want = random_factors()
    layouts = [
        pair(), pair(prefix=""), pair(down="lora.down.weight", up="lora.up.weight"),
        pair(down="lora_linear_layer.down.weight", up="lora_linear_layer.up.weight"),
        pair("mid_block.attentions.0.processor.to_q_lora", "down.weight", "up.weight", ""),
        pair("mid_block.attentions.0.processor.to_q_lora", "down.weight", "up.weight"),
        pair(down="lora_A.default.weight", up="lora_B.default.weight", prefix=""),
        pair(MODULE.replace(".", "_"), "lora_down.weight", "lora_up.weight", "lora_unet_"),
    ]  # fmt: skip
    for state in layouts:
        ((name, one),) = read(saved(tmp_path / "a.safetensors", state), [MODULE]).items()
        assert (name, one.alpha) == (MODULE, 2.0)
        np.testing.assert_array_equal(one.down, want.down)
        np.testing.assert_array_equal(one.up, want.up)
    # kohya's names have dots only for those who know the modules
    assert list(read(tmp_path / "a.safetensors")) == ["mid_block_attentions_0_to_q"]
    old = pair("mid_block.attentions.0.processor.to_out_lora", "down.weight", "up.weight")
    assert list(read(saved(tmp_path / "a.safetensors", old))) == ["mid_block.attentions.0.to_out.0"]


def test_where_alpha_is_stated(tmp_path):
    path = tmp_path / "a.safetensors"
    state = pair()
    alpha = lambda: read(path)[MODULE].alpha  # noqa: E731
    for value in (np.array(8.0, np.float32), np.array(8), np.array([8.0], np.float16)):
        saved(path, {**state, f"unet.{MODULE}.alpha": value})
        assert alpha() == 8
    config = {"unet.r": 2, "unet.lora_alpha": 5, "unet.alpha_pattern": {"to_q": 6}}
    saved(path, state, lora_adapter_metadata=json.dumps(config))
    assert alpha() == 6
    saved(path, state, lora_adapter_metadata=json.dumps({**config, "unet.alpha_pattern": {"o_q": 6}}))
    assert alpha() == 5  # a pattern starts at a dot
    peft = saved(tmp_path / "adapter_model.safetensors", pair(prefix="base_model.model."))
    with pytest.raises(ValueError, match=r"adapter_config.json, which is missing"):
        read(peft)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 9}))
    assert read(tmp_path / "adapter_model.safetensors")[MODULE].alpha == 9
    path.unlink()
    assert read(tmp_path)[MODULE].alpha == 9


def test_half_precision_is_widened(tmp_path):
    state = {name: torch.tensor(value).bfloat16() for name, value in pair().items()}
    from safetensors.torch import save_file

    save_file(state, tmp_path / "a.safetensors")
    found = read(tmp_path)[MODULE]
    assert found.down.dtype == found.up.dtype == np.float32
    np.testing.assert_array_equal(found.up, state[f"unet.{MODULE}.lora_B.weight"].float().numpy())


@pytest.mark.parametrize(("change", "message"), [
    ({"text_encoder.q_proj.lora_A.weight": np.ones((2, 3), np.float32)}, r"text_encoder\S* belongs to a text encoder"),
    ({"lora_te_text_model.lora_up.weight": np.ones((2, 3), np.float32)}, r"lora_te_\S+ belongs to a text encoder"),
    ({f"unet.{MODULE}.lora_magnitude_vector": np.ones(4, np.float32)}, "lora_magnitude_vector is DoRA"),
    ({"lora_unet_a.dora_scale": np.ones(4, np.float32)}, "lora_unet_a.dora_scale is DoRA"),
    ({"lora_unet_a.hada_w1_a": np.ones(4, np.float32)}, "hada_w1_a is LoHa"),
    ({"lora_unet_a.lokr_w1": np.ones(4, np.float32)}, "lokr_w1 is LoKr"),
    ({"lora_unet_a.lora_mid.weight": np.ones(4, np.float32)}, "is a convolution in Tucker form"),
    ({"lora_unet_a.diff": np.ones(4, np.float32)}, "is a full difference of weights"),
    ({f"unet.{MODULE}.lora_B.bias": np.ones(4, np.float32)}, "lora_B.bias is a trained bias"),
    ({"unet.conv_in.weight": np.ones(4, np.float32)}, "unet.conv_in.weight is no key of an adapter"),
    ({"unet.\x1b[2Ka": np.ones(4, np.float32)}, r"unet.\\x1b\[2Ka is no key"),
    ({f"unet.{CONV}.lora_A.weight": np.ones((2, 3, 3, 3), np.float32)}, r"has no up factor \(lora_B or lora_up"),
    ({f"unet.{CONV}.lora_B.weight": np.ones((2, 3, 1, 1), np.float32)}, rf"{CONV} has no down factor"),
    ({f"unet.{CONV}.alpha": np.ones((), np.float32)}, rf"{CONV}.alpha is there, but {CONV} has no down factor"),
    ({f"unet.{MODULE}.lora.up.weight": np.ones((4, 2), np.float32)}, "are the same factor twice"),
    ({f"unet.{MODULE}.lora_A.weight": np.ones((3, 3), np.float32)}, r"shapes \(3, 3\) and \(4, 2\): expected \(r, C\)"),
    ({f"unet.{MODULE}.lora_A.weight": np.ones((2, 3, 3, 3), np.float32)}, "have shapes"),
    ({f"unet.{MODULE}.lora_A.weight": np.ones((2, 0), np.float32)}, "have shapes"),
    ({f"unet.{MODULE}.lora_A.weight": np.ones((2, 3), np.int32)}, "dtype int32: expected floating-point"),
    ({f"unet.{MODULE}.lora_A.weight": np.full((2, 3), np.nan, np.float32)}, "lora_A.weight holds NaN or infinity"),
    ({f"unet.{MODULE}.lora_B.weight": np.full((4, 2), np.inf, np.float32)}, "lora_B.weight holds NaN or infinity"),
    ({f"unet.{MODULE}.alpha": np.ones(2, np.float32)}, r"alpha has shape \(2,\)"),
    ({f"unet.{MODULE}.alpha": np.zeros((), np.float32)}, "alpha of .* is 0: expected a finite number"),
    ({f"unet.{MODULE}.alpha": np.array(np.nan, np.float32)}, "alpha of .* is nan"),
])  # fmt: skip
def test_refused_contents(tmp_path, change, message):
    path = saved(tmp_path / "a.safetensors", {**pair(), **change})
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(error.value).startswith(str(path))


def test_refused_files(tmp_path):
    path = saved(tmp_path / "a.safetensors", pair())
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    for damaged, message in (
        (b"", "not a readable safetensors file"),
        (b"PK\x03\x04" + content, "not a readable safetensors file"),
        (content[:-1], "not a readable safetensors file"),
        (content + b"\0", "not a readable safetensors file"),
        (struct.pack("<Q", 2**63) + content[8:], "state a header of 9223372036854775808 bytes"),
        (struct.pack("<Q", HEADER + 1) + bytes(HEADER + 9), f"header of {HEADER + 1} bytes; expected at most {HEADER}"),
        (struct.pack("<Q", 2) + b"[]", "not a readable safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "holds no adapter"),
        (content[:8] + content[8:].replace(b"lora_", b"\xff" * 5, 1), "not a readable safetensors file"),
        (content[:8] + b"[" * length + content[8 + length :], "nested deeper|Expecting"),
        (content[:8] + content[8:].replace(b"F32", b"C64", 1), "not a readable safetensors file"),
    ):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"a .bin file: expected adapters in a .safetensors file"):
        read(tmp_path / "a.bin")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path / "b.safetensors")
    saved(tmp_path / "b.safetensors", pair())
    with pytest.raises(FileNotFoundError, match=r"holds a.safetensors, b.safetensors: expected pytorch_lora_weights"):
        read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no .safetensors file"):
        read(tmp_path / "empty")


def test_modules_of_another_network(tmp_path):
    path = saved(tmp_path / "a.safetensors", pair())
    with pytest.raises(ValueError, match=rf"lora_A.weight belongs to {MODULE}, which the network does not have"):
        read(path, ["mid_block.attentions.0.to_v"])
    with pytest.raises(ValueError, match="a.b_c and a_b.c have the same name in kohya's files"):
        read(path, ["a.b_c", "a_b.c"])


@pytest.mark.parametrize(("config", "message"), [
    ("{", "lora_adapter_metadata is not JSON"),
    ("[]", "lora_adapter_metadata holds a list"),
    ({"r": 2}, "lora_alpha is missing"),
    ({"r": 2, "lora_alpha": True}, "lora_alpha has the value True: expected a number"),
    ({"r": 2, "lora_alpha": "2"}, "lora_alpha has the value '2'"),
    ({"r": 2, "lora_alpha": 10**400}, "lora_alpha has the value 1000"),
    ('{"r": 2, "lora_alpha": NaN}', "NaN is not finite"),
    ({"r": 4, "lora_alpha": 2}, f"{MODULE} has rank 4 there, and 2 in the weights"),
    ({"r": 4, "lora_alpha": 2, "rank_pattern": {"to_q": 3}}, f"{MODULE} has rank 3 there"),
    ({"r": 2, "lora_alpha": 2, "use_dora": True}, "use_dora=True is not supported"),
    ({"r": 2, "lora_alpha": 2, "peft_type": "LOHA"}, "peft_type='LOHA' is not supported"),
    ({"r": 2, "lora_alpha": 2, "init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
    ({"r": 2, "lora_alpha": 2, "modules_to_save": ["a"]}, "modules_to_save=.* is not supported"),
    ({"r": 2, "lora_alpha": 2, "new_in_2030": 1}, "new_in_2030=1 is unknown to ensdiff"),
    ({"r": 2, "lora_alpha": 2, "alpha_pattern": [1]}, "alpha_pattern=.*: expected numbers by module"),
    ({"r": 2, "lora_alpha": 2, "alpha_pattern": {"(a+)+": 1}}, r"the pattern \(a\+\)\+ of alpha_pattern is not"),
    ({"r": 2, "lora_alpha": 2, "alpha_pattern": {"*": 1}}, "the pattern .* is not supported"),
    ({"r": 2, "lora_alpha": 2, "alpha_pattern": {".*.*.*": 1}}, "the pattern .* is not supported"),
    ({"text_encoder.r": 2}, "configures a text encoder"),
])  # fmt: skip
def test_refused_configurations(tmp_path, config, message):
    text = config if isinstance(config, str) else json.dumps(config)
    path = saved(tmp_path / "a.safetensors", pair(), lora_adapter_metadata=text)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_two_values_of_alpha_must_agree(tmp_path):
    state = {**pair(), f"unet.{MODULE}.alpha": np.array(4.0, np.float32)}
    path = tmp_path / "a.safetensors"
    saved(path, state, lora_adapter_metadata=json.dumps({"r": 2, "lora_alpha": 4}))
    assert read(path)[MODULE].alpha == 4
    saved(path, state, lora_adapter_metadata=json.dumps({"r": 2, "lora_alpha": 5}))
    with pytest.raises(ValueError, match="is 4 in its own entry and 5 in the configuration"):
        read(path)


def test_the_page_shows_the_table():
    """The table of docs/interop.md equals that made from the code."""
    rows = ["| Field | | Accepted | Meaning |", "|---|---|---|---|"]
    for name, option in PEFT.items():
        allowed = ", ".join(f"`{json.dumps(value)}`" for value in option.allowed) or "any"
        rows.append(f"| `{name}` | {option.use} | {allowed} | {option.why} |")
    assert "\n".join(rows) in (ROOT / "docs" / "interop.md").read_text()


@pytest.mark.slow
def test_every_field_of_the_installed_peft_is_classified():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = json.loads(json.dumps(peft.LoraConfig().to_dict(), default=str)) | {"peft_type": "LORA"}
    assert not set(config) - set(PEFT), "fields that interop/lora_config.py does not list"
    assert alpha_rule(config, "defaults")("to_q", 8) == 8
    assert alpha_rule({**config, "new_in_2030": None}, "newer")("to_q", 8) == 8


@given(st.text(max_size=40), st.sampled_from(["", "unet.", "lora_unet_", "base_model.model."]))
def test_any_key_is_read_or_refused(text, prefix):
    for ending in (".lora_A.weight", ".alpha", ".lora_up.weight", ""):
        key = prefix + text + ending
        try:
            module, part = split(key)
        except ValueError:
            continue
        assert part in ("down", "up", "alpha")
        assert module in key or "processor" in key or "_lora" in key


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("alpha", [2.0, 0.5, 1.0, 0.1, 3.0])
def test_what_is_written_comes_back(tmp_path, layout, alpha):
    """Bit for bit, except where diffusers' layout has to round a scale that is no power of two."""
    given = {MODULE: random_factors(alpha=alpha, rank=2), CONV: random_factors(1, 2, alpha, kernel=(3, 3))}
    path = tmp_path / "sub" / "a.safetensors"
    write(path, given, layout, {"alpha": alpha, "note": 1})
    file = open_adapters(path, list(given))
    assert file.facts == {"alpha": alpha, "note": 1}
    exact = layout == "kohya" or alpha / 2 in (0.25, 0.5, 1.0)
    for name, one in given.items():
        found = file.factors[name]
        np.testing.assert_array_equal(found.down, one.down)
        if exact:
            assert found.alpha == alpha
            np.testing.assert_array_equal(found.up, one.up)
        np.testing.assert_allclose(found.delta(), one.delta(), rtol=3e-7, atol=1e-7)
    names = set(numpy_files.load_file(path))
    assert names == ({
        *(f"lora_unet_{name.replace('.', '_')}.{part}" for name in given
          for part in ("lora_down.weight", "lora_up.weight", "alpha")),
    } if layout == "kohya" else {f"unet.{name}.lora_{half}.weight" for name in given for half in "AB"})  # fmt: skip


def test_the_header_changes_no_product(tmp_path):
    """Whatever a file claims about its alpha in ensdiff's part of the header, its product is that of its tensors."""
    one = random_factors()
    for layout in ("diffusers", "kohya"):
        write(tmp_path / "a.safetensors", {MODULE: one}, layout, {"alpha": 2})
        for claim in (1, 3.7, -2, True, "x", 2.0**-200):
            state = numpy_files.load_file(tmp_path / "a.safetensors")
            found = read(saved(tmp_path / "b.safetensors", state, ensdiff=json.dumps({"alpha": claim})), [MODULE])[
                MODULE
            ]
            np.testing.assert_array_equal(found.delta(), one.delta())
    for text, message in (("{", "is not JSON"), ("[]", "holds a list")):
        with pytest.raises(ValueError, match=message):
            read(saved(tmp_path / "b.safetensors", pair(), ensdiff=text))


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([(), (3, 3)]), st.booleans(), st.integers(0, 99))
def test_a_sum_is_the_sum_of_the_products(count, rank, kernel, equal, seed):
    members = [random_factors(seed + k, rank, 3.0, (5, 4), kernel) for k in range(count)]
    weights = np.random.default_rng(seed).random(count) + 0.1
    weights = np.full(count, 1 / count) if equal else weights / weights.sum()
    want = sum(weight * one.delta().astype(np.float64) for weight, one in zip(weights, members, strict=True))
    total = weighted_sum(members, weights.tolist())
    assert total.rank == count * rank
    np.testing.assert_allclose(total.delta(), want, atol=1e-5)
    if equal:
        np.testing.assert_array_equal(total.up, np.concatenate([one.up for one in members], axis=1))
    without = weighted_sum([*members, random_factors(rank=rank, shape=(5, 4), kernel=kernel)], [*weights, 0.0])
    np.testing.assert_array_equal(without.down, total.down)


@given(st.integers(1, 6), st.sampled_from([(), (3, 3)]), st.integers(0, 99))
def test_a_smaller_rank_is_the_closest_one(rank, kernel, seed):
    wide = random_factors(seed, 9, 5.0, (6, 4), kernel)
    whole = wide.delta().reshape(6, -1).astype(np.float64)
    values = np.linalg.svd(whole, compute_uv=False)
    found = compress(wide, rank)
    got = found.factors.delta().reshape(6, -1)
    assert found.factors.down.shape == (rank, 4, *kernel)
    assert found.factors.up.shape == (6, rank, *(1,) * len(kernel))
    np.testing.assert_allclose(found.total, np.square(values).sum(), rtol=1e-5)
    np.testing.assert_allclose(found.lost, np.square(values[rank:]).sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.square(got - whole).sum(), found.lost, rtol=1e-3, atol=1e-3)
