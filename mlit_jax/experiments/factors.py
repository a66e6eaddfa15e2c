"""What transfer goes with: correlations of the transfer matrix with covariates of languages and of pairs.

A pair's transfer is what the model tuned on one language reaches in another; a language's is the
mean of its pairs. Only arms tuned on a single language count, and never the language itself. Each is
also given less the mean of its evaluated language ("within"): languages differ in how high any model scores
there (a loss most of all), and that is no transfer.

The pairs of 12 languages are 132, but no 132 independent things: a tuned language stands in 11 of
them. So for pairs the interval resamples tuned languages, each with all of its pairs (a cluster
bootstrap, expanded percentiles), and p is Mantel's (1967): the covariate's languages are renamed at random, rows
and columns alike, which keeps the dependence as it is. Renaming needs every pair of the covariate;
where some lack, no p is given. Resampling leaves evaluated languages as they are, so the interval speaks of
other tuned languages, not of other evaluated ones.

For languages the points are independent: Fisher's interval for Pearson, Bonett and Wright's (2000) for Spearman,
p by exchanging the covariate's values among languages.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

from mlit_jax.evals.statistics import Z_95, interval_of_draws
from mlit_jax.experiments.cells import UNTESTED, metrics_of, value_of
from mlit_jax.experiments.outcomes import Outcome
from mlit_jax.experiments.sweep_files import Covariate, Sweep
from mlit_jax.experiments.transfer import runs_of

NUM_DRAWS, NUM_PERMUTATIONS = 2000, 9999
MOST_ENUMERATED = 5040  # renamings of 7 languages
FEW_LANGUAGES, LEAST_LANGUAGES = 10, 4
PEARSON, SPEARMAN = "Pearson", "Spearman"


@dataclasses.dataclass(frozen=True)
class Correlation:
  """One coefficient. n: points; languages: how many tuned ones they come from. within: see above."""

  covariate: str
  kind: str
  metric: str
  coefficient: str
  within: bool
  value: float | None
  low: float | None
  high: float | None
  p_value: float | None
  n: int
  languages: int
  warning: str = ""


def correlations(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[Correlation]:
  """Pearson's and Spearman's of every metric with every covariate, as it is and within evaluated languages."""
  out = []
  tested = [metric for metric in metrics_of(sweep, outcomes) if metric not in UNTESTED]
  for metric in tested if sweep.covariates else ():
    plain = pair_values(metric, sweep, outcomes)
    for covariate in sweep.covariates:
      for within in (False, True):
        values = centred(plain) if within else plain
        out += correlate(covariate, values, metric, within, base=sweep.base)
  return out


def pair_values(metric: str, sweep: Sweep, outcomes: Mapping[str, Outcome]) -> dict:
  """{(tuned, evaluated): mean over the finished runs of the arms tuned on that language alone}, own language left out."""
  found: dict = {}
  for arm in sweep.arms:
    if len(arm.tuned) != 1:
      continue
    for run in runs_of(arm.name, sweep, outcomes):
      for lang in sweep.languages:
        value = value_of(run, metric, lang)
        if value is not None and lang != arm.tuned[0]:
          found.setdefault((arm.tuned[0], lang), []).append(value)
  return {pair: float(np.mean(values)) for pair, values in found.items()}


def centred(values: Mapping[tuple[str, str], float]) -> dict:
  """Less the mean of each evaluated language."""
  by_column: dict = {}
  for (_, lang), value in values.items():
    by_column.setdefault(lang, []).append(value)
  return {
    (tuned, lang): value - float(np.mean(by_column[lang]))
    for (tuned, lang), value in values.items()
  }


def correlate(
  covariate: Covariate, values: Mapping, metric: str, within: bool = False, base: str = ""
) -> list[Correlation]:
  """Both coefficients of one covariate."""
  find = _of_pairs if covariate.kind == "pair" else _of_languages
  rows = []
  for name, coefficient in ((PEARSON, pearson), (SPEARMAN, spearman)):
    value, low, high, p, n, languages = find(covariate, values, name, coefficient, base)
    warning = ""
    if languages < LEAST_LANGUAGES:
      warning = f"{languages} languages: too few for a coefficient"
      value = low = high = p = None
    elif value is None:
      warning = "one of the two does not vary"
    elif languages < FEW_LANGUAGES:
      warning = f"only {languages} languages: one of them can make or break this"
    rows.append(
      Correlation(
        covariate.name, covariate.kind, metric, name, within, value, low, high, p, n, languages, warning
      )
    )  # fmt: skip
  return rows


def pearson(x, y) -> np.ndarray:
  """Along the last axis; NaN where one of the two does not vary."""
  x, y = (np.asarray(v, np.float64) for v in (x, y))
  x, y = (v - v.mean(axis=-1, keepdims=True) for v in (x, y))
  size = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
  dots = (x * y).sum(axis=-1)
  return np.divide(dots, size, out=np.full(np.shape(dots), np.nan), where=size > 1e-12)


def spearman(x, y) -> np.ndarray:
  """Pearson's of the ranks; equal values share their mean rank."""
  return pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


