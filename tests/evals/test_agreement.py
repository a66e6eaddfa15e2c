import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlit_jax.evals.agreement import cohen_kappa, corrected_share
from mlit_jax.evals.statistics import Figure


def test_kappa_of_the_textbook_table():
  # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agreement 0.7, by chance 0.5.
  ours = ["yes"] * 25 + ["no"] * 25
  theirs = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
  figure = cohen_kappa(ours, theirs)
  assert figure.value == pytest.approx(0.4)
  # Standard error by Fleiss, Cohen and Everitt (1969): 0.1270.
  assert (figure.low, figure.high) == pytest.approx((0.4 - 0.255, 0.4 + 0.255), abs=0.03)


def test_kappa_of_judges_that_agree_throughout_is_not_certain():
  labels = ["a", "b"] * 20
  figure = cohen_kappa(labels, labels)
  others = 1 - 0.025 ** (1 / 40)
  assert figure.value == figure.high == 1.0
  assert figure.low == pytest.approx(1 - others * 2)  # chance agreement is 0.5
  assert cohen_kappa(["a"] * 9, ["a"] * 9) == Figure(None, 9)  # nothing beyond chance to see
  assert cohen_kappa(["a"] * 9, ["b"] * 9).value == 0.0


def test_labels_of_one_prompt_count_once():
  rng = np.random.default_rng(0)
  ours, theirs = rng.choice(["a", "b", "tie"], (2, 60)).tolist()
  ids = [str(i) for i in range(60)]
  once = cohen_kappa(ours, theirs)
  thrice = cohen_kappa(ours * 3, theirs * 3, clusters=ids * 3)
  assert thrice.value == pytest.approx(once.value)
  assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.05)


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.tuples(st.sampled_from("abt"), st.sampled_from("abt")), min_size=1, max_size=30),
  st.randoms(use_true_random=False),
)
def test_neither_the_order_of_items_nor_of_judges_matters(items, random):
  shuffled = random.sample(items, len(items))
  one = cohen_kappa([x for x, _ in items], [y for _, y in items])
  two = cohen_kappa([y for _, y in shuffled], [x for x, _ in shuffled])
  assert (one.value is None) == (two.value is None)
  if one.value is not None:
    assert one.value == pytest.approx(two.value)
    if one.low is not None:
      assert one.low <= one.value <= one.high <= 1 + 1e-12


def calibration(good, hits, bad, false_alarms):
  judged = [1] * hits + [0] * (good - hits) + [1] * false_alarms + [0] * (bad - false_alarms)
  return judged, [1] * good + [0] * bad


def test_a_judges_errors_are_taken_out_by_hand():
  figure, refused = corrected_share([1] * 60 + [0] * 40, *calibration(50, 45, 50, 10))
  assert refused is None
  assert figure.value == pytest.approx((0.6 + 0.8 - 1) / (0.9 + 0.8 - 1))
  assert figure.n == 100
  assert figure.low < figure.value < figure.high
  # Both sources of doubt: sqrt(0.6 x 0.4 / 100 + theta^2 se^2 + ...) / 0.7, to first order.
  theta = 0.4 / 0.7
  variance = 0.24 / 100 + theta**2 * 0.09 / 50 + (1 - theta) ** 2 * 0.16 / 50
  half = 1.96 * variance**0.5 / 0.7
  assert figure.high - figure.low == pytest.approx(2 * half, rel=0.15)


def test_a_perfect_judge_on_few_labels_is_not_taken_for_infallible():
  figure, _ = corrected_share([1] * 300 + [0] * 300, *calibration(8, 8, 8, 0))
  assert figure.value == pytest.approx(0.5)
  sure, _ = corrected_share([1] * 300 + [0] * 300, *calibration(800, 800, 800, 0))
  assert sure.high - sure.low < 0.1 < 0.2 < figure.high - figure.low


def test_the_corrected_share_stays_a_share():
  figure, refused = corrected_share([1] * 85 + [0] * 15, *calibration(50, 40, 50, 5))
  assert refused is None
  assert figure.value == figure.high == 1.0  # 0.75 / 0.7 by the formula
  assert figure.low < 0.98


@pytest.mark.parametrize("judged", [[1] * 100, [0] * 100])
def test_verdicts_that_the_calibration_set_rules_out_are_refused(judged):
  figure, refused = corrected_share(judged, *calibration(50, 35, 50, 15))
  assert figure.value is None
  assert "the judge errs otherwise on these prompts than on the calibration set" in refused


@pytest.mark.parametrize(
  "table, reason",
  [
    ((20, 10, 20, 10), "specificity - 1 is 0.000; the judge knows nothing"),
    ((20, 8, 20, 12), "specificity - 1 is -0.200; the judge knows nothing"),
    ((20, 11, 20, 9), "cannot be told from 0 with so few labels"),
    ((4, 4, 20, 0), "called 4 prompts of the calibration set good and 20 bad; at least 5"),
  ],
)
def test_a_judge_that_cannot_be_corrected_is_refused(table, reason):
  figure, refused = corrected_share([1] * 60 + [0] * 40, *calibration(*table))
  assert figure == Figure(None, 100)
  assert reason in refused


def test_labels_that_are_not_0_or_1_are_refused():
  with pytest.raises(ValueError, match="must be 0 or 1"):
    corrected_share([1], [1], [2])
