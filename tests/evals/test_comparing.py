import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from mlit_jax.errors import UserError
from mlit_jax.evals import comparing
from mlit_jax.evals.comparing import (
  Adjusted,
  compare,
  holm,
  macro_difference,
  mcnemar_p_value,
  paired_difference,
  sign_flip_p_value,
  swap_p_value,
)
from mlit_jax.evals.statistics import mean_figure


@pytest.mark.parametrize(
  "differences, p_value",
  [
    ([1, 1, 1], 2 / 8),
    ([1, 1, 1, 1, -1], 2 * (5 + 1) / 32),
    ([0.5, 0.5, 1.0], 2 / 8),
    ([0.5, 0.5, -1.0], 1.0),
    ([0.3, 0.21, 0.7], 2 / 8),  # no common unit: enumerated
    ([2, 1, 0, 0, 0], 2 / 4),  # |sum| 3 of 3, 1, 1, 3; prompts without a difference decide nothing
    ([0, 0], 1.0),
    ([], 1.0),
  ],
)
def test_sign_flips_by_hand(differences, p_value):
  assert sign_flip_p_value(differences) == pytest.approx(p_value)


def test_answers_of_a_prompt_flip_together():
  assert sign_flip_p_value([1] * 6) == pytest.approx(2 / 64)
  assert sign_flip_p_value([1] * 6, clusters=["p", "p", "q", "q", "r", "r"]) == pytest.approx(2 / 8)


def test_sign_flips_equal_scipy():
  rng = np.random.default_rng(3)
  for n, tolerance in ((10, 1e-12), (40, 0.015)):
    differences = rng.normal(0.25, 1, n)
    theirs = stats.permutation_test(
      (differences,), np.sum, permutation_type="samples", n_resamples=20_000, random_state=0
    ).pvalue
    assert sign_flip_p_value(differences) == pytest.approx(theirs, abs=tolerance)


def test_counting_out_equals_drawing():
  scores = np.random.default_rng(4).choice(
    [-1, -0.5, 0, 0.5, 1], 617, p=[0.12, 0.2, 0.35, 0.2, 0.13]
  )
  exact = sign_flip_p_value(scores)
  drawn = sign_flip_p_value(scores + np.random.default_rng(5).normal(0, 1e-7, 617))
  assert 0.001 < exact < 0.9
  assert drawn == pytest.approx(exact, abs=0.015)


def test_a_drawn_p_value_is_never_zero():
  assert sign_flip_p_value(np.random.default_rng(0).uniform(1, 2, 200)) == pytest.approx(1 / 10_000)
  assert sign_flip_p_value(np.ones(200)) == pytest.approx(2 * 0.5**200)


def test_p_values_are_uniform_where_models_are_alike():
  """With ties in the sums a p value may be too large, never too small."""
  rng = np.random.default_rng(8)
  p_values = [sign_flip_p_value(rng.choice([-1, -0.5, 0, 0.5, 1], 60)) for _ in range(2000)]
  assert 0.035 < np.mean(np.array(p_values) <= 0.05) < 0.055


def test_mcnemar():
  a, b = [1] * 10 + [0] * 5, [0] * 9 + [1] + [1] + [0] * 4  # nine prompts only a, one only b
  assert mcnemar_p_value(a, b) == pytest.approx(2 * (1 + 10) / 1024)
  assert mcnemar_p_value([1, 0], [1, 0]) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_sign_flip_of_hits_is_mcnemars_test(pairs):
  a, b = (np.array(x, dtype=float) for x in zip(*pairs))
  assert sign_flip_p_value(a - b) == pytest.approx(mcnemar_p_value(a, b))


def test_swaps_of_ratios_by_brute_force():
  rng = np.random.default_rng(2)
  sums_GL4 = rng.integers(1, 9, (6, 2, 4)).astype(float)

  def shift(sums):
    total = sums.sum(axis=0)
    return abs(np.mean(total[:, 0] / total[:, 1] - total[:, 2] / total[:, 3]))

  swapped = sums_GL4[..., [2, 3, 0, 1]]
  as_far = [
    shift(np.where(np.array(kept)[:, None, None], sums_GL4, swapped)) >= shift(sums_GL4) - 1e-12
    for kept in itertools.product((True, False), repeat=6)
  ]
  assert 2 / 64 < np.mean(as_far) < 1
  assert swap_p_value(sums_GL4) == pytest.approx(np.mean(as_far))


def test_paired_difference_by_hand():
  difference = paired_difference([1.0, 3.0], [0.0, 0.0])
  figure = difference.figure
  assert (figure.value, figure.n) == (2.0, 2)
  assert (figure.low, figure.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)
  assert difference.p_value == pytest.approx(2 / 4)


def test_difference_of_ratios_weighs_tokens():
  difference = paired_difference([2.0, 30.0], [1.0, 10.0], [1, 9], [1, 9], scale=2.0)
  assert difference.figure.value == pytest.approx(2 * (3.2 - 1.1))


