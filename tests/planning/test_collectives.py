"""The figures on the right are worked out by hand from the shapes of the program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax.planning.collectives import _replica_groups, read_traffic


def compiled(run, *specs_and_shapes, out=None):
  """The text of `run`, which each device runs on its part."""
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  specs = [spec for spec, _ in specs_and_shapes]
  spread = jax.shard_map(
    run, mesh=mesh, in_specs=tuple(specs), out_specs=P() if out is None else out, check_vma=False
  )
  args = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    for spec, shape in specs_and_shapes
  ]
  return jax.jit(spread).lower(*args).compile().as_text()


def one(text, groups=(0,) * 8):
  traffic = read_traffic(text, groups)
  assert traffic.unknown_loops == 0
  (found,) = traffic.collectives
  return found


def test_all_gather():
  text = compiled(lambda x: jax.lax.all_gather(x, "b"), (P("b"), (4, 100)))
  found = one(text)
  assert (found.kind, found.times, found.size, found.in_loop) == ("all-gather", 1, 4, False)
  assert found.payload == 4 * 100 * 4  # four rows of 100 float32
  assert (found.near, found.far) == (3 * 100 * 4, 0)  # three of them come from others


def test_reduce_scatter_and_all_reduce():
  def run(x):
    return jax.lax.psum_scatter(x, "b", scatter_dimension=0, tiled=True)

  found = one(compiled(run, (P(), (8, 50)), out=P("b")))
  assert (found.kind, found.size, found.payload) == ("reduce-scatter", 4, 8 * 50 * 4)
  assert found.near == 8 * 50 * 4 * 3 / 4
  found = one(compiled(lambda x: jax.lax.psum(x, ("a", "b")), (P(), (8, 50))))
  assert (found.kind, found.size, found.payload) == ("all-reduce", 8, 8 * 50 * 4)
  assert found.near == 2 * 8 * 50 * 4 * 7 / 8


def test_all_to_all_and_permute():
  def turn(x):
    return jax.lax.all_to_all(x, "b", 0, 1, tiled=True)

  found = one(compiled(turn, (P(None, "b"), (16, 40)), out=P("b")))
  assert (found.kind, found.size) == ("all-to-all", 4)
  assert found.payload == 16 * 10 * 4 and found.near == 16 * 10 * 4 * 3 / 4
  found = one(
    compiled(
      lambda x: jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]),
      (P("b"), (8, 30)),
      out=P("b"),
    )
  )
  assert (found.kind, found.payload, found.near) == ("collective-permute", 2 * 30 * 4, 2 * 30 * 4)


def test_loops_are_multiplied_out_and_so_are_loops_in_loops():
  def run(x, w):
    def layer(x, w):
      return x @ jax.lax.all_gather(w, "b", tiled=True), None

    def repeat(x, _):
      return jax.lax.scan(layer, x, w)[0], None

    x = jax.lax.scan(repeat, x, None, length=3)[0]
    return x, jax.lax.psum(jnp.sum(x), "a")

  text = compiled(run, (P("a"), (4, 32)), (P(None, "b"), (5, 32, 32)), out=(P("a"), P()))
  gather, reduce = sorted(read_traffic(text, (0,) * 8).collectives, key=lambda c: c.kind)
  assert (gather.kind, gather.times, gather.in_loop) == ("all-gather", 3 * 5, True)
  assert gather.payload == 32 * 32 * 4
  assert (reduce.kind, reduce.times, reduce.in_loop) == ("all-reduce", 1, False)
  assert read_traffic(text, (0,) * 8).near == 15 * 32 * 32 * 4 * 3 / 4 + 2 * 4 * 1 / 2


@pytest.mark.parametrize(
  "axis, groups, near, far",
  [
    # Mesh (2, 4), devices 0-3 and 4-7 in two hosts. Along b all four are in one.
    ("b", (0, 0, 0, 0, 1, 1, 1, 1), 2 * 800 * 3 / 4, 0),
    # Along a the two are in different ones: nothing goes over near links.
    ("a", (0, 0, 0, 0, 1, 1, 1, 1), 0, 2 * 800 * 1 / 2),
    # All eight: half of what is wanted is elsewhere, and comes in four parts.
    (("a", "b"), (0, 0, 0, 0, 1, 1, 1, 1), 2 * 800 * 7 / 8, 2 * 800 * 1 / 2 / 4),
    # Four hosts of two: along b two hosts, two devices in each.
    ("b", (0, 0, 1, 1, 2, 2, 3, 3), 2 * 800 * 3 / 4, 2 * 800 * 1 / 2 / 2),
  ],
)
def test_what_goes_far(axis, groups, near, far):
  found = one(compiled(lambda x: jax.lax.psum(x, axis), (P(), (200,))), groups)
  assert (found.near, found.far) == (near, far)


def test_a_permutation_goes_far_where_one_pair_does():
  text = compiled(
    lambda x: jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]),
    (P("b"), (8, 30)),
    out=P("b"),
  )
  assert one(text, (0, 0, 0, 0, 1, 1, 1, 1)).far == 0
  assert one(text, (0, 0, 1, 1, 2, 2, 3, 3)).far == 240


@pytest.mark.parametrize(
  "text, groups",
  [
    ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
    ("replica_groups={}, x", [[0, 1, 2, 3]]),
    ("x", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", [[0, 2], [1, 3]]),
  ],
)
def test_the_three_ways_to_write_groups(text, groups):
  assert [list(map(int, g)) for g in _replica_groups(text, 4)] == groups


# As a TPU's compiler writes one gather of [64, 128] bfloat16 that is spread over two fusions in a loop of 16.
TPU = """
%start (p0: bf16[8,128]) -> (bf16[8,128], u32[]) {
  %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p0), channel_id=8, replica_groups=mesh['x'=8] {'x'}, dimensions={0}
  ROOT %custom-call.1 = (bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) custom-call(%all-gather.1)
}

