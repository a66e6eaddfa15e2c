"""Whether a step's loss or gradient norm is far above that of the steps before, and which language's loss is.

How far is told in scatters: a scatter is 1.48 times the median distance to the median, which for normally
distributed values is their standard deviation, and which a few outliers do not move. A step with fewer tokens than
most, as the last of an epoch, scatters more: a mean over n tokens in place of N by sqrt(N / n), and its gradient's
norm, where noise is most of it, is larger by as much.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 100  # steps that say what is usual
FEWEST = 20  # steps that must have been seen before anything can be unusual
# The least that counts as a scatter: where a loss hardly moves, the smallest rise would be many.
LOSS_SCATTER, LOSS_SHARE = 0.02, 0.05  # nats, and of the median
NORM_SCATTER = 0.2  # of the logarithm, as norms differ by factors


class Figure(NamedTuple):
  """A value beside what was usual."""

  value: float
  usual: float  # the median
  scatter: float  # in the unit of the value; of a norm a factor
  height: float  # how many scatters the value is above the usual


class Usual:
  """The last values of one figure, each of so many tokens."""

  def __init__(self, *, least: float, share: float = 0.0, by_factor: bool = False):
    """`least`, `share`: of the median; what counts as a scatter at least. by_factor: logarithms are compared."""
    self.least, self.share, self.by_factor = least, share, by_factor
    self.values: collections.deque[float] = collections.deque(maxlen=WINDOW)
    self.tokens: collections.deque[float] = collections.deque(maxlen=WINDOW)

  def add(self, value: float, tokens: float) -> None:
    self.values.append(self._inner(value))
    self.tokens.append(tokens)

  def median(self) -> float | None:
    """In the unit of the values; None without any."""
    return self._outer(float(np.median(self.values))) if self.values else None

  def of(self, value: float, tokens: float, fewest: int = FEWEST) -> Figure | None:
    """The value of so many tokens beside what is usual of as many; None where fewer than `fewest` were seen."""
    if len(self.values) < fewest:
      return None
    seen = np.asarray(self.values)
    median = float(np.median(seen))
    scatter = 1.4826 * float(np.median(np.abs(seen - median)))
    scatter = max(scatter, self.least, self.share * abs(median))
    wider = math.sqrt(max(1.0, float(np.median(self.tokens)) / tokens))
    if self.by_factor:
      median += math.log(wider)
    else:
      scatter *= wider
    height = (self._inner(value) - median) / scatter
    return Figure(value, self._outer(median), self._outer(scatter), height)

  def _inner(self, value: float) -> float:
    return math.log(max(value, 1e-30)) if self.by_factor else value

  def _outer(self, value: float) -> float:
    return math.exp(value) if self.by_factor else value


class Spike(NamedTuple):
  """A step whose loss or gradient norm is not as usual."""

  loss: Figure
  grad_norm: Figure
  by_language: dict[str, Figure]  # of those with a past, the most unusual first


class Spikes:
  """Told every step, says which of them begin a spike.

  Kept per process and not saved: after a restart the first FEWEST steps are looked at again before any is judged.
  """

  def __init__(self, languages: Sequence[str], *, height: float, first: int):
    """`languages`: of each number in Sums. `height`: in scatters. `first`: the first step that is judged, from 0."""
    self.languages, self.height, self.first = languages, height, first
    self.loss, self.norm = _of_loss(), Usual(least=NORM_SCATTER, by_factor=True)
    self.of_language = {lang: _of_loss() for lang in languages}
    self.high = False  # whether the step before was a spike: of several in a row the first is told

  def see(self, step: int, nll: np.ndarray, trained: np.ndarray, norm: float) -> Spike | None:
    """The spike that begins with this step, if one does; nll and trained as in Sums."""
    tokens = int(trained.sum())
    if not tokens:
      return None
    loss, of_languages = float(nll.sum() / tokens), _sums(self.languages, nll, trained)
    figures = self.loss.of(loss, tokens), self.norm.of(norm, tokens)
    high = step >= self.first and any(f is not None and f.height > self.height for f in figures)
    begins, self.high = high and not self.high, high
    spike = Spike(*figures, self._figures(of_languages)) if begins else None
    self.loss.add(loss, tokens)
    self.norm.add(norm, tokens)
    for lang, (value, count) in of_languages.items():
      self.of_language[lang].add(value / count, count)
    return spike

  def usual(self) -> dict[str, float]:
    """{language: its median loss}; "" of all together."""
    of = {"": self.loss, **self.of_language}
    return {lang: usual.median() for lang, usual in of.items() if usual.values}

  def _figures(self, of_languages: dict[str, tuple[float, int]]) -> dict[str, Figure]:
    # A rare language has few steps; its own past of eight says more than none.
    found = {
      lang: self.of_language[lang].of(value / count, count, fewest=8)
      for lang, (value, count) in of_languages.items()
    }
    known = {lang: figure for lang, figure in found.items() if figure is not None}
    return dict(sorted(known.items(), key=lambda item: -item[1].height))


def language_losses(
  languages: Sequence[str], nll: np.ndarray, trained: np.ndarray
) -> dict[str, float]:
  """{language: nll per trained token} of those that have trained tokens; sources of a language together."""
  return {lang: nll / count for lang, (nll, count) in _sums(languages, nll, trained).items()}


def _sums(languages, nll: np.ndarray, trained: np.ndarray) -> dict[str, tuple[float, int]]:
  """{language: (nll, trained tokens)} of those that have any."""
  sums: dict[str, tuple[float, int]] = {}
  for lang, value, count in zip(languages, nll.tolist(), trained.tolist(), strict=True):
    if count:
      of = sums.get(lang, (0.0, 0))
      sums[lang] = (of[0] + value, of[1] + count)
  return sums


def _of_loss() -> Usual:
  return Usual(least=LOSS_SCATTER, share=LOSS_SHARE)
