"""Figures with their number of examples and a 95 % interval, clustered by prompt.

Which interval, and why:

* Shares and other values with known ends: Wilson's score interval. Where several values share a
  prompt, or values lie between the ends, n is replaced by the effective n that the variance between
  prompts implies, and the normal quantile by Student's (Korn and Graubard 1998, Survey Methodology
  24; Dean and Pagano 2015, J. Survey Statistics and Methodology 3).
* Anything else: bootstrap over prompts, with the percentiles expanded so that few prompts do not
  make it too narrow (Hesterberg 2015, The American Statistician 69, "expanded percentile").
* A bootstrap of equal values has no spread, whatever the truth. Where the ends of the values are
  known, n equal values still leave room for a share 1 - 0.025^(1/n) of others (the rule of three:
  Hanley and Lippman-Hand 1983, JAMA 249), and the interval is at least that; where they are not,
  there is no interval.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import special  # scipy.stats takes half a second to import

Z_95 = 1.959963984540054
NUM_DRAWS = 2000
# Resampling counts are float64; 4M of them are 32 MB, whatever the number of examples.
MAX_COUNTS_AT_ONCE = 4_000_000
MAX_COUNTS_KEPT = 2_000_000
# Fewer prompts than this that differ from the commonest value do not carry a bootstrap.
FEW_DIFFERENT = 5
# Percentiles of a bootstrap of fewer prompts fall short even expanded (90 % at five, by simulation).
FEW_CLUSTERS = 10


@dataclasses.dataclass(frozen=True)
class Figure:
  """A value over n examples and the 95 % interval around it.

  value is None where there is nothing to say: no examples, or a sum that is not finite (n tells
  which). low and high are None where an interval cannot be had: a single prompt, or equal values
  without known ends, have no spread.
  """

  value: float | None
  n: int
  low: float | None = None
  high: float | None = None


def proportion_figure(hits, trials=None, *, clusters=None) -> Figure:
  """sum(hits) / sum(trials) with Wilson's interval; each of the hits lies within 0 and its trials.

  trials None: one for each. clusters: an id for each; those of one prompt stay together.
  """
  hits = np.asarray(hits, dtype=np.float64)
  trials = np.ones_like(hits) if trials is None else np.asarray(trials, dtype=np.float64)
  n, num_trials = len(hits), trials.sum()
  if n == 0 or not np.isfinite([hits.sum(), num_trials]).all() or num_trials <= 0:
    return Figure(None, n)
  if (hits < 0).any() or (hits > trials).any():
    raise ValueError("a share needs hits within 0 and the trials of each example")
  sums_G2 = cluster_sums(np.stack([hits, trials], -1), clusters)
  return Figure(float(hits.sum() / num_trials), n, *_share_interval(*sums_G2.T))


def wilson_interval(num_hits: float, n: float, quantile: float = Z_95) -> tuple[float, float]:
  """The Wilson score interval (95 % by default) of num_hits out of n > 0; both may be fractional."""
  share = num_hits / n
  spread = 1 + quantile**2 / n
  centre = (share + quantile**2 / (2 * n)) / spread
  half = quantile / spread * math.sqrt(share * (1 - share) / n + quantile**2 / (4 * n**2))
  # Rounding can leave the bound of an all-or-nothing share a hair beyond the share itself.
  return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)


def mean_figure(values, *, clusters=None, bounds=None, seed: int = 0) -> Figure:
  """Mean over examples; bounds are the ends that the values cannot leave, None where unknown."""
  values = np.asarray(values, dtype=np.float64)
  if bounds is None:
    return ratio_figure(values, np.ones_like(values), clusters=clusters, seed=seed)
  low, high = bounds
  figure = proportion_figure(_to_unit(values, 1.0, bounds), clusters=clusters)
  if figure.value is None:
    return figure
  return Figure(
    float(values.mean()),
    figure.n,
    min(low + (high - low) * figure.low, float(values.mean())),
    max(low + (high - low) * figure.high, float(values.mean())),
  )


def ratio_figure(
  numerators, denominators, *, clusters=None, seed: int = 0, scale: float = 1.0
) -> Figure:
  """scale * sum(numerators) / sum(denominators), with a bootstrap interval over prompts.

  An example is drawn with both of its sums: the ratio weighs tokens (or bytes), never means of
  means. clusters: an id for each example; those of one prompt are drawn together.
  """
  columns_N2 = np.stack(
    [np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], -1
  )
  n, total_2 = len(columns_N2), columns_N2.sum(axis=0)
  if n == 0 or not np.isfinite(total_2).all() or total_2[1] <= 0:
    return Figure(None, n)
  value = float(scale * total_2[0] / total_2[1])
  sums_G2 = cluster_sums(columns_N2, clusters)
  error = standard_error(sums_G2[:, 0] - total_2[0] / total_2[1] * sums_G2[:, 1], total_2[1])
  if error is None or error <= 1e-12 * np.abs(columns_N2[:, 0]).sum() / total_2[1]:
    return Figure(value, n)
  sums_S2 = resample_sums(sums_G2, seed=seed)
  # A draw can hold only examples without tokens; it says nothing about the ratio.
  sums_S2 = sums_S2[sums_S2[:, 1] > 0]
  low, high = interval_of_draws(scale * sums_S2[:, 0] / sums_S2[:, 1], value, n=len(sums_G2))
  return Figure(value, n, *at_least_student(low, high, value, scale * error, len(sums_G2)))


def macro_figure(
  numerators_GL, denominators_GL, *, seed: int = 0, scale: float = 1.0, bounds=None
) -> Figure:
  """Unweighted mean over languages of each language's ratio of sums, examples drawn jointly.

  A row is a group: the same example in other languages, drawn or left out as one, because parallel
  examples are hard or easy together. NaN in the denominator says that the group lacks the language.
  Groups are drawn among those that hold the same languages, so each language keeps its number of
  examples in every draw. n is the number of cells that are there.

  bounds: the ends that a ratio cannot leave, (0, 1) for shares. The interval is then at least the
  one that the languages' own intervals give together as if independent (square and add: Zou and
  Donner 2008, Statistics in Medicine 27), or all hits would claim an interval without width.
  """
  num_GL, den_GL, present_GL = without_nan(numerators_GL, denominators_GL)
  n = int(present_GL.sum())
  num_L, den_L = num_GL.sum(axis=0), den_GL.sum(axis=0)
  if n == 0 or not np.isfinite([num_L, den_L]).all() or (den_L <= 0).any():
    return Figure(None, n)
  ratio_L = num_L / den_L
  value = float(scale * ratio_L.mean())

  ends = []
  influence_G = ((num_GL - ratio_L * den_GL) / den_L).mean(axis=1)
  # Languages without spread of their own bring no width; with bounds their own intervals do.
  if np.abs(influence_G).max() > 1e-12 * (np.abs(num_GL).sum(axis=0) / den_L).max():
    num_SL, den_SL, strata = resample_groups(present_GL, num_GL, den_GL, seed=seed)
    usable_S = (den_SL > 0).all(axis=1)
    draws_S = scale * (num_SL[usable_S] / den_SL[usable_S]).mean(axis=1)
    low, high = interval_of_draws(draws_S, value, n=len(num_GL), strata=strata)
    error = scale * stratified_error(influence_G, present_GL)
    ends.append(at_least_student(low, high, value, error, len(num_GL), strata))
  if bounds is not None:
    ends_L2 = np.array(
      [
        _share_interval(_to_unit(num_GL[rows, k], den_GL[rows, k], bounds, scale), den_GL[rows, k])
        for k, rows in enumerate(present_GL.T)
      ]
    )
    ends_L2 = bounds[0] + (bounds[1] - bounds[0]) * ends_L2
    ends.append(square_and_add(scale * ratio_L, ends_L2))
  ends = [(low, high) for low, high in ends if low is not None]
  if not ends:
    return Figure(value, n)
  low, high = min(low for low, _ in ends), max(high for _, high in ends)
  if bounds is not None:
    low, high = min(max(low, bounds[0]), value), max(min(high, bounds[1]), value)
  return Figure(value, n, low, high)


def cluster_sums(columns_NC: np.ndarray, clusters: Iterable | None) -> np.ndarray:
  """Column sums of each cluster, in the order of their first rows: [G, C]; None: a row each."""
  if clusters is None:
    return columns_NC
  numbers: dict = {}
  index_N = np.array([numbers.setdefault(c, len(numbers)) for c in clusters], dtype=np.int64)
  if len(index_N) != len(columns_NC):
    raise ValueError(f"{len(index_N)} cluster ids for {len(columns_NC)} examples")
  sums_GC = np.zeros((len(numbers), columns_NC.shape[1]))
  np.add.at(sums_GC, index_N, columns_NC)
  return sums_GC


def resample_sums(columns_NC: np.ndarray, *, seed, num_draws: int = NUM_DRAWS) -> np.ndarray:
  """Column sums of num_draws resamples of the rows with replacement: [num_draws, C].

  Rows are sorted first: the draws depend on what the rows are, not on the order of a file.
  """
  n = len(columns_NC)
  columns_NC = columns_NC[np.lexsort(columns_NC.T)]
  if num_draws * n <= min(MAX_COUNTS_KEPT, MAX_COUNTS_AT_ONCE):
    return _kept_counts(n, num_draws, seed) @ columns_NC
  rng, draws_at_once = np.random.default_rng(seed), max(1, MAX_COUNTS_AT_ONCE // n)
  return np.concatenate(
    [
      _counts(n, min(draws_at_once, num_draws - start), rng) @ columns_NC
      for start in range(0, num_draws, draws_at_once)
    ]
  )


def resample_groups(present_GL: np.ndarray, *columns_GC: np.ndarray, seed: int):
  """Sums [S, C] of each of the columns over jointly drawn groups, and the number of strata.

  Groups are drawn among those that hold the same languages.
  """
  stratum_G, num_strata = _strata(present_GL)
  all_GC = np.concatenate(columns_GC, axis=1)
  sums_SC = sum(resample_sums(all_GC[stratum_G == k], seed=(seed, k)) for k in range(num_strata))
  ends = np.cumsum([c.shape[1] for c in columns_GC])[:-1]
  return *np.split(sums_SC, ends, axis=1), num_strata


def interval_of_draws(
  values_S: np.ndarray, value: float, *, n: int, strata: int = 1
) -> tuple[float | None, float | None]:
  """Expanded percentiles of bootstrap draws over n prompts that were drawn within strata.

  Draws of n prompts vary by (n - 1)/n of what they should, and their variance is an estimate: both
  are mended by taking the percentile Phi(-sqrt(n / (n - 1)) t) in the place of 2.5 %. (None, None)
  without draws or degrees of freedom.
  """
  freedom = n - strata
  if not len(values_S) or freedom < 1:
    return None, None
  tail = _expanded_tail(n, freedom)
  low, high = np.quantile(values_S, [tail, 1 - tail])
  # With equal examples the sums differ in the last bit from the plain one; the interval holds its
  # value.
  return min(float(low), value), max(float(high), value)


def standard_error(residuals_G: np.ndarray, total: float) -> float | None:
  """Of a ratio of sums, from the residuals numerator - ratio * denominator of the clusters."""
  num_clusters = len(residuals_G)
  if num_clusters < 2:
    return None
  return math.sqrt(num_clusters / (num_clusters - 1) * float(np.square(residuals_G).sum())) / total


def stratified_error(influence_G: np.ndarray, present_GL: np.ndarray) -> float:
  """Standard error of the sum of what each group adds, drawn among groups of the same languages."""
  stratum_G, num_strata = _strata(present_GL)
  total = 0.0
  for k in range(num_strata):
    some = influence_G[stratum_G == k]
    if len(some) > 1:
      total += len(some) * float(some.var(ddof=1))
  return math.sqrt(total)


def at_least_student(low, high, value: float, error: float, n: int, strata: int = 1):
  """The interval, widened to Student's where a bootstrap has too few prompts to draw from."""
  if n - strata >= FEW_CLUSTERS - 1 or low is None:
    return low, high
  half = _student(n - strata) * error
  return min(low, value - half), max(high, value + half)


