"""PNG and SVG plots of a sweep: curves with replicates and intervals, transfer matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from mlit_jax.charts import is_number, shorten, visible
from mlit_jax.experiments.cells import GROUPS
from mlit_jax.experiments.curves import Drawn
from mlit_jax.experiments.transfer import Matrix
from mlit_jax.metrics import LOWER_IS_BETTER
from mlit_jax.reporting import sweep_words as words
from mlit_jax.reporting.sweep import Results

MOST_CHARACTERS = 40  # of a name; a longer one would leave no room for the plot


def plots(results: Results) -> Iterator[tuple[str, object]]:
  """(name of a file, matplotlib figure) of every curve and matrix."""
  for number, drawn in enumerate(results.curves):
    name = _file_name(drawn.curve.key, f"curve{number + 1}")
    for metric in drawn.metrics:
      yield f"{name}_{_file_name(metric, 'metric')}", curve(drawn, metric, results)
  for matrix in results.matrices:
    if matrix.entries:
      yield f"matrix_{_file_name(matrix.metric, 'metric')}", heat_map(matrix)


def curve(drawn: Drawn, metric: str, results: Results):
  """A line for each group; evenly spaced points, bars for 95 % intervals, a faint dot for each replicate."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7.2, 4.2), layout="constrained")
  axes = figure.add_subplot()
  lines = [line for g in GROUPS if (line := drawn.line(metric, g)) and line.points]
  place = {x: k for k, x in enumerate(drawn.xs)}
  for i, line in enumerate(lines):
    dodge = 0.07 * (i - (len(lines) - 1) / 2)
    xs = [place[p.x] + dodge for p in line.points]
    values = [p.figure.value for p in line.points]
    heavy = {"color": "k", "lw": 2} if i == 0 else {"color": f"C{i - 1}", "lw": 1.2}
    axes.plot(
      xs,
      values,
      marker="o",
      ms=4,
      label=_plain(words.group_name(line.group, results.sweep)),
      **heavy,
    )
    for x, point in zip(xs, line.points):
      axes.plot(
        [x + 0.02] * len(point.dots), point.dots, ".", ms=4, alpha=0.4, color=heavy["color"]
      )
      if point.figure.low is not None:
        axes.plot(
          [x, x], [point.figure.low, point.figure.high], color=heavy["color"], lw=heavy["lw"]
        )
  dots = [v for line in lines for point in line.points for v in point.dots]
  room = 0.6 * (max(dots) - min(dots)) or 0.5
  low, high = axes.get_ylim()
  axes.set_ylim(max(low, min(dots) - room), min(high, max(dots) + room))
  axes.set_xticks(range(len(drawn.xs)), [_plain(words.x_text(x)) for x in drawn.xs])
  axes.set_xlabel(_plain(drawn.curve.label))
  axes.set_title(f"{words.metric_name(metric)} ({words.better(metric)})", loc="left", fontsize=11)
  axes.grid(alpha=0.25)
  figure.legend(loc="outside right upper", fontsize=8, frameon=False)
  return figure


def heat_map(matrix: Matrix):
  """Arms x evaluated languages, each column on a scale of its own; brighter is better."""
  from matplotlib.figure import Figure

  shares = column_shares(matrix)
  rows = [arm.name for arm in matrix.arms]
  figure = Figure(
    figsize=(2.5 + 0.6 * len(matrix.languages), 1.4 + 0.34 * len(rows)), layout="constrained"
  )
  axes = figure.add_subplot()
  axes.imshow(
    [[shares.get((row, lang), math.nan) for lang in matrix.languages] for row in rows],
    aspect="auto", cmap="viridis", vmin=0, vmax=1,
  )  # fmt: skip
  axes.set_xticks(range(len(matrix.languages)), [_plain(x) for x in matrix.languages])
  axes.set_yticks(range(len(rows)), [_plain(row) for row in rows])
  axes.set_ylabel("tuned on")
  axes.set_title(
    f"{words.metric_name(matrix.metric)}: each column its own scale", loc="left", fontsize=11
  )
  for (row, lang), share in shares.items():
    value = words.value_text(matrix.metric, matrix.entries[row, lang].figure.value)
    axes.text(
      matrix.languages.index(lang), rows.index(row), value,
      ha="center", va="center", fontsize=7.5, color="w" if share < 0.5 else "k",
    )  # fmt: skip
  return figure


def column_shares(matrix: Matrix) -> dict[tuple[str, str], float]:
  """{(arm, language): 0 for the worst to 1 for the best of its column}."""
  out = {}
  for lang in matrix.languages:
    column = {
      key: entry.figure.value
      for key, entry in matrix.entries.items()
      if key[1] == lang and is_number(entry.figure.value)
    }
    low, high = min(column.values(), default=0.0), max(column.values(), default=1.0)
    for key, value in column.items():
      share = (value - low) / (high - low) if high > low else 0.5
      out[key] = 1 - share if matrix.metric in LOWER_IS_BETTER else share
  return out


def _plain(text: object) -> str:
  """Text for matplotlib, to which a dollar sign means mathematics."""
  return shorten(visible(str(text)), MOST_CHARACTERS).replace("$", r"\$")


def _file_name(text: str, otherwise: str) -> str:
  return text if re.fullmatch(r"[\w.-]{1,60}", text, re.ASCII) else otherwise
