"""Batches of a real run, changed on their way to the devices: install(job, {step from 1: weight}, row).

The weights of a row's trained tokens are multiplied, by infinity for a loss that is no number.
"""

import dataclasses

import numpy as np


def install(job, weights: dict[int, float], row: int) -> None:
  """From now on, in this process."""
  job.load_batches = poisoning(job.load_batches, weights, row)


def poisoning(load, weights: dict[int, float], row: int):
  """`load_batches` with these batches changed; `row` counts among the process's own."""

  def load_poisoned(encoded, plan, first, rows):
    for step, batch in enumerate(load(encoded, plan, first, rows), start=first + 1):
      yield poisoned(batch, weights[step], row) if step in weights else batch

  return load_poisoned


def poisoned(batch, weight: float, row: int):
  weights = np.array(batch.weights)
  assert weights[row].any()
  weights[row][weights[row] > 0] *= weight
  return dataclasses.replace(batch, weights=weights)
