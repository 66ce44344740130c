"""FLOPs by abstract evaluation compared with lowered programs, and counts of programs compared with counts by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import ensdiff
from ensdiff.attribution.gradients import features
from ensdiff.ensemble.members import abstract_params, apply_member, over_members
from ensdiff.models import DiTConfig, Latents
from ensdiff.planning import flops
from ensdiff.planning.lowering import read_lowered
from experiments import abstract

pytestmark = pytest.mark.slow

MESH = ensdiff.make_mesh(1, devices=jax.devices()[:1])
SHAPE = (8, 8, 3)
BASE = ensdiff.UNetConfig(image_channels=3, channels=8, norm_groups=4, multipliers=(1, 2))


def ratio(found, expected):
    """Return the larger count over the smaller one."""
    return max(found, expected) / min(found, expected)


def test_each_token_costs_its_key_its_value_and_two_products_of_attention():
    """A transformer of S pixels and C channels: 4 D C for the key and value, 4 S C for logits and the mean."""
    few, more = (
        dataclasses.replace(BASE, context_width=5, context_length=length, transformer_blocks=(1, 3))
        for length in (2, 3)
    )
    found = [flops.network_flops(model, SHAPE, model.condition).forward for model in (few, more)]
    S, C, D = 4 * 4, 16, 5  # the middle, with the 3 blocks of the last level
    assert found[1] - found[0] == 3 * (4 * D * C + 4 * S * C)


models = st.builds(
    lambda multipliers, blocks, attention, remat, dtype, downsample, upsample, middle, dropout, head: (
        dataclasses.replace(
            BASE,
            multipliers=multipliers,
            blocks=blocks,
            attention_levels=attention,
            remat=remat,
            compute_dtype=dtype,
            downsample=downsample,
            upsample=upsample,
            middle_attention=middle,
            dropout=dropout,
            head_channels=head,
        )
    ),
    st.sampled_from([(1,), (1, 2), (2, 1), (1, 2, 1.5)]),
    st.integers(1, 2),
    st.sampled_from([(), (0,)]),
    st.booleans(),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(["conv", "conv_end", "pool"]),
    st.sampled_from(["conv", "nearest"]),
    st.booleans(),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([None, 4]),
)


@settings(max_examples=6)
@given(models, st.sampled_from(["grouped", "loop", "matmul"]), st.integers(1, 3), st.integers(1, 2))
def test_lowered_forward_and_train_step(model, strategy, members, batch):
    """The count is within 5 % of lowered predictions and training steps."""
    model = dataclasses.replace(model, conv=strategy)
    x = jax.ShapeDtypeStruct((members, batch, *SHAPE), jnp.float32)
    t = jax.ShapeDtypeStruct((batch,), jnp.int32)
    params = abstract_params(model, SHAPE, members)

    def predict(params, x, t):
        return over_members(model, lambda params, x: apply_member(model, params, x, t), params, x)

    forward = read_lowered(jax.jit(predict).lower(params, x, t))
    case = abstract.Case(model, SHAPE, members, 6, ensdiff.Schedule(), ensdiff.TrainConfig(batch_size=batch), MESH)
    train = read_lowered(abstract.lower(abstract.train_step(case), "cpu"))
    expected = flops.network_flops(model, SHAPE)
    for program, count in ((forward, expected.forward), (train, expected.train)):
        assert ratio(program.flops, members * batch * count) < 1.05


@pytest.mark.parametrize("changes", [
    {}, {"remat": True, "attention_levels": (0,)}, {"compute_dtype": "bfloat16", "conv": "matmul"},
])  # fmt: skip
def test_lowered_sampling_steps(changes):
    model = dataclasses.replace(BASE, **changes)
    case = abstract.Case(
        model, SHAPE, 4, 6, ensdiff.Schedule(), ensdiff.TrainConfig(batch_size=2), MESH, states=6, samples=2
    )
    for step in (abstract.landscape_step(case), abstract.jacobian_step(case)):
        assert ratio(read_lowered(abstract.lower(step, "cpu")).flops, step.flops) < 1.05, step.name


def test_lowered_programs_of_a_conditional_transformer_on_latents():
    """All programs of a DiT on float16 latents with classes have the counted operations, and no collective."""
    model = DiTConfig(image_channels=4, patch=2, width=16, depth=2, heads=2, classes=3, stack=0)
    space, train = Latents(), ensdiff.TrainConfig(batch_size=2)
    mesh = abstract.abstract_mesh(4, 2, 4)
    case = abstract.Case(
        model, (4, 4, 4), 4, 6, ensdiff.Schedule(kind="flow", prediction="flow"), train, mesh,
        states=6, samples=2, condition=model.condition, space=space,
    )  # fmt: skip
    for name, make in abstract.STEPS.items():
        step = make(case)
        program = read_lowered(abstract.lower(step, "cuda"), step.iterations)
        assert ratio(program.flops, step.flops) < 1.05, name
        assert not program.convolutions, name
        assert name not in ("train", "train_device") or not program.collectives, name


def lowered(conv):
    """Return the lowered programs of a wide model for CPUs, by name, each with its expected FLOPs."""
    model = dataclasses.replace(BASE, channels=48, norm_groups=8, multipliers=(1,), conv=conv)
    shape = 16, 14, 3
    case = abstract.Case(
        model, shape, 4, 6, ensdiff.Schedule(), ensdiff.TrainConfig(batch_size=2), MESH, states=6, samples=2
    )
    steps = [*(make(case) for name, make in abstract.STEPS.items())]
    found = {step.name: (read_lowered(abstract.lower(step, "cpu"), step.iterations), step.flops) for step in steps}
    key = jax.random.key(0)
    projection = features.Projection(parts=2, dimension=8, projection="sketch")
    gradient = features._step(model, ensdiff.Schedule(), shape, "loss", projection, MESH)
    arguments = case.params(), jnp.zeros((2, *shape)), None, np.int32(2), jnp.zeros((4,), jnp.int32), key
    return found | {"gradients": (read_lowered(gradient.lower(*arguments)), None)}


def test_predictions_on_cpus_use_winograd_and_training_does_not():
    """By default, all programs that only predict use Winograd's filters; the count is of plain convolutions."""
    plain, default = lowered("map"), lowered("auto")
    assert set(plain) == {*abstract.STEPS, "gradients"}
    for name, (program, flops_) in default.items():
        expected = plain[name][0]
        if name in ("train", "train_device", "gradients"):
            assert (program.convolutions, program.flops) == (expected.convolutions, expected.flops), name
            continue
        assert ratio(expected.flops, flops_) < 1.05, name
        assert program.convolutions < expected.convolutions / 2, name
        assert 4 / 9 < program.flops / expected.flops < 0.6, name


