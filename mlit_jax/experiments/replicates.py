"""Replicates of the points of a curve: what counts as one, their interval, tests between points, sources of variance.

Replicates are not independent just because they are many. Those that share a run count as one (an
arm without the factor is often trained once and stands under every draw), and those that share the
examples drawn, or another factor such as the order of languages, are alike. So they are averaged
within each level of what may be shared, and the levels are counted:

  other factors (three or more combinations)   a unit each
  draws (three or more)                        a unit each
  seeds                                        a unit each, only where neither of these is there

Where both of the first two are there, a test is made over each, and the larger p counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from scipy import stats

from mlit_jax.evals.statistics import Figure

LEAST_UNITS = 3
OTHERS, DRAWS, SEEDS, RUNS = (
  "settings of the other factors",
  "draws of examples",
  "training seeds",
  "runs",
)


@dataclasses.dataclass(frozen=True)
class Replicate:
  """One run at one point. others: its other factors."""

  others: Hashable
  draw: int
  seed: int
  run: str
  value: float

  @property
  def key(self) -> tuple:
    return self.others, self.draw, self.seed


Points = Mapping[object, Sequence[Replicate]]  # x -> its replicates


@dataclasses.dataclass(frozen=True)
class Tested:
  """A contrast between points over independent units, and the p values of "it is not above 0" and "it is 0"."""

  value: float
  low: float | None
  high: float | None
  p_above: float
  p_two_sided: float
  units: int
  over: str  # what the units are


def point_figure(replicates: Sequence[Replicate]) -> tuple[Figure, str]:
  """Mean over units with Student's interval, and what the units are; n is their number.

  A single unit has no interval here, nor have equal ones: they have no spread, whatever the truth.
  """
  values = {(r.key, r.run): r for r in replicates}
  over, part = next(iter(_levels(replicates)), (RUNS, None))
  units = _units([(r, r.value, {r.run}) for r in values.values()], part)
  mean, n = float(np.mean(units)), len(units)
  if not _vary(units):
    return Figure(mean, n), over
  half = float(stats.t.ppf(0.975, n - 1) * np.std(units, ddof=1) / np.sqrt(n))
  return Figure(mean, n, mean - half, mean + half), over


def contrast(points: Points, weights: Mapping[object, float]) -> Tested | None:
  """A paired t test of sum(weight of x * value at x) over the replicates that stand at all of these x.

  None where fewer than three independent units are left, or where they do not vary at all.
  """
  by_x = {x: {r.key: r for r in points[x]} for x in weights}
  keys = sorted(set.intersection(*(set(of) for of in by_x.values())), key=repr)
  rows = []
  for key in keys:
    here = {x: by_x[x][key] for x in weights}
    value = sum(weight * here[x].value for x, weight in weights.items())
    rows.append((next(iter(here.values())), value, {r.run for r in here.values()}))
  tests = [_student(over, _units(rows, part)) for over, part in _levels([r for r, *_ in rows])]
  tests = [test for test in tests if test]
  # Each is valid if the other source of variance is nil; the larger p is if either is.
  return max(tests, key=lambda test: test.p_two_sided, default=None)


def _student(over: str, units: Sequence[float]) -> Tested | None:
  n = len(units)
  if n < LEAST_UNITS or not _vary(units):
    return None
  mean, deviation = float(np.mean(units)), float(np.std(units, ddof=1))
  error = deviation / n**0.5
  t = mean / error
  half = float(stats.t.ppf(0.975, n - 1)) * error
  p_above = float(stats.t.sf(t, n - 1))
  return Tested(mean, mean - half, mean + half, p_above, 2 * min(p_above, 1 - p_above), n, over)


def _vary(units: Sequence[float]) -> bool:
  return float(np.ptp(units)) > 1e-12 * (1 + float(np.abs(units).max()))


def _levels(replicates: Sequence[Replicate]) -> list[tuple[str, Callable]]:
  """What to count by: (its name, the level of a replicate)."""
  found = [
    (OTHERS, lambda r: r.others),
    (DRAWS, lambda r: r.draw),
    (SEEDS, lambda r: r.seed),
  ]
  enough = [
    (over, part) for over, part in found if len({part(r) for r in replicates}) >= LEAST_UNITS
  ]
  first = [level for level in enough if level[0] != SEEDS]
  return first or enough


def _units(rows, part: Callable | None) -> list[float]:
  """Means of (replicate, value, its runs) within a level, levels that share a run taken together."""
  parent: dict = {}

  def root(x):
    while parent.setdefault(x, x) != x:
      x = parent[x]
    return x

  for i, (replicate, _, runs) in enumerate(rows):
    mine = ("level", part(replicate)) if part else ("row", i)
    for run in runs:
      parent[root(("run", run))] = root(mine)
  levels: dict = {}
  for i, (replicate, value, _) in enumerate(rows):
    mine = ("level", part(replicate)) if part else ("row", i)
    levels.setdefault(root(mine), []).append(value)
  return [float(np.mean(values)) for values in levels.values()]


# --- where the variance comes from


@dataclasses.dataclass(frozen=True)
class Variance:
  """Variance of replicates around their point: due to the draw of examples, and to the training seed.

  share: the draw's part of the two, with its 95 % interval; None, with a reason in `why`, where
  there is too little to tell. freedom: degrees of freedom between and within draws.
  """

  draw: float | None
  seed: float | None
  share: float | None
  low: float | None
  high: float | None
  freedom: tuple[int, int]
  why: str = ""


def variance_parts(points: Points) -> Variance:
  """Random effects, seeds within draws, pooled over the points of a curve and its other factors.

  Mean squares between and within draws (one-way analysis of variance in each point and setting of
  the other factors, sums of squares added up): the seeds' variance is that within, the draws' is
  (between - within) / n0, not below 0, with n0 = (N - sum n_i^2 / N) / (a - 1) in each part. The
  interval of the draw's share is the exact one of balanced normal data (Searle, Casella and
  McCulloch 1992, section 3.6), with n0 in the place of the number of seeds.
  """
  between = within = n0_sum = 0.0
  free_between = free_within = 0
  for replicates in points.values():
    for others in dict.fromkeys(r.others for r in replicates):
      mine = {r.run: r for r in replicates if r.others == others}.values()
      draws: dict = {}
      for r in mine:
        draws.setdefault(r.draw, []).append(r.value)
      sizes = [len(values) for values in draws.values()]
      if len(sizes) < 2 or max(sizes) < 2:
        continue
      total, a = sum(sizes), len(sizes)
      whole = sum(sum(values) for values in draws.values()) / total
      means = [float(np.mean(values)) for values in draws.values()]
      between += sum(n * (mean - whole) ** 2 for n, mean in zip(sizes, means))
      within += sum((v - mean) ** 2 for values, mean in zip(draws.values(), means) for v in values)
      free_between, free_within = free_between + a - 1, free_within + total - a
      n0_sum += total - sum(n * n for n in sizes) / total
  freedom = free_between, free_within
  if not free_between or not free_within:
    why = "no point has several draws with several training seeds each"
    return Variance(None, None, None, None, None, freedom, why)
  n0 = n0_sum / free_between
  of_seed, mean_between = within / free_within, between / free_between
  of_draw = max(0.0, (mean_between - of_seed) / n0)
  if of_seed <= 0:
    why = "the training seed changes nothing" if of_draw else "the replicates do not vary"
    return Variance(of_draw, of_seed, 1.0 if of_draw else None, None, None, freedom, why)
  ratio = mean_between / of_seed
  ends = []
  for tail in (0.975, 0.025):
    part = (ratio / float(stats.f.ppf(tail, *freedom)) - 1) / n0
    ends.append(min(1.0, max(0.0, part / (1 + part))) if part > -1 else 0.0)
  why = ""
  if min(freedom) < 10:
    why = f"little to tell from: {free_between} and {free_within} degrees of freedom"
  return Variance(of_draw, of_seed, of_draw / (of_draw + of_seed), *ends, freedom, why)