def at_least_rule_of_three(low, high, value: float, bounds, values_G: np.ndarray):
  """The interval, widened to what that many equal values leave open where nearly all are equal."""
  values_G = np.asarray(values_G)
  _, counts = np.unique(values_G.round(12), return_counts=True)
  num_different = len(values_G) - counts.max()
  if num_different >= FEW_DIFFERENT or num_different > len(values_G) / 2:
    return low, high
  others = 1 - 0.025 ** (1 / len(values_G))  # at this share, so many are equal once in 40 times
  return (
    min(value if low is None else low, value - others * (value - bounds[0])),
    max(value if high is None else high, value + others * (bounds[1] - value)),
  )


def square_and_add(value_L: np.ndarray, ends_L2: np.ndarray) -> tuple[float, float]:
  """Interval of the mean of independent values from the interval of each."""
  value, num = float(value_L.mean()), len(value_L)
  return (
    value - float(np.sqrt(np.square(value_L - ends_L2[:, 0]).sum())) / num,
    value + float(np.sqrt(np.square(ends_L2[:, 1] - value_L).sum())) / num,
  )


def without_nan(numerators_GL, denominators_GL) -> Sequence[np.ndarray]:
  """Both with 0 where the denominator is NaN, and where it is not."""
  num_GL, den_GL = np.asarray(numerators_GL, np.float64), np.asarray(denominators_GL, np.float64)
  present_GL = ~np.isnan(den_GL)
  return np.where(present_GL, num_GL, 0.0), np.where(present_GL, den_GL, 0.0), present_GL


