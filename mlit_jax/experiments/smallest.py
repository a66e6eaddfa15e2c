"""Does a curve move at all, and which is its smallest point not significantly below the best?

The best point is picked on the same data that it is tested on. A test of each point against it would
find it "significantly better" than its fair share: among five equal points, the lowest differs
from the highest far more often than one time in twenty. So no point is "the best" in advance. For each x the
hypothesis is "x is the best, or as good as the best": that no other point lies above it. It is
tested against every other point (one-sided), and the smallest p is multiplied by the number of other
points (Bonferroni). The points that are not rejected are a confidence set for the best (multiple comparisons with
the best: Hsu 1981, Annals of Statistics 9; with Bonferroni in the place of Dunnett's quantile, so that paired
tests with variances of their own may go in). What is true of it:

* The smallest x that is truly at the top is rejected in at most 5 % of sweeps, whatever the other
  points do and whichever looks best: so "the smallest is S" is too large in at most 5 %.
* It may be too small where there is little data: a point that is not rejected is not proven equal.

Points x need no correction among each other for this: each is in the set or not on its own.

First comes one test of whether the curve moves: the first x against the mean of all others. Only
if that rejects is a smallest x named, so that without any effect a claim is made in at most 5 % of
sweeps for one metric and group. Over several, Holm's adjustment stands beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mlit_jax.evals.comparing import ALPHA, macro_difference
from mlit_jax.experiments.replicates import Points, Tested, contrast
from mlit_jax.metrics import LOWER_IS_BETTER

PROMPTS = "prompts"
UNTESTED, NONE, RISES, FALLS, UNCLEAR = "untested", "no effect found", "rises", "falls", "unclear"

Contrast = Callable[[Mapping[object, float]], Tested | None]


@dataclasses.dataclass(frozen=True)
class Beside:
  """A point beside the others: the one that lies above it most surely, by how much, and the p value for all."""

  x: object
  mean: float
  above: object
  difference: Tested
  adjusted: float
  is_below: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What one curve says, in the sense of the metric: positive differences are better.

  over: what the tests count (draws, seeds, prompts, ...). smallest: only where `says` is "rises".
  left_out: points without enough replicates to be tested. why: why there is no test.
  """

  says: str
  first: object
  moves: Tested | None = None
  best: object = None
  smallest: object = None
  beside: tuple[Beside, ...] = ()
  over: str = ""
  left_out: tuple = ()
  why: str = ""


def verdict(
  points: Points, metric: str, tables: Mapping[object, np.ndarray] | None = None, bounds=None
) -> Verdict:
  """The verdict over replicates if they allow a test, else over prompts, else none.

  points: ascending in x. tables: {x: scores [prompt, language]}, means over the runs at x; None where
  a metric has no scores of single prompts.
  """
  sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
  points = {
    x: [dataclasses.replace(r, value=sign * r.value) for r in found]
    for x, found in points.items()
    if found
  }
  if len(points) < 2:
    return Verdict(UNTESTED, next(iter(points), None), why="there are fewer than two points")
  first = next(iter(points))
  means = {
    x: float(np.mean([r.value for r in {r.run: r for r in of}.values()]))
    for x, of in points.items()
  }
  usable = [x for x in points if x == first or contrast(points, {first: -1.0, x: 1.0})]
  if len(usable) > 1:
    by_replicates: Contrast = lambda weights: contrast(points, weights)  # noqa: E731
    found = _verdict({x: means[x] for x in usable}, by_replicates)
    if found:
      left = tuple(x for x in points if x not in usable)
      return dataclasses.replace(found, left_out=left)
  lacking = "fewer than three independent replicates stand at the first point and another"
  if tables is None or any(x not in tables or not len(tables[x]) for x in points):
    return Verdict(
      UNTESTED, first, why=f"{lacking}, and there are no scores of the same single prompts"
    )
  found = _verdict(means, lambda weights: over_prompts(tables, weights, sign, bounds))
  why = f"{lacking}, or they do not vary"
  return dataclasses.replace(found, why=why) if found else Verdict(UNTESTED, first, why=why)


def over_prompts(
  tables: Mapping[object, np.ndarray], weights: Mapping[object, float], sign: float, bounds=None
) -> Tested | None:
  """The contrast of these very models over prompts; translations are drawn and swapped together."""
  plus = sum(weight * tables[x] for x, weight in weights.items() if weight > 0)
  minus = sum(-weight * tables[x] for x, weight in weights.items() if weight < 0)
  found = macro_difference(
    sign * plus, sign * minus, bounds=None if bounds is None else _turned(bounds, sign)
  )
  figure = found.figure
  if figure.value is None or found.p_value is None:
    return None
  # Of a symmetric test, the half on the side of the difference.
  p_above = found.p_value / 2 if figure.value > 0 else 1 - found.p_value / 2
  return Tested(figure.value, figure.low, figure.high, p_above, found.p_value, len(plus), PROMPTS)


def _verdict(means: Mapping, tested: Contrast) -> Verdict | None:
  """None if the contrasts cannot be tested."""
  first, *others = means
  moves = tested({first: -1.0} | dict.fromkeys(others, 1 / len(others)))
  if moves is None:
    return None
  beside = tuple(b for x in means if (b := _beside(x, means, tested)))
  best = max(means, key=lambda x: means[x])
  kept = [x for x in means if not any(b.x == x and b.is_below for b in beside)]
  smallest = None
  if moves.p_two_sided > ALPHA:
    says = NONE
  elif moves.value < 0:
    says = FALLS
  elif kept and kept[0] != first:
    says, smallest = RISES, kept[0]
  else:
    says = UNCLEAR
  return Verdict(says, first, moves, best, smallest, beside, moves.over)


def _beside(x, means: Mapping, tested: Contrast) -> Beside | None:
  found = {y: t for y in means if y != x and (t := tested({x: -1.0, y: 1.0}))}
  if not found:
    return None
  above = min(found, key=lambda y: (found[y].p_above, -found[y].value))
  adjusted = min(1.0, (len(means) - 1) * found[above].p_above)
  return Beside(x, means[x], above, found[above], adjusted, adjusted <= ALPHA)


def _turned(bounds: Sequence[float], sign: float) -> tuple[float, float]:
  low, high = sorted(sign * b for b in bounds)
  return low, high
