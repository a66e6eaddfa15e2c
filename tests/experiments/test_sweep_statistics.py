"""Replicates, the test whether a curve moves, and the smallest point not below the best: by hand, and by simulation."""

import numpy as np
import pytest
from scipy import stats

from mlit_jax.experiments.replicates import (
  DRAWS,
  OTHERS,
  SEEDS,
  Replicate,
  contrast,
  point_figure,
  variance_parts,
)
from mlit_jax.experiments.smallest import FALLS, NONE, PROMPTS, RISES, UNTESTED, verdict
from tests.few import few

XS = (0, 1, 10, 50, 100)


def replicates(x, values, *, others=(), draw=lambda k: k, seed=lambda k: k, run=None):
  return [
    Replicate(others, draw(k), seed(k), run or f"{x}-{k}-{others}", float(v))
    for k, v in enumerate(values)
  ]


def test_a_point_by_hand():
  figure, over = point_figure(replicates(1, [1.0, 2.0, 6.0]))
  # mean 3, deviation sqrt(7), t(0.975, 2) = 4.302653, half = 4.302653 * sqrt(7 / 3) = 6.572411
  assert (figure.value, figure.n, over) == (3.0, 3, DRAWS)
  assert figure.low == pytest.approx(3 - 6.572411, abs=1e-5)
  assert figure.high == pytest.approx(3 + 6.572411, abs=1e-5)


def test_replicates_that_share_a_run_count_once():
  figure, _ = point_figure(replicates(0, [4.0] * 5, run="one"))
  assert (figure.value, figure.n, figure.low) == (4.0, 1, None)
  shared = {0: replicates(0, [4.0] * 5, run="one"), 1: replicates(1, [5, 5.1, 5.2, 4.9, 5.0])}
  assert contrast(shared, {0: -1, 1: 1}) is None  # one run at 0: five differences are not five
  own = {0: replicates(0, [4.0] * 5), 1: replicates(1, [5, 5.1, 5.2, 4.9, 5.0])}
  assert contrast(own, {0: -1, 1: 1}).units == 5


def test_seeds_of_one_draw_count_once_where_draws_can_be_counted():
  found = [Replicate((), d, s, f"{d}{s}", d + s / 10) for d in range(3) for s in range(4)]
  figure, over = point_figure(found)
  assert (over, figure.n) == (DRAWS, 3)
  assert figure.value == pytest.approx(1.15)
  alone = [r for r in found if r.draw == 0]
  assert point_figure(alone)[1] == SEEDS
  orders = [Replicate((("order", k),), 0, 0, f"o{k}", float(k)) for k in range(3)]
  assert point_figure(orders)[1] == OTHERS


def test_a_contrast_is_the_paired_t_test_of_scipy():
  a, b = [1.0, 2.5, 3.0, 4.0], [2.0, 3.0, 4.5, 4.2]
  found = contrast({0: replicates(0, a), 1: replicates(1, b)}, {0: -1, 1: 1})
  assert found.p_two_sided == pytest.approx(stats.ttest_rel(b, a).pvalue)
  assert found.p_above == pytest.approx(stats.ttest_rel(b, a, alternative="greater").pvalue)
  ends = stats.ttest_rel(b, a).confidence_interval()
  assert (found.low, found.high) == pytest.approx((ends.low, ends.high))


def test_a_contrast_takes_the_replicates_that_pair_up():
  points = {0: replicates(0, [1.0, 2.5, 3.0, 4.0]), 1: replicates(1, [2.0, 3.0, 4.5, 4.2, 99.0])}
  assert contrast(points, {0: -1, 1: 1}).units == 4
  points[0] = points[0][:2]
  assert contrast(points, {0: -1, 1: 1}) is None


def test_the_larger_p_counts_where_orders_and_draws_are_both_shared():
  rng = np.random.default_rng(0)
  of_order = rng.normal(0, 1, 3)
  points = {
    x: [
      Replicate(o, d, 0, f"{x}{o}{d}", x * (1 + of_order[o]) + rng.normal(0, 0.01))
      for o in range(3)
      for d in range(5)
    ]
    for x in (0, 1)
  }
  found = contrast(points, {0: -1, 1: 1})
  assert (found.over, found.units) == (
    OTHERS,
    3,
  )  # the draws differ by 0.01, and would claim anything


def simulate(mean_of, sweeps, *, replicates_each=5, of_draw=0.0, seed=0, metric="chrf"):
  """Verdicts of sweeps with replicates of deviation 1; of_draw is shared by a draw at all x."""
  rng = np.random.default_rng(seed)
  out = []
  for _ in range(sweeps):
    common = rng.normal(0, of_draw, replicates_each)
    points = {x: replicates(x, mean_of(x) + common + rng.normal(0, 1, replicates_each)) for x in XS}
    out.append(verdict(points, metric))
  return out


@pytest.mark.slow
def test_noise_is_called_an_effect_in_five_percent_of_sweeps():
  found = simulate(lambda x: 0.0, 2000)
  claimed = np.mean([v.says != NONE for v in found])
  assert 0.035 < claimed < 0.065  # the test is exact: 5 %, and 3 deviations of 2,000 sweeps
  assert np.mean([v.smallest is not None for v in found]) < 0.03
  assert all(v.smallest is None for v in found if v.says == NONE)