def _share_interval(hits_G: np.ndarray, trials_G: np.ndarray) -> tuple[float, float]:
  hits_G, trials_G = hits_G[trials_G > 0], trials_G[trials_G > 0]
  share, num_clusters = float(hits_G.sum() / trials_G.sum()), len(hits_G)
  if (trials_G == 1).all() and np.isin(hits_G, (0, 1)).all():
    return wilson_interval(share * num_clusters, num_clusters)
  error = standard_error(hits_G - share * trials_G, float(trials_G.sum()))
  low = high = share
  if error is not None:
    # At 0 and 1 nothing is seen of the variance: as many trials as prompts, the careful reading.
    effective_n = num_clusters if share in (0, 1) else share * (1 - share) / max(error**2, 1e-30)
    low, high = wilson_interval(share * effective_n, effective_n, _student(num_clusters - 1))
  return at_least_rule_of_three(low, high, share, (0.0, 1.0), hits_G / trials_G)


def _strata(present_GL: np.ndarray) -> tuple[np.ndarray, int]:
  """A number for each group, the same where the languages are, and how many there are."""
  patterns, stratum_G = np.unique(present_GL, axis=0, return_inverse=True)
  return stratum_G.reshape(-1), len(patterns)  # numpy 2.0 alone keeps the reduced axis


