"""report.html of a sweep: what was asked, what came out, how sure that is. Nothing is fetched and nothing is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlit_jax import charts, page
from mlit_jax.charts import escape
from mlit_jax.experiments import smallest
from mlit_jax.experiments.cells import GROUPS, MACRO
from mlit_jax.experiments.curves import TESTED_GROUPS, Drawn, Line, Point
from mlit_jax.experiments.transfer import Matrix
from mlit_jax.metrics import LOWER_IS_BETTER
from mlit_jax.reporting import sweep_words as words
from mlit_jax.reporting.sweep import Results
from mlit_jax.reporting.sweep_plots import column_shares
from mlit_jax.training import report

HEADLINE_WIDTH = 760
STYLE = (
  report.STYLE
  + """
.headline .chart { width: 100%; max-width: 900px; height: auto; display: block; }
.says { font-size: 16px; } details { margin: 8px 0; } summary { cursor: pointer; font-weight: 600; }
.heat td, .heat th { padding: 3px 5px; } .heat td small { font-size: 10.5px; } .heat th small { font-weight: 400; color: var(--muted); }
.heat td { min-width: 3em; } .heat td[title] { cursor: help; }
.heat .cell { background: color-mix(in srgb, var(--c2) calc(var(--share) * 46%), transparent); }
.heat .own { outline: 2px solid var(--muted); outline-offset: -2px; }
.heat td.sum, .heat th.sum { border-left: 2px solid var(--muted); } td.text, th.text { text-align: left; white-space: normal; min-width: 12em; }
.notice ul { margin: 4px 0; padding-left: 20px; } .headline, .says { break-inside: avoid; }
@media print { .heat .cell { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
)


def sweep_html(results: Results) -> str:
  """The whole page."""
  sections = [head(results), faults(results)]
  sections += [curve(drawn, results) for drawn in results.curves]
  sections += [
    matrices(results),
    gate(results),
    correlations(results),
    arms(results),
    methods(results),
  ]
  return page.html(results.sweep.title, [s for s in sections if s], STYLE)


def head(results: Results) -> str:
  """Title, what it is about, and what was trained and measured."""
  sweep = results.sweep
  draws = {run.draw for run in sweep.runs}
  seeds = {run.seed for run in sweep.runs}
  at = "its last evaluation" if sweep.at == "last" else "the evaluation of its best checkpoint"
  parts = [
    f"{_count(len(results.outcomes), 'training')} ({results.finished} finished) of {_count(len(sweep.arms), 'mixture')} of languages,"
    f" with {_count(len(draws), 'draw')} of the examples and {_count(len(seeds), 'training seed')}.",
    f"Each model is measured in {_count(len(sweep.languages), 'language')} on the set {sweep.set}, at {at}.",
  ]
  if sweep.base:
    parts.append(f"The base language is {_language(sweep.base)}.")
  for group in ("seen", "unseen"):
    members = sweep.groups.get(group, ())
    if members:
      what = (
        "in some of the mixtures" if group == "seen" else "in none of the mixtures of the curves"
      )
      parts.append(f"{group.capitalize()} ({what}): {', '.join(map(_language, members))}.")
  about = f'<p class="says">{escape(sweep.about)}</p>\n' if sweep.about else ""
  return f'<h1>{escape(sweep.title)}</h1>\n{about}<p class="quiet">{escape(" ".join(parts))}</p>'


def faults(results: Results) -> str:
  """Runs that are in no figure, first of all."""
  said = [*results.faults, *dict.fromkeys(x for drawn in results.curves for x in drawn.left_out)]
  if not said:
    return '<p class="quiet">Every planned run is finished and stands in the figures.</p>'
  items = "".join(f"<li>{escape(text)}</li>" for text in said)
  return (
    f'<div class="notice"><p><b>Not everything is there.</b> What follows leaves these out; nothing stands in for them:</p>'
    f"<ul>{items}</ul></div>"
  )


# --- curves


def curve(drawn: Drawn, results: Results) -> str:
  """The headline metric large, in words and as a table; the others below."""
  title = f"<h2>Over {escape(drawn.curve.label)}</h2>"
  if not drawn.metrics:
    return f'{title}\n<p class="quiet">No finished run has a point here.</p>'
  first, *rest = drawn.metrics
  chart = _chart(drawn, first, results, HEADLINE_WIDTH)
  parts = [
    title,
    _sentences(drawn, first, MACRO, "says"),
    f'<figure class="headline">{charts.inline(chart)}</figure>',
    f'<p class="quiet">{escape(_key(drawn, first))}</p>',
    *(
      f"<h3>{escape(words.group_name(g, results.sweep).capitalize())}</h3>{_sentences(drawn, first, g)}"
      for g in TESTED_GROUPS
      if g != MACRO and drawn.line(first, g)
    ),
    _details(f"{words.metric_name(first)}: the numbers", _points_table(drawn, first, results)),
    _details("Which points are below the best: every test", _beside_table(drawn, first, results)),
  ]
  for metric in rest:
    said = f'{_sentences(drawn, metric, MACRO)}<p class="quiet">{escape(_explained(metric))}</p>'
    body = f"<figure>{charts.inline(_chart(drawn, metric, results, HEADLINE_WIDTH))}</figure>{_points_table(drawn, metric, results)}"
    name = f"{words.metric_name(metric)} ({words.better(metric)})"
    parts.append(_details(name, f'{said}<div class="headline">{body}</div>'))
  parts.append(_details("All tests of this curve", _tests_table(drawn, results)))
  parts.append(
    _details("How much is due to the draw, how much to the seed", _variance_table(drawn, results))
  )
  return "\n".join(parts)


def _key(drawn: Drawn, metric: str) -> str:
  overs = list(dict.fromkeys(p.over for x in drawn.lines if x.metric == metric for p in x.points))
  text = (
    f"{_explained(metric)} Dots with bars: means over the runs at a point with 95 % intervals over {' or '.join(overs)};"
    " faint dots: single runs. Points are evenly spaced, whatever their values. "
    "All, seen and unseen languages: means in which languages count alike."
  )
  for line in drawn.lines:
    if line.metric == metric and line.group == MACRO and line.lacking:
      text += f" Without {', '.join(line.lacking)}, where no run of this curve has the figure."
  return text


def _explained(metric: str) -> str:
  says = words.EXPLAINED.get(metric)
  name = words.metric_name(metric)
  return f"{name[0].upper()}{name[1:]}{f': {says}' if says else ''}; {words.better(metric)}."


def _chart(drawn: Drawn, metric: str, results: Results, width: float) -> charts.Chart:
  place = {x: k for k, x in enumerate(drawn.xs)}
  short = {MACRO: "all", "base": results.sweep.base, "worst": "worst"}
  series = []
  for i, group in enumerate(GROUPS):
    line = drawn.line(metric, group)
    if line and line.points:
      points = {
        place[p.x]: (p.figure.value, p.figure.low, p.figure.high, p.dots) for p in line.points
      }
      series.append(charts.Series(short.get(group, group), points, "heavy" if i == 0 else i - 1))
  return charts.points(
    f"{words.metric_name(metric)} ({words.better(metric)})",
    [words.x_text(x) for x in drawn.xs], series,
    lambda v: words.tick_text(metric, v), drawn.curve.label, width=width,
  )  # fmt: skip


def _sentences(drawn: Drawn, metric: str, group: str, kind: str = "") -> str:
  line = drawn.line(metric, group)
  if line is None:
    return ""
  is_headline = metric == drawn.metrics[0] and group == MACRO
  claim, numbers = words.verdict_text(line, drawn, is_headline=is_headline)
  if not claim:
    return ""
  return f"<p{_class(kind)}><b>{escape(claim)}</b></p><p>{escape(numbers)}</p>"


def _points_table(drawn: Drawn, metric: str, results: Results) -> str:
  lines = [x for g in GROUPS if (x := drawn.line(metric, g)) and x.points]
  by_x = {(x.group, p.x): p for x in lines for p in x.points}
  rows = []
  for x in drawn.xs:
    row = [f'<td class="lang">{escape(words.x_text(x))}</td>']
    for line in lines:
      point = by_x.get((line.group, x))
      if point is None:
        row.append("<td>–</td>")
        continue
      ends = words.interval_text(words.value_text, point.figure, metric)
      row.append(
        f'<td><data value="{point.figure.value!r}">{words.value_text(metric, point.figure.value)}</data>'
        f"<small>{escape(ends)}</small><small>{escape(_runs(point))}</small></td>"
      )
    rows.append(row)
  heads = [
    (drawn.curve.label, "lang"),
    *((words.group_name(x.group, results.sweep), "") for x in lines),
  ]
  return _table(heads, rows)


def _runs(point: Point) -> str:
  if len(point.dots) < point.planned:
    return f"{len(point.dots)} of {point.planned} runs"
  return _count(point.planned, "run")


def _beside_table(drawn: Drawn, metric: str, results: Results) -> str:
  rows = []
  for line in _tested(drawn, metric):
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for b in line.verdict.beside:
      ends = words.interval_text(words.difference_text, b.difference, metric)
      rows.append([
        _text(words.group_name(line.group, results.sweep), "lang"), _text(words.x_text(b.x)),
        _text(words.value_text(metric, sign * b.mean)), _text(words.x_text(b.above)),
        f"<td>{words.difference_text(metric, b.difference.value)}<small>{escape(ends)}</small></td>",
        _text(words.p_text(b.adjusted)), _text("below it" if b.is_below else "not significantly below"),
      ])  # fmt: skip
  if not rows:
    return '<p class="quiet">Nothing was tested here.</p>'
  heads = [
    ("languages", "lang"), ("point", ""), ("mean", ""), ("compared with", ""),
    ("better there by", ""), ("p for all other points", ""), ("the point is", ""),
  ]  # fmt: skip
  note = (
    "Compared with: the point that lies above this one most surely. The p value is one-sided and multiplied by the number of"
    " other points: it holds however the best is picked. A point that is not below it is not proven to be as good."
  )
  return f'<p class="quiet">{note}</p>{_table(heads, rows)}'


def _tests_table(drawn: Drawn, results: Results) -> str:
  rows = []
  for metric in drawn.metrics:
    for line in (x for g in TESTED_GROUPS if (x := drawn.line(metric, g))):
      v, name = line.verdict, words.metric_name(metric)
      row = [_text(name, "lang"), _text(words.group_name(line.group, results.sweep))]
      if v is None or v.moves is None:
        why = v.why if v else "no points"
        rows.append(
          [*row, *(["<td>–</td>"] * 3), _text("no test"), "<td>–</td>", _text(why, "text")]
        )
        continue
      ends = words.interval_text(words.difference_text, v.moves, metric)
      rows.append([
        *row,
        f"<td>{words.difference_text(metric, v.moves.value)}<small>{escape(ends)}</small></td>",
        _text(words.p_text(v.moves.p_two_sided)),
        _text(words.p_text(line.adjusted.adjusted if line.adjusted else None)),
        _text(_short(v.says)), _text("–" if v.smallest is None else words.x_text(v.smallest)),
        _text(words.test_name(v.moves), "text"),
      ])  # fmt: skip
  heads = [
    ("metric", "lang"), ("languages", ""), ("others better than the first point by", ""), ("p", ""),
    ("p, Holm over this table", ""), ("by p alone", ""), ("smallest not below the best", ""), ("test", "text"),
  ]  # fmt: skip
  note = (
    "Of twenty lines without any effect, one has p below 0.05 on average. The first line is the one that was"
    " settled beforehand as the headline; for the others look at Holm's p."
  )
  return f'<p class="quiet">{note}</p>{_table(heads, rows)}'


def _short(says: str) -> str:
  return {smallest.UNCLEAR: "moves", smallest.NONE: "no effect"}.get(says, says)


def _variance_table(drawn: Drawn, results: Results) -> str:
  rows = [
    [
      _text(words.metric_name(line.metric), "lang"),
      _text(words.group_name(line.group, results.sweep)),
      _text(words.variance_text(line.variance), "text"),
    ]
    for line in drawn.lines
    if line.variance is not None
  ]
  same = {words.variance_text(x.variance) for x in drawn.lines if x.variance}
  if len(same) == 1 and next(iter(same)).startswith("not told apart"):
    return f'<p class="quiet">{escape(next(iter(same)).capitalize())}.</p>'
  note = "Variance among the runs of a point: which examples were drawn, and what else the training seed changes."
  return f'<p class="quiet">{note}</p>' + _table(
    [("metric", "lang"), ("languages", ""), ("share of the variance", "text")], rows
  )


def _tested(drawn: Drawn, metric: str) -> list[Line]:
  lines = [drawn.line(metric, group) for group in TESTED_GROUPS]
  return [line for line in lines if line and line.verdict and line.verdict.beside]


# --- the rest


def matrices(results: Results) -> str:
  """The transfer matrix of each metric, the headline's open."""
  shown = [m for m in results.matrices if m.entries]
  if not results.matrices:
    return ""
  parts = ["<h2>From language to language</h2>"]
  if not shown:
    return parts[0] + '\n<p class="quiet">No finished run has a field in the matrix.</p>'
  parts.append(
    '<p class="quiet">A row is what a model was tuned on, a column the language it was measured in. Darker is better within a column:'
    " each column has a scale of its own, since languages differ in what any model reaches. Framed: tuned on this language. The mean is over"
    " the languages that the model was not tuned on. Below each value: its 95 % interval.</p>"
  )
  for i, matrix in enumerate(shown):
    name = f"{words.metric_name(matrix.metric)} ({words.better(matrix.metric)})"
    parts.append(_details(name, _matrix(matrix), is_open=i == 0))
  return "\n".join(parts)


def _matrix(matrix: Matrix) -> str:
  shares, metric = column_shares(matrix), matrix.metric
  defined = any(entry.by_definition for entry in matrix.entries.values())
  rows = []
  for arm in matrix.arms:
    row = [f'<td class="lang">{escape(arm.name)}</td>']
    for lang in matrix.languages:
      entry = matrix.entries.get((arm.name, lang))
      if entry is None or entry.figure.value is None:
        row.append("<td>–</td>")
        continue
      ends = words.interval_text(words.value_text, entry.figure, metric)
      says = (
        "50 by definition"
        if entry.by_definition
        else f"{ends or 'no interval'}; {_count(entry.num_runs, 'run')}"
      )
      row.append(
        f'<td class="cell{" own" if entry.own else ""}" style="--share:{shares[arm.name, lang]:.3f}"'
        f' title="{escape(f"{arm.name} in {lang}: {says}")}"><data value="{entry.figure.value!r}">'
        f"{words.value_text(metric, entry.figure.value)}</data><small>{escape(ends.replace(' to ', '–'))}</small></td>"
      )
    mean = matrix.means.get(arm.name)
    if mean is None or mean.value is None:
      row.append('<td class="sum">–</td>')
    else:
      ends = words.interval_text(words.value_text, mean, metric)
      lacking = matrix.lacking[arm.name]
      note = f"<small>without {escape(', '.join(lacking))}</small>" if lacking else ""
      row.append(
        f'<td class="sum">{words.value_text(metric, mean.value)}<small>{escape(ends.replace(" to ", "–"))}</small>{note}</td>'
      )
    rows.append(row)
  heads = [
    ("tuned on", "lang"),
    *((f"{lang}\n{page.language_name(lang)}", "") for lang in matrix.languages),
    ("mean\nof the others", "sum"),
  ]
  note = (
    '<p class="quiet">On the diagonal a model meets itself: 50 by definition, not measured.</p>'
    if defined
    else ""
  )
  return note + _table(heads, rows, "heat")


def gate(results: Results) -> str:
  """Scores before and after the language gate."""
  if not results.gates:
    return ""
  parts = [
    "<h2>Before and after the language gate</h2>",
    '<p class="quiet">The same answers scored twice: as they are, and with answers in another language than the prompt\'s as failures.'
    " A judge (or an overlap of characters) may reward an answer that the user cannot read; the difference is how much. Its interval is over prompts,"
    " each drawn with both of its scores, averaged over the arm's runs; n counts prompts in languages.</p>",
  ]
  for metric in dict.fromkeys(row.metric for row in results.gates):
    rows = [
      [
        _text(g.arm, "lang"), _text(words.group_name(g.group, results.sweep)), _text(words.value_text(metric, g.before)),
        _text(words.value_text(metric, g.after)),
        f"<td>{words.difference_text(metric, g.difference.value)}<small>{escape(words.interval_text(words.difference_text, g.difference, metric))}</small></td>",
        f"<td>{g.difference.n:,}</td>", f"<td>{g.num_runs}</td>",
      ]
      for g in results.gates if g.metric == metric
    ]  # fmt: skip
    heads = [
      ("arm", "lang"),
      *((x, "") for x in ("languages", "before", "after", "difference", "n", "runs")),
    ]
    parts.append(
      _details(
        words.metric_name(metric), _table(heads, rows), is_open=len(parts) == 2 and len(rows) <= 24
      )
    )
  return "\n".join(parts)


def correlations(results: Results) -> str:
  """What transfer goes with."""
  if not results.correlations:
    return ""
  parts = [
    "<h2>What transfer goes with</h2>",
    '<p class="quiet">Transfer is what a model tuned on one language alone reaches in another. "Within": less the mean of the evaluated language,'
    " so that a language in which every model does well counts as no transfer. Few languages tell little, however many pairs they make.</p>",
  ]
  for i, metric in enumerate(dict.fromkeys(row.metric for row in results.correlations)):
    rows = []
    for c in (c for c in results.correlations if c.metric == metric):
      interval = "" if c.low is None else f"{c.low:+.2f} to {c.high:+.2f}"
      value = "–" if c.value is None else f"{c.value:+.2f}"
      rows.append([
        _text(c.covariate, "lang"), _text("pairs" if c.kind == "pair" else "tuned languages"), _text(c.coefficient),
        _text("within" if c.within else "as it is"), f"<td>{value}<small>{escape(interval)}</small></td>",
        _text(words.p_text(c.p_value)), f"<td>{c.n}</td>", f"<td>{c.languages}</td>", _text(c.warning, "text"),
      ])  # fmt: skip
    heads = [
      ("covariate", "lang"),
      *((x, "") for x in ("points", "coefficient", "transfer", "value", "p", "n", "languages")),
      ("note", "text"),
    ]
    lower = (
      " (lower is better: a negative coefficient means more transfer)"
      if metric in LOWER_IS_BETTER
      else ""
    )
    parts.append(
      _details(f"{words.metric_name(metric)}{lower}", _table(heads, rows), is_open=i == 0)
    )
  return "\n".join(parts)


def arms(results: Results) -> str:
  """Every arm: what it was tuned on, and its runs."""
  rows = []
  for arm in results.sweep.arms:
    mine = [run for run in results.sweep.runs if run.arm == arm.name]
    states = "; ".join(
      f"{run.id} (draw {run.draw}, seed {run.seed}{'' if results.outcomes[run.id].state == 'finished' else ', ' + results.outcomes[run.id].state})"
      for run in mine
    )
    counts = ", ".join(f"{lang} {n:,}" for lang, n in arm.counts.items()) or ", ".join(arm.tuned)
    rows.append([_text(arm.name, "lang"), _text(counts, "text"), _text(states, "text")])
  table = _table([("arm", "lang"), ("tuned on (examples)", "text"), ("runs", "text")], rows)
  return "<h2>Arms and runs</h2>\n" + _details(
    f"{_count(len(rows), 'arm')}, {_count(len(results.outcomes), 'run')}", table
  )


def methods(results: Results) -> str:
  """The tests, for whoever doubts them."""
  texts = [
    "Does the curve move: the first point against the mean of the others, paired. Over replicates this is a t test of their differences; replicates that"
    " share a run count once, and those that share the examples drawn (or another factor) are averaged first. With fewer than three independent"
    " replicates it is a permutation test over prompts, translations swapped together, and then speaks of these trained models alone.",
    "The smallest point not below the best: which point is best is read off the same data, so no point is taken as the best in advance. Each point is"
    " tested against every other (one-sided); it is below the best if the smallest of these p values, times the number of other points, is at most 0.05"
    " (multiple comparisons with the best, Hsu 1981, with Bonferroni's bound). So the smallest point named is too large in at most 5 % of sweeps; with few"
    " replicates it may well be too small. It is named only if the curve moves.",
    "Intervals are 95 %. Over replicates they are Student's and speak of other trainings, measured on the same prompts; of a single run they are over prompts and speak of this model on others. cells.csv, curves.csv, matrix.csv and figures.json beside"
    " this page hold every number unrounded.",
  ]
  return "<h2>How it was tested</h2>\n" + "".join(f"<p>{escape(text)}</p>" for text in texts)


def _details(name: str, body: str, *, is_open: bool = False) -> str:
  return f"<details{' open' if is_open else ''}><summary>{escape(name)}</summary>{body}</details>"


def _table(heads: Iterable[tuple[str, str]], rows: Sequence[Sequence[str]], kind: str = "") -> str:
  head = "".join(f"<th{_class(k)}>{_head(text)}</th>" for text, k in heads)
  body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
  return f'<div class="wide"><table{_class(kind)}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(text: str) -> str:
  """What stands after a line break is the small print of a heading."""
  first, _, rest = text.partition("\n")
  return escape(first) + (f"<br><small>{escape(rest)}</small>" if rest else "")


def _text(text: object, kind: str = "") -> str:
  return f"<td{_class(kind)}>{escape(text)}</td>"


def _class(kind: str) -> str:
  return f' class="{kind}"' if kind else ""


def _language(lang: str) -> str:
  return f"{lang} {page.language_name(lang)}".strip()


def _count(n: int, what: str) -> str:
  return f"{n:,} {what}{'s' * (n != 1)}"
