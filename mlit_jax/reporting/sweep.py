"""A sweep, read and worked out: what the tables, the plots and the page of its report show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mlit_jax.experiments import cells, curves, factors, gate, transfer
from mlit_jax.experiments.outcomes import FINISHED, Outcome, read_outcomes
from mlit_jax.experiments.sweep_files import Sweep, read_sweep


@dataclasses.dataclass(frozen=True)
class Results:
  """All there is to show. faults: what is wrong with runs and judging, in words."""

  sweep: Sweep
  outcomes: Mapping[str, Outcome]
  faults: tuple[str, ...]
  metrics: tuple[str, ...]  # the headline's first
  cells: tuple[cells.Cell, ...]
  curves: tuple[curves.Drawn, ...]
  matrices: tuple[transfer.Matrix, ...]
  gates: tuple[gate.Gated, ...]
  correlations: tuple[factors.Correlation, ...]

  @property
  def finished(self) -> int:
    return sum(outcome.state == FINISHED for outcome in self.outcomes.values())


def read_results(folder) -> Results:
  """Everything of the sweep in this folder."""
  sweep = read_sweep(folder)
  outcomes, of_judging = read_outcomes(sweep)
  return Results(
    sweep,
    outcomes,
    (*_faults(sweep, outcomes), *of_judging),
    tuple(cells.metrics_of(sweep, outcomes)),
    tuple(cells.cells(sweep, outcomes)),
    tuple(curves.draw(curve, sweep, outcomes) for curve in sweep.curves),
    tuple(transfer.matrices(sweep, outcomes)) if sweep.matrix else (),
    tuple(gate.gates(sweep, outcomes)),
    tuple(factors.correlations(sweep, outcomes)),
  )


def _faults(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[str]:
  """A line for each run that has no part in any figure, and where it was to stand."""
  out = []
  for id_, outcome in outcomes.items():
    if outcome.state == FINISHED:
      lacking = [lang for lang in sweep.languages if lang not in outcome.figures]
      if lacking:
        out.append(f"run {id_} has no figures in {', '.join(lacking)}")
      not_finite = sorted(
        {
          f"{metric} in {lang}"
          for lang, by_metric in outcome.figures.items()
          for metric, figure in by_metric.items()
          if figure["value"] is None and figure["n"]
        }
      )
      if not_finite:
        out.append(f"run {id_} has figures that are not finite: {', '.join(not_finite)}")
      continue
    places = [f"{run.arm}, draw {run.draw}, seed {run.seed}" for run in sweep.runs if run.id == id_]
    out.append(f"run {id_} ({'; '.join(places)}) is {outcome.state}: {outcome.why}")
  idle = [a.name for a in sweep.arms if not any(run.arm == a.name for run in sweep.runs)]
  out += [f"arm {name} has no run planned" for name in idle]
  return out