def _to_unit(numerators, denominators, bounds, scale: float = 1.0) -> np.ndarray:
  """Numerators of the same ratios on a scale on which the bounds are 0 and 1."""
  low, high = bounds
  unit = (scale * numerators - low * denominators) / (high - low)
  if (unit < -1e-9 * denominators).any() or (unit > (1 + 1e-9) * denominators).any():
    raise ValueError(f"values leave their bounds {low} to {high}")
  return np.clip(unit, 0.0, denominators)


@functools.lru_cache(maxsize=64)
def _student(freedom: int) -> float:
  return float(special.stdtrit(freedom, 0.975))


@functools.lru_cache(maxsize=64)
def _expanded_tail(n: int, freedom: int) -> float:
  return float(special.ndtr(-math.sqrt(n / freedom) * _student(freedom)))


@functools.lru_cache(maxsize=4)  # languages of one size, and metrics of one set, draw alike
def _kept_counts(n: int, num_draws: int, seed) -> np.ndarray:
  counts_SN = _counts(n, num_draws, np.random.default_rng(seed))
  counts_SN.flags.writeable = False
  return counts_SN


def _counts(n: int, num_draws: int, rng: np.random.Generator) -> np.ndarray:
  """How often each of n rows is in each of the draws: [num_draws, n]."""
  index_SN = rng.integers(0, n, (num_draws, n)) + n * np.arange(num_draws)[:, None]
  counts_S = np.bincount(index_SN.reshape(-1), minlength=num_draws * n)
  return counts_S.reshape(num_draws, n).astype(np.float64)
