"""The kernels for TPU, interpreted on CPU, beside the plain reference, forward and backward."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.interpreters import partial_eval
from jax._src.pallas.pallas_call import pallas_call_p

from mlit_jax import mesh as meshes
from mlit_jax.attention.choice import BACKENDS, attend
from mlit_jax.attention.scoring import Rows, Scoring
from mlit_jax.model import decoder
from tests.attention import cases
from tests.few import few

LENGTH = 256


@pytest.fixture(params=["jax_splash", "splash"])
def name(request, monkeypatch):
  if request.param == "splash":
    pytest.importorskip("tokamax")
  adapter = importlib.import_module(f"mlit_jax.attention.{request.param}")
  monkeypatch.setattr(adapter, "INTERPRET", True)
  with jax.numpy_rank_promotion("allow"):  # tokamax 0.0.17 relies on it
    yield request.param


@pytest.fixture
def small_tiles(name, monkeypatch):
  """Several tiles in a short row."""
  adapter = importlib.import_module(f"mlit_jax.attention.{name}")
  monkeypatch.setattr(adapter, "_LONGEST_TILE", 128)
  monkeypatch.setattr(adapter, "_LONGEST_BACKWARD", 128, raising=False)


def run_of(name, rows, window, needs):
  backend = BACKENDS[name]
  assert not backend.refusal(needs)
  prepared = backend.prepare(rows, needs)
  return lambda q, k, v: attend(backend, q, k, v, prepared, window, needs)


def compare(name, qkv, rows, window, needs):
  expected = cases.output_and_gradients(cases.reference(rows, window, needs), qkv, rows)
  run = run_of(name, rows, jnp.int32(window), needs)
  found = jax.jit(lambda *qkv: cases.output_and_gradients(run, qkv, rows))(*qkv)
  return cases.worst_difference(found, expected)


@pytest.mark.parametrize(
  "mean, window, softcap",
  few(
    1,
    [
      (200, 150, 3.0),  # over several tiles
      (40, 0, None),
      (200, 50, None),
      (60, 0, 2.0),
    ],
  ),
)
def test_segments_windows_and_soft_caps(name, small_tiles, mean, window, softcap):
  rows, qkv = cases.packed_rows(2, LENGTH, mean), cases.random_qkv(2, LENGTH, 4, 2, 64)
  windows = (0, 50, 150) if window == 50 else (window,)
  needs = cases.needs_of(*qkv[:2], platform="tpu", softcap=softcap, windows=windows)
  assert compare(name, qkv, rows, window, needs) < 2e-6


@pytest.mark.parametrize(
  "head_dim, groups", few(1, [(80, 4), (64, 1), (96, 2), (128, 4), (256, 1)])
)
def test_head_sizes_and_groups(name, head_dim, groups):
  rows, qkv = (
    cases.packed_rows(1, LENGTH, 90),
    cases.random_qkv(1, LENGTH, 4, 4 // groups, head_dim),
  )
  assert compare(name, qkv, rows, 0, cases.needs_of(*qkv[:2], platform="tpu")) < 2e-6


@pytest.mark.slow
def test_long_rows(name, small_tiles):
  """More tiles than four: gradients of queries are then added up in another way."""
  rows, qkv = cases.packed_rows(1, 640, 300), cases.random_qkv(1, 640, 2, 1, 64)
  assert compare(name, qkv, rows, 0, cases.needs_of(*qkv[:2], platform="tpu")) < 2e-6


def test_nothing_leaks_between_segments_and_padding_takes_no_gradient(name, small_tiles):
  rows, qkv = cases.packed_rows(2, LENGTH, 40), cases.random_qkv(2, LENGTH, 2, 1, 64)
  cases.assert_no_leak(run_of(name, rows, 0, cases.needs_of(*qkv[:2], platform="tpu")), rows, qkv)


def test_a_mesh_gives_the_numbers_of_one_device(name):
  rows, qkv = cases.packed_rows(2, 128, 30), cases.random_qkv(2, 128, 4, 2, 64)
  needs = cases.needs_of(*qkv[:2], platform="tpu")
  expected = cases.output_and_gradients(cases.reference(rows, 0, needs), qkv, rows)
  with jax.set_mesh(meshes.make_mesh(data=2, fsdp=1, tensor=4)):
    run = run_of(name, rows, 0, needs)
    found = jax.jit(lambda *qkv: cases.output_and_gradients(run, qkv, rows))(*qkv)
  assert cases.worst_difference(jax.device_get(found), jax.device_get(expected)) < 2e-6


@pytest.mark.slow
def test_a_layer_that_is_computed_again_keeps_its_results(name, monkeypatch):
  """One forward kernel a layer, not two; also where layers have windows of their own."""
  # JAX 0.10 leaves kernels whose results nobody uses for XLA to drop (tests/planning/test_kernels.py).
  monkeypatch.delitem(partial_eval.dce_rules, pallas_call_p, raising=False)
  for windows, kernels in ((), 1), ((0, 64), 2):
    traced = cases.traced_gradients(
      decoder.Choice(name, "tpu"), length=LENGTH, dtype=jnp.float32, windows=windows
    )
    counts = {k: p.pretty_print().count("name=splash_mha_fwd") for k, p in traced.items()}
    assert counts == {"none": kernels, "attention_saved": kernels, "full": 2 * kernels}


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(has_slopes=True), "ALiBi"),
    (dict(length=200), "256 would do"),
    (dict(platform="gpu"), "for TPU"),
    (dict(scoring=Scoring(1.0, 50.0), head_dim=80), ""),
  ],
)
def test_what_it_cannot_do_is_said(name, change, words):
  q = jnp.zeros((1, LENGTH, 2, 64), jnp.bfloat16)
  reason = BACKENDS[name].refusal(cases.needs_of(q, q, platform="tpu")._replace(**change))
  assert words in reason and bool(reason) == bool(words)


def test_the_default_takes_what_can(name, monkeypatch):
  q = jnp.zeros((1, LENGTH, 2, 64), jnp.bfloat16)
  needs = cases.needs_of(q, q, platform="tpu")
  auto = decoder.Choice("auto", "tpu")
  if name == "jax_splash":
    from mlit_jax.attention import splash

    monkeypatch.setattr(splash, "_missing", lambda: "not installed")
  assert auto.backend(needs).name == name
  assert auto.backend(needs._replace(length=200)).name == "xla_chunked"


def test_an_unknown_version_is_refused_and_what_to_install_named(monkeypatch):
  from mlit_jax.attention import splash

  splash._missing.cache_clear()
  monkeypatch.setattr(splash, "_PLACE", "tokamax_that_is_not_there")
  try:
    assert "mlit_jax[tokamax]" in splash._missing()
  finally:
    splash._missing.cache_clear()


def test_tiles_between_segments_are_not_visited(monkeypatch):
  """Their keys are not numbers, and no result is touched: 0 * nan would be nan. Each row by itself."""
  module = "tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_kernel"
  kernels = pytest.importorskip(module)
  if not hasattr(kernels, "_refine_mask_info_with_segments"):
    pytest.skip("tokamax before 0.0.17 masks segments inside tiles")
  from mlit_jax.attention import splash

  monkeypatch.setattr(splash, "INTERPRET", True)
  monkeypatch.setattr(splash, "_LONGEST_TILE", 128)
  segments_BT = jnp.asarray(np.repeat([[1, 1, 2, 3], [1, 2, 2, 2]], 128, axis=1), jnp.int32)
  positions_BT = jnp.asarray([[*range(256), *range(128), *range(128)], [*range(128), *range(384)]])
  rows, (q, k, v) = Rows(positions_BT, segments_BT), cases.random_qkv(2, 512, 2, 2, 64)
  needs = cases.needs_of(q, k, platform="tpu")
  bad = jnp.asarray([[False] * 256 + [True] * 128 + [False] * 128, [True] * 128 + [False] * 384])
  with jax.numpy_rank_promotion("allow"):
    run = run_of("splash", rows, 0, needs)
    found = run(q, *(jnp.where(bad[:, :, None, None], jnp.nan, x) for x in (k, v)))
    expected = run(q, k, v)
  np.testing.assert_array_equal(found[~bad], expected[~bad])
