import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mlit_jax.errors import UserError
from mlit_jax.evals.judging.bias import VerdictPair, attenuation, length_controlled_score
from mlit_jax.evals.statistics import Figure, proportion_figure


def pairs_of(verdicts, lang="en"):
  return [VerdictPair(f"p{i}", lang, *v) for i, v in enumerate(verdicts)]


@pytest.mark.parametrize(
  "a_first, b_first, score",
  [
    ("a", "a", 1.0),
    ("b", "b", 0.0),
    ("a", "b", 0.5),  # the first slot, twice
    ("b", "a", 0.5),  # the second
    ("tie", "tie", 0.5),
    ("a", "tie", 0.5),
    ("tie", "b", 0.5),
    ("a", None, None),
    (None, None, None),
  ],
)
def test_both_orders_together_make_a_score(a_first, b_first, score):
  assert VerdictPair("p", "en", a_first, b_first).score == score


def test_an_unknown_verdict_is_named():
  with pytest.raises(UserError, match="sw: prompt 'p7' has verdict 'A'; expected one of 'a', 'b'"):
    VerdictPair("p7", "sw", "A", "b")


def mixture(consistent_a, consistent_b, first, second, ties=0):
  return pairs_of(
    [("a", "a")] * consistent_a
    + [("b", "b")] * consistent_b
    + [("a", "b")] * first
    + [("b", "a")] * second
    + [("tie", "tie")] * ties
  )


def test_attenuation_by_hand():
  out = attenuation(mixture(30, 20, 40, 10))
  assert out.score.value == pytest.approx(0.55)
  assert out.follows_position.value == pytest.approx(0.5)
  assert out.without.value == pytest.approx(0.6) == pytest.approx(0.5 + (0.55 - 0.5) / (1 - 0.5))
  assert out.net_position.value == pytest.approx(0.3)
  assert out.without_net.value == pytest.approx(0.5 + 0.05 / 0.7)
  assert out.refused is None
  for figure in (out.score, out.follows_position, out.without, out.net_position, out.without_net):
    assert figure.low < figure.value < figure.high
  assert (out.without.n, out.without_net.n) == (50, 100)


def test_ties_are_looked_at_and_the_second_slot_counts_as_well():
  out = attenuation(mixture(30, 10, 0, 40, ties=20))
  assert out.follows_position.value == pytest.approx(0.4)
  assert out.without.value == pytest.approx((30 + 10) / 60)
  assert out.net_position.value == pytest.approx(0.4)
  assert out.without_net.value == pytest.approx(out.without.value)


def test_a_judge_without_position_leaves_the_score():
  out = attenuation(mixture(60, 40, 0, 0))
  assert out.without == out.score
  assert out.without_net.value == out.score.value
  assert out.follows_position.value == out.net_position.value == 0.0


@pytest.mark.parametrize("pairs", [mixture(5, 4, 91, 0), mixture(0, 0, 50, 50)])
def test_a_judge_that_hardly_looks_is_refused(pairs):
  out = attenuation(pairs)
  assert out.without.value is out.without_net.value is None
  assert f"of {len(pairs)} pairs of verdicts do not follow position; at least 10" in out.refused
  assert out.follows_position.value > 0.9


def test_no_readable_verdicts_are_refused():
  assert attenuation(pairs_of([("a", None)])).refused == "no prompt has two verdicts"


def test_the_two_estimates_enclose_the_truth_when_the_judge_also_wavers():
  """Of 1,000, 400 follow position (360 the first slot); of the others 180 waver, 45 pairs of each kind,
  and 420 are firm, 315 for a. Looked at, s is (315 + 180 / 2) / 600 = 0.675; seen is 0.605."""
  out = attenuation(mixture(315 + 45, 105 + 45, 360 + 45, 40 + 45))
  assert out.score.value == pytest.approx(0.605)
  assert out.net_position.value == pytest.approx(0.32)
  assert out.follows_position.value == pytest.approx(0.49)
  assert out.without_net.value == pytest.approx(0.5 + 0.105 / 0.68)
  assert out.without.value == pytest.approx(360 / 510)
  assert out.net_position.value < 0.4 < out.follows_position.value
  assert out.score.value < out.without_net.value < 0.675 < out.without.value


def test_length_control_against_a_general_optimiser():
  rng = np.random.default_rng(1)
  d = rng.normal(30, 80, 90)
  y = rng.choice([0.0, 0.5, 1.0], 90, p=[0.2, 0.2, 0.6])
  x = np.tanh(d / d.std())

  def loss(c):
    z = c[0] + c[1] * x
    return np.sum(np.logaddexp(0, z) - y * z) + c[1] ** 2 / 18  # prior of standard deviation 3

  fit = minimize(loss, np.zeros(2), tol=1e-12)
  figure = length_controlled_score(y, d)
  assert figure.value == pytest.approx(1 / (1 + math.exp(-fit.x[0])), abs=1e-6)
  assert figure.low < figure.value < figure.high


def test_length_explains_what_length_explains():
  """Longer wins, whoever wrote it, and a is mostly longer: of 63 %, 50 remain."""
  d = np.r_[np.full(60, 100.0), np.full(30, -100.0)]
  y = np.r_[np.ones(54), np.zeros(6), np.ones(3), np.zeros(27)]  # the longer wins nine in ten
  figure = length_controlled_score(y, d)
  assert np.mean(y) == pytest.approx(0.633, abs=1e-3)
  assert figure.value == pytest.approx(0.5, abs=0.02)
  assert figure.low < 0.45 < 0.55 < figure.high


def test_without_a_length_difference_it_is_the_win_score():
  scores = [1, 0.5, 0, 1, 1, 0, 1, 1]
  assert length_controlled_score(scores, [0] * 8) == proportion_figure(scores)
  assert length_controlled_score([1] * 8, range(8)) == proportion_figure([1] * 8)
  assert length_controlled_score(scores, [7] * 8) == Figure(None, 8)  # cannot be told apart
  assert length_controlled_score([], []) == Figure(None, 0)
  # Differences that cancel out change nothing either.
  figure = length_controlled_score(scores * 2, [10] * 8 + [-10] * 8)
  assert figure.value == pytest.approx(np.mean(scores), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(
  st.lists(
    st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(-99, 99), st.integers(0, 9)),
    min_size=4,
    max_size=25,
  ),
  st.randoms(use_true_random=False),
)
def test_length_control_knows_no_order_and_mirrors(rows, random):
  y, d, ids = (list(column) for column in zip(*rows))
  y2, d2, ids2 = (list(column) for column in zip(*random.sample(rows, len(rows))))
  one = length_controlled_score(y, d, clusters=ids, num_draws=200)
  two = length_controlled_score(y2, d2, clusters=ids2, num_draws=200)
  turned = length_controlled_score([1 - s for s in y], [-x for x in d], clusters=ids, num_draws=200)
  assert (one.value is None) == (two.value is None) == (turned.value is None)
  if one.value is not None:
    assert one.value == pytest.approx(two.value, abs=1e-6)
    assert one.value == pytest.approx(1 - turned.value, abs=1e-5)
    assert 0 <= one.low <= one.value <= one.high <= 1
