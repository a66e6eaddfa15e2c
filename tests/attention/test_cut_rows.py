"""Rows over `context` whose query heads cannot be dealt out: keys and values are gathered, queries stay."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.attention import dense
from mlit_jax.attention.choice import BACKENDS, Choice, attend
from mlit_jax.errors import UserError
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from tests.attention import cases
from tests.few import few


def test_heads_that_divide_are_dealt_out_and_others_cut_rows():
  sizes = dict(context=4, tensor=2)
  assert [meshes.row_parts(n, sizes) for n in (8, 16, 12, 6, 3)] == [1, 1, 4, 4, 4]
  assert meshes.row_parts(6, dict(context=1, tensor=4)) == 1


@pytest.mark.parametrize("name", ["xla", "xla_chunked"])
@pytest.mark.parametrize(
  "sizes, heads, kv_heads, window, softcap, slopes",
  few(
    2,
    [
      (dict(fsdp=2, context=4), 6, 2, 7, 2.0, False),  # from one part into the one before
      (dict(data=2, fsdp=1, context=2, tensor=2), 6, 1, 11, None, True),
      (dict(fsdp=2, context=4), 6, 2, 0, None, False),
      (dict(fsdp=2, context=4), 3, 3, 20, None, True),  # over several parts
      (dict(fsdp=1, context=4, tensor=2), 6, 2, 7, None, False),  # heads over tensor alone
      (dict(fsdp=1, context=4, tensor=2), 6, 3, 0, 3.0, False),  # and kv heads over neither
      (dict(context=8), 4, 1, 5, 1.0, False),  # five tokens a part: no multiple of anything
    ],
  ),
)
def test_a_mesh_gives_the_numbers_of_one_device(
  name, sizes, heads, kv_heads, window, softcap, slopes
):
  mesh = meshes.make_mesh(**sizes) if "fsdp" in sizes else meshes.make_mesh(fsdp=1, **sizes)
  assert meshes.row_parts(heads, mesh.shape) == sizes["context"]
  rows, qkv = cases.packed_rows(4, 40, 12), cases.random_qkv(4, 40, heads, kv_heads, 8)
  slopes_N = jnp.asarray(dense.alibi_slopes(heads)) if slopes else None
  needs = cases.needs_of(*qkv[:2], softcap=softcap, slopes_N=slopes_N)
  expected = cases.output_and_gradients(cases.reference(rows, window, needs, slopes_N), qkv, rows)
  run = lambda q, k, v: attend(BACKENDS[name], q, k, v, rows, window, needs, slopes_N)  # noqa: E731
  with jax.set_mesh(mesh):
    found = jax.jit(lambda *qkv: cases.output_and_gradients(run, qkv, rows))(*qkv)
  assert cases.worst_difference(jax.device_get(found), jax.device_get(expected)) < 3e-6


@pytest.mark.parametrize("name", ["xla", "xla_chunked"])
def test_nothing_of_another_segment_gets_in(name):
  rows, qkv = cases.packed_rows(2, 40, 12), cases.random_qkv(2, 40, 6, 2, 8)
  needs = cases.needs_of(*qkv[:2])
  dead = (rows.segments_BT == 0)[:, :, None, None]

  def run(q, k, v):  # what padding gives means nothing
    return jnp.where(dead, 0, attend(BACKENDS[name], q, k, v, rows, 0, needs))

  with jax.set_mesh(meshes.make_mesh(fsdp=2, context=4)):
    cases.assert_no_leak(run, rows, qkv)


@pytest.mark.parametrize("name", ["xla", "xla_chunked"])
def test_keys_and_values_travel_and_nothing_else(name):
  """Read from the compiled module: both are gathered forward, and their gradients scattered; no queries, no logits."""
  B, T, N, K, H, parts = 2, 64, 6, 2, 8, 4
  mesh = meshes.make_mesh(fsdp=2, context=parts)
  rows, qkv = cases.packed_rows(B, T, 12), cases.random_qkv(B, T, N, K, H)
  text = cases.compiled_gradient(name, mesh, rows, qkv)
  kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
  found = re.findall(rf" = \(?(\w+)\[([\d,]*)\][^=]* ({kinds})(?:-start)?\(", text)
  whole = B // 2 * T * K * H  # of a device's rows
  sent = sorted((kind, math.prod(map(int, shape.split(",")))) for dtype, shape, kind in found if dtype == "f32")  # fmt: skip
  assert sent == [("all-gather", whole)] * 2 + [("reduce-scatter", whole // parts)] * 2
  # Of what is no number: segments and positions, one of each for a token.
  others = [math.prod(map(int, shape.split(","))) for dtype, shape, _ in found if dtype != "f32"]
  assert 0 < len(others) <= 2 and set(others) == {B // 2 * T}


def test_kernels_for_whole_rows_are_refused_by_name():
  cfg = DecoderConfig(
    "llama", vocab_size=32, d_model=48, num_layers=1, num_heads=6, num_kv_heads=2, head_dim=64, d_ff=16
  )  # fmt: skip
  sizes = (("context", 4), ("tensor", 1))
  for name, platform in (("cudnn", "gpu"), ("mosaic_gpu", "gpu"), ("splash", "tpu")):
    choice = Choice(name, platform, capability="9.0", sizes=sizes)
    with pytest.raises(UserError, match=rf"'{name}'.*6 query heads.*mesh.context 4.*'xla_chunked'"):
      decoder.attention_backends(cfg, choice, 512, jnp.bfloat16)
  for platform in ("gpu", "tpu", "cpu"):
    found = decoder.attention_backends(cfg, Choice("auto", platform, sizes=sizes), 512, "bfloat16")
    assert [backend.name for _, backend in found.values()] == ["xla_chunked"]


def test_a_mesh_tells_the_choice_its_sizes():
  mesh = meshes.make_mesh(fsdp=2, context=4)
  assert Choice.on(mesh).row_parts(6) == 4 and Choice.on(mesh).row_parts(8) == 1
  assert Choice("xla").row_parts(6) == 1
  assert np.prod([n for _, n in Choice.on(mesh).sizes]) == 8
