"""The largest batch and the cheapest recomputation that fit, in as few compilations as it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

CLOSE = 30  # a search ends where rows that do not fit are within a thirtieth of rows that do
FASTEST = 16  # times the rows known to fit, at most, in one stride


@dataclasses.dataclass(frozen=True)
class Tried:
  """One compilation: rows of a device at a time, and the peak in bytes (0: refused without a figure)."""

  remat: str
  rows: int
  peak: int
  fits: bool


@dataclasses.dataclass(frozen=True)
class Largest:
  """Of one way to recompute: the most rows of a device at a time that fit (0: not even one)."""

  remat: str
  rows: int
  peak: int
  proven: bool  # whether a thirtieth more rows, at least one, is known not to fit


class Search:
  """Tries rows and ways to recompute; `measure(remat, rows) -> (peak, fits)` compiles."""

  def __init__(self, measure: Callable, usable: float, most: int):
    self.measure, self.usable, self.most = measure, usable, most
    self.tried: dict[tuple[str, int], Tried] = {}

  def run(self, remats: Sequence[str], rows: int) -> list[Largest]:
    """For each of `remats`, from the one that computes least to the one that computes most."""
    found = []
    for i, remat in enumerate(remats):
      left = self.most - len(self.tried)
      found.append(self.largest(remat, rows, left // (len(remats) - i)))
    return found

  def note(self, remat: str, rows: int, peak: int, fits: bool) -> Tried:
    """What is known already."""
    self.tried[remat, rows] = Tried(remat, rows, peak, fits)
    return self.tried[remat, rows]

  def largest(self, remat: str, rows: int, most: int) -> Largest:
    """Begins at `rows`; then where a straight line through what is known meets the memory, else by halves.

    low fits, high does not: 4 fits -> 8, 8 does not -> 6, 6 fits -> 7, 7 does not: 6.
    """
    low, high, peak = 0, None, 0
    at, last = rows, len(self.tried) + most
    while high is None or high - low > max(1, low // CLOSE):
      tried = self.try_rows(remat, at, last)
      if tried is None:
        return Largest(remat, low, peak, proven=False)
      if tried.fits:
        low, peak = at, tried.peak
      else:
        high = at
      at = self.next(remat, low, high)
    return Largest(remat, low, peak, proven=True)

  def try_rows(self, remat: str, rows: int, last: int) -> Tried | None:
    """None where no compilation is left: there are `last` already."""
    if (remat, rows) in self.tried:
      return self.tried[remat, rows]
    if len(self.tried) >= last:
      return None
    return self.note(remat, rows, *self.measure(remat, rows))

  def next(self, remat: str, low: int, high: int | None) -> int:
    """Where to look next, above `low` and below `high`."""
    guess = self.guess(remat)
    if high is None:
      return max(low + 1, min(guess or 2 * low, FASTEST * low))
    if guess is None:
      return max(low + 1, (low + high) // 2)
    # What the line says fits, or the row after it where that is known to fit.
    return max(low + 1, min(guess if guess > low else low + 1, high - 1))

  def guess(self, remat: str) -> int | None:
    """The most rows that fit, if the peak grows by as much with each row."""
    known = sorted((t.rows, t.peak) for t in self.tried.values() if t.remat == remat and t.peak)
    if len(known) < 2:
      return None
    (rows_a, peak_a), (rows_b, peak_b) = known[0], known[-1]
    slope = (peak_b - peak_a) / (rows_b - rows_a)
    return None if slope <= 0 else int(rows_a + (self.usable - peak_a) / slope)
