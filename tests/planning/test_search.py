import pytest

from mlit_jax.planning.search import Search


def linear(fixed, of_row, usable):
  """Peaks that grow by the row, different for each way to recompute; and what was measured."""
  asked = []

  def measure(remat, rows):
    asked.append((remat, rows))
    peak = fixed + of_row[remat] * rows
    return peak, peak <= usable

  return measure, asked


@pytest.mark.parametrize("begun", [1, 4, 7, 30])
@pytest.mark.parametrize("of_row, most", [(10, 9), (13, 6), (90, 1), (3, 30)])
def test_the_most_rows_that_fit(begun, of_row, most):
  measure, asked = linear(10, {"full": of_row}, 100)
  (found,) = Search(measure, 100, 20).run(["full"], begun)
  assert (found.rows, found.peak, found.proven) == (most, 10 + most * of_row, True)
  assert len(asked) <= 7


def test_not_even_one_row():
  measure, asked = linear(200, {"full": 1}, 100)
  (found,) = Search(measure, 100, 20).run(["full"], 4)
  assert (found.rows, found.proven) == (0, True) and ("full", 1) in asked


def test_peaks_that_are_not_told_still_lead_there():
  (found,) = Search(lambda remat, rows: (0, rows <= 11), 100, 20).run(["full"], 2)
  assert (found.rows, found.proven) == (11, True)


def test_peaks_that_do_not_lie_on_a_line():
  (found,) = Search(lambda remat, rows: (rows**3, rows**3 <= 1000), 1000, 20).run(["full"], 1)
  assert found.rows == 10


def test_compilations_are_bounded_and_shared():
  measure, asked = linear(10, {"none": 7, "full": 1}, 100)
  search = Search(measure, 100, 4)
  found = search.run(["none", "full"], 1)
  assert len(asked) == 4 and [r for r, _ in asked] == ["none", "none", "full", "full"]
  assert not found[1].proven and found[1].rows == 2


def test_what_is_known_is_not_compiled_again():
  measure, asked = linear(10, {"full": 50}, 100)
  search = Search(measure, 100, 10)
  search.note("full", 1, 60, True)
  (found,) = search.run(["full"], 1)
  assert found.rows == 1 and ("full", 1) not in asked and len(asked) == 1


def test_many_rows_are_found_nearly():
  measure, asked = linear(0, {"full": 1}, 1000)
  (found,) = Search(measure, 1000, 30).run(["full"], 1)
  assert 1000 * 29 / 30 <= found.rows <= 1000 and found.proven and len(asked) < 9
