"""PNG and SVG plots of a report: a heat map of each metric, curves of each language over steps."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence

from mlit_jax.charts import is_number
from mlit_jax.metrics import LOWER_IS_BETTER, MEAN
from mlit_jax.reporting.runs import SUMMARY_ROWS, Cell
from mlit_jax.reporting.tables import grid

MOST_PANELS = 60  # languages drawn in one plot of curves


def heat_map(found: Sequence[Cell], title: str, metric: str):
  """A matplotlib figure, runs x languages; greener is better, whichever way the metric goes."""
  from matplotlib.figure import Figure

  rows, languages, by_cell = grid(found, metric)
  values = [
    [by_cell[r, lang].value if (r, lang) in by_cell else None for lang in languages] for r in rows
  ]
  numbers = [[v if is_number(v) else math.nan for v in row] for row in values]
  figure = Figure(
    figsize=(2.5 + 0.55 * len(languages), 1.4 + 0.34 * len(rows)), layout="constrained"
  )
  axes = figure.add_subplot()
  image = axes.imshow(
    numbers, aspect="auto", cmap="viridis_r" if metric in LOWER_IS_BETTER else "viridis"
  )
  axes.set_xticks(range(len(languages)), languages, rotation=60, ha="right")
  axes.set_yticks(range(len(rows)), rows)
  axes.set_title(title, loc="left", fontsize=11)
  finite = [v for row in numbers for v in row if math.isfinite(v)]
  middle = (min(finite) + max(finite)) / 2 if finite else 0.0
  for y, row in enumerate(numbers):
    for x, value in enumerate(row):
      if math.isfinite(value):
        dark = (value < middle) != (metric in LOWER_IS_BETTER)
        axes.text(
          x, y, f"{value:.3g}", ha="center", va="center", fontsize=7.5, color="w" if dark else "k"
        )
  figure.colorbar(image, ax=axes)
  return figure


def curves(found: Sequence[Cell], title: str, metric: str):
  """A matplotlib figure, a panel for each language, a line for each run with its interval; None without a curve."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  mine = [c for c in found if c.metric == metric and is_number(c.value)]
  if len({c.step for c in mine}) < 2:
    return None
  languages = list(dict.fromkeys(c.lang for c in mine if c.lang not in SUMMARY_ROWS))[:MOST_PANELS]
  panels = [*languages, *([MEAN] if any(c.lang == MEAN for c in mine) else [])]
  runs = list(dict.fromkeys(c.run for c in mine))
  columns = min(4, len(panels))
  lines = -(-len(panels) // columns)
  figure = Figure(figsize=(3.1 * columns, 2.3 * lines + 0.6), layout="constrained")
  grid_of_axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
  for i, axes in enumerate(grid_of_axes.flat):
    if i >= len(panels):
      axes.axis("off")
      continue
    for k, run in enumerate(runs):
      points = sorted(
        (c for c in mine if c.run == run and c.lang == panels[i]), key=lambda c: c.step
      )
      steps = [c.step for c in points]
      colour = f"C{k % 10}"
      axes.plot(
        steps, [c.value for c in points], color=colour, marker="o", ms=2.5, lw=1.2, label=run
      )
      bounded = [c for c in points if is_number(c.figure.get("low"))]
      axes.fill_between(
        [c.step for c in bounded], [c.figure["low"] for c in bounded],
        [c.figure["high"] for c in bounded], color=colour, alpha=0.15, lw=0,
      )  # fmt: skip
    axes.set_title(
      panels[i], fontsize=9, loc="left", fontweight="bold" if panels[i] == MEAN else None
    )
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.25)
  figure.suptitle(title, fontsize=11, x=0.01, ha="left")
  if len(runs) > 1:
    handles, labels = grid_of_axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
  return figure


def plots(every: Sequence[Cell], last: Sequence[Cell]) -> Iterator[tuple[str, object]]:
  """(name, figure) of all plots: for each set and metric a heat map of the last figures, and curves."""
  for name in dict.fromkeys(c.set for c in last):
    of_set, end = [c for c in every if c.set == name], [c for c in last if c.set == name]
    several = len({c.run for c in of_set}) > 1
    for metric in dict.fromkeys(c.metric for c in end):
      yield f"{name}_{metric}", heat_map(end if several else of_set, f"{name}: {metric}", metric)
      drawn = curves(of_set, f"{name}: {metric} over steps", metric)
      if drawn is not None:
        yield f"{name}_{metric}_steps", drawn


def rendered(figure, form: str) -> bytes:
  """The same bytes for the same figure: no date in them, and ids that do not change."""
  import matplotlib

  out = io.BytesIO()
  metadata = {"Date": None} if form == "svg" else {"Software": None}
  with matplotlib.rc_context({"svg.hashsalt": "mlit_jax"}):
    figure.savefig(out, format=form, dpi=130, metadata=metadata)
  return out.getvalue()
