"""Static SVG: dumbbells with intervals, and lines labelled at their ends. Colours come from the page.

Shapes carry classes, never colours, so that one drawing serves a light page, a dark one and paper.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence

WIDTH = 440  # of a chart; beside each other on a desk, below each other and legible at 400 px
ROW, LABEL_GAP = 27, 13
NUM_COLOURS = 6
MOST_OF_A_PLACE = 14  # characters below a point

# Okabe and Ito's hues, darkened (lightened) until they stand out from white (black) by 3:1 or more.
COLOURS = """
.chart text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.chart .muted { fill: var(--muted); } .chart .strong { font-weight: 650; }
.chart .small { font-size: 12px; } .chart .end { text-anchor: end; } .chart .mid { text-anchor: middle; }
.chart .grid { stroke: var(--rule); } .chart .link { stroke: var(--muted); stroke-width: 1; }
.chart .old { stroke: var(--muted); fill: var(--page); stroke-width: 1.6; }
.chart .new { stroke: var(--c0); fill: var(--c0); stroke-width: 1.6; }
.chart .worse { stroke: var(--c1); fill: var(--c1); }
.chart .line { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
.chart .leader { stroke-width: .8; fill: none; opacity: .7; } .chart .heavy { stroke-width: 3.2; }
.chart .faint { opacity: .45; } .chart .dashed { stroke-dasharray: 5 3; } .chart .ink { stroke: var(--ink); } .chart .dot.ink { fill: var(--ink); }
""" + "".join(
  f".chart .s{i} {{ stroke: var(--c{i}); }} .chart .dot.s{i} {{ fill: var(--c{i}); }}\n"
  for i in range(NUM_COLOURS)
)
LIGHT = """--page: #fff; --ink: #1b1f24; --muted: #5d6570; --rule: #dde1e6; --c0: #0068a5; --c1: #c04a00;
--c2: #00795a; --c3: #a8407a; --c4: #9a6a00; --c5: #5b5fc7;"""
DARK = """--page: #14171a; --ink: #e8eaed; --muted: #a0a8b2; --rule: #343a41; --c0: #58b2ea; --c1: #f08a4b;
--c2: #3fc79a; --c3: #e38cc0; --c4: #e3ad3d; --c5: #a3a6f5;"""


@dataclasses.dataclass(frozen=True)
class Chart:
  """The inside of an <svg>, its size, and what it says in words."""

  body: str
  height: float
  says: str
  width: float = WIDTH


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of a dumbbell chart. old, new: {"value", "low", "high"} or None; worse: new is the worse one."""

  name: str
  note: str
  values: str
  old: dict | None
  new: dict | None
  worse: bool = False
  strong: bool = False
  rule_above: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
  """Points of one line, ascending in x; style is "heavy" or a number that picks colour and dashes."""

  name: str
  points: Sequence[tuple[float, float]]
  style: str | int


@dataclasses.dataclass(frozen=True)
class Series:
  """Points of one line with intervals and the values behind each: {place: (value, low, high, values)}.

  Places count the points of the axis from 0. low, high: None without an interval.
  """

  name: str
  points: Mapping[int, tuple[float, float | None, float | None, Sequence[float]]]
  style: str | int


def inline(chart: Chart) -> str:
  """The chart for an HTML page that has COLOURS."""
  size = f'viewBox="0 0 {_n(chart.width)} {_n(chart.height)}"'
  return (
    f'<svg class="chart" {size} role="img" aria-label="{escape(chart.says)}">{chart.body}</svg>'
  )


def standalone(charts: Sequence[Chart], title: str, key: Sequence[tuple[str, str]]) -> str:
  """An SVG file on white: charts beside each other under a title and a key of (class, text)."""
  pad, gap, top = 20, 40, 66
  width = sum(c.width for c in charts) + gap * max(0, len(charts) - 1) + 2 * pad
  height = max((c.height for c in charts), default=20) + top + pad
  parts, x = [_text(pad, 26, title, "strong")], pad
  for kind, text in key:
    if kind:
      parts.append(f'<circle class="{kind}" cx="{_n(x + 5)}" cy="42" r="4"/>')
      x += 14
    parts.append(_text(x, 46, text, "muted small"))
    x += 6.4 * len(text) + 12
  width, x = max(width, x + pad, 2 * pad + 7 * len(title)), pad
  for chart in charts:
    parts.append(f'<g transform="translate({_n(x)} {top})">{chart.body}</g>')
    x += chart.width + gap
  says = escape("; ".join([title, *(c.says for c in charts)]))
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{_n(width)}" height="{_n(height)}"'
    f' viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{says}">'
    f"<style>svg {{ {LIGHT} }}{COLOURS}</style>"
    f'<rect width="100%" height="100%" fill="#fff"/>'
    f"{''.join(parts)}</svg>\n"
  )


def dumbbells(
  title: str, note_title: str, rows: Sequence[Row], show: Callable[[float], str], *, ends=None
) -> Chart:
  """Per row: name, note, a ring (old) and a dot (new) with their intervals, and both values as text.

  ends: the ends of the axis; without them the axis spans the values and intervals.
  """
  left, right, top = 180, WIDTH - 92, 46
  bottom = top + ROW * len(rows)
  figures = [f for row in rows for f in (row.old, row.new) if f]
  spread_out = [f[k] for f in figures for k in ("value", "low", "high") if is_number(f.get(k))]
  ticks = nice_ticks(*(ends or (min(spread_out, default=0), max(spread_out, default=1))))
  start, stop = ends or (ticks[0], ticks[-1])

  def x(value):
    return left + (right - left) * (value - start) / ((stop - start) or 1)

  parts = [_text(0, 14, title, "strong"), _text(left - 22, 36, note_title, "muted small end")]
  for tick in ticks:
    parts += [
      _rule(x(tick), top - 4, x(tick), bottom),
      _text(x(tick), 36, show(tick), "muted small mid"),
    ]
  for i, row in enumerate(rows):
    y = top + ROW * (i + 0.5)
    if row.rule_above:
      parts.append(_rule(0, y - ROW / 2, WIDTH, y - ROW / 2))
    parts.append(
      f"<g><title>{escape(f'{row.name}: {row.values}')}</title>{_row(row, x, y, left)}</g>"
    )
  return Chart(
    "".join(parts), bottom + 8, f"{title}: " + ", ".join(f"{r.name} {r.values}" for r in rows)
  )


def lines(title: str, lines: Sequence[Line], *, integer_x: bool = True) -> Chart:
  """Lines over steps, each with its name at its end; names are moved apart, a thin line leads to them."""
  left, right, top = 40, WIDTH - 74, 34
  bottom = top + max(230, LABEL_GAP * (len(lines) + 1))
  xs = [p[0] for line in lines for p in line.points]
  ys = [p[1] for line in lines for p in line.points]
  ticks_x = nice_ticks(min(xs, default=0), max(xs, default=1), whole=integer_x)
  ticks_y = nice_ticks(min(ys, default=0), max(ys, default=1))
  first, last = min(xs, default=0), max(xs, default=1)

  def x(value):
    return left + (right - left) * (value - first) / ((last - first) or 1)

  def y(value):
    return bottom - (bottom - top) * (value - ticks_y[0]) / ((ticks_y[-1] - ticks_y[0]) or 1)

  parts = [_text(0, 14, title, "strong")]
  for tick in ticks_y:
    parts += [
      _rule(left, y(tick), right, y(tick)),
      _text(left - 6, y(tick) + 4, f"{tick:g}", "muted small end"),
    ]
  inside = [tick for tick in ticks_x if first <= tick <= last]
  parts += [_text(x(tick), bottom + 16, f"{tick:,g}", "muted small mid") for tick in inside]
  parts.append(_text((left + right) / 2, bottom + 32, "step", "muted small mid"))
  ends = [y(line.points[-1][1]) for line in lines]
  # Heavy lines are drawn last, over the others.
  for line, label_y in sorted(
    zip(lines, spread(ends, LABEL_GAP, top, bottom)), key=lambda p: p[0].style == "heavy"
  ):
    parts.append(_line(line, x, y, right, label_y))
  return Chart(
    "".join(parts),
    bottom + 40,
    f"{title}: " + ", ".join(f"{ln.name} ends at {ln.points[-1][1]:.3g}" for ln in lines),
  )


def points(
  title: str,
  places: Sequence[str],
  series: Sequence[Series],
  show: Callable[[float], str],
  x_label: str,
  *,
  width: float = WIDTH,
) -> Chart:
  """Lines over named places, evenly spaced, with interval bars and a faint dot for every value behind a point.

  The lines of a place stand beside each other. Bars that would dwarf the values (two replicates) end at the frame.
  """
  left, right, top = 52, width - 84, 34
  bottom = top + max(250, LABEL_GAP * (len(series) + 1))
  start, stop, ticks = _frame(series)
  apart = min(8.0, 0.6 * (right - left) / (len(places) * max(1, len(series))))

  def x(place, i):
    return left + (right - left) * (place + 0.5) / len(places) + apart * (i - (len(series) - 1) / 2)

  def y(value):
    inside = min(max(value, start), stop)
    return bottom - (bottom - top) * (inside - start) / ((stop - start) or 1)

  parts = [_text(0, 14, title, "strong")]
  for tick in ticks:
    parts += [
      _rule(left, y(tick), right, y(tick)),
      _text(left - 6, y(tick) + 4, show(tick), "muted small end"),
    ]
  middle = (len(series) - 1) / 2
  parts += [
    _text(x(k, middle), bottom + 16, shorten(name, MOST_OF_A_PLACE), "muted small mid")
    for k, name in enumerate(places)
  ]
  parts.append(_text((left + right) / 2, bottom + 34, x_label, "muted small mid"))
  ends = [y(s.points[max(s.points)][0]) for s in series]
  for i, (one, label_y) in enumerate(zip(series, spread(ends, LABEL_GAP, top, bottom))):
    parts.append(_series(one, lambda place, i=i: x(place, i), y, right, label_y))
  says = ", ".join(
    f"{s.name} " + " ".join(f"{show(s.points[k][0])} at {places[k]}" for k in sorted(s.points))
    for s in series
  )
  return Chart("".join(parts), bottom + 42, f"{title}: {says}", width)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
  """The positions nearest to `wanted` (least squares) that lie `gap` apart and within low..high.

  wanted 10 11 30, gap 5   ->   8 13 30
  """
  order = sorted(range(len(wanted)), key=wanted.__getitem__)
  blocks: list[
    list[float]
  ] = []  # [sum, count] of wanted[k] - k * gap: isotonic regression on these
  for k, i in enumerate(order):
    blocks.append([wanted[i] - k * gap, 1])
    while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
      total, count = blocks.pop()
      blocks[-1][0] += total
      blocks[-1][1] += count
  levels = [total / count for total, count in blocks for _ in range(int(count))]
  room = max(low, high - gap * (len(order) - 1))
  out = [0.0] * len(order)
  for k, i in enumerate(order):
    out[i] = min(max(levels[k], low), room) + k * gap
  return out


def nice_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
  """Three to seven round numbers that enclose low..high."""
  if high <= low:
    low, high = low - 0.5, high + 0.5
  rough = (high - low) / 4
  size = 10.0 ** math.floor(math.log10(rough))
  step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
  step = max(1, round(step)) if whole else step
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(step * i, 10) for i in range(first, last + 1)]


def is_number(value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def escape(text: object) -> str:
  """Text of data or a model for HTML and SVG: markup inert, control characters visible, half an emoji a "?"."""
  return html.escape(visible(str(text)), quote=True)


def visible(text: str) -> str:
  """Control characters as their pictures (␀), half an emoji as "?"."""
  return "".join(_visible(ch) for ch in text.encode("utf-8", "replace").decode("utf-8"))


def shorten(text: str, most: int) -> str:
  return text if len(text) <= most else text[: most - 1] + "…"


def _row(row: Row, x, y: float, left: float) -> str:
  """Two lanes: the old figure above, the new one below, so that their intervals do not hide each other."""
  parts = [
    _text(0, y + 4, shorten(row.name, 19), "strong" if row.strong else ""),
    _text(left - 22, y + 4, row.note, "small end" if row.strong else "muted small end"),
    _text(WIDTH, y + 4, row.values, "small end" + (" strong" if row.rule_above else "")),
  ]
  lanes = [
    (f, kind, y + dy)
    for f, kind, dy in ((row.old, "old", -5), (row.new, "new", 5))
    if f and is_number(f["value"])
  ]
  if len(lanes) == 1:
    lanes = [(*lanes[0][:2], y)]
  else:
    ends = [(x(f["value"]), at) for f, _, at in lanes]
    parts += [
      f'<path class="link" d="M{_n(a)} {_n(b)}L{_n(c)} {_n(d)}"/>'
      for (a, b), (c, d) in itertools.pairwise(ends)
    ]
  for f, kind, at in lanes:
    kind += " worse" if kind == "new" and row.worse else ""
    if is_number(f.get("low")) and is_number(f.get("high")):
      parts.append(f'<path class="{kind}" d="M{_n(x(f["low"]))} {_n(at)}H{_n(x(f["high"]))}"/>')
    parts.append(f'<circle class="{kind}" cx="{_n(x(f["value"]))}" cy="{_n(at)}" r="4"/>')
  return "".join(parts)


def _line(line: Line, x, y, right: float, label_y: float) -> str:
  heavy = line.style == "heavy"
  colour = "ink" if heavy else f"s{line.style % NUM_COLOURS}"
  dashed = "" if heavy or line.style // NUM_COLOURS % 2 == 0 else " dashed"
  kind = f"line {colour}{dashed}{' heavy' if heavy else ''}"
  spots = [(x(a), y(b)) for a, b in line.points]
  path = "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in spots)
  end_x, end_y = spots[-1]
  return (
    f"<g><title>{escape(line.name)}</title>"
    f'<path class="{kind}" d="{path}"/>'
    f'<circle class="dot {colour}" cx="{_n(end_x)}" cy="{_n(end_y)}" r="2.2"/>'
    f'<path class="leader {colour}" d="M{_n(end_x + 3)} {_n(end_y)}L{_n(right + 22)} {_n(label_y)}"/>'
    f"{_text(right + 26, label_y + 4, shorten(line.name, 7), 'small' + (' strong' if heavy else ''))}</g>"
  )


def _frame(series: Sequence[Series]) -> tuple[float, float, list[float]]:
  """Ends and ticks of the axis: all values, and intervals unless they reach far beyond."""
  found = [p for one in series for p in one.points.values()]
  values = [v for value, _, _, dots in found for v in (value, *dots)]
  low, high = min(values, default=0.0), max(values, default=1.0)
  room = 0.6 * (high - low) or 0.5 * abs(high) or 0.5
  bars = [v for _, a, b, _ in found for v in (a, b) if v is not None]
  ticks = nice_ticks(
    max(low - room, min([low, *bars])),
    min(high + room, max([high, *bars])),
  )
  return ticks[0], ticks[-1], ticks


def _series(one: Series, x, y, right: float, label_y: float) -> str:
  heavy = one.style == "heavy"
  colour = "ink" if heavy else f"s{one.style % NUM_COLOURS}"
  spots = [(x(k), y(one.points[k][0])) for k in sorted(one.points)]
  path = "M" + "L".join(f"{_n(a)} {_n(b)}" for a, b in spots)
  parts = [f'<path class="line {colour} faint" d="{path}"/>']
  for k in sorted(one.points):
    value, low, high, values = one.points[k]
    parts += [
      f'<circle class="dot {colour} faint" cx="{_n(x(k) + 3)}" cy="{_n(y(v))}" r="1.8"/>'
      for v in values
    ]
    if low is not None and high is not None:
      parts.append(f'<path class="line {colour}" d="M{_n(x(k))} {_n(y(low))}V{_n(y(high))}"/>')
    parts.append(
      f'<circle class="dot {colour}" cx="{_n(x(k))}" cy="{_n(y(value))}" r="{4 if heavy else 3.2}"/>'
    )
  end_x, end_y = spots[-1]
  parts.append(
    f'<path class="leader {colour}" d="M{_n(end_x + 4)} {_n(end_y)}L{_n(right + 6)} {_n(label_y)}"/>'
    f"{_text(right + 10, label_y + 4, shorten(one.name, 10), 'small' + (' strong' if heavy else ''))}"
  )
  return f"<g><title>{escape(one.name)}</title>{''.join(parts)}</g>"


def _text(x: float, y: float, text: str, kind: str = "") -> str:
  return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
  return f'<path class="grid" d="M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}"/>'


def _n(value: float) -> str:
  return f"{value:.1f}".removesuffix(".0")


def _visible(ch: str) -> str:
  """Control characters as their pictures (␀), for a model may answer with them; what XML forbids, as �."""
  if ch in "\ufffe\uffff":
    return "\ufffd"
  if ch in "\n\t" or unicodedata.category(ch) != "Cc":
    return ch
  return chr(0x2400 + ord(ch)) if ord(ch) < 32 else "\ufffd"
