"""Figures with their number of examples and a 95 % interval."""

import dataclasses
import math

import numpy as np

Z_95 = 1.959963984540054
NUM_DRAWS = 1000
# Resampling counts are float64; 4M of them are 32 MB, whatever the number of examples.
MAX_COUNTS_AT_ONCE = 4_000_000


@dataclasses.dataclass(frozen=True)
class Figure:
  """A value over n examples and the 95 % interval around it.

  value is None where there is nothing to say: no examples, or a sum that is not finite (n tells
  which). low and high are None where an interval cannot be had: a bootstrap of a single example has
  no width.
  """

  value: float | None
  n: int
  low: float | None = None
  high: float | None = None


def proportion_figure(hits) -> Figure:
  """Share of true values, with the Wilson interval (right at 0 and 1 and for few examples)."""
  hits = np.asarray(hits, dtype=bool)
  n = int(hits.size)
  if n == 0:
    return Figure(None, 0)
  share = float(hits.mean())
  low, high = wilson_interval(int(hits.sum()), n)
  return Figure(share, n, low, high)


def wilson_interval(num_hits: int, n: int) -> tuple[float, float]:
  """The 95 % Wilson score interval of num_hits out of n > 0."""
  share = num_hits / n
  spread = 1 + Z_95**2 / n
  centre = (share + Z_95**2 / (2 * n)) / spread
  half = Z_95 / spread * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
  # Rounding can leave the bound of an all-or-nothing share a hair beyond the share itself.
  return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)


def mean_figure(values, *, seed: int = 0) -> Figure:
  """Mean over examples, with a bootstrap interval over examples."""
  values = np.asarray(values, dtype=np.float64)
  return ratio_figure(values, np.ones_like(values), seed=seed)


def ratio_figure(numerators, denominators, *, seed: int = 0, scale: float = 1.0) -> Figure:
  """scale * sum(numerators) / sum(denominators), with a bootstrap interval over examples.

  An example is drawn with both of its sums: the ratio weighs tokens (or bytes), never means of
  means.
  """
  columns_N2 = np.stack(
    [np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], -1
  )
  n = len(columns_N2)
  total_2 = columns_N2.sum(axis=0)
  if n == 0 or not np.isfinite(total_2).all() or total_2[1] <= 0:
    return Figure(None, n)
  value = float(scale * total_2[0] / total_2[1])
  if n == 1:
    return Figure(value, n)
  sums_S2 = resample_sums(columns_N2, seed=seed)
  # A draw can hold only examples without tokens; it says nothing about the ratio.
  sums_S2 = sums_S2[sums_S2[:, 1] > 0]
  low, high = _percentiles(scale * sums_S2[:, 0] / sums_S2[:, 1], value)
  return Figure(value, n, low, high)


def macro_figure(
  numerators_GL, denominators_GL, *, seed: int = 0, scale: float = 1.0, wilson: bool = False
) -> Figure:
  """Unweighted mean over languages of each language's ratio of sums, examples drawn jointly.

  A row is a group: the same example in other languages, drawn or left out as one, because parallel
  examples are hard or easy together. NaN in the denominator says that the group lacks the language.
  Groups are drawn among those that hold the same languages, so each language keeps its number of
  examples in every draw. n is the number of examples in all languages.

  wilson: the ratios are shares of hits; the interval is then at least the one that Wilson's
  intervals of the languages give together (square and add), or all hits would claim an interval
  without width.
  """
  num_GL = np.asarray(numerators_GL, np.float64)
  den_GL = np.asarray(denominators_GL, np.float64)
  present_GL = ~np.isnan(den_GL)
  n = int(present_GL.sum())
  num_GL, den_GL = np.where(present_GL, num_GL, 0.0), np.where(present_GL, den_GL, 0.0)
  num_L, den_L = num_GL.sum(axis=0), den_GL.sum(axis=0)
  if n == 0 or not np.isfinite([num_L, den_L]).all() or (den_L <= 0).any():
    return Figure(None, n)
  ratio_L = scale * num_L / den_L
  value = float(ratio_L.mean())
  num_languages = len(ratio_L)

  bounds = []
  patterns, stratum_G = np.unique(present_GL, axis=0, return_inverse=True)
  stratum_G = stratum_G.reshape(-1)  # numpy 2.0 alone keeps the reduced axis
  if np.bincount(stratum_G).max() > 1:
    columns_GC = np.concatenate([num_GL, den_GL], axis=1)
    sums_SC = sum(
      resample_sums(columns_GC[stratum_G == k], seed=(seed, k)) for k in range(len(patterns))
    )
    num_SL, den_SL = sums_SC[:, :num_languages], sums_SC[:, num_languages:]
    usable_S = (den_SL > 0).all(axis=1)
    bounds.append(_percentiles((scale * num_SL[usable_S] / den_SL[usable_S]).mean(axis=1), value))
  if wilson:
    ends_L2 = (
      np.array([wilson_interval(round(h), round(m)) for h, m in zip(num_L, den_L, strict=True)])
      * scale
    )
    bounds.append(
      (
        value - float(np.sqrt(np.square(ratio_L - ends_L2[:, 0]).sum())) / num_languages,
        value + float(np.sqrt(np.square(ends_L2[:, 1] - ratio_L).sum())) / num_languages,
      )
    )
  if not bounds:
    return Figure(value, n)
  return Figure(value, n, min(low for low, _ in bounds), max(high for _, high in bounds))


def resample_sums(columns_NC: np.ndarray, *, seed, num_draws: int = NUM_DRAWS) -> np.ndarray:
  """Column sums of num_draws resamples of the rows with replacement: [num_draws, C]."""
  n = len(columns_NC)
  rng = np.random.default_rng(seed)
  draws_at_once = max(1, MAX_COUNTS_AT_ONCE // n)
  sums = []
  for start in range(0, num_draws, draws_at_once):
    draws = min(draws_at_once, num_draws - start)
    index_SN = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    counts_SN = np.bincount(index_SN.reshape(-1), minlength=draws * n).reshape(draws, n)
    sums.append(counts_SN.astype(np.float64) @ columns_NC)
  return np.concatenate(sums)


def _percentiles(values_S: np.ndarray, value: float) -> tuple[float | None, float | None]:
  if not len(values_S):
    return None, None
  low, high = np.percentile(values_S, [2.5, 97.5])
  # With equal examples the sums differ in the last bit from the plain one; the interval holds its
  # value.
  return min(float(low), value), max(float(high), value)
