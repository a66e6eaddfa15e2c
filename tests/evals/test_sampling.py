import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax.errors import UserError
from mlit_jax.evals import sampling
from mlit_jax.evals.sampling import Sampling, keep_min_p, keep_top_k, keep_top_p

# Probabilities of four tokens in two rows; and one with equals.
LOGITS_BV = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.012, 0.008]]))
EQUALS_BV = jnp.log(jnp.array([[0.3, 0.2, 0.3, 0.2]]))


def kept(logits_BV):
  return np.isfinite(logits_BV).astype(int).tolist()


def test_top_p_by_hand():
  by_hand = {
    0.05: [[0, 1, 0, 0], [1, 0, 0, 0]],
    0.6: [[0, 1, 0, 1], [1, 0, 0, 0]],
    0.8: [[0, 1, 1, 1], [1, 0, 0, 0]],
    0.985: [[1, 1, 1, 1], [1, 1, 1, 0]],
  }
  for top_p, wanted in by_hand.items():
    assert kept(keep_top_p(LOGITS_BV, top_p)) == wanted, top_p
  assert kept(keep_top_p(EQUALS_BV, 0.5)) == [[1, 0, 1, 0]]


def test_top_k_by_hand():
  assert kept(keep_top_k(LOGITS_BV, 1)) == [[0, 1, 0, 0], [1, 0, 0, 0]]
  assert kept(keep_top_k(LOGITS_BV, 3)) == [[0, 1, 1, 1], [1, 1, 1, 0]]
  assert kept(keep_top_k(LOGITS_BV, 9)) == [[1] * 4] * 2
  assert kept(keep_top_k(EQUALS_BV, 1)) == [[1, 0, 1, 0]]  # the second equals the first


def test_min_p_by_hand():
  """Of 0.5 and of 0.97: a quarter is 0.125 and 0.2425."""
  assert kept(keep_min_p(LOGITS_BV, 0.25)) == [[0, 1, 1, 1], [1, 0, 0, 0]]
  assert kept(keep_min_p(LOGITS_BV, 0.01)) == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_what_is_kept_is_unchanged():
  out_BV = np.asarray(keep_top_p(LOGITS_BV, 0.8))
  np.testing.assert_array_equal(out_BV[0, 1:], np.asarray(LOGITS_BV)[0, 1:])


def test_the_filters_are_those_of_transformers():
  torch = pytest.importorskip("torch")
  warpers = pytest.importorskip("transformers.generation.logits_process")
  logits_BV = np.random.default_rng(0).normal(0, 3, (6, 200)).astype(np.float32)
  theirs = torch.tensor(logits_BV)
  ours = jnp.asarray(logits_BV)
  for top_k, top_p, min_p in ((17, 0.9, 0.05), (150, 0.3, 0.4), (3, 0.99, 0.01)):
    steps = [
      (warpers.TopKLogitsWarper(top_k), functools.partial(keep_top_k, top_k=top_k)),
      (warpers.TopPLogitsWarper(top_p), functools.partial(keep_top_p, top_p=top_p)),
      (warpers.MinPLogitsWarper(min_p), functools.partial(keep_min_p, min_p=min_p)),
    ]
    a, b = theirs, ours
    for their_step, our_step in steps:
      a, b = their_step(None, a), our_step(b)
      assert kept(b) == np.isfinite(a.numpy()).astype(int).tolist()


def test_likeliest_is_the_first_of_equals():
  assert sampling.likeliest(jnp.array([[2.5, 3, 3, 2], [0, -1, -jnp.inf, 0]])).tolist() == [1, 0]


def draw(number, count, seed=0, rows=1, temperature=1.0, **filters):
  s = Sampling(temperature, seed=seed, **filters)
  logits_BV = jnp.zeros((rows, 50)).at[:, :4].set(3.0)
  numbers_B2 = jnp.array([sampling.words_of(number)] * rows, jnp.uint32)
  return sampling.next_token(
    logits_BV, numbers_B2, jnp.full(rows, count), jax.tree.map(jnp.asarray, s.values), s.kind
  ).tolist()


def test_a_draw_is_a_function_of_number_count_and_seed():
  """Numbers that differ in their upper half alone, too."""
  assert draw(7, 3) == draw(7, 3) and draw(7, 3, rows=3) == draw(7, 3) * 3
  many = {tuple(draw(7 + (i << 32), c, s)[0] for c in range(8)) for i in range(3) for s in range(3)}
  assert len(many) == 9
  assert {draw(i, 0, top_k=4)[0] for i in range(40)} == {0, 1, 2, 3}
  assert {draw(i, 0, min_p=0.5)[0] for i in range(40)} <= {0, 1, 2, 3}


def test_draws_follow_the_probabilities():
  s = Sampling(1.0)
  logits_BV = jnp.tile(LOGITS_BV[:1], (4000, 1))
  numbers_B2 = jnp.stack([jnp.arange(4000), jnp.zeros(4000, int)], axis=1).astype(jnp.uint32)
  values = jax.tree.map(jnp.asarray, s.values)
  out_B = sampling.next_token(logits_BV, numbers_B2, jnp.zeros(4000, int), values, s.kind)
  found_V = np.bincount(out_B, minlength=4) / 4000
  np.testing.assert_allclose(found_V, [0.1, 0.5, 0.15, 0.25], atol=0.03)


@pytest.mark.parametrize(
  "bad",
  [dict(temperature=-1.0), dict(temperature=float("nan")), dict(top_p=0.0), dict(top_p=1.5)]
  + [dict(top_k=-1), dict(min_p=-0.1), dict(min_p=1.1), dict(seed=-1), dict(seed=2**31)],
)
def test_values_out_of_range_are_named(bad):
  with pytest.raises(UserError, match=f"{next(iter(bad))} is"):
    Sampling(**bad)
