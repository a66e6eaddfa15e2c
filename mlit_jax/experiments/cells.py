"""Every figure of a sweep as a table: a cell for each arm, draw, seed, language and metric; and means over languages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mlit_jax.evals.statistics import Figure, macro_figure, square_and_add
from mlit_jax.evals.summary import BOUNDS, METRICS
from mlit_jax.experiments.outcomes import JUDGED, TIES, WIN, WIN_GATED, Outcome
from mlit_jax.experiments.sweep_files import SEEN, UNSEEN, Sweep
from mlit_jax.metrics import LOWER_IS_BETTER, WORST

MACRO, BASE = "macro", "base"
GROUPS = (MACRO, SEEN, UNSEEN, BASE, WORST)
# The metric that a headline is about, where the sweep names none: the first of these that was measured.
HEADLINE = (WIN_GATED, WIN, "chrf", "bits_per_byte", "loss", "fidelity")
UNTESTED = (TIES,)  # neither more nor less of it is better
PROMPT_BOUNDS = {
  **BOUNDS,
  WIN: (0, 100),
  WIN_GATED: (0, 100),
  "chrf_gated": (0, 100),
  "exact_gated": (0, 1),
}
FIGURE_BOUNDS = {**PROMPT_BOUNDS, TIES: (0, 1)}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One figure of one run in one language."""

  arm: str
  draw: int
  seed: int
  run: str
  lang: str
  group: str  # base, seen, unseen or ""
  tuned: bool
  metric: str
  value: float | None
  n: int
  low: float | None
  high: float | None


def cells(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[Cell]:
  """In the order of the file's runs and languages; runs that are not finished have none."""
  out = []
  for run in sweep.runs:
    tuned = sweep.arm(run.arm).tuned
    figures = outcomes[run.id].figures
    for lang in sweep.languages:
      for metric in in_order(figures.get(lang, ())):
        figure = figures[lang][metric]
        out.append(
          Cell(
            run.arm, run.draw, run.seed, run.id, lang, sweep.group_of(lang), lang in tuned, metric,
            *(figure.get(key) for key in ("value", "n", "low", "high")),
          )
        )  # fmt: skip
  return out


def metrics_of(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[str]:
  """The metrics that some run has, the headline's first."""
  found = {
    metric
    for outcome in outcomes.values()
    for lang in sweep.languages
    for metric in outcome.figures.get(lang, ())
  }
  ordered = in_order(found)
  first = next((m for m in (sweep.headline, *HEADLINE) if m in found), None)
  return [metric for metric in ordered if metric == first] + [m for m in ordered if m != first]


def in_order(metrics) -> list[str]:
  """Win scores, then the metrics of evaluation sets in their order, then others by name."""
  known = [*JUDGED, *METRICS]
  return [m for m in known if m in metrics] + sorted(set(metrics) - set(known))


def languages_of(sweep: Sweep, group: str) -> tuple[str, ...]:
  """The evaluated languages of a group; macro and worst are over all of them."""
  if group in (MACRO, WORST):
    return sweep.languages
  if group == BASE:
    return tuple(lang for lang in sweep.languages if lang == sweep.base)
  return tuple(lang for lang in sweep.languages if lang in sweep.groups.get(group, ()))


def value_of(outcome: Outcome, metric: str, lang: str) -> float | None:
  return outcome.figures.get(lang, {}).get(metric, {}).get("value")


def group_value(
  outcome: Outcome, metric: str, languages: Sequence[str], group: str
) -> float | None:
  """The unweighted mean over the languages, or the worst of them; None if one lacks the figure."""
  values = [value_of(outcome, metric, lang) for lang in languages]
  if not values or None in values:
    return None
  if group == WORST:
    return max(values) if metric in LOWER_IS_BETTER else min(values)
  return float(np.mean(values))


def group_figure(outcome: Outcome, metric: str, languages: Sequence[str], group: str) -> Figure:
  """The same with an interval over prompts.

  Scores of single prompts are resampled with translations together. Where only the languages'
  intervals are known, theirs are put together as if independent (square and add), which is too
  narrow for parallel prompts: there the interval is the least that can be said.
  """
  value = group_value(outcome, metric, languages, group)
  if value is None:
    return Figure(None, 0)
  figures = [outcome.figures[lang][metric] for lang in languages]
  if group == WORST or len(languages) == 1:
    worst = next(f for f in figures if f["value"] == value) if group == WORST else figures[0]
    return Figure(value, worst["n"], worst.get("low"), worst.get("high"))
  n = sum(figure["n"] for figure in figures)
  scores = outcome.prompts.get(metric, {})
  if all(lang in scores for lang in languages):
    table_GL = score_table([scores], languages)
    found = macro_figure(
      np.nan_to_num(table_GL), np.where(np.isnan(table_GL), np.nan, 1.0),
      bounds=PROMPT_BOUNDS.get(metric),
    )  # fmt: skip
    if found.value is not None and abs(found.value - value) < 1e-6 * (1 + abs(value)):
      return dataclasses.replace(found, value=value)
  ends = [(f.get("low"), f.get("high")) for f in figures]
  if any(end is None for pair in ends for end in pair):
    return Figure(value, n)
  return Figure(value, n, *square_and_add(np.array([f["value"] for f in figures]), np.array(ends)))


def within_bounds(figure: Figure, metric: str) -> Figure:
  """Student's interval cut at the ends that the metric cannot leave."""
  if figure.low is None or metric not in FIGURE_BOUNDS:
    return figure
  low, high = FIGURE_BOUNDS[metric]
  return dataclasses.replace(figure, low=max(low, figure.low), high=min(high, figure.high))


def score_table(runs: Sequence[Mapping], languages: Sequence[str]) -> np.ndarray:
  """Mean scores over runs [prompt, language] of the prompts that all runs hold; NaN where a language lacks one.

  runs: {lang: {prompt: score}} of each.
  """
  common = {lang: set.intersection(*(set(run.get(lang, ())) for run in runs)) for lang in languages}
  names = sorted(set().union(*common.values()))
  table_GL = np.full((len(names), len(languages)), np.nan)
  for g, name in enumerate(names):
    for k, lang in enumerate(languages):
      if name in common[lang]:
        table_GL[g, k] = np.mean([run[lang][name] for run in runs])
  return table_GL
