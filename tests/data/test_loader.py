import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from made_up import examples_of, make_encoded

from mlit_jax.batch import Batch, check_batch
from mlit_jax.data.loader import gather_rows, load_batches
from mlit_jax.data.plan import make_plan

FIELDS = [f.name for f in dataclasses.fields(Batch)]


def assert_equal(one: Batch, two: Batch):
  for name in FIELDS:
    np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name, strict=True)


def numbers(*rows):
  return [np.array(row, np.int64) for row in rows]


def test_the_worked_example():
  encoded = make_encoded([("en", "a", None, 3), ("fi", "b", None, 2)])
  encoded = dataclasses.replace(
    encoded,
    tokens=np.array([7, 8, 9, 4, 5], np.uint32),
    trained=np.array([0, 0, 1, 0, 1], np.uint8),
  )
  batch = gather_rows(encoded, numbers([0, 1]), 6)
  assert batch.tokens.tolist() == [[7, 8, 9, 4, 5, 0]]
  assert batch.targets.tolist() == [[8, 9, 0, 5, 0, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
  assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 0]]
  assert batch.weights.tolist() == [[0, 1, 0, 1, 0, 0]]
  assert batch.language.tolist() == [[0, 0, 0, 1, 1, 0]]


def naive_gather(encoded, rows, max_length):
  """Token by token, as one would say it."""
  out = {
    name: np.zeros((len(rows), max_length), np.float32 if name == "weights" else np.int32)
    for name in FIELDS
  }
  for r, row in enumerate(rows):
    at = 0
    for segment, i in enumerate(row, start=1):
      first = int(encoded.starts[i])
      end = first + int(encoded.lengths[i])
      for position, source in enumerate(range(first, end)):
        out["tokens"][r, at] = encoded.tokens[source]
        out["positions"][r, at] = position
        out["segments"][r, at] = segment
        out["language"][r, at] = encoded.language[i]
        if source + 1 < end:
          out["targets"][r, at] = encoded.tokens[source + 1]
          out["weights"][r, at] = encoded.trained[source + 1]
        at += 1
  return Batch(**out)


@hypothesis.given(st.data())
@hypothesis.settings(deadline=None, max_examples=120, database=None)
def test_gather_is_what_it_says_token_by_token(data):
  lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
  languages = data.draw(
    st.lists(st.sampled_from(["ar", "en", "zh"]), min_size=len(lengths), max_size=len(lengths))
  )
  encoded = make_encoded(
    [(lang, str(i), None, n) for i, (lang, n) in enumerate(zip(languages, lengths, strict=True))]
  )
  # Any example may stand in any row, in any number, and rows may be empty.
  rows = data.draw(
    st.lists(st.lists(st.integers(0, len(lengths) - 1), max_size=4), min_size=1, max_size=5)
  )
  batch = gather_rows(encoded, numbers(*rows), 24)
  check_batch(batch, len(rows), 24)
  assert_equal(batch, naive_gather(encoded, rows, 24))


def test_a_row_filled_to_the_last_place_and_one_of_padding_only():
  encoded = make_encoded([("en", "a", None, 4), ("fi", "b", None, 4), ("zh", "c", None, 1)])
  for rows in ([[], [0, 1], [2]], [[0, 1], [], []], [[], [], []], [[2, 2], [1, 0], []]):
    assert_equal(gather_rows(encoded, numbers(*rows), 8), naive_gather(encoded, rows, 8))


def test_large_token_ids_survive():
  encoded = make_encoded([("en", "a", None, 3)])
  encoded = dataclasses.replace(encoded, tokens=np.array([262_143, 151_936, 70_000], np.uint32))
  assert gather_rows(encoded, numbers([0]), 4).tokens.tolist() == [[262_143, 151_936, 70_000, 0]]


@pytest.fixture(scope="module")
def run():
  encoded = make_encoded(examples_of({"ar": 30, "en": 90, "fi": 40, "zh": 31}))
  plan = make_plan(
    encoded, {"counts": {"en": 60, "*": 30}}, seed=3, rows_per_step=8, max_length=32, epochs=2
  )
  assert plan.steps > 4 and len(plan.rows(plan.steps - 1)[-1]) == 0
  return encoded, plan, list(load_batches(encoded, plan, 0))


def test_the_loader_brings_every_step_of_the_plan_and_no_more(run):
  encoded, plan, batches = run
  assert len(batches) == plan.steps
  for step, batch in enumerate(batches):
    check_batch(batch, 8, 32)
    assert_equal(batch, naive_gather(encoded, plan.rows(step), 32))
  tokens = np.concatenate([b.tokens[b.segments > 0] for b in batches])
  wanted = [encoded.tokens_of(i) for i in plan.examples]
  assert sorted(tokens) == sorted(np.concatenate(wanted))
  assert sum(b.weights.sum() for b in batches) == encoded.trained_counts[plan.examples].sum()


def test_resuming_at_any_step_gives_the_same_batches(run):
  encoded, plan, batches = run
  for first in range(plan.steps + 1):
    rest = list(load_batches(encoded, plan, first))
    assert len(rest) == plan.steps - first
    for one, two in zip(rest, batches[first:], strict=True):
      assert_equal(one, two)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_rows_of_all_processes_are_the_batch_in_order(run, processes):
  encoded, plan, batches = run
  each = 8 // processes
  parts = [
    load_batches(encoded, plan, 2, slice(p * each, (p + 1) * each)) for p in range(processes)
  ]
  for whole, *mine in itertools.zip_longest(batches[2:], *parts):
    joined = {name: np.concatenate([getattr(part, name) for part in mine]) for name in FIELDS}
    assert_equal(Batch(**joined), whole)


def test_a_fault_in_the_data_is_an_error_and_not_the_end(run):
  encoded, plan, _ = run
  damaged = dataclasses.replace(encoded, tokens=encoded.tokens[:-1])
  last = len(encoded) - 1
  plan = dataclasses.replace(
    plan, examples=np.where(plan.examples == plan.examples[-1], last, plan.examples)
  )
  with pytest.raises(IndexError):
    list(load_batches(damaged, plan, 0))