def test_the_count_notices_a_second_primal():
    """K copies of the primal would cost about twice as much as one, so the comparison above can fail."""
    one = flops.network_flops(BASE, SHAPE)
    right = flops.jacobian_step_flops(BASE, SHAPE, 4, 4, 2)
    assert ratio(right + 4 * 2 * 3 * one.forward, right) > 1.5


def counted(f, *args):
    return read_lowered(jax.jit(f).lower(*args))


@pytest.mark.parametrize(("size", "side", "stride", "pad"), [(6, 3, 1, 1), (6, 3, 2, 1), (7, 3, 2, 0), (5, 5, 1, 2)])
def test_convolution_counts(size, side, stride, pad):
    """Counts equal those of a loop over outputs and taps, and each of the two gradients counts as much."""
    x, kernel = jnp.zeros((2, size, size, 3)), jnp.zeros((side, side, 3, 4))

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    out = (size + 2 * pad - side) // stride + 1
    inside = sum(
        0 <= i * stride + a - pad < size and 0 <= j * stride + b - pad < size
        for i in range(out) for j in range(out) for a in range(side) for b in range(side)
    )  # fmt: skip
    program = counted(conv, x, kernel)
    assert program.flops == 2 * 2 * out * out * side * side * 3 * 4
    assert program.unpadded_flops == 2 * 2 * inside * 3 * 4
    for argument in (0, 1):
        gradient = counted(jax.grad(lambda *a: conv(*a).sum(), argument), x, kernel)
        assert gradient.unpadded_flops == program.unpadded_flops
        compiled = jax.jit(conv).lower(x, kernel).compile()
        assert compiled.cost_analysis()["flops"] == program.unpadded_flops


def test_grouped_convolutions_count_their_groups():
    x, kernel = jnp.zeros((5, 2, 6, 6, 3)), jnp.zeros((5, 3, 3, 3, 4))

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    one = counted(conv, x[0], kernel[0])
    program = counted(jax.vmap(conv), x, kernel)
    assert program.flops == 5 * one.flops
    gradient = counted(jax.grad(lambda x, kernel: jax.vmap(conv)(x, kernel).sum(), (0, 1)), x, kernel)
    assert gradient.unpadded_flops == 2 * program.unpadded_flops


def test_loops_and_calls_count_each_run():
    a = jnp.zeros((3, 5))
    inner = jax.jit(lambda x: x @ a.T @ a)

    def f(x):
        x = jax.lax.scan(lambda c, _: (inner(inner(c)), None), x, length=7)[0]
        return jax.lax.fori_loop(2, 6, lambda _, c: inner(c), x)

    once = 2 * 4 * 5 * 3 * 2
    assert counted(f, jnp.zeros((4, 5))).flops == (7 * 2 + 4) * once
    assert counted(lambda x: jax.lax.cond(x[0, 0] > 0, inner, lambda x: x, x), jnp.zeros((4, 5))).flops == once
    with pytest.raises(ValueError, match="number of iterations"):
        counted(lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 1, inner, x), jnp.zeros((4, 5)))


def test_counts_inside_shard_map_are_per_device():
    mesh = ensdiff.make_mesh(4)
    f = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("member"), P()), out_specs=P("member"))
    assert counted(f, jnp.zeros((8, 3)), jnp.zeros((3, 5))).flops == 2 * 8 * 3 * 5 / 4


def test_images_must_fit():
    with pytest.raises(ValueError, match="multiples of 2"):
        flops.network_flops(BASE, (7, 8, 3))
    assert flops.network_flops(BASE, (16, 16, 3)).forward > 3 * flops.network_flops(BASE, SHAPE).forward
    assert np.isclose(flops.train_step_flops(BASE, SHAPE, 3, 5), 15 * flops.network_flops(BASE, SHAPE).train)
