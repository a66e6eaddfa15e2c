"""Figures whose examples share prompts, and intervals of few or equal values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlit_jax.evals import statistics
from mlit_jax.evals.statistics import (
  Figure,
  interval_of_draws,
  macro_figure,
  mean_figure,
  proportion_figure,
  ratio_figure,
  square_and_add,
)

EIGHT = [1, 1, 1, 0, 0, 0, 1, 1]
PROMPTS = ["p1", "p1", "p2", "p2", "p3", "p3", "p4", "p4"]


def test_share_of_four_prompts_with_two_answers_each():
  figure = proportion_figure(EIGHT, clusters=PROMPTS)
  # Residuals of the prompts from 2 x 5/8: 0.75, -0.25, -1.25, 0.75; variance 4/3 x 2.75 / 64.
  effective_n = 0.625 * 0.375 / (4 / 3 * 2.75 / 64)
  assert effective_n == pytest.approx(4.0909, abs=1e-4)
  t = 3.182446  # Student, 3 degrees of freedom
  spread = 1 + t**2 / effective_n
  centre = (0.625 + t**2 / (2 * effective_n)) / spread
  half = t / spread * math.sqrt(0.0572917 + t**2 / (4 * effective_n**2))
  assert (figure.value, figure.n) == (0.625, 8)
  assert figure.low == pytest.approx(centre - half, abs=1e-5) == pytest.approx(0.1178, abs=1e-4)
  assert figure.high == pytest.approx(centre + half, abs=1e-5) == pytest.approx(0.9541, abs=1e-4)


def test_answers_of_one_prompt_are_no_more_than_one():
  """Fifty prompts whose ten answers are all alike know what fifty prompts know, not five hundred."""
  hits = np.random.default_rng(0).random(50) < 0.7
  once, ten = (
    proportion_figure(hits),
    proportion_figure(np.repeat(hits, 10), clusters=np.repeat(np.arange(50), 10).tolist()),
  )
  assert once.value == ten.value
  assert ten.high - ten.low == pytest.approx(once.high - once.low, rel=0.05)
  naive = proportion_figure(np.repeat(hits, 10))
  assert naive.high - naive.low < 0.4 * (once.high - once.low)


def test_share_with_several_trials_is_a_ratio_of_sums():
  figure = proportion_figure([1, 0, 2], [2, 1, 2])
  assert figure.value == pytest.approx(3 / 5)
  with pytest.raises(ValueError, match="hits within 0 and the trials"):
    proportion_figure([3], [2])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_or_nothing_in_clusters_counts_prompts(value):
  figure = proportion_figure([value] * 40, clusters=[i // 2 for i in range(40)])
  t = 2.093024  # 19 degrees of freedom
  room = abs(value - (figure.low if value else figure.high))
  assert room == pytest.approx(t**2 / (20 + t**2), abs=1e-5)
  assert value == (figure.high if value else figure.low)


def test_all_ties_leave_what_the_rule_of_three_leaves():
  figure = mean_figure([0.5] * 50, bounds=(0, 1))
  others = 1 - 0.025 ** (1 / 50)  # so many prompts could differ, had 50 of 50 been alike by 2.5 %
  assert others == pytest.approx(0.0711, abs=1e-4)
  assert figure.low == pytest.approx(0.5 - 0.5 * others)
  assert figure.high == pytest.approx(0.5 + 0.5 * others)
  one_win = mean_figure([0.5] * 49 + [1.0], bounds=(0, 1))
  assert one_win.high - one_win.low > 0.9 * (figure.high - figure.low)
  chrf = mean_figure([30.0] * 50, bounds=(0, 100))
  assert (chrf.low, chrf.high) == pytest.approx((30 - 30 * others, 30 + 70 * others))


def test_one_prompt_with_known_ends_says_hardly_anything():
  figure = mean_figure([30.0], bounds=(0, 100))
  assert (figure.low, figure.high) == pytest.approx((30 * 0.025, 30 + 70 * 0.975))
  assert proportion_figure([1, 0, 1], clusters=["p"] * 3).low == pytest.approx(2 / 3 * 0.025)
  assert ratio_figure([3.0, 4.0], [1, 1], clusters=["p", "p"]) == Figure(3.5, 2)


def test_values_beyond_their_ends_are_refused():
  with pytest.raises(ValueError, match="leave their bounds 0 to 1"):
    mean_figure([0.5, 1.5], bounds=(0, 1))


def test_two_values_have_students_interval():
  figure = mean_figure([0.0, 2.0])  # standard error 1, Student with one degree of freedom 12.706
  assert (figure.low, figure.high) == pytest.approx((1 - 12.7062, 1 + 12.7062), abs=1e-3)


def test_few_groups_have_students_interval_too():
  # Two groups, both languages 0 and 2: the mean 1 with the error of one of them.
  figure = macro_figure([[0.0, 0.0], [2.0, 2.0]], np.ones((2, 2)))
  assert (figure.low, figure.high) == pytest.approx((1 - 12.7062, 1 + 12.7062), abs=1e-3)
  # Languages of their own, two prompts each: errors 1 and 1, added as squares, two freedoms.
  apart = macro_figure(
    [[0.0, 0], [2.0, 0], [0, 0.0], [0, 2.0]],
    [[1, np.nan], [1, np.nan], [np.nan, 1], [np.nan, 1]],
  )
  half = 4.302653 * math.sqrt(2) / 2
  assert (apart.low, apart.high) == pytest.approx((1 - half, 1 + half), abs=1e-4)


def test_percentiles_are_expanded():
  # Ten prompts: Phi(-sqrt(10 / 9) x 2.262157) = Phi(-2.38453) = 0.008551.
  draws_S = np.linspace(0, 1, 100_001)
  assert interval_of_draws(draws_S, 0.5, n=10) == pytest.approx((0.008551, 0.991449), abs=2e-6)
  low, _ = interval_of_draws(draws_S, 0.5, n=100_000)
  assert low == pytest.approx(0.025, abs=1e-5)
  # Twenty prompts in two strata of ten: sqrt(20 / 18) x 2.100922 (18 degrees of freedom).
  low, _ = interval_of_draws(draws_S, 0.5, n=20, strata=2)
  assert low == pytest.approx(0.013388, abs=1e-4)
  assert interval_of_draws(draws_S, 0.5, n=3, strata=3) == (None, None)
  assert interval_of_draws(draws_S[:0], 0.5, n=10) == (None, None)


def test_square_and_add():
  low, high = square_and_add(np.array([0.5, 0.7]), np.array([[0.2, 0.6], [0.3, 0.9]]))
  assert low == pytest.approx(0.6 - math.sqrt(0.09 + 0.16) / 2)
  assert high == pytest.approx(0.6 + math.sqrt(0.01 + 0.04) / 2)


def test_macro_of_ties_has_a_width_where_the_ends_are_known():
  figure = macro_figure(np.full((50, 4), 0.5), np.ones((50, 4)), bounds=(0, 1))
  others = 1 - 0.025 ** (1 / 50)
  assert figure.low == pytest.approx(0.5 - 0.5 * others / 2)  # four languages as if independent


def test_macro_counts_the_answers_of_a_prompt_together():
  one = macro_figure([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]] * 5, np.ones((15, 2)), bounds=(0, 1))
  two = macro_figure([[2.0, 0.0], [0.0, 2.0], [2.0, 2.0]] * 5, np.full((15, 2), 2.0), bounds=(0, 1))
  assert two.value == one.value
  assert two.high - two.low == pytest.approx(one.high - one.low, rel=0.1)


def test_kept_counts_cannot_be_changed_from_outside():
  with pytest.raises(ValueError, match="read-only"):
    statistics._kept_counts(5, 10, 0)[0, 0] = 1


def test_cluster_ids_must_be_as_many_as_examples():
  with pytest.raises(ValueError, match="2 cluster ids for 3 examples"):
    mean_figure([1.0, 2.0, 3.0], clusters=["a", "b"])


rows = st.lists(
  st.tuples(st.floats(-9, 9).map(lambda x: round(x, 3)), st.integers(1, 9), st.integers(0, 5)),
  min_size=1,
  max_size=25,
)


def same(x: Figure, y: Figure):
  assert x.n == y.n
  for a, b in ((x.value, y.value), (x.low, y.low), (x.high, y.high)):
    assert (a is None) == (b is None)
    assert a is None or a == pytest.approx(b, rel=1e-6, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_prompts_changes_nothing(rows, random):
  shuffled = random.sample(rows, len(rows))
  figures = []
  for some in (rows, shuffled):
    num, den, ids = (list(column) for column in zip(*some))
    figures.append(
      (
        ratio_figure(num, den, clusters=ids),
        mean_figure(num, clusters=ids, bounds=(-9, 9)),
        macro_figure(np.array([num, den]).T, np.ones((len(num), 2)), bounds=(-9, 9)),
      )
    )
  for x, y in zip(*figures):
    same(x, y)


@settings(max_examples=40, deadline=None)
@given(rows, st.floats(0.5, 3), st.floats(-5, 5))
def test_a_scale_and_a_shift_of_the_values_are_those_of_the_interval(rows, scale, shift):
  num, _, ids = (np.array(column) for column in zip(*rows))
  plain = mean_figure(num, clusters=ids.tolist())
  moved = mean_figure(scale * num + shift, clusters=ids.tolist())
  if plain.low is None:
    return
  same(moved, Figure(*(scale * plain.value + shift, plain.n), *(scale * x + shift for x in (plain.low, plain.high))))  # fmt: skip
  assert plain.low <= plain.value <= plain.high


@settings(max_examples=40, deadline=None)
@given(rows)
def test_a_prompt_told_twice_is_one_prompt(rows):
  num, den, ids = (list(column) for column in zip(*rows))
  once = ratio_figure(num, den, clusters=ids)
  twice = ratio_figure(num * 2, den * 2, clusters=ids * 2)
  same(Figure(once.value, 2 * once.n, once.low, once.high), twice)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40))
def test_losses_and_wins_exchanged_mirror_the_interval(scores):
  plain = mean_figure(scores, bounds=(0, 1))
  mirrored = mean_figure([1 - s for s in scores], bounds=(0, 1))
  same(mirrored, Figure(1 - plain.value, plain.n, 1 - plain.high, 1 - plain.low))
  assert 0 <= plain.low <= plain.value <= plain.high <= 1
  assert plain.low < plain.high
