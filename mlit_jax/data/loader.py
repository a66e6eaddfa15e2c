"""The plan carried out: step number -> this process's rows, as a Batch of numpy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from mlit_jax.batch import Batch, empty_batch
from mlit_jax.data.encoded import Encoded
from mlit_jax.data.plan import Plan


def load_batches(
  encoded: Encoded, plan: Plan, first_step: int, rows: slice | np.ndarray = slice(None)
) -> Iterator[Batch]:
  """Batches of steps first_step, first_step + 1, ... of the plan; only the `rows` of this process.

  Their `language` tells sources apart too: numbers into encoded.strata, so that the ledger can.

  One thread and a buffer of two: grain's defaults (16 threads, 500 elements) cost 14 times as much, and
  worker processes more than they bring.
  """
  dataset = grain.MapDataset.source(_Steps(encoded, plan, rows))[first_step:]
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  return iter(dataset.to_iter_dataset(options))


def gather_rows(
  encoded: Encoded,
  rows: Sequence[np.ndarray],
  max_length: int,
  language: np.ndarray | None = None,
) -> Batch:
  """Batch [len(rows), max_length] of packed rows given as example numbers.

  `language` [examples] is what stands for the language of an example, by default its number.

  examples [7 8 9] and [4 5]
  tokens    7 8 9 4 5 0    targets   8 9 0 5 0 0
  positions 0 1 2 0 1 0    segments  1 1 1 2 2 0
  """
  batch = empty_batch(len(rows), max_length)
  examples = np.concatenate([np.asarray(r, np.int64) for r in rows])
  if not len(examples):
    return batch
  counts = np.array([len(r) for r in rows])
  lengths = encoded.lengths[examples].astype(np.int64)
  # Where each example starts in the flat batch: the end of the one before it in its row.
  ends = np.cumsum(lengths)
  row_of = np.repeat(np.arange(len(rows)), counts)
  before_row = np.concatenate([[0], ends])[np.cumsum(counts) - counts]
  starts = row_of * max_length + ends - lengths - before_row[row_of]
  total = int(ends[-1])
  position = np.arange(total) - np.repeat(ends - lengths, lengths)
  target = np.repeat(starts, lengths) + position
  source = np.repeat(encoded.starts[examples], lengths) + position
  segment = np.arange(len(examples)) - np.repeat(np.cumsum(counts) - counts, counts) + 1

  flat = {f.name: getattr(batch, f.name).reshape(-1) for f in dataclasses.fields(Batch)}
  tokens = encoded.tokens[source].astype(np.int32)
  flat["tokens"][target] = tokens
  flat["positions"][target] = position
  flat["segments"][target] = np.repeat(segment, lengths)
  column = encoded.language if language is None else language
  flat["language"][target] = np.repeat(column[examples], lengths)
  follows = np.ones(total, bool)
  follows[ends - 1] = False  # an example's last token has no target
  here = target[follows]
  after = np.flatnonzero(follows) + 1
  flat["targets"][here] = tokens[after]
  flat["weights"][here] = encoded.trained[source[after]]
  return batch


class _Steps(grain.sources.RandomAccessDataSource):
  """Element k is this process's part of step k."""

  def __init__(self, encoded: Encoded, plan: Plan, rows: slice | np.ndarray):
    self.encoded, self.plan = encoded, plan
    self.mine = np.arange(plan.rows_per_step)[rows].tolist()

  def __len__(self) -> int:
    return self.plan.steps

  def __getitem__(self, step) -> Batch:
    rows = self.plan.rows(int(step))
    mine = [rows[r] for r in self.mine]
    return gather_rows(self.encoded, mine, self.plan.max_length, self.encoded.stratum)

  def __repr__(self) -> str:
    return f"steps of plan {self.plan.hash}"
