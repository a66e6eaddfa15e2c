"""The runs that a report compares: their names, their evaluations, and what differs in their configs."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlit_jax.errors import UserError
from mlit_jax.metrics import MEAN, WORST
from mlit_jax.training.run_files import Run, read_run

SUMMARY_ROWS = (MEAN, WORST)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One figure of one run."""

  run: str
  step: int
  set: str
  lang: str  # or mean, worst
  metric: str
  figure: dict  # value, n, low, high; of the worst also lang

  @property
  def value(self) -> float | None:
    return self.figure["value"]


def read_runs(folders: Sequence[str]) -> list[Run]:
  """The runs in these workdirs, each under a name of its own: the end of its path that tells it from the others."""
  paths = [Path(folder) for folder in folders]
  for path in paths:
    if not path.is_dir():
      raise UserError(f"{path}: no such workdir")
  twice = [p for p, n in collections.Counter(p.resolve() for p in paths).items() if n > 1]
  if twice:
    raise UserError(f"{twice[0]} is named twice; name each workdir once")
  runs = [read_run(path) for path in paths]
  for path, run in zip(paths, runs, strict=True):
    if not (run.ledger or run.figures or run.events):
      raise UserError(
        f"{path} holds nothing of a run (no data_plan.json, metrics.jsonl or evals); is it a workdir?"
      )
  names = _names([path.resolve() for path in paths])
  return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def cells(runs: Sequence[Run]) -> Iterator[Cell]:
  """Every figure of every evaluation, in the order of runs, steps, sets, languages and metrics."""
  for run in runs:
    for step, by_set in sorted(run.figures.items()):
      for name, by_lang in sorted(by_set.items()):
        summary = [row for row in SUMMARY_ROWS if row in by_lang]
        for lang in [*sorted(by_lang.keys() - set(SUMMARY_ROWS)), *summary]:
          for metric, figure in by_lang[lang].items():
            yield Cell(run.name, step, name, lang, metric, figure)


def last_cells(runs: Sequence[Run]) -> list[Cell]:
  """The figures of each run's last evaluation of each set."""
  everything = list(cells(runs))
  last: dict[tuple[str, str], int] = {}
  for cell in everything:
    last[cell.run, cell.set] = max(last.get((cell.run, cell.set), -1), cell.step)
  return [cell for cell in everything if cell.step == last[cell.run, cell.set]]


def config_differences(runs: Sequence[Run]) -> dict[str, list[object]]:
  """{key: its value in each run} of the keys in which the runs differ."""
  flat = [_flat(run.config) for run in runs]
  keys = sorted(set().union(*flat)) if flat else []
  return {
    key: [f.get(key) for f in flat]
    for key in keys
    if any(f.get(key) != flat[0].get(key) for f in flat)
  }


def _flat(config: dict, prefix: str = "") -> dict[str, object]:
  out = {}
  for key, value in config.items():
    if isinstance(value, dict) and value and prefix.count(".") < 1:
      out |= _flat(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = value
  return out


def _names(paths: Sequence[Path]) -> list[str]:
  """runs/a/x and runs/b/x -> a/x and b/x; runs/a and runs/b -> a and b"""
  for depth in range(1, max(len(p.parts) for p in paths) + 1):
    names = ["/".join(p.parts[-depth:]) for p in paths]
    if len(set(names)) == len(names):
      return names
  raise AssertionError(paths)
