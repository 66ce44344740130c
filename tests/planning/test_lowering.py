"""Collectives and grouped convolutions: a member mesh has none, and programs that have some are detected."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ensdiff
from ensdiff.planning.lowering import Collective, Program, read_compiled, read_lowered
from experiments import abstract
from tests.helpers import DEEP, SHORT

pytestmark = pytest.mark.slow

CONFIG = ensdiff.TrainConfig(batch_size=4)


def train_step(members, mesh, **changes):
    case = abstract.Case(dataclasses.replace(DEEP, **changes), (8, 8, 1), members, 6, SHORT, CONFIG, mesh)
    return abstract.lower(abstract.train_step(case), "cpu")


@pytest.mark.parametrize("strategy", ["loop", "matmul"])
def test_a_member_mesh_needs_no_collective_and_no_grouped_convolution(strategy):
    """Neither the lowered nor the compiled step has any, for eight members on four devices."""
    mesh = ensdiff.make_mesh(8)
    assert dict(mesh.shape) == {"member": 4, "data": 1}
    lowered = train_step(8, mesh, conv=strategy)
    for program in (read_lowered(lowered), read_compiled(lowered.compile().as_text())):
        assert program.collectives == ()
        assert program.grouped(2) == program.grouped(8) == 0
        assert program.convolutions > 0 or strategy == "matmul"


def test_a_plain_vmap_is_detected():
    program = read_lowered(train_step(8, ensdiff.make_mesh(8), conv="grouped"))
    assert program.grouped(2) > 10
    assert program.grouped(3) == 0


def test_a_data_axis_is_detected():
    mesh = ensdiff.make_mesh(2, 4)
    assert dict(mesh.shape) == {"member": 2, "data": 2}
    params = ensdiff.ensemble.members.abstract_params(DEEP, (8, 8, 1), 2)
    size = sum(leaf.size * 4 for leaf in jax.tree.leaves(params)) // 2
    lowered = train_step(2, mesh)
    (reduced,) = read_lowered(lowered).collectives
    assert reduced.kind == "all-reduce"
    rows = -(-size // 512) * 512
    assert reduced.bytes == rows + 4  # the gradients of the device's member in rows of 128 numbers, and its loss
    (reduced,) = read_compiled(lowered.compile().as_text()).collectives
    assert reduced.kind == "all-reduce"
    assert 0.95 * size < reduced.bytes <= rows + 4  # equal gradients (of biases that are added) are sent once


def test_each_kind_of_collective():
    mesh = ensdiff.make_mesh(4)
    x = jax.ShapeDtypeStruct((16, 4), jnp.bfloat16, sharding=NamedSharding(mesh, P("member")))

    def f(x):
        moved = jax.lax.ppermute(x, "member", [(0, 1), (1, 0)])
        split = jax.lax.all_to_all(moved, "member", 0, 0)
        whole = jax.lax.all_gather(split, "member")
        return jax.lax.psum(whole.astype(jnp.float32), "member"), jax.lax.psum_scatter(x, "member", tiled=True)

    mapped = jax.shard_map(f, mesh=mesh, in_specs=P("member"), out_specs=(P(), P("member")), check_vma=False)
    program = read_lowered(jax.jit(mapped).lower(x))
    assert program.collectives == (
        Collective("all-gather", 1, 4 * 16 * 2),
        Collective("all-reduce", 1, 4 * 16 * 4),
        Collective("all-to-all", 1, 16 * 2),
        Collective("collective-permute", 1, 16 * 2),
        Collective("reduce-scatter", 1, 4 * 2),
    )


def test_collectives_in_a_loop_count_each_round():
    mesh = ensdiff.make_mesh(4)

    def f(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(c, "member") / 4, None), x, length=3)[0]

    mapped = jax.shard_map(f, mesh=mesh, in_specs=P("member"), out_specs=P("member"), check_vma=False)
    assert read_lowered(jax.jit(mapped).lower(jnp.zeros((4, 8)))).collectives == (Collective("all-reduce", 3, 96),)


def test_partitioner_inserted_collectives_are_in_the_compiled_text_only():
    mesh = ensdiff.make_mesh(4)
    x = jax.device_put(jnp.zeros((8, 4)), NamedSharding(mesh, P("member")))
    lowered = jax.jit(lambda x: x.sum(0)).lower(x)
    assert read_lowered(lowered).collectives == ()
    (reduced,) = read_compiled(lowered.compile().as_text()).collectives
    assert reduced == Collective("all-reduce", 1, 16)


def test_compiled_text_of_accelerators():
    """In the text of TPU and GPU programs, an asynchronous pair counts once, and uses of a result do not count."""
    text = """
  %ar = (f32[2,3]{1,0:T(8,128)}, /*index=1*/bf16[4]{0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %ag-start = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), dimensions={0}
  %ag-done = f32[8]{0} all-gather-done(%ag-start)
  %fusion.1 = f32[8]{0} fusion(%all-gather.3), kind=kLoop, calls=%all-reduce.comp
  ROOT %cp = pred[5]{0} collective-permute(%p), source_target_pairs={{0,1}}
  %c.1 = bf16[2,8,8,6]{0,3,2,1:T(8,128)(2,1)} convolution(%x, %k), dim_labels=b01f_01io->b01f, feature_group_count=3
  %c.2 = f32[2,8] convolution(%x, %k), dim_labels=bf_io->bf, batch_group_count=2
  %c.3 = f32[2,8]{1,0} convolution(%x, %k), dim_labels=bf_io->bf, metadata={op_name="dot_general"}
"""
    assert read_compiled(text) == Program(
        (3, 2, 1),
        (Collective("all-gather", 1, 32), Collective("all-reduce", 1, 32), Collective("collective-permute", 1, 5)),
    )


def test_loops_of_a_number_that_is_an_argument():
    """They need a number to count, which loops with constant bounds inside of them do not use."""

    def f(x, count):
        def one(_, x):
            return jax.lax.fori_loop(0, 3, lambda _, x: x @ x, x)

        return jax.lax.fori_loop(0, count, one, x)

    lowered = jax.jit(f).lower(jnp.zeros((4, 4)), 5)
    assert read_lowered(lowered, iterations=2).flops == 2 * 3 * 2 * 4**3
    with pytest.raises(ValueError, match="not a constant of the program"):
        read_lowered(lowered)
