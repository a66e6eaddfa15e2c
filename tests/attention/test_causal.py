"""Attention in blocks with all keys up to them beside the plain reference, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.attention import causal, dense
from mlit_jax.attention.choice import BACKENDS, Choice, attend
from mlit_jax.attention.scoring import Rows
from mlit_jax.errors import UserError
from mlit_jax.model import decoder
from tests.attention import cases
from tests.few import few


def kept_run(rows, window, needs, slopes_N=None):
  """The way of short rows, which keeps the weights."""
  rest = (rows, window, needs.scoring, slopes_N)
  return lambda q, k, v: dense.attend_rows(q, k, v, *rest, block=16)


def long_run(rows, window, needs, slopes_N=None):
  rest = (rows, window, needs.scoring, slopes_N)
  return lambda q, k, v: causal.attend_long(q, k, v, *rest, block=16)


both_ways = pytest.mark.parametrize("make_run", [kept_run, long_run], ids=["kept", "long"])


@both_ways
@pytest.mark.parametrize("length, mean, window, softcap, slopes", few(4, cases.MASKS))
def test_equals_the_plain_attention(length, mean, window, softcap, slopes, make_run):
  cases.assert_equals_plain(make_run, length, mean, window, softcap, slopes)


@both_ways
@pytest.mark.parametrize(
  "head_dim, groups", few(1, [(80, 4), (256, 1), (64, 1), (96, 4), (128, 4)])
)
def test_head_sizes_and_groups(head_dim, groups, make_run):
  cases.assert_takes_heads(make_run, head_dim, groups)


@both_ways
def test_bfloat16_stays_within_its_rounding(make_run):
  cases.assert_rounds_as_bfloat16(make_run)


@both_ways
def test_nothing_leaks_between_segments(make_run):
  cases.assert_segments_apart(make_run)


def test_padding_of_long_rows_is_zero_and_takes_no_gradient():
  cases.assert_padding_is_zero(long_run)


@pytest.mark.parametrize("window, unread", [(0, 32), (17, 16)])
def test_keys_before_all_that_a_block_sees_are_left_out(window, unread):
  """They are not numbers, and no result is touched: 0 * nan would be nan."""
  segments = jnp.repeat(jnp.asarray([1, 2], jnp.int32), 32)[None]
  rows = Rows(jnp.tile(jnp.arange(32, dtype=jnp.int32), 2)[None], segments)
  q, k, v = cases.random_qkv(1, 64, 2, 2, 8)
  run = long_run(rows, jnp.int32(window), cases.needs_of(q, k))
  at = jnp.arange(64)[None, :, None, None]

  def from_middle(k, v):
    return jax.vjp(lambda q: run(q, k, v), q)

  poisoned = (jnp.where(at < unread, jnp.nan, x) for x in (k, v))
  (found, back), (expected, back_too) = from_middle(*poisoned), from_middle(k, v)
  np.testing.assert_array_equal(found[:, 32:], expected[:, 32:])
  late = jnp.where(at < 32, 0.0, q)
  np.testing.assert_array_equal(back(late)[0][:, 32:], back_too(late)[0][:, 32:])
  assert np.isnan(found[:, :16]).any()


@pytest.mark.parametrize("sizes", few(1, [dict(data=2, fsdp=2, tensor=2), dict(fsdp=8)]))
@pytest.mark.parametrize("length", few(1, [32, causal.KEPT + 32]))
def test_a_mesh_gives_the_numbers_of_one_device(sizes, length):
  rows, qkv = cases.packed_rows(8, length, 12), cases.random_qkv(8, length, 4, 2, 8)
  needs = cases.needs_of(*qkv[:2])
  expected = cases.output_and_gradients(cases.reference(rows, 7, needs), qkv, rows)
  run = lambda q, k, v: attend(BACKENDS["xla_causal"], q, k, v, rows, 7, needs)  # noqa: E731
  with jax.set_mesh(meshes.make_mesh(**sizes)):
    found = jax.jit(lambda *qkv: cases.output_and_gradients(run, qkv, rows))(*qkv)
  assert cases.worst_difference(jax.device_get(found), jax.device_get(expected)) < 2e-6


def test_what_it_is_not_for_is_refused_with_the_one_that_can():
  q = jnp.zeros((1, causal.LONGEST, 4, 8))
  needs, choice = cases.needs_of(q, q), Choice("xla_causal", "cpu")
  assert choice.backend(needs).name == "xla_causal"
  for other, reason in (
    (needs._replace(length=causal.LONGEST + 1), "rows of up to 2048 tokens"),
    (needs._replace(parts=2), "mesh.context cuts them into 2"),
  ):
    with pytest.raises(UserError, match=rf"{reason}.*'xla_chunked' can"):
      choice.backend(other)
  with pytest.raises(UserError, match="it is for CPU, not for TPU"):
    Choice("xla_causal", "tpu").backend(needs._replace(platform="tpu"))


def test_a_long_row_that_is_computed_again_keeps_the_output():
  """Scores are computed again in the backward pass anyway; with what is kept, nothing else is."""
  traced = cases.traced_gradients(decoder.Choice("xla_causal", "cpu"), length=causal.KEPT + 256)
  products = {k: str(program).count("dot_general") for k, program in traced.items()}
  assert products["attention_saved"] < products["full"]