def test_pairing_takes_out_how_hard_prompts_are():
  hard = np.random.default_rng(1).normal(0, 5, 100)
  noise = np.random.default_rng(2).normal(0, 1, (2, 100))
  paired = paired_difference(hard + noise[0] + 0.5, hard + noise[1]).figure
  a, b = mean_figure(hard + noise[0] + 0.5), mean_figure(hard + noise[1])
  assert paired.low > 0
  assert paired.high - paired.low == pytest.approx(2 * 1.98 * math.sqrt(2) / 10, rel=0.2)
  assert a.low < b.high  # unpaired, nothing is seen


def test_models_that_hardly_differ_leave_room():
  same = paired_difference(np.ones(100), np.ones(100), bounds=(0, 1))
  others = 1 - 0.025 ** (1 / 100)
  assert (same.figure.low, same.figure.high) == pytest.approx((-others, others))
  assert same.p_value == 1.0
  few = paired_difference(np.ones(100), np.r_[np.zeros(2), np.ones(98)], bounds=(0, 1))
  assert few.figure.low < 0 < few.figure.high and few.p_value == pytest.approx(0.5)
  assert paired_difference([1.0, 2.0], [1.0, 2.0]).figure.low is None  # ends not known


def test_nothing_to_compare():
  assert paired_difference([], []).figure.n == 0
  assert paired_difference([1.0, math.nan], [1.0, 2.0]).p_value is None
  assert macro_difference(np.zeros((0, 2)), np.zeros((0, 2))).figure.value is None


pairs = st.lists(
  st.tuples(st.sampled_from([0, 0.5, 1]), st.sampled_from([0, 0.5, 1]), st.integers(0, 9)),
  min_size=2,
  max_size=25,
)


def mirrored(x, y):
  assert x.p_value == pytest.approx(y.p_value)
  assert x.figure.value == pytest.approx(-y.figure.value)
  assert (x.figure.low is None) == (y.figure.low is None)
  if x.figure.low is not None:
    assert (x.figure.low, x.figure.high) == pytest.approx((-y.figure.high, -y.figure.low))


def test_models_alike_up_to_an_exchange_have_an_interval_about_zero():
  a, b = [0.5, 1, 1, 0.5, 0, 0], [1, 0.5, 0, 0.5, 0, 1]
  for bounds in (None, (0, 1)):
    figure = paired_difference(a, b, bounds=bounds).figure
    assert figure.value == 0 and figure.low == -figure.high < 0


@settings(max_examples=60, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_exchanging_models_negates_and_the_order_of_prompts_does_not_matter(rows, random):
  a, b, ids = (list(column) for column in zip(*rows))
  shuffled = random.sample(rows, len(rows))
  a2, b2, ids2 = (list(column) for column in zip(*shuffled))
  for bounds in (None, (0, 1)):
    mirrored(
      paired_difference(a, b, clusters=ids, bounds=bounds),
      paired_difference(b2, a2, clusters=ids2, bounds=bounds),
    )
  num = np.array([a, a[::-1]]).T, np.array([b, b]).T
  order = random.sample(range(len(a)), len(a))
  mirrored(macro_difference(*num), macro_difference(num[1][order], num[0][order]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 9), st.integers(1, 99), st.integers(1, 9)), min_size=2, max_size=20))  # fmt: skip
def test_exchanging_models_negates_ratios_too(rows):
  num_a, den_a, num_b, den_b = (np.array(column, dtype=float) for column in zip(*rows))
  mirrored(
    paired_difference(num_a, num_b, den_a, den_b), paired_difference(num_b, num_a, den_b, den_a)
  )


def test_macro_difference_by_hand():
  # en: 1 - 0.5, two prompts; sw: 0 - 1, one prompt that en shares.
  a, b = np.array([[1, 0], [1, np.nan]]), np.array([[1, 1], [0, np.nan]])
  difference = macro_difference(a, b)
  assert difference.figure.value == pytest.approx((0.5 - 1) / 2)
  assert difference.figure.n == 3
  # Group 1 shifts the mean by -1/2, group 2 by 1/4: |sum| is 1/4 or 3/4, and 1/4 was seen.
  assert difference.p_value == 1.0
  assert macro_difference(b[:, ::-1] * 0 + 1, b[:, ::-1] * 0).p_value == pytest.approx(2 / 4)


def test_parallel_languages_are_drawn_together():
  shift = np.random.default_rng(2).normal(0.1, 1, 200)
  one = paired_difference(shift, np.zeros(200))
  four = macro_difference(np.stack([shift] * 4, 1), np.zeros((200, 4)))
  assert four.figure.value == pytest.approx(one.figure.value)
  width = one.figure.high - one.figure.low
  assert four.figure.high - four.figure.low == pytest.approx(width, rel=0.1)
  assert four.p_value == pytest.approx(one.p_value, abs=0.02)


