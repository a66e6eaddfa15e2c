"""Attention in blocks beside the plain reference, forward and backward."""

import collections
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.attention import chunked, dense
from mlit_jax.attention.choice import BACKENDS, attend
from mlit_jax.attention.scoring import Rows
from tests.attention import cases
from tests.few import few


def chunked_run(rows, window, needs, slopes_N=None, *, block=16, by_row=True, **rest):
  return lambda q, k, v: chunked.attend(
    q, k, v, rows, window, needs.scoring, slopes_N, block=block, by_row=by_row, **rest
  )


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("length, mean, window, softcap, slopes", few(4, cases.MASKS))
def test_equals_the_plain_attention(length, mean, window, softcap, slopes, by_row):
  run = functools.partial(chunked_run, by_row=by_row)
  cases.assert_equals_plain(run, length, mean, window, softcap, slopes)


@pytest.mark.parametrize(
  "head_dim, groups", few(2, itertools.product((80, 256, 64, 96, 128), (4, 1)))
)
def test_head_sizes_and_groups(head_dim, groups):
  cases.assert_takes_heads(chunked_run, head_dim, groups)


@pytest.mark.parametrize("make_run", [chunked_run, cases.reference], ids=["chunked", "plain"])
def test_bfloat16_stays_within_its_rounding(make_run):
  cases.assert_rounds_as_bfloat16(make_run)


@pytest.mark.parametrize("by_row", [True, False])
def test_nothing_leaks_between_segments(by_row):
  cases.assert_segments_apart(functools.partial(chunked_run, by_row=by_row))


def test_padding_gives_finite_numbers_and_takes_no_gradient():
  cases.assert_padding_is_zero(chunked_run)


@pytest.mark.parametrize("window", [0, 20])
def test_queries_from_the_middle_of_a_row(window):
  """A part of the queries with all keys: what a device has that holds a part of a long row."""
  rows, (q, k, v) = cases.packed_rows(2, 64, 30), cases.random_qkv(2, 64, 4, 2, 8)
  needs = cases.needs_of(q, k)
  whole = cases.reference(rows, window, needs)(q, k, v)
  for start in (0, 24, 40):
    run = chunked_run(rows, window, needs, start=start)
    part = rows.segments_BT[:, start : start + 24, None, None] > 0
    found = run(q[:, start : start + 24], k, v)
    np.testing.assert_allclose(
      jnp.where(part, found, 0), jnp.where(part, whole[:, start : start + 24], 0), atol=2e-6
    )


def test_what_is_no_number_is_not_hidden():
  rows, (q, k, v) = cases.packed_rows(1, 32, 30), cases.random_qkv(1, 32, 2, 2, 8)
  found = chunked_run(rows, 0, cases.needs_of(q, k))(q.at[0, 5].set(jnp.nan), k, v)
  assert jnp.isnan(found[0, 5]).all() and jnp.isfinite(found[0, :5]).all()


def test_blocks_that_nothing_sees_are_not_visited():
  """Their keys are not numbers, and no result is touched: 0 * nan would be nan."""
  segments = jnp.repeat(jnp.arange(1, 5, dtype=jnp.int32), 16)[None]
  rows = Rows(jnp.tile(jnp.arange(16, dtype=jnp.int32), 4)[None], segments)
  q, k, v = cases.random_qkv(1, 64, 2, 2, 8)
  run = chunked_run(rows, 0, cases.needs_of(q, k))
  poisoned = (jnp.where(segments[:, :, None, None] == 2, jnp.nan, x) for x in (k, v))
  found, expected = run(q, *poisoned), run(q, k, v)
  kept = np.asarray(segments[0] != 2)
  np.testing.assert_array_equal(found[:, kept], expected[:, kept])


@pytest.mark.parametrize(
  "sizes, heads, kv_heads",
  few(
    3,
    [
      (dict(tensor=4), 12, 3),  # three query heads a device, of two kv heads
      (dict(data=2, fsdp=1, context=2, tensor=2), 12, 4),
      (dict(fsdp=8), 2, 1),
      (dict(data=2, tensor=2), 4, 2),
      (dict(tensor=4), 8, 2),  # two devices read one kv head
      (dict(tensor=4), 12, 2),  # three query heads a device, of one kv head
      (dict(data=2, fsdp=1, tensor=4), 4, 1),
      (dict(tensor=8), 6, 2),  # heads that the mesh does not divide
      (dict(context=4), 4, 4),
      (dict(context=4), 8, 2),
      (dict(context=4, tensor=2), 8, 2),  # kv heads over tensor alone
      (dict(fsdp=2, context=4), 6, 2),  # whole on each
    ],
  ),
)
def test_a_mesh_gives_the_numbers_of_one_device(sizes, heads, kv_heads):
  mesh = meshes.make_mesh(**sizes)
  rows, qkv = cases.packed_rows(8, 32, 12), cases.random_qkv(8, 32, heads, kv_heads, 8)
  slopes_N = jnp.asarray(dense.alibi_slopes(heads))
  needs = cases.needs_of(*qkv[:2], slopes_N=slopes_N)
  expected = cases.output_and_gradients(cases.reference(rows, 7, needs, slopes_N), qkv, rows)
  run = lambda q, k, v: attend(BACKENDS["xla_chunked"], q, k, v, rows, 7, needs, slopes_N)  # noqa: E731
  with jax.set_mesh(mesh):
    found = jax.jit(lambda *qkv: cases.output_and_gradients(run, qkv, rows))(*qkv)
  assert cases.worst_difference(jax.device_get(found), jax.device_get(expected)) < 2e-6


@pytest.mark.parametrize(
  "kv_heads, expected",
  [
    (8, {"all-to-all": 8}),  # q, k, v and o, and their gradients
    (2, {"all-to-all": 4, "all-gather": 2, "reduce-scatter": 2}),  # two heads for four devices
  ],
)
def test_what_travels_where_rows_are_cut(kv_heads, expected):
  """Read from the compiled module: tokens are exchanged for heads, and nothing is gathered that need not be."""
  mesh = meshes.make_mesh(fsdp=2, context=4)
  rows, qkv = cases.packed_rows(2, 64, 12), cases.random_qkv(2, 64, 8, kv_heads, 8)
  text = cases.compiled_gradient("xla_chunked", mesh, rows, qkv)
  found = re.findall(r" = (\(?\w+)\[.* (all-[a-z-]+|reduce-scatter)\(", text)
  of_numbers = [kind for dtype, kind in found if "f32" in dtype]
  assert dict(collections.Counter(of_numbers)) == expected
