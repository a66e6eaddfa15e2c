"""What is told to tokamax's Mosaic GPU kernels, by tokamax's plain op in their place; no GPU is needed."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mlit_jax.attention import mosaic_gpu
from mlit_jax.attention.choice import BACKENDS, attend
from mlit_jax.attention.scoring import Scoring
from mlit_jax.model import decoder
from tests.attention import cases
from tests.few import few

pytest.importorskip("tokamax")


@pytest.fixture
def plain(monkeypatch):
  """The op that all of tokamax's attention derives from, in XLA; its derivative takes the same residuals."""
  from tokamax._src.ops.attention import base, pallas_mosaic_gpu

  op = functools.partial(base.DotProductAttention, vjp=base.DotProductAttentionVjp())
  monkeypatch.setattr(pallas_mosaic_gpu, "PallasMosaicGpuFlashAttention", op)
  with jax.numpy_rank_promotion("allow"):
    yield


def run_of(rows, window, needs):
  prepared = mosaic_gpu.prepare(rows, needs)
  return lambda q, k, v: attend(BACKENDS["mosaic_gpu"], q, k, v, prepared, window, needs)


@pytest.mark.parametrize(
  "window, softcap, head_dim, groups",
  few(
    1, [(40, 2.0, 128, 2), (0, None, 64, 1), (0, 3.0, 80, 4), (5, None, 96, 2), (0, 5.0, 256, 4)]
  ),
)
def test_segments_windows_and_soft_caps(plain, window, softcap, head_dim, groups):
  rows, qkv = cases.packed_rows(2, 128, 30), cases.random_qkv(2, 128, 4, 4 // groups, head_dim)
  needs = cases.needs_of(*qkv[:2], platform="gpu", softcap=softcap, windows=(0, 5, 40))
  expected = cases.output_and_gradients(cases.reference(rows, window, needs), qkv, rows)
  run = run_of(rows, jnp.int32(window), needs)
  found = jax.jit(lambda *qkv: cases.output_and_gradients(run, qkv, rows))(*qkv)
  assert cases.worst_difference(found, expected) < 2e-6


def test_nothing_leaks_between_segments_and_padding_takes_no_gradient(plain):
  rows, qkv = cases.packed_rows(2, 128, 20), cases.random_qkv(2, 128, 2, 1, 64)
  cases.assert_no_leak(run_of(rows, 0, cases.needs_of(*qkv[:2], platform="gpu")), rows, qkv)


def test_a_layer_that_is_computed_again_keeps_its_results():
  """The real kernels: the forward one is there as often as without, not twice as often."""
  with mosaic_gpu.ahead_of_time(), jax.numpy_rank_promotion("allow"):
    traced = cases.traced_gradients(decoder.Choice("mosaic_gpu", "gpu", 4, "9.0"), head_dim=64)
  # Forward kernels alone run their accumulators as state.
  counts = {remat: count(program.jaxpr, "run_state") for remat, program in traced.items()}
  assert counts["none"] > 0
  assert counts["attention_saved"] == counts["none"] and counts["full"] == 2 * counts["none"]


def count(jaxpr, primitive: str) -> int:
  """How often it stands in a program, in all that is called from there."""
  inner = [
    getattr(p, "jaxpr", p)
    for eqn in jaxpr.eqns
    for param in eqn.params.values()
    for p in (param if isinstance(param, (tuple, list)) else [param])
  ]
  here = sum(eqn.primitive.name == primitive for eqn in jaxpr.eqns)
  return here + sum(count(j, primitive) for j in inner if hasattr(j, "eqns"))


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(dtype=jnp.dtype("float32")), "model.dtype is float32"),
    (dict(has_slopes=True), "ALiBi"),
    (dict(head_dim=512), "512"),
    (dict(length=200), "256 would do"),
    (dict(capability="8.0"), "8.0"),
    (dict(capability="10.0"), "10.0"),
    (dict(platform="tpu"), "for GPU"),
    (dict(scoring=Scoring(1.0, 50.0)), ""),
  ],
)
def test_what_it_cannot_do_is_said(change, words):
  q = jnp.zeros((1, 256, 2, 64), jnp.bfloat16)
  needs = cases.needs_of(q, q, platform="gpu", capability="9.0")._replace(**change)
  reason = BACKENDS["mosaic_gpu"].refusal(needs)
  assert words in reason and bool(reason) == bool(words)


def test_the_default_takes_it_for_soft_caps(monkeypatch):
  q = jnp.zeros((1, 256, 2, 64), jnp.bfloat16)
  needs = cases.needs_of(q, q, platform="gpu", softcap=30.0)
  auto = decoder.Choice("auto", "gpu")
  assert auto.backend(needs).name == "mosaic_gpu"
  monkeypatch.setattr(mosaic_gpu, "_missing", lambda: "not installed")
  assert auto.backend(needs).name == "xla_chunked"
