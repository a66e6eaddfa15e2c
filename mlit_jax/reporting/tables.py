"""figures.csv, figures.json, ledger.csv: the numbers of a report, unrounded, for whoever goes on from there."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from mlit_jax.reporting.runs import Cell, cells
from mlit_jax.training.run_files import Run

FIGURE_COLUMNS = ("run", "step", "set", "lang", "metric", "value", "n", "low", "high", "of")
COUNTS = ("examples", "tokens", "trained_tokens")
LEDGER_COLUMNS = (
  "run", "lang", "source", "rows_read", *COUNTS, *(f"trained_{name}" for name in COUNTS), "plan",
)  # fmt: skip


def figures_csv(runs: Sequence[Run]) -> str:
  """A row for each figure of each evaluation; `of` is the language that a worst figure is of."""
  rows = [
    (c.run, c.step, c.set, c.lang, c.metric, *(c.figure.get(k) for k in ("value", "n", "low", "high", "lang")))
    for c in cells(runs)
  ]  # fmt: skip
  return as_csv(FIGURE_COLUMNS, rows)


def figures_json(runs: Sequence[Run]) -> dict:
  """{run: {step: {set: {lang: {metric: figure}}}}}"""
  return {run.name: {str(step): run.figures[step] for step in sorted(run.figures)} for run in runs}


def ledger_csv(runs: Sequence[Run]) -> str:
  """A row for each run, language and source: what was planned, and what the device counted."""
  rows = []
  for run in runs:
    for lang, entry in run.ledger.get("languages", {}).items():
      for source, of in entry.get("sources", {}).items():
        trained = of.get("trained", {})
        rows.append(
          (run.name, lang, source, of.get("rows_read"), *(of.get(name) for name in COUNTS),
           *(trained.get(name) for name in COUNTS), run.ledger.get("hash"))
        )  # fmt: skip
  return as_csv(LEDGER_COLUMNS, rows)


def grid(found: Sequence[Cell], metric: str) -> tuple[list[str], list[str], dict]:
  """(rows, languages, {(row, lang): Cell}) of one metric; a row is a run, or a step of it where there is one run."""
  mine = [c for c in found if c.metric == metric]
  rows = list(dict.fromkeys((c.run, c.step) for c in mine))
  runs = list(dict.fromkeys(run for run, _ in rows))
  label = {
    row: f"step {row[1]:,}"
    if len(runs) == 1
    else row[0]
    if sum(r[0] == row[0] for r in rows) == 1
    else f"{row[0]}, step {row[1]:,}"
    for row in rows
  }
  languages = list(dict.fromkeys(c.lang for c in mine))
  return [label[r] for r in rows], languages, {(label[c.run, c.step], c.lang): c for c in mine}


def as_csv(columns: Sequence[str], rows) -> str:
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows(rows)
  return out.getvalue()
