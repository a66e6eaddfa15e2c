"""report.html of one or many runs: figures, curves, answers, ledgers, configs."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlit_jax import charts, page
from mlit_jax.charts import escape, is_number
from mlit_jax.metrics import LOWER_IS_BETTER, MEAN
from mlit_jax.redaction import redact
from mlit_jax.reporting.runs import SUMMARY_ROWS, Cell, config_differences
from mlit_jax.reporting.tables import grid
from mlit_jax.training import report
from mlit_jax.training.run_files import Run

SCRIPT = (Path(__file__).parent / "browser.js").read_text(encoding="utf-8")
MOST_ANSWERS = 60  # prompts of a set and language
MOST_CHARACTERS = 1500  # of a prompt or an answer
STYLE = (
  report.STYLE
  + """
.heat td { min-width: 3.4em; } .heat td[title] { cursor: help; }
.heat .cell { background: color-mix(in srgb, var(--c2) calc(var(--share) * 46%), transparent); }
.heat td.sum, .heat th.sum { border-left: 2px solid var(--muted); }
details { margin: 6px 0; } summary { cursor: pointer; font-weight: 600; }
#answer-controls { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center; margin: 8px 0 12px; }
#answer-controls label { display: flex; gap: 6px; align-items: center; font-size: 13.5px; }
select, input, button { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--rule); border-radius: 4px;
  padding: 3px 6px; max-width: 100%; }
