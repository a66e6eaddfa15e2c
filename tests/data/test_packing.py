import hypothesis
import hypothesis.strategies as st
import numpy as np

from mlit_jax.data import packing
from mlit_jax.data.order import interleave


def pack(*args, **kwargs):
  items, starts = packing.pack(*args, **kwargs)
  return [items[a:b].tolist() for a, b in zip(starts[:-1], starts[1:], strict=True)]


def test_the_worked_example():
  items, starts = packing.pack([3, 4, 2, 1], capacity=5)
  assert items.tolist() == [0, 2, 1, 3] and starts.tolist() == [0, 2, 4]
  items, starts = packing.pack([], capacity=5)
  assert items.tolist() == [] and starts.tolist() == [0]


def test_an_item_goes_into_the_fullest_row_with_room():
  assert pack([5, 6, 4, 5], capacity=10) == [[0, 3], [1, 2]]
  assert pack([5, 5, 5], capacity=10) == [[0, 1], [2]]
  assert pack([10, 1, 10], capacity=10) == [[0], [1], [2]]  # in the order of their first items


def test_the_fullest_row_is_closed_when_too_many_are_open():
  assert pack([4, 5, 3, 1], capacity=6, open_bins=2) == [[0, 3], [1], [2]]
  assert pack([4, 5, 3, 1], capacity=6, open_bins=3) == [[0], [1, 3], [2]]
  assert pack([3, 4, 2, 1], capacity=5, open_bins=1) == [[0], [1], [2, 3]]


def naive_pack(lengths, capacity, open_bins):
  rows, opened = [], []
  for item, length in enumerate(lengths):
    space = [capacity - sum(lengths[i] for i in row) for row in opened]
    fitting = [(s, row[0], row) for s, row in zip(space, opened, strict=True) if s >= length]
    if fitting:
      row = min(fitting)[2]
    else:
      if len(opened) == open_bins:
        full = min(zip(space, [row[0] for row in opened], opened, strict=True))[2]
        opened.remove(full)
      row = []
      opened.append(row)
      rows.append(row)
    row.append(item)
    if sum(lengths[i] for i in row) == capacity:
      opened.remove(row)
  return rows


@hypothesis.given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 32), st.integers(1, 6))
@hypothesis.settings(deadline=None, max_examples=150, database=None)
def test_every_item_once_no_row_too_long_as_written_out_plainly(lengths, capacity, open_bins):
  rows = pack(lengths, capacity, open_bins)
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  assert all(0 < sum(lengths[i] for i in row) <= capacity for row in rows)
  assert rows == naive_pack(lengths, capacity, open_bins)


def test_rows_are_full_and_keep_the_balance_of_languages():
  """Natural lengths: log-normal, and Hindi takes three times the tokens of English for the same text."""
  scale = {"en": 150, "fi": 220, "hi": 450, "sw": 250}
  ones = [np.ones(n, int) for n in (14_000, 4_000, 1_500, 500)]
  order = [list(scale)[number] for number in interleave(ones)]
  noise = np.random.default_rng(0).lognormal(0, 0.8, len(order))
  lengths = np.clip(noise * [scale[lang] for lang in order], 8, 2048).astype(int).tolist()
  rows = pack(lengths, 2048)
  fill = sum(lengths) / (len(rows) * 2048)
  assert fill > 0.995, fill

  # Language and length of every prefix of the packed run against the whole run. Measured: 16 examples of
  # English with 64 open rows, 38 with any number of them; in the order in which rows close 20 of Finnish.
  flat = [i for row in rows for i in row]
  seen = np.arange(1, len(flat) + 1)
  for lang in scale:
    here = np.cumsum([order[i] == lang for i in flat])
    assert np.abs(here - seen * here[-1] / len(flat)).max() < 18, lang
  tokens = np.cumsum([lengths[i] for i in flat])
  drift = np.abs(tokens - seen * tokens[-1] / len(flat)).max() / tokens[-1]
  assert drift < 0.01, drift