@pytest.mark.slow
def test_the_first_point_of_noise_is_in_the_set_of_the_best():
  """Testing each point against the best one as if it had been named in advance fails here."""
  found = simulate(lambda x: 0.0, 2000, seed=1)
  rejected = [next(b for b in v.beside if b.x == 0).is_below for v in found]
  assert np.mean(rejected) < 0.055
  naive = []
  for v in found:
    first = next(b for b in v.beside if b.x == 0)
    naive.append(first.difference.p_above <= 0.05)
  assert np.mean(naive) > 0.1


@pytest.mark.parametrize("metric, sign", few(1, [("chrf", 1), ("loss", -1)]))
def test_a_jump_at_one_percent_is_found_there(metric, sign):
  found = simulate(lambda x: sign * 8.0 * (x > 0), 400, metric=metric, of_draw=1.0)
  assert np.mean([v.says == RISES and v.smallest == 1 for v in found]) > 0.93
  too_large = [v.smallest is not None and v.smallest > 1 for v in found]
  assert np.mean(too_large) < 0.065  # 5 % and 1.4 deviations: Bonferroni leaves room
  assert not any(v.smallest == 0 for v in found)


@pytest.mark.slow
def test_a_small_jump_is_missed_and_never_put_at_the_first_point():
  found = simulate(lambda x: 0.5 * (x > 0), 300)
  assert 0.02 < np.mean([v.says == RISES for v in found]) < 0.6
  assert all(v.smallest != 0 for v in found)


@pytest.mark.slow
def test_a_rise_over_several_points_names_the_last_of_them():
  found = simulate(lambda x: {0: 0, 1: 10, 10: 20}.get(x, 30), 200)
  assert np.mean([v.smallest == 50 for v in found]) > 0.93


def test_a_fall_is_a_fall():
  found = simulate(lambda x: -8.0 * (x > 0), 50)
  assert {v.says for v in found} == {FALLS} and all(v.smallest is None for v in found)


# --- over prompts


def prompt_tables(shift, seed, groups=40, languages=3):
  """{x: scores}; translations of a prompt are hard together."""
  rng = np.random.default_rng(seed)
  hard = rng.normal(0, 10, (groups, 1))
  return {
    x: np.clip(50 + hard + shift(x) + rng.normal(0, 6, (groups, languages)), 0, 100)
    for x in (0, 1, 10)
  }


def of_one_run(tables):
  return {x: replicates(x, [t.mean()]) for x, t in tables.items()}


def test_single_runs_are_tested_over_prompts():
  tables = prompt_tables(lambda x: 12 * (x > 0), 0)
  found = verdict(of_one_run(tables), "chrf", tables, (0, 100))
  assert (found.says, found.smallest, found.over) == (RISES, 1, PROMPTS)
  assert found.moves.units == 40 and found.moves.low > 5
  none = verdict(of_one_run(tables), "chrf", None)
  assert none.says == UNTESTED and "no scores of the same single prompts" in none.why


@pytest.mark.slow
def test_noise_of_prompts_is_called_a_difference_in_five_percent():
  claimed = []
  for seed in range(300):
    tables = prompt_tables(lambda x: 0, seed)
    claimed.append(verdict(of_one_run(tables), "chrf", tables, (0, 100)).says != NONE)
  assert 0.015 < np.mean(claimed) < 0.09  # 5 %, and 3 deviations of 300 sweeps


def test_a_point_without_replicates_is_left_out_and_said_so():
  points = {x: replicates(x, 8.0 * (x > 0) + np.arange(4) * (1 + x / 100)) for x in XS}
  points[100] = points[100][:2]
  found = verdict(points, "chrf")
  assert found.left_out == (100,) and found.smallest == 1


# --- variance


def test_variance_parts_by_hand():
  # Draws {1, 3} and {5, 9}: means 2 and 7, between 2 * (2.5^2 + 2.5^2) = 25 on 1, within 2 + 8 = 10 on 2
  found = variance_parts({
    1: [Replicate((), d, s, f"{d}{s}", v) for d, s, v in ((0, 0, 1.0), (0, 1, 3.0), (1, 0, 5.0), (1, 1, 9.0))]
  })  # fmt: skip
  assert found.freedom == (1, 2)
  assert (found.seed, found.draw) == (5.0, (25 - 5) / 2)
  assert found.share == pytest.approx(10 / 15)
  assert found.low == 0.0 and found.high > 0.9 and "little to tell" in found.why


def test_variance_parts_find_what_was_planted():
  rng = np.random.default_rng(0)
  shares, covered = [], []
  for _ in range(300):
    points = {}
    for x in range(4):
      of_draw = rng.normal(0, 2, 5)
      points[x] = [
        Replicate((), d, s, f"{d}-{s}", of_draw[d] + rng.normal(0, 1))
        for d in range(5)
        for s in range(3)
      ]
    found = variance_parts(points)
    shares.append(found.share)
    covered.append(found.low <= 0.8 <= found.high)
  assert np.median(shares) == pytest.approx(0.8, abs=0.03)
  assert 0.91 < np.mean(covered) < 0.985


def test_variance_is_not_told_apart_where_draw_and_seed_go_together():
  found = variance_parts({1: replicates(1, [1.0, 2.0, 3.0])})
  assert found.share is None and "several training seeds" in found.why
