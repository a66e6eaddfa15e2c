import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mlit_jax.data import order
from mlit_jax.data.order import interleave, merge
from mlit_jax.errors import UserError


def test_the_worked_example():
  assert interleave([np.ones(4, int), np.ones(2, int)]).tolist() == [0, 0, 1, 0, 0, 1]
  assert interleave([np.zeros(0, int)]).tolist() == [] == interleave([]).tolist()


def check(sizes):
  """Every item once, and the share of each language kept within the longest item in every prefix."""
  out = interleave([np.array(s, np.int64) for s in sizes])
  assert np.bincount(out, minlength=len(sizes)).tolist() == [len(s) for s in sizes]
  total, longest = sum(map(sum, sizes)), max(max(s, default=0) for s in sizes)
  sums, at, queues = [0] * len(sizes), 0, [iter(s) for s in sizes]
  for language in out:
    size = next(queues[language])
    sums[language] += size
    at += size
    for mine, s in zip(sums, sizes, strict=True):
      # |mine - at * share| < the longest item, in whole numbers
      assert abs(mine * total - at * sum(s)) < longest * total, (sizes, sums)


item_lists = st.lists(st.lists(st.integers(1, 50), max_size=25), min_size=1, max_size=12)


@hypothesis.given(item_lists.filter(lambda sizes: any(sizes)))
@hypothesis.settings(deadline=None, max_examples=200, database=None)
def test_every_prefix_of_tokens_keeps_the_shares(sizes):
  check(sizes)


def test_a_pinch_of_long_examples_among_short_ones():
  check([[5] * 900, [60, 70, 80, 90], [40] * 5, [1] * 30])


def test_a_hundred_languages_at_once():
  check([[3] * 1000, *([[3] * 7] * 100)])


def test_chunks_do_not_show(monkeypatch):
  rng = np.random.default_rng(0)
  sizes = [rng.integers(1, 9, n) for n in (70, 33, 5)]
  whole = interleave(sizes)
  monkeypatch.setattr(order, "CHUNK", 7)
  assert interleave(sizes).tolist() == whole.tolist()


def test_merge_takes_from_the_queues_in_order():
  places = np.array([0, 0, 1, 0, 2, 1])
  assert merge(places, [[10, 11, 12], [20, 21], [30]]).tolist() == [10, 11, 20, 12, 30, 21]


def test_sums_that_would_leave_64_bits():
  """2e9 tokens each: their product does not fit, the result is that of whole numbers."""
  big = [np.full(4, 500_000_000), np.full(2, 500_000_000), np.full(4, 250_000_000)]
  small = [np.full(4, 2), np.full(2, 2), np.full(4, 1)]
  assert interleave(big).tolist() == interleave(small).tolist()
  with pytest.raises(UserError, match="3e9"):
    interleave([np.full(7, 500_000_000)])