%done (p0: bf16[8,128]) -> bf16[64,128] {
  %all-gather.2 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p0), channel_id=8, replica_groups=mesh['x'=8] {'x'}, dimensions={0}
  ROOT %custom-call.2 = bf16[64,128]{1,0:T(8,128)(2,1)} custom-call(%all-gather.2)
}

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %fusion.1 = (bf16[8,128]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start
  %fusion.2 = bf16[64,128]{1,0} fusion(%x), kind=kCustom, calls=%done
}

%cond (p: (s32[], bf16[8,128])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(16)
  ROOT %lt.41 = pred[]{:T(512)} compare(%i, %constant.3), direction=LT
}

ENTRY %main (p0: bf16[8,128]) -> bf16[8,128] {
  %while.1 = (s32[], bf16[8,128]{1,0}) while(%t), condition=%cond, body=%body
}
"""
# As a GPU's does, started and awaited; two gathers combined.
GPU = """
ENTRY %main (p0: bf16[8,128]) -> bf16[8,128] {
  %all-gather-start.3 = ((bf16[8,128]{1,0}, bf16[8]{0}), (bf16[64,128]{1,0}, bf16[64]{0})) all-gather-start(%a, %b), channel_id=2, replica_groups=mesh['x'=8] {'x'}, dimensions={0}
  %all-gather-done.3 = (bf16[64,128]{1,0}, bf16[64]{0}) all-gather-done(%all-gather-start.3)
  %reduce-scatter-start = ((f32[64]{0}), f32[8]{0}) reduce-scatter-start(%c), channel_id=3, replica_groups=mesh['x'=8] {'x'}, dimensions={0}, to_apply=%add
  %reduce-scatter-done = f32[8]{0} reduce-scatter-done(%reduce-scatter-start)
  %collective-permute-start = (f32[10]{0}, f32[10]{0}) collective-permute-start(%d), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done = f32[10]{0} collective-permute-done(%collective-permute-start)
}
"""


def test_a_collective_spread_over_fusions_counts_once():
  found = one(TPU)
  assert (found.kind, found.times, found.payload) == ("all-gather", 16, 64 * 128 * 2)


def test_a_loop_of_unknown_length_is_told():
  text = TPU.replace("direction=LT", "direction=NE")
  traffic = read_traffic(text, (0,) * 8)
  assert traffic.unknown_loops == 1 and traffic.collectives[0].times == 1


def test_the_turns_that_a_compiler_notes_are_believed():
  noted = TPU.replace(
    "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"},"a":1}'
  )
  assert one(noted).times == 7


def test_started_collectives():
  gather, scatter, permute = read_traffic(GPU, (0,) * 8).collectives
  assert gather.payload == pytest.approx((64 * 128 + 64) * 2)
  assert scatter.payload == pytest.approx(64 * 4) and scatter.near == pytest.approx(64 * 4 * 7 / 8)
  assert permute.payload == 40


def test_sums_over_tpu_slices():
  """4 x 32 bfloat16 of each device, summed with its like in the other slice."""
  text = """
ENTRY %main (p0: bf16[4,32]) -> bf16[4,32] {
  %send.2 = (bf16[4,32]{1,0:T(4,128)(2,1)}, u32[], token[]) send(%x, %after-all.2), channel_id=6, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="WAY"}
  %recv.2 = (bf16[4,32]{1,0}, u32[], token[]) recv(%after-all.2), channel_id=7, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="WAY"}
}
"""
  slices = (0, 0, 0, 0, 1, 1, 1, 1)
  for way, kind, far in (
    ("ALL_REDUCE", "all-reduce", 256),  # half of it, twice
    ("ALL_GATHER", "all-gather", 256),  # the other's part
    ("REDUCE_SCATTER", "reduce-scatter", 128),
    ("ONE_TO_ONE", "collective-permute", 256),
  ):
    found = one(text.replace("WAY", way), slices)
    assert (found.kind, found.near, found.far) == (kind, 0, far)


def test_the_fusion_that_a_tpu_scatters_sums_in():
  text = """
%all-reduce-scatter.1 (p0: f32[64]) -> f32[8] {
  %all-reduce.1 = f32[64]{0} all-reduce(%p0), channel_id=8, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %slice.1 = f32[8]{0} dynamic-slice(%all-reduce.1, %i), dynamic_slice_sizes={8}
}

ENTRY %main (p0: f32[64]) -> f32[8] {
  %fusion.1 = f32[8]{0} fusion(%p0), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  found = one(text)
  assert (found.kind, found.payload, found.near) == ("reduce-scatter", 256, 224)
