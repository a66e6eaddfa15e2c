"""cells.csv, curves.csv, matrix.csv and figures.json of a sweep: its numbers, unrounded."""

from __future__ import annotations

import dataclasses

from mlit_jax.experiments import curves
from mlit_jax.experiments.cells import Cell
from mlit_jax.reporting.sweep import Results
from mlit_jax.reporting.tables import as_csv

CELL_COLUMNS = tuple(field.name for field in dataclasses.fields(Cell))
CURVE_COLUMNS = ("curve", "metric", "group", "x", "value", "n", "low", "high", "over", "replicates")
MATRIX_COLUMNS = ("metric", "arm", "tuned", "lang", "value", "n", "low", "high", "runs", "own")


def cells_csv(results: Results) -> str:
  """A row for each arm, draw, seed, language and metric."""
  return as_csv(CELL_COLUMNS, [dataclasses.astuple(cell) for cell in results.cells])


def curves_csv(results: Results) -> str:
  """A row for each point of each line; the replicates' values stand behind each other."""
  rows = [
    (
      drawn.curve.key, line.metric, line.group, point.x, point.figure.value, point.figure.n,
      point.figure.low, point.figure.high, point.over, " ".join(map(repr, point.dots)),
    )
    for drawn in results.curves
    for line in drawn.lines
    for point in line.points
  ]  # fmt: skip
  return as_csv(CURVE_COLUMNS, rows)


def matrix_csv(results: Results) -> str:
  """A row for each field of each transfer matrix."""
  rows = []
  for matrix in results.matrices:
    for arm in matrix.arms:
      for lang in matrix.languages:
        entry = matrix.entries.get((arm.name, lang))
        if entry:
          f = entry.figure
          rows.append(
            (matrix.metric, arm.name, "+".join(arm.tuned), lang, f.value, f.n, f.low, f.high, entry.num_runs, entry.own)
          )  # fmt: skip
  return as_csv(MATRIX_COLUMNS, rows)


def figures_json(results: Results) -> dict:
  """All that the page shows, and what it was made from."""
  sweep = results.sweep
  return {
    "title": sweep.title,
    "set": sweep.set,
    "at": sweep.at,
    "faults": list(results.faults),
    "runs": {
      id_: {"state": o.state, "why": o.why, "step": o.step} for id_, o in results.outcomes.items()
    },
    "cells": [dataclasses.asdict(cell) for cell in results.cells],
    "curves": {
      drawn.curve.key: {
        "label": drawn.curve.label,
        "left_out": list(drawn.left_out),
        "lines": curves.as_rows(drawn),
      }
      for drawn in results.curves
    },
    "matrix": {
      matrix.metric: {
        arm.name: {
          "tuned": list(arm.tuned),
          "languages": {
            lang: dataclasses.asdict(matrix.entries[arm.name, lang])
            for lang in matrix.languages
            if (arm.name, lang) in matrix.entries
          },
          "mean_of_others": dataclasses.asdict(matrix.means[arm.name])
          if arm.name in matrix.means
          else None,
          "not_in_the_mean": list(matrix.lacking[arm.name]),
        }
        for arm in matrix.arms
      }
      for matrix in results.matrices
    },
    "gate": [dataclasses.asdict(row) for row in results.gates],
    "correlations": [dataclasses.asdict(row) for row in results.correlations],
  }
