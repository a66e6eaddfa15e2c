"""The curves of a sweep: points over a factor for each metric and group of languages, and what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mlit_jax.evals.comparing import Adjusted, holm
from mlit_jax.evals.statistics import Figure
from mlit_jax.experiments import smallest
from mlit_jax.experiments.cells import (
  GROUPS,
  MACRO,
  PROMPT_BOUNDS,
  UNTESTED,
  group_figure,
  group_value,
  languages_of,
  metrics_of,
  score_table,
  value_of,
  within_bounds,
)
from mlit_jax.experiments.outcomes import FINISHED, Outcome
from mlit_jax.experiments.replicates import (
  RUNS,
  Points,
  Replicate,
  Variance,
  point_figure,
  variance_parts,
)
from mlit_jax.experiments.sweep_files import SEEN, UNSEEN, Curve, Sweep

TESTED_GROUPS = (MACRO, SEEN, UNSEEN)


@dataclasses.dataclass(frozen=True)
class Point:
  """Mean and interval at one x, every run's value, what the interval counts, and how many runs there should be."""

  x: object
  figure: Figure
  dots: tuple[float, ...]
  over: str
  planned: int


@dataclasses.dataclass(frozen=True)
class Line:
  """A metric of a group of languages over a curve. lacking: evaluated languages that no run has the metric in."""

  metric: str
  group: str
  languages: tuple[str, ...]
  lacking: tuple[str, ...]
  points: tuple[Point, ...]
  verdict: smallest.Verdict | None
  variance: Variance | None
  adjusted: Adjusted | None = (
    None  # of the test whether it moves, over all lines of the curve that are tested
  )


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A curve with its lines. left_out: runs that are at a point but not in it, in words."""

  curve: Curve
  xs: tuple
  lines: tuple[Line, ...]
  left_out: tuple[str, ...]

  @property
  def metrics(self) -> list[str]:
    """Those that have a point, the headline's first."""
    return list(dict.fromkeys(line.metric for line in self.lines if line.points))

  def line(self, metric: str, group: str) -> Line | None:
    return next((x for x in self.lines if (x.metric, x.group) == (metric, group)), None)


def draw(curve: Curve, sweep: Sweep, outcomes: Mapping[str, Outcome]) -> Drawn:
  """All lines of a curve. Runs that are not finished have no part; those that lack a figure are named."""
  at = _planned(curve, sweep)
  xs = tuple(sorted(at, key=_order))
  here = {id_: outcomes[id_] for of in at.values() for _, id_ in of}
  done = {id_: o for id_, o in here.items() if o.state == FINISHED}
  lines, left_out = [], {}
  for metric in metrics_of(sweep, done):
    for group in GROUPS:
      of_group = languages_of(sweep, group)
      languages = tuple(
        x for x in of_group if any(value_of(o, metric, x) is not None for o in done.values())
      )
      if not languages:
        continue
      points: Points = {
        x: [
          Replicate(*key, id_, value)
          for key, id_ in at[x]
          if id_ in done and (value := group_value(done[id_], metric, languages, group)) is not None
        ]
        for x in xs
      }
      for id_, outcome in done.items():
        missing = [x for x in languages if value_of(outcome, metric, x) is None]
        if missing and group == MACRO:
          left_out[
            f"run {id_} lacks {metric} in {', '.join(missing)}: not in the means of {metric} over these"
          ] = None
      lacking = tuple(x for x in of_group if x not in languages)
      planned = {x: len({id_ for _, id_ in of}) for x, of in at.items()}
      lines.append(_line(metric, group, languages, lacking, points, done, planned))
  return Drawn(curve, xs, _adjusted(lines), tuple(left_out))


def _planned(curve: Curve, sweep: Sweep) -> dict:
  """{x: [((other factors, draw, seed), run id)]} of the arms that have the factor."""
  arms = {arm.name: arm for arm in sweep.arms if curve.key in arm.factors}
  out: dict = {}
  for run in sweep.runs:
    if run.arm in arms:
      factors = dict(arms[run.arm].factors)
      x = factors.pop(curve.key)
      others = tuple(sorted((key, repr(value)) for key, value in factors.items()))
      out.setdefault(x, []).append(((others, run.draw, run.seed), run.id))
  return out


def _line(metric, group, languages, lacking, points: Points, done, planned) -> Line:
  points = {x: of for x, of in points.items() if of}
  drawn = tuple(
    _point(x, of, metric, languages, group, done, planned[x]) for x, of in points.items()
  )
  found = variance = None
  if group in TESTED_GROUPS and metric not in UNTESTED:
    variance = variance_parts(points)
    tables = prompt_tables(metric, languages, points, done)
    found = smallest.verdict(points, metric, tables, PROMPT_BOUNDS.get(metric))
  return Line(metric, group, languages, lacking, drawn, found, variance)


def _point(
  x, replicates: Sequence[Replicate], metric, languages, group, done, planned: int
) -> Point:
  by_run = {r.run: r.value for r in replicates}
  figure, over = point_figure(replicates)
  if figure.n == 1:
    (first, *rest) = by_run
    if not rest:
      figure, over = group_figure(done[first], metric, languages, group), smallest.PROMPTS
    else:
      over = RUNS
  return Point(x, within_bounds(figure, metric), tuple(by_run.values()), over, planned)


def prompt_tables(metric, languages, points: Points, done) -> dict | None:
  """{x: mean scores over the runs at x [prompt, language]} of the prompts that all runs of all points hold."""
  runs = {r.run for of in points.values() for r in of}
  scores = {id_: done[id_].prompts.get(metric, {}) for id_ in sorted(runs)}
  if not scores or any(lang not in of for of in scores.values() for lang in languages):
    return None
  # One common set of prompts: every run's table is cut to it, and has its rows in the same order.
  common = {
    lang: set.intersection(*(set(of[lang]) for of in scores.values())) for lang in languages
  }
  if any(not of for of in common.values()):
    return None
  cut = {
    id_: {lang: {i: of[lang][i] for i in common[lang]} for lang in languages}
    for id_, of in scores.items()
  }
  return {
    x: score_table([cut[id_] for id_ in dict.fromkeys(r.run for r in of)], languages)
    for x, of in points.items()
  }


def _adjusted(lines: Sequence[Line]) -> tuple[Line, ...]:
  """With Holm's adjustment over every line that is tested."""
  p_values = {
    f"{line.metric}/{line.group}": line.verdict.moves.p_two_sided
    for line in lines
    if line.verdict and line.verdict.moves
  }
  adjusted = holm(p_values)
  return tuple(
    dataclasses.replace(line, adjusted=adjusted.get(f"{line.metric}/{line.group}"))
    for line in lines
  )


def _order(x) -> tuple:
  """Numbers by size, then the rest by name."""
  is_number = isinstance(x, int | float) and not isinstance(x, bool)
  return (0, float(x), "") if is_number else (1, 0.0, str(x))


def as_rows(drawn: Drawn) -> list[dict]:
  """The lines for figures.json."""
  return [_plain(dataclasses.asdict(line)) for line in drawn.lines]


def _plain(value):
  """Without what JSON cannot hold: numpy numbers, tuples."""
  if isinstance(value, dict):
    return {key: _plain(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  return value.item() if isinstance(value, np.generic) else value
