"""What is told to cuDNN, by a stand-in that does what JAX says its function does; no GPU is needed."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as stablehlo

from mlit_jax.attention import cudnn, dense
from mlit_jax.attention.choice import BACKENDS, attend
from mlit_jax.attention.scoring import Rows, Scoring
from mlit_jax.errors import UserError
from mlit_jax.model import decoder
from tests.attention import cases
from tests.few import few


@pytest.fixture
def calls(monkeypatch):
  """cuDNN replaced; what it was called with."""
  seen = []

  def stand_in(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, **rest):
    seen.append(dict(rest, heads=(q.shape[2], k.shape[2]), segments=q_seqlen.shape[1]))
    assert rest["mask_type"] == stablehlo.MaskType.PADDING_CAUSAL
    assert q_offsets.shape == (len(q), q_seqlen.shape[1] + 1)
    rows = jax.vmap(functools.partial(_rows, length=q.shape[1]))(q_offsets[:, :-1], q_seqlen)
    return _untouched_padding(rest["sliding_window_length"] or 0, rest["scale"], q, k, v, rows)

  monkeypatch.setattr(stablehlo, "dot_product_attention", stand_in)
  return seen


def _rows(starts_M, lengths_M, length):
  at_TM = jnp.arange(length)[:, None] - starts_M[None]
  inside_TM = (at_TM >= 0) & (at_TM < lengths_M[None]) & (starts_M[None] >= 0)
  segments_T = jnp.max(jnp.where(inside_TM, jnp.arange(1, len(starts_M) + 1)[None], 0), axis=1)
  return Rows(jnp.max(jnp.where(inside_TM, at_TM, 0), axis=1), segments_T)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _untouched_padding(window, scale, q, k, v, rows):
  """Where no segment is, neither the output nor gradients are numbers."""
  o = dense.attend_rows(q, k, v, rows, window, Scoring(scale))
  return _poison(o, rows)


def _poison(x, rows):
  return jnp.where((rows.segments_BT > 0)[:, :, None, None], x, jnp.nan)


def _forward(window, scale, q, k, v, rows):
  return _untouched_padding(window, scale, q, k, v, rows), (q, k, v, rows)


def _backward(window, scale, kept, g):
  q, k, v, rows = kept
  run = lambda q, k, v: dense.attend_rows(q, k, v, rows, window, Scoring(scale))  # noqa: E731
  g = jnp.where((rows.segments_BT > 0)[:, :, None, None], g, 0)
  return *(_poison(x, rows) for x in jax.vjp(run, q, k, v)[1](g)), None


_untouched_padding.defvjp(_forward, _backward)


def run_of(rows, window, needs):
  return lambda q, k, v: attend(
    BACKENDS["cudnn"],
    q,
    k,
    v,
    cudnn.prepare(rows, needs),
    window,
    needs,
  )


@pytest.mark.parametrize("window", few(1, [4, 0, 11]))
def test_segments_windows_and_padding(calls, window):
  rows, qkv = cases.packed_rows(3, 40, 8), cases.random_qkv(3, 40, 4, 2, 8)
  needs = cases.needs_of(*qkv[:2], windows=(0, 4, 11), max_segments=20)
  expected = cases.output_and_gradients(cases.reference(rows, window, needs), qkv, rows)
  found = cases.output_and_gradients(run_of(rows, jnp.int32(window), needs), qkv, rows)
  assert cases.worst_difference(found, expected) < 2e-6
  assert sorted({c["sliding_window_length"] or 0 for c in calls}) == [0, 4, 11]
  assert all(jnp.isfinite(x).all() for x in found)


def test_a_row_of_more_segments_than_reckoned_with_gives_no_numbers(calls):
  rows, qkv = cases.packed_rows(2, 40, 5), cases.random_qkv(2, 40, 2, 2, 8)
  most = int(rows.segments_BT.max())
  for number, is_finite in ((most, True), (most - 1, False)):
    needs = cases.needs_of(*qkv[:2], max_segments=number)
    assert bool(jnp.isfinite(run_of(rows, 0, needs)(*qkv)).all()) == is_finite


def test_the_backward_pass_keeps_no_mask_of_every_head(calls):
  """A loop over layers would make it, as large as the queries, before it begins and read it in each."""
  rows, qkv = cases.packed_rows(2, 40, 8), cases.random_qkv(2, 40, 4, 2, 8)
  needs = cases.needs_of(*qkv[:2], max_segments=20)
  _, pull = jax.vjp(run_of(rows, 0, needs), *qkv)
  kept = [x for x in jax.tree.leaves(pull) if x.dtype == bool]
  assert {x.shape for x in kept} == {(2, 40)}


def test_offsets_of_keys_are_counted_in_their_own_heads(calls):
  """JAX before 0.11.1 counts them in query heads, which points elsewhere; equal heads are safe."""
  rows, qkv = cases.packed_rows(1, 16, 5), cases.random_qkv(1, 16, 4, 2, 8)
  run_of(rows, 0, cases.needs_of(*qkv[:2]))(*qkv)
  is_mended = "N_kv * H" in Path(stablehlo.__file__).read_text(encoding="utf-8")
  assert calls[0]["heads"] == ((4, 2) if is_mended else (4, 4))
  assert is_mended == (jax.__version_info__ >= (0, 11, 1))


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(dtype=jnp.dtype("float32")), "model.dtype is float32"),
    (dict(scoring=Scoring(1.0, 50.0)), "soft cap"),
    (dict(has_slopes=True), "ALiBi"),
    (dict(head_dim=512), "512"),
    (dict(head_dim=12), "12"),
    (dict(capability="8.0"), "8.0"),
    (dict(), ""),
  ],
)
def test_what_it_cannot_do_is_said(change, words):
  q = jnp.zeros((1, 64, 2, 64), jnp.bfloat16)
  needs = cases.needs_of(q, q, platform="gpu", capability="9.0")._replace(**change)
  reason = BACKENDS["cudnn"].refusal(needs)
  assert words in reason and bool(reason) == bool(words)


def test_a_layer_that_is_computed_again_keeps_its_results():
  """One forward kernel a layer, not two: its primitive is known to the policy."""
  with cudnn.ahead_of_time():
    traced = cases.traced_gradients(decoder.Choice("cudnn", "gpu", 4, "9.0"))
  counts = {
    k: str(program).count("dot_product_attention_fwd_wrapper[") for k, program in traced.items()
  }
  assert counts == {"none": 1, "attention_saved": 1, "full": 2}


def test_the_default_takes_what_can():
  q = jnp.zeros((1, 256, 2, 64), jnp.bfloat16)
  needs = cases.needs_of(q, q, platform="gpu", capability="9.0")
  auto = decoder.Choice("auto", "gpu")
  assert auto.backend(needs).name == "cudnn"
  assert auto.backend(needs._replace(length=64)).name == "xla"
  capped = needs._replace(scoring=Scoring(1.0, 30.0))
  assert auto.backend(capped).name in ("mosaic_gpu", "xla_chunked")
  with pytest.raises(UserError, match=r"cudnn.*soft cap.*can, and is what 'auto' takes"):
    decoder.Choice("cudnn", "gpu").backend(capped)
  with pytest.raises(UserError, match="it is for GPU, not for CPU"):
    decoder.Choice("cudnn", "cpu").backend(needs._replace(platform="cpu"))
  on_cpu = needs._replace(platform="cpu")
  assert auto.backend(on_cpu).name == "xla_causal"
  for other in (on_cpu._replace(length=4096), on_cpu._replace(parts=2)):
    assert auto.backend(other).name == "xla_chunked"
