"""Before and after the language gate: the same answers scored as they are, and with those in another language as failures.

Judged: `win_score` and `win_score_gated` of mlit_jax.judge. Not judged: chrF and exact answers, plain
and with 0 for an answer that the strict language fidelity calls wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mlit_jax.evals.comparing import macro_difference
from mlit_jax.evals.statistics import Figure
from mlit_jax.experiments.cells import GROUPS, PROMPT_BOUNDS, languages_of, score_table
from mlit_jax.experiments.outcomes import WIN, WIN_GATED, Outcome
from mlit_jax.experiments.sweep_files import Sweep
from mlit_jax.experiments.transfer import runs_of
from mlit_jax.metrics import WORST

PAIRS = ((WIN, WIN_GATED), ("chrf", "chrf_gated"), ("exact", "exact_gated"))


@dataclasses.dataclass(frozen=True)
class Gated:
  """Means of an arm over a group of languages, and the paired difference (after less before)."""

  arm: str
  metric: str
  group: str
  languages: tuple[str, ...]
  num_runs: int
  before: float
  after: float
  difference: Figure


def gates(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[Gated]:
  """A row for each arm, metric and group that has answers of which the language was looked at."""
  out = []
  for plain, gated in PAIRS:
    for arm in sweep.arms:
      runs = [
        run for run in runs_of(arm.name, sweep, outcomes) if {plain, gated} <= run.prompts.keys()
      ]
      for group in (g for g in GROUPS if g != WORST):
        row = _gated(arm.name, plain, gated, group, runs, sweep)
        out += [row] if row else []
  return out


def _gated(arm: str, plain: str, gated: str, group: str, runs, sweep: Sweep) -> Gated | None:
  languages = tuple(
    lang
    for lang in languages_of(sweep, group)
    if runs and all(lang in r.prompts[m] for r in runs for m in (plain, gated))
  )
  if not languages:
    return None
  # A prompt whose verdict could not be read has no plain score, but may have one after the gate.
  both = [
    {
      m: {
        lang: {
          i: run.prompts[m][lang][i]
          for i in run.prompts[plain][lang].keys() & run.prompts[gated][lang].keys()
        }
        for lang in languages
      }
      for m in (plain, gated)
    }
    for run in runs
  ]
  before_GL = score_table([b[plain] for b in both], languages)
  after_GL = score_table([b[gated] for b in both], languages)
  if not len(before_GL) or np.isnan(before_GL).all(axis=0).any():
    return None
  found = macro_difference(after_GL, before_GL, bounds=PROMPT_BOUNDS[plain])
  means = [float(np.nanmean(x, axis=0).mean()) for x in (before_GL, after_GL)]
  return Gated(arm, plain, group, languages, len(runs), *means, found.figure)
