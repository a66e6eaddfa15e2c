"""The transfer matrix: what a model tuned on one language (or a pair) does in each of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mlit_jax.evals.statistics import Figure
from mlit_jax.experiments.cells import (
  MACRO,
  group_figure,
  group_value,
  metrics_of,
  value_of,
  within_bounds,
)
from mlit_jax.experiments.outcomes import FINISHED, WIN, WIN_GATED, Outcome
from mlit_jax.experiments.replicates import Replicate, point_figure
from mlit_jax.experiments.sweep_files import Arm, Sweep

MOST_TUNED = 2


@dataclasses.dataclass(frozen=True)
class Entry:
  """One field: the mean over the arm's runs. own: the arm is tuned on this language."""

  figure: Figure
  num_runs: int
  own: bool
  by_definition: bool = False


@dataclasses.dataclass(frozen=True)
class Matrix:
  """A metric, arms x evaluated languages. means: of the languages that an arm is not tuned on; lacking
  names those that had to be left out of a mean."""

  metric: str
  arms: tuple[Arm, ...]
  languages: tuple[str, ...]
  entries: Mapping[tuple[str, str], Entry]
  means: Mapping[str, Figure]
  lacking: Mapping[str, tuple[str, ...]]


def matrices(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[Matrix]:
  """One for each metric, over the arms that are tuned on one language or two."""
  arms = tuple(arm for arm in sweep.arms if 1 <= len(arm.tuned) <= MOST_TUNED)
  return [_matrix(metric, arms, sweep, outcomes) for metric in metrics_of(sweep, outcomes)]


def runs_of(arm: str, sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[Outcome]:
  """The finished runs of an arm, each once."""
  ids = dict.fromkeys(run.id for run in sweep.runs if run.arm == arm)
  return [outcomes[id_] for id_ in ids if outcomes[id_].state == FINISHED]


def _matrix(metric: str, arms, sweep: Sweep, outcomes) -> Matrix:
  entries, means, lacking = {}, {}, {}
  for arm in arms:
    runs = runs_of(arm.name, sweep, outcomes)
    for lang in sweep.languages:
      entry = _entry(arm, lang, metric, runs, sweep)
      if entry:
        entries[arm.name, lang] = entry
    others = tuple(
      lang for lang in sweep.languages if lang not in arm.tuned and (arm.name, lang) in entries
    )
    lacking[arm.name] = tuple(x for x in sweep.languages if x not in arm.tuned and x not in others)
    if others:
      means[arm.name] = _mean(arm, others, metric, runs, sweep)
  return Matrix(metric, arms, sweep.languages, entries, means, lacking)


def _entry(arm: Arm, lang: str, metric: str, runs: Sequence[Outcome], sweep: Sweep) -> Entry | None:
  have = [run for run in runs if value_of(run, metric, lang) is not None]
  own = lang in arm.tuned
  figures = [run.figures[lang][metric] for run in have]
  defined = any(f["n"] == 0 for f in figures)
  if own and metric in (WIN, WIN_GATED) and arm.tuned == (lang,) and (defined or not have):
    # The model tuned on all of a language is what the language's scores are against.
    is_baseline = any(lang in c.languages for c in sweep.comparisons)
    return Entry(Figure(50.0, 0), len(runs), own, True) if is_baseline else None
  if not have:
    return None
  return Entry(_over_runs(arm, [lang], metric, have, sweep), len(have), own)


def _mean(arm: Arm, others, metric: str, runs, sweep: Sweep) -> Figure:
  have = [run for run in runs if group_value(run, metric, others, MACRO) is not None]
  return _over_runs(arm, others, metric, have, sweep) if have else Figure(None, 0)


def _over_runs(arm: Arm, languages, metric: str, runs: Sequence[Outcome], sweep: Sweep) -> Figure:
  """Student's interval over draws or seeds; of a single run the one over prompts."""
  if len(runs) == 1:
    return group_figure(runs[0], metric, languages, MACRO)
  values = {run.id: group_value(run, metric, languages, MACRO) for run in runs}
  replicates = [
    Replicate((), run.draw, run.seed, run.id, values[run.id])
    for run in sweep.runs
    if run.arm == arm.name and run.id in values
  ]
  return within_bounds(point_figure(replicates)[0], metric)