.sample > h4 { margin: 0; font-size: 12.5px; font-weight: 400; }
.sample[hidden], .answer[hidden] { display: none; }
.answers { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.answer.wrong-language .said { border-inline-start: 3px solid var(--c1); padding-inline-start: 8px; }
.why { color: var(--c1); font-weight: 700; }
pre { font: 12px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { #answer-controls, #answer-more { display: none; } }
"""
)


def report_html(runs: Sequence[Run], every: Sequence[Cell], last: Sequence[Cell]) -> str:
  """The page. `every` has all figures, `last` those of each run's last evaluation."""
  title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
  sections = [f"<h1>{escape(title)}</h1>", overview(runs, last)]
  for name in dict.fromkeys(c.set for c in last):
    sections.append(heat_tables(name, runs, every, last))
  sections += [over_steps(runs, every), answers(runs)]
  sections += [_titled(run, runs, report.ledger_table(run)) for run in runs]
  sections.append(configs(runs))
  sections += [_titled(run, runs, report.foot(run)) for run in runs]
  return page.html(title, sections, STYLE, SCRIPT)


def overview(runs: Sequence[Run], last: Sequence[Cell]) -> str:
  """A row for each run: what it was trained on, how far it came, the mean of each metric at its end."""
  means = [c for c in last if c.lang == MEAN]
  columns = list(dict.fromkeys((c.set, c.metric) for c in means))
  by_run = {(c.run, c.set, c.metric): c for c in means}
  rows = []
  for run in runs:
    reached = max([*(e["step"] for e in run.events), *run.figures], default=0)
    total = run.ledger.get("steps")
    cells = [_figure(by_run.get((run.name, *column))) for column in columns]
    mixture = json.dumps(run.ledger.get("mixture"), ensure_ascii=False) if run.ledger else ""
    rows.append(
      f'<tr><td class="lang">{escape(run.name)}</td><td>{reached:,}{f" of {total:,}" if total else ""}</td>{"".join(cells)}'
      f'<td class="lang"><code>{escape(charts.shorten(mixture, 160))}</code></td></tr>'
    )
  head = "".join(
    f"<th>{escape(report.metric_name(m))}<br><small>{escape(s)}</small></th>" for s, m in columns
  )
  return (
    '<p class="quiet">Means over languages at the last evaluation, with 95 % intervals.</p>\n'
    f'<div class="wide"><table><thead><tr><th class="lang">run</th><th>step</th>{head}<th class="lang">mixture</th></tr></thead>'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )


def _figure(cell: Cell | None) -> str:
  if cell is None or not is_number(cell.value):
    return "<td>–</td>"
  value = report.as_text(cell.metric, cell.value)
  return f"<td>{value}<small>{_interval(cell)}</small></td>"


def _interval(cell: Cell) -> str:
  low, high = cell.figure.get("low"), cell.figure.get("high")
  if not (is_number(low) and is_number(high)):
    return ""
  return f"{report.as_text(cell.metric, low)} – {report.as_text(cell.metric, high)}"


def heat_tables(name: str, runs: Sequence[Run], every: Sequence[Cell], last: Sequence[Cell]) -> str:
  """Languages x runs (or steps of the one run) of each metric of a set; darker is better."""
  found = [c for c in (last if len(runs) > 1 else every) if c.set == name]
  parts = [
    f"<h2>{escape(name)}: languages</h2>",
    '<p class="quiet">Darker is better, within a table. A pointer over a cell shows its 95 % interval and n.</p>',
  ]
  for i, metric in enumerate(dict.fromkeys(c.metric for c in found)):
    better = "lower" if metric in LOWER_IS_BETTER else "higher"
    title = f"{report.metric_name(metric)} ({better} is better)"
    parts.append(
      f"<details{' open' if i < 2 else ''}><summary>{escape(title)}</summary>{_heat(found, metric)}</details>"
    )
  return "\n".join(parts)


def _heat(found: Sequence[Cell], metric: str) -> str:
  rows, languages, by_cell = grid(found, metric)
  values = [c.value for c in by_cell.values() if is_number(c.value) and c.lang not in SUMMARY_ROWS]
  low, high = min(values, default=0.0), max(values, default=1.0)
  head = "".join(
    f"<th{_sum(lang, ' class=sum')}>{escape(lang)}<br><small>{escape(page.language_name(lang))}</small></th>"
    for lang in languages
  )
  body = "".join(
    f'<tr><td class="lang">{escape(row)}</td>'
    + "".join(_heat_cell(by_cell.get((row, lang)), lang, low, high) for lang in languages)
    + "</tr>"
    for row in rows
  )
  return f'<div class="wide"><table class="heat"><thead><tr><th class="lang"></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _heat_cell(cell: Cell | None, lang: str, low: float, high: float) -> str:
  if cell is None or not is_number(cell.value):
    return f"<td{_sum(lang, ' class=sum')}>–</td>"
  share = (cell.value - low) / (high - low) if high > low else 0.5
  if cell.metric in LOWER_IS_BETTER:
    share = 1 - share
  share = min(1.0, max(0.0, share))
  of = f"{cell.figure['lang']} " if "lang" in cell.figure else ""
  says = f"{cell.run}, step {cell.step}: {_interval(cell) or 'no interval'}, n {cell.figure['n']:,}"
  kind = f"cell{_sum(lang, ' sum')}"
  return (
    f'<td class="{kind}" style="--share:{share:.3f}" title="{escape(says)}">{escape(of)}'
    f'<data value="{cell.value!r}">{report.as_text(cell.metric, cell.value)}</data></td>'
  )


def _sum(lang: str, text: str) -> str:
  return text if lang == MEAN else ""


def over_steps(runs: Sequence[Run], every: Sequence[Cell]) -> str:
  """Of one run its languages in one chart; of many a chart for each language, a line for each run."""
  if len(runs) == 1:
    return report.curves(runs[0])
  parts = ["<h2>Over steps</h2>"]
  for name, metric in dict.fromkeys((c.set, c.metric) for c in every):
    mine = [c for c in every if (c.set, c.metric) == (name, metric) and is_number(c.value)]
    if len({c.step for c in mine}) < 2:
      continue
    languages = list(dict.fromkeys(c.lang for c in mine if c.lang not in SUMMARY_ROWS))
    drawn = [_lines(mine, lang, runs) for lang in (MEAN, *languages)]
    figures = "".join(f"<figure>{charts.inline(c)}</figure>" for c in drawn if c)
    title = f"{name}: {report.metric_name(metric)}"
    parts.append(
      f'<details><summary>{escape(title)}</summary><div class="pair">{figures}</div></details>'
    )
  return "\n".join(parts) if len(parts) > 1 else ""


def _lines(found: Sequence[Cell], lang: str, runs: Sequence[Run]) -> charts.Chart | None:
  lines = []
  for i, run in enumerate(runs):
    points = sorted((c.step, c.value) for c in found if c.run == run.name and c.lang == lang)
    if points:
      lines.append(charts.Line(run.name, points, i))
  title = f"{lang} {page.language_name(lang)}".strip()
  return charts.lines(title, lines) if any(len(line.points) > 1 for line in lines) else None


# --- answers


@dataclasses.dataclass(frozen=True)
class _Answer:
  run: str
  step: int
  last: bool
  record: dict


def answers(runs: Sequence[Run]) -> str:
  """Prompts with the answers of every run at its first and last evaluation, and a form that filters them."""
  found = _answers(runs)
  if not found:
    return '<h2>Answers</h2>\n<p class="quiet">No generations.jsonl lies here.</p>'
  kept: dict[tuple[str, str], int] = {}
  samples = []
  for (name, lang, key), of in found.items():
    kept[name, lang] = kept.get((name, lang), 0) + 1
    if kept[name, lang] <= MOST_ANSWERS:
      samples.append(_sample(name, lang, key, of))
  left = sum(max(0, n - MOST_ANSWERS) for n in kept.values())
  more = f" {left:,} further prompts are in the workdirs' generations.jsonl." if left else ""
  return (
    f'<h2>Answers</h2>\n<p class="quiet">Of each run at its first and last evaluation.{more}</p>\n'
    f"{_controls(found, runs)}\n{''.join(samples)}\n"
    '<button id="answer-more" type="button" hidden>more</button>'
  )


def _answers(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[_Answer]]:
  """{(set, language, id): answers}, languages in order."""
  found: dict[tuple[str, str, str], list[_Answer]] = {}
  for run in runs:
    steps = sorted(run.answers)
    for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
      for (lang, key), record in run.answers[step].items():
        place = (str(record.get("set", "")), lang, str(key))
        found.setdefault(place, []).append(_Answer(run.name, step, step == steps[-1], record))
  return dict(sorted(found.items()))


def _controls(found: Mapping, runs: Sequence[Run]) -> str:
  """The form, hidden until its script runs: without it all answers are there."""
  sets = [name for name in dict.fromkeys(k[0] for k in found) if name]
  languages = sorted({lang for _, lang, _ in found})
  choices = {
    "set": [("", "every set"), *((s, s) for s in sets)],
    "lang": [
      ("", "every language"),
      *((x, f"{x} {page.language_name(x)}".strip()) for x in languages),
    ],
    "run": [("", "every run"), *((r.name, r.name) for r in runs)],
    "step": [("", "first and last step"), ("last", "last step only")],
  }
  selects = "".join(
    f'<select name="{name}" aria-label="{name}">'
    + "".join(f'<option value="{escape(v)}">{escape(text)}</option>' for v, text in options)
    + "</select>"
    for name, options in choices.items()
    if len(options) > 2 or name == "step"
  )
  hidden = "".join(
    f'<input type="hidden" name="{name}" value="">'
    for name, options in choices.items()
    if len(options) <= 2 and name != "step"
  )
  return (
    f'<form id="answer-controls" hidden>{selects}{hidden}'
    '<label><input type="checkbox" name="wrong"> only with an answer in another language</label>'
    '<input type="search" name="text" placeholder="search" aria-label="search" dir="auto"> <span id="answer-count" class="quiet" role="status"></span></form>'
  )


def _sample(name: str, lang: str, key: str, of: Sequence[_Answer]) -> str:
  prompt = of[0].record.get("prompt", "")
  text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
  drawn = "".join(_answer(lang, a) for a in of)
  where = " · ".join(filter(None, (escape(name), page.language(lang), escape(key))))
  return (
    f'<div class="sample" data-set="{escape(name)}" data-lang="{escape(lang)}"><h4 class="quiet">{where}</h4>'
    f'{_said("p", lang, text)}<div class="answers">{drawn}</div></div>\n'
  )


def _answer(lang: str, a: _Answer) -> str:
  verdict = a.record.get("fidelity") or {}
  wrong = verdict.get("right") is False
  why = f": {verdict['why']}" if verdict.get("why") else ""
  mark = f' · <span class="why">not in this language{escape(why)}</span>' if wrong else ""
  cut = "" if a.record.get("stopped", True) else ", cut at the length limit"
  last = " data-last" if a.last else ""
  return (
    f'<div class="answer{" wrong-language" if wrong else ""}" data-run="{escape(a.run)}"{last}>'
    f"<h4>{escape(a.run)}, step {a.step:,}{cut}{mark}</h4>{_said('div', lang, a.record['response'])}</div>"
  )


def _said(tag: str, lang: str, text: object) -> str:
  shown = charts.shorten(str(text), MOST_CHARACTERS)
  return f'<{tag} class="said" dir="auto" lang="{escape(lang)}">{escape(shown) or "<i>nothing</i>"}</{tag}>'


# --- configs


def configs(runs: Sequence[Run]) -> str:
  """Where the configs differ, and each whole."""
  parts = ["<h2>Config</h2>"]
  differing = config_differences(runs)
  if len(runs) > 1:
    parts.append(_differences(differing, runs) if differing else '<p class="quiet">All alike.</p>')
  for run in runs:
    text = html.escape(redact(json.dumps(run.config, indent=1, ensure_ascii=False)))
    parts.append(f"<details><summary>{escape(run.name)}</summary><pre>{text}</pre></details>")
  return "\n".join(parts)


def _differences(differing: Mapping[str, Sequence[object]], runs: Sequence[Run]) -> str:
  head = "".join(f'<th class="lang">{escape(run.name)}</th>' for run in runs)
  rows = "".join(
    f'<tr><td class="lang">{escape(key)}</td>'
    + "".join(
      f'<td class="lang"><code>{escape(charts.shorten(redact(json.dumps(v, ensure_ascii=False)), 120))}</code></td>'
      for v in values
    )
    + "</tr>"
    for key, values in differing.items()
  )
  return f'<div class="wide"><table><thead><tr><th class="lang">key</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _titled(run: Run, runs: Sequence[Run], section: str) -> str:
  """A section of one run among several says whose it is."""
  if len(runs) == 1 or not section:
    return section
  return section.replace("</h2>", f": {escape(run.name)}</h2>", 1)
