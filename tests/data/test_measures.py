"""What benchmarks/peers.py measures, on batches small enough to count by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
from made_up import make_encoded

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import measures
import peers

# Examples 0 and 1 of language 0, 2 and 3 of language 1.
LENGTHS = np.array([2, 4, 3, 1])
LANGUAGE = np.array([0, 0, 1, 1])
WHOLE = [np.array([[0, 0, 3, -1, -1]]), np.array([[1, 1, 1, 1, 3]]), np.array([[2, 2, 2, 0, 0]])]


def test_fill_counts_positions_of_all_rows():
  assert measures.fill(WHOLE) == 13 / 15


def test_examples_count_as_often_as_they_come_and_pieces_by_their_length():
  # 0 comes twice and 1 once; 2 once and 3 twice.
  assert measures.examples_got(WHOLE, LENGTHS, LANGUAGE, 2).tolist() == [3, 3]
  half = [np.array([[1, 1, 2, -1]])]
  assert measures.examples_got(half, LENGTHS, LANGUAGE, 2).tolist() == [0.5, pytest.approx(1 / 3)]


def test_a_cut_example_is_one_of_which_a_row_holds_a_piece():
  assert measures.num_cut(WHOLE, LENGTHS) == 0
  split = [np.array([[0, 0, 1, 1], [1, 1, 2, 2]])]  # 1 over two rows, 2 never whole
  assert measures.num_cut(split, LENGTHS) == 2
  twice = [np.array([[0, 0, 0, 0], [3, 3, -1, -1]])]  # whole, twice in a row
  assert measures.num_cut(twice, LENGTHS) == 0


def test_worst_prefix_is_the_distance_from_the_due_share_so_far():
  by_step = measures.tokens_by_step(WHOLE, LANGUAGE, 2)
  assert by_step.tolist() == [[2, 1], [4, 1], [2, 3]]
  # Due half of 3, 8, 13 tokens: 1.5, 4, 6.5 against 2, 6, 8; in the steps alone 1.5 at most.
  assert measures.worst_prefix(by_step, np.array([0.5, 0.5])) == (2, 0)


def test_worst_window_is_the_ratio_furthest_from_one():
  by_step = np.array([[3, 1], [3, 1], [1, 3]])
  due = np.array([0.5, 0.5])
  # Two steps: 6 to 2 and 4 to 4; so 0.25 / 0.5, which is further from 1 than 0.75 / 0.5.
  assert measures.worst_window(by_step, due, 2) == (0.5, 1)
  assert measures.worst_window(by_step, due, 9) == (pytest.approx(10 / 12), 1)  # all there is


def test_examples_by_step_share_out_an_example_over_its_steps():
  grids = [np.array([[1, 1]]), np.array([[1, 1]])]
  assert measures.examples_by_step(grids, LENGTHS, LANGUAGE, 2).tolist() == [[0.5, 0], [0.5, 0]]


@pytest.mark.parametrize(
  ("resumed", "expected"),
  [
    (WHOLE[1:], (True, 0, 0)),
    (WHOLE[2:], (False, 0, 2)),  # 1 and one of the 3s never come
    (WHOLE, (False, 2, 0)),  # 0 and 3 come again
    ([WHOLE[2], WHOLE[1]], (False, 0, 0)),  # all there, in another order
    ([WHOLE[1]], (False, 0, 2)),
  ],
)
def test_a_resumed_run_repeats_and_skips_examples(resumed, expected):
  assert measures.compare_resumed(WHOLE, 1, resumed, LENGTHS) == expected


def test_sides_are_measured_on_the_batches_they_deliver():
  rng = np.random.default_rng(0)
  lengths = rng.integers(20, 900, 60).tolist()
  encoded = make_encoded(
    [("en" if i % 5 else "fi", f"row {i}", None, n) for i, n in enumerate(lengths)]
  )
  material = peers.Material(encoded)
  ours = peers.measured(lambda m: peers.Ours(m, "examples"), material)
  assert (ours["got"], ours["exact"], ours["cut"], ours["resume"]) == (60, True, 0, "same")
  assert ours["rows"] % peers.ROWS == 0 and ours["fill"] == sum(lengths) / ours["rows"] / 2048

  class Wrong(peers.Ours):  # loses a row of every step, and starts again from the beginning
    def batches(self, state=0):
      return super().batches(0)

    def grid(self, batch):
      return super().grid(batch)[1:]

  wrong = peers.measured(lambda m: Wrong(m, "examples"), material)
  assert not wrong["exact"] and wrong["got"] < 60
  assert wrong["resume"].startswith("repeats ") and wrong["resume"].endswith(", skips 0")