def _of_pairs(covariate: Covariate, values: Mapping, name: str, coefficient: Callable, _base):
  pairs = sorted((a, b) for a, b in values if b in covariate.values.get(a, {}))
  tuned = sorted({a for a, _ in pairs})
  x = np.array([covariate.values[a][b] for a, b in pairs], np.float64)
  y = np.array([values[p] for p in pairs])
  value = _one(coefficient, x, y)
  if value is None or len(tuned) < LEAST_LANGUAGES:
    return value, None, None, None, len(pairs), len(tuned)
  of = [np.array([i for i, p in enumerate(pairs) if p[0] == a]) for a in tuned]
  rng, draws = np.random.default_rng(0), []
  for _ in range(NUM_DRAWS):
    chosen = np.concatenate([of[k] for k in rng.integers(0, len(tuned), len(tuned))])
    draws.append(coefficient(x[chosen], y[chosen]))
  draws = np.array(draws)
  low, high = interval_of_draws(draws[~np.isnan(draws)], value, n=len(tuned))
  p_value = _mantel(covariate.values, pairs, y, value, coefficient)
  return value, max(low, -1.0), min(high, 1.0), p_value, len(pairs), len(tuned)


def _mantel(covariate: Mapping, pairs, y, value: float, coefficient: Callable) -> float | None:
  languages = sorted({lang for pair in pairs for lang in pair})
  if any(b not in covariate.get(a, {}) for a, b in itertools.permutations(languages, 2)):
    return None
  table_LL = np.array(
    [[0.0 if a == b else covariate[a][b] for b in languages] for a in languages], np.float64
  )
  rows, columns = (np.array([languages.index(p[side]) for p in pairs]) for side in (0, 1))
  return _permutation_p(
    value,
    len(languages),
    lambda orders: coefficient(table_LL[orders[:, rows], orders[:, columns]], y),
  )


def _of_languages(covariate: Covariate, values: Mapping, name: str, coefficient: Callable, base):
  by_tuned: dict = {}
  for (a, _), value in values.items():
    if a != base and a in covariate.values:
      by_tuned.setdefault(a, []).append(value)
  tuned = sorted(by_tuned)
  x = np.array([covariate.values[a] for a in tuned], np.float64)
  y = np.array([np.mean(by_tuned[a]) for a in tuned])
  value, n = _one(coefficient, x, y), len(tuned)
  if value is None or n < LEAST_LANGUAGES:
    return value, None, None, None, n, n
  error = math.sqrt((1 + value**2 / 2 if name == SPEARMAN else 1) / (n - 3))
  z = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))
  low, high = (math.tanh(z + sign * Z_95 * error) for sign in (-1, 1))
  p_value = _permutation_p(value, n, lambda orders: coefficient(x[orders], y))
  return value, low, high, p_value, n, n


def _one(coefficient: Callable, x, y) -> float | None:
  found = float(coefficient(x, y)) if len(x) > 1 else math.nan
  return None if math.isnan(found) else found


def _permutation_p(value: float, n: int, at: Callable[[np.ndarray], np.ndarray]) -> float:
  """Two-sided: how often a renaming is as far from 0; all are tried where they are few."""
  if math.factorial(n) <= MOST_ENUMERATED:
    found_S = at(np.array(list(itertools.permutations(range(n)))))
    return float(np.mean(np.abs(found_S) >= abs(value) - 1e-9))
  rng = np.random.default_rng(0)
  found_S = at(rng.permuted(np.tile(np.arange(n), (NUM_PERMUTATIONS, 1)), axis=1))
  count = int(np.sum(np.abs(found_S) >= abs(value) - 1e-9))
  return (1 + count) / (1 + NUM_PERMUTATIONS)