def test_groups_of_both_models_must_be_the_same():
  with pytest.raises(ValueError, match="same groups and languages"):
    macro_difference([[1.0, np.nan]], [[1.0, 1.0]])


def test_holm_by_hand():
  assert holm({"sw": 0.03, "en": 0.01, "fi": 0.04, "he": None}) == {
    "sw": Adjusted(0.03, pytest.approx(0.06), False),
    "en": Adjusted(0.01, pytest.approx(0.03), True),
    "fi": Adjusted(0.04, pytest.approx(0.06), False),
    "he": Adjusted(None, None, False),
  }
  assert list(holm({"sw": 0.03, "en": 0.01})) == ["sw", "en"]
  assert holm({"en": 0.6, "fi": 0.9})["fi"].adjusted == 1.0
  assert holm({"en": 0.05})["en"].rejected
  assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_stays_below_bonferroni(p_values):
  adjusted = holm({str(i): p for i, p in enumerate(p_values)})
  for x, y in itertools.combinations(adjusted.values(), 2):
    assert (x.p_value - y.p_value) * (x.adjusted - y.adjusted) >= 0
  for row in adjusted.values():
    assert row.p_value <= row.adjusted <= min(1.0, len(p_values) * row.p_value)
  assert min(r.adjusted for r in adjusted.values()) == min(1.0, len(p_values) * min(p_values))


A = {"en": {"1": 1, "2": 1, "3": 0, "4": 1}, "עברית": {"1": 1, "2": [1, 0], "3": 1}}
B = {"en": {"1": 0, "2": 1, "3": 0, "4": 0}, "עברית": {"1": 0, "2": [0, 0], "3": 0}}


def test_compare_over_languages():
  out = compare(A, B, bounds=(0, 1))
  assert list(out.by_lang) == ["en", "עברית"]
  assert out.by_lang["en"].figure.value == pytest.approx(0.5)
  assert out.by_lang["en"].p_value == pytest.approx(2 / 4)
  assert out.by_lang["עברית"].figure.value == pytest.approx(3 / 4)  # three of four answers
  assert out.by_lang["עברית"].p_value == pytest.approx(2 / 8)
  assert [row.adjusted for row in out.by_lang.values()] == pytest.approx([0.5, 0.5])
  assert out.mean.figure.value == pytest.approx(5 / 8)
  assert out.mean.p_value == pytest.approx(2 / 16)  # four groups, each in favour of a or of none


def test_groups_join_prompts_whose_ids_differ():
  a = {"en": {"e1": 1, "e2": 1}, "fi": {"f1": 1, "f2": 1}}
  b = {"en": {"e1": 0, "e2": 0}, "fi": {"f1": 0, "f2": 0}}
  assert compare(a, b).mean.p_value == pytest.approx(2 / 16)
  groups = {("en", "e1"): 1, ("fi", "f1"): 1, ("en", "e2"): 2, ("fi", "f2"): 2}
  assert compare(a, b, groups=groups).mean.p_value == pytest.approx(2 / 4)


def test_the_table_shows_every_language_and_the_mean():
  out = io.StringIO()
  Console(file=out, width=120).print(compare(A, B, bounds=(0, 1)).table("ours less theirs"))
  lines = out.getvalue().splitlines()
  assert "ours less theirs" in lines[0]
  assert [line for line in lines if "en" in line and "+0.500" in line and "0.5000" in line]
  assert [line for line in lines if "mean" in line and "+0.625" in line and "0.1250" in line]


def test_ids_that_differ_are_named():
  b = {"en": {**B["en"], "extra": 1}, "עברית": B["עברית"]}
  del b["en"]["2"]
  with pytest.raises(UserError) as error:
    compare(A, b)
  assert "prompts in en" in str(error.value)
  assert "1 only in a: '2'" in str(error.value) and "1 only in b: 'extra'" in str(error.value)
  with pytest.raises(UserError, match="languages of a and b differ .*only in a: 'עברית'"):
    compare(A, {"en": B["en"]})
  many = {"en": {str(i): 1 for i in range(9)}}
  with pytest.raises(UserError, match=r"9 only in a: '0', '1', '2', '3', '4', \.\.\."):
    compare(many, {"en": {}})


def test_nothing_on_either_side_is_told():
  with pytest.raises(UserError, match="hold no language"):
    compare({}, {})
  empty = compare({"en": {}}, {"en": {}})
  assert empty.mean.figure.value is None and empty.by_lang["en"].adjusted is None
  Console(file=io.StringIO()).print(empty.table())


def test_figures_are_a_function_of_the_seed(monkeypatch):
  monkeypatch.setattr(comparing, "MAX_UNITS", 0)  # draw what could be counted
  a, b = np.random.default_rng(0).integers(0, 2, (2, 60)).astype(float)
  one, again, other = (paired_difference(a, b, seed=s) for s in (1, 1, 2))
  assert one == again
  assert one.p_value != other.p_value
