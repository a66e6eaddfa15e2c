"""Wrong backends, planted: each is found, and its wrong array is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax.attention.choice import BACKENDS
from mlit_jax.examining import backends


def look():
  return {f.item: f for f in backends.attention()}


def look_at(name):
  """Of one alone: compiling takes seconds."""
  (found,) = backends.one(name, backends.needs_here())
  return found


@pytest.fixture
def replaced(monkeypatch):
  """replaced(name, run): the backend of that name computes so."""

  def replace(name, **fields):
    monkeypatch.setitem(BACKENDS, name, BACKENDS[name]._replace(**fields))

  return replace


def test_those_for_here_are_right_and_the_others_say_why_not():
  found = look()
  assert [found[f"attention {name}"].state for name in BACKENDS] == ["ok"] * 7
  assert "as numpy's to" in found["attention xla"].found
  assert "it is for TPU, not for CPU" in found["attention splash"].found
  assert found["attention auto"].found.startswith("takes xla_causal ")


def test_one_that_sees_the_segments_before_is_found(replaced):
  replaced(
    "xla_causal",
    prepare=lambda rows, needs: rows._replace(segments_BT=jnp.minimum(rows.segments_BT, 1)),
  )
  found = look()
  assert found["attention xla_causal"].state == "wrong"
  assert found["attention xla"].state == "ok"
  auto = found["attention auto"]
  assert auto.state == "wrong" and auto.remedy == "Set model.attention to 'xla'."


@pytest.mark.parametrize(
  "which, array", list(enumerate(["gradient of queries", "gradient of keys", "gradient of values"]))
)
def test_a_wrong_gradient_is_named(replaced, which, array):
  """Output right, one gradient 1 % too small."""
  run = BACKENDS["xla"].run

  def wrong(*args):
    x = args[which]
    off = list(args)
    off[which] = 0.99 * x + 0.01 * jax.lax.stop_gradient(x)
    return run(*off)

  replaced("xla", run=wrong)
  found = look_at("xla")
  assert found.state == "wrong" and found.found.startswith(f"its {array}")


def test_a_window_that_is_not_kept_is_named(replaced):
  run = BACKENDS["xla"].run
  replaced("xla", run=lambda q, k, v, rows, window, *rest: run(q, k, v, rows, 0, *rest))
  assert "window 96" in look_at("xla").found


def test_one_that_crashes_or_gives_no_numbers_is_wrong_and_the_others_go_on(replaced):
  def crash(*args):
    raise RuntimeError("no kernel image is available")

  replaced("xla", run=crash)
  # Plain XLA's blocks take long to compile, and are not what this is about.
  for name in ("xla_causal", "xla_chunked"):
    replaced(name, run=lambda q, *rest: q * jnp.nan)
  found = look()
  assert "no kernel image" in found["attention xla"].found
  assert found["attention xla_chunked"].state == "wrong"
  assert found["attention auto"].remedy == "Do not train here."


def test_one_for_here_that_cannot_is_a_warning_with_its_reason(replaced):
  replaced("xla", refusal=lambda needs: "its package cannot be used")
  found = look_at("xla")
  assert found.state == "warning" and "its package cannot be used" in found.found


def test_the_reference_is_the_formula():
  """Two tokens of one segment, one of another, padding; worked by hand."""
  q = np.zeros((1, 4, 1, 1))
  v = np.array([2.0, 4.0, 8.0, 16.0]).reshape(1, 4, 1, 1)
  do = np.ones((1, 4, 1, 1))
  o, dq, _, dv = backends.reference(q, v, v, do, [[1, 1, 2, 0]], 1.0, 0)
  np.testing.assert_allclose(o.ravel(), [2, 3, 8, 0])
  np.testing.assert_allclose(dv.ravel(), [1.5, 0.5, 1, 0])
  np.testing.assert_allclose(dq.ravel(), [0, 1, 0, 0])  # variance of 2 and 4
