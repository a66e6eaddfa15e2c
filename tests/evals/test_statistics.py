import math

import numpy as np
import pytest

from mlit_jax.evals import statistics
from mlit_jax.evals.statistics import (
  Figure,
  macro_figure,
  mean_figure,
  proportion_figure,
  ratio_figure,
)


def test_wilson_interval_against_published_numbers():
  # 81 of 263: Newcombe 1998, table I, method 3; 0 of 20 and 1 of 29 likewise.
  for hits, n, low, high in [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ]:
    figure = proportion_figure([True] * hits + [False] * (n - hits))
    assert figure.value == pytest.approx(hits / n)
    assert figure.n == n
    assert (round(figure.low, 4), round(figure.high, 4)) == (low, high)


def test_no_examples_have_no_value():
  for figure in (
    proportion_figure([]),
    mean_figure([]),
    ratio_figure([], []),
    macro_figure(np.zeros((0, 2)), np.zeros((0, 2))),
  ):
    assert figure == Figure(None, 0, None, None)


def test_one_example_has_a_value_but_no_bootstrap_interval():
  assert mean_figure([0.3]) == Figure(0.3, 1, None, None)
  assert proportion_figure([True]).low < 0.5  # Wilson knows how little one example says


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sum_that_is_not_finite_is_no_value_but_counted(bad):
  assert mean_figure([1.0, bad, 2.0]) == Figure(None, 3, None, None)
  assert ratio_figure([1.0, bad], [1, 1]) == Figure(None, 2, None, None)
  assert macro_figure([[1.0, bad], [1.0, 1.0]], np.ones((2, 2))) == Figure(None, 4, None, None)


def test_examples_without_tokens_have_no_ratio():
  assert ratio_figure([0.0, 0.0], [0.0, 0.0]) == Figure(None, 2, None, None)


def test_ratio_weighs_tokens_not_examples():
  figure = ratio_figure([1.0, 90.0], [1.0, 9.0])
  assert figure.value == pytest.approx(9.1)  # the mean of means is 5.5


def test_draws_without_tokens_do_not_spoil_the_interval():
  figure = ratio_figure([2.0, 0.0, 0.0, 3.0], [1.0, 0.0, 0.0, 1.0])
  assert figure.low < figure.value == 2.5 < figure.high
  assert np.isfinite([figure.low, figure.high]).all()


def test_equal_values_without_known_ends_claim_no_interval():
  assert ratio_figure([2.0, 0.0, 0.0], [1.0, 0.0, 0.0]) == Figure(2.0, 3, None, None)
  assert mean_figure([0.1] * 50) == Figure(pytest.approx(0.1), 50, None, None)
  equal = macro_figure(np.full((9, 3), 0.1), np.ones((9, 3)))
  assert equal == Figure(pytest.approx(0.1), 27, None, None)


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says():
  values = np.random.default_rng(5).normal(3.0, 2.0, 400)
  figure = mean_figure(values)
  half = 1.96 * values.std() / math.sqrt(400)
  assert figure.low == pytest.approx(values.mean() - half, abs=0.05)
  assert figure.high == pytest.approx(values.mean() + half, abs=0.05)


def test_bootstrap_is_a_function_of_its_seed():
  values = np.random.default_rng(1).exponential(size=50)
  assert mean_figure(values, seed=3) == mean_figure(values, seed=3)
  assert mean_figure(values, seed=3) != mean_figure(values, seed=4)


def test_resampling_in_pieces_is_sound(monkeypatch):
  monkeypatch.setattr(statistics, "MAX_COUNTS_AT_ONCE", 70)
  columns_N1 = np.arange(10.0)[:, None]
  sums_S1 = statistics.resample_sums(columns_N1, seed=0)
  assert sums_S1.shape == (2000, 1)
  assert sums_S1.mean() == pytest.approx(45.0, abs=1.5)
  assert sums_S1.std() == pytest.approx(math.sqrt(10 * 8.25), abs=1.0)
  assert len(np.unique(sums_S1[:7])) > 1
  assert not np.array_equal(sums_S1[:7], sums_S1[7:14])  # every piece draws anew


def test_macro_mean_weighs_languages_equally():
  numerators_GL = [[1.0, 10.0], [1.0, np.nan], [1.0, np.nan], [1.0, np.nan]]
  denominators_GL = [[1.0, 2.0], [1.0, np.nan], [1.0, np.nan], [1.0, np.nan]]
  figure = macro_figure(numerators_GL, denominators_GL)
  assert figure.value == pytest.approx(3.0)
  assert figure.n == 5


def test_parallel_examples_are_drawn_together():
  hard_G = np.random.default_rng(2).normal(size=200)
  together = macro_figure(np.stack([hard_G] * 4, 1), np.ones((200, 4)))
  # The same numbers, each language with groups of its own.
  apart_num, apart_den = np.full((800, 4), np.nan), np.full((800, 4), np.nan)
  for lang in range(4):
    apart_num[lang * 200 : lang * 200 + 200, lang] = hard_G
    apart_den[lang * 200 : lang * 200 + 200, lang] = 1.0
  apart = macro_figure(apart_num, apart_den)
  assert together.value == pytest.approx(apart.value)
  ratio = (together.high - together.low) / (apart.high - apart.low)
  assert ratio == pytest.approx(2.0, rel=0.15)  # independent languages average out: sqrt(4)


def test_macro_share_of_all_hits_has_a_width():
  figure = macro_figure(np.ones((10, 3)), np.ones((10, 3)), bounds=(0, 1))
  assert figure.value == figure.high == 1.0
  low, _ = statistics.wilson_interval(10, 10)
  assert figure.low == pytest.approx(1 - (1 - low) / math.sqrt(3))
