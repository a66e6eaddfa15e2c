"""report.html of a run: one page that needs nothing else, from the files that lie in the workdir.

  write_report(root)             -> root/report.html
  write_chart(root, "chart.svg") -> its first chart alone, on white

Whatever is missing (a killed run, no evaluation, no answers) is left out and said so.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from mlit_jax import charts, page, runtime
from mlit_jax.charts import escape
from mlit_jax.metrics import LOWER_IS_BETTER, MEAN
from mlit_jax.training.card import METRIC_FORMAT, judged_line, skipped_line
from mlit_jax.training.run_files import LACKING, SUMMARY_ROWS, Run, read_run

NAMES = {"fidelity": "language fidelity", "bits_per_byte": "bits per byte", "chrf": "chrF"}
LATEST = 250_000_000_000  # seconds: the year 9892, beyond which no clock is asked
SAMPLES = 2  # answers shown per language
MAX_CHARACTERS = 700  # of a shown prompt or answer
MAX_LINES = 24  # languages in one chart of curves; more cannot be told apart
STYLE = f"""
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 24px 40px; align-items: start; }}
.pair .chart {{ width: 100%; max-width: 540px; height: auto; display: block; }}
.key {{ display: inline-block; width: 10px; height: 10px; border-radius: 50%; border: 2px solid var(--muted); }}
.key.new {{ background: var(--c0); border-color: var(--c0); }} .key.worse {{ background: var(--c1); border-color: var(--c1); }}
.sample {{ border-top: 1px solid var(--rule); padding: 8px 0 12px; }}
.sample > p {{ margin: 0 0 6px; max-width: none; font-weight: 600; }}
.answers {{ display: grid; grid-template-columns: 1fr 1fr; gap: 4px 24px; }} .answers h4 {{ margin: 0; font-size: 12px; font-weight: 400; color: var(--muted); }}
.said {{ white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; max-height: 10.5em; overflow-y: auto; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 14px; font-size: 13px; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
@media (max-width: 560px) {{ .answers {{ grid-template-columns: 1fr; }} }}
@media print {{ .said {{ max-height: none; font-size: 9pt; line-height: 1.35; }} .sample, .chart {{ break-inside: avoid; }}
  .pair {{ grid-template-columns: 1fr 1fr; gap: 16px; }} }}
{charts.COLOURS}"""


def write_report(root: Path) -> Path:
  """Write root/report.html."""
  root = Path(root)
  run = read_run(root)
  sections = [head(run)]
  sections += [before_after(run, name) for name in run.sets] or [
    _missing("Before → after", "No evaluation lies here.")
  ]
  sections += [curves(run), ledger_table(run)]
  sections += [metrics_table(run, name) for name in run.sets]
  sections += [samples(run), foot(run)]
  path = root / "report.html"
  runtime.write_atomic(path, page.html(run.name, sections, STYLE))
  return path


def write_chart(root: Path, out: Path) -> Path:
  """Write the chart before → after of the first set alone, as SVG on white."""
  run, out = read_run(Path(root)), Path(out)
  drawn, title, key = [], "No evaluation lies here.", []
  if run.sets:
    title, drawn = run.sets[0], change_charts(run, run.sets[0])
    first, last = run.first_and_last(title)
    key = [("new", f"step {last}"), ("", "bars: 95 % intervals; bold: trained on")]
    if first is not None:
      key = [("old", f"before (step {first})"), key[0], ("new worse", "worse than before"), key[1]]
  runtime.write_atomic(out, charts.standalone(drawn, title, key))
  return out


def head(run: Run) -> str:
  """Title, one line of what was run, and how far it came."""
  model = run.config.get("model", {})
  sizes = model.get("sizes") or {}
  what = model.get("path") or "a decoder from scratch"
  if not model.get("path") and sizes:
    what += f" ({', '.join(f'{key} {value}' for key, value in sizes.items())})"
  parts = [escape(what)] if run.config else []
  ledger = run.ledger
  if ledger:
    parts += [
      f"mixture <code>{escape(json.dumps(ledger.get('mixture'), ensure_ascii=False))}</code>",
      f"{escape(ledger.get('steps'))} steps of {escape(ledger.get('rows_per_step'))} × {escape(ledger.get('max_length'))} tokens"
      f" ({escape(ledger.get('epochs'))} epoch{'s' * (ledger.get('epochs') != 1)})",
      f"plan <code>{escape(ledger.get('hash'))}</code>",
    ]
  out = f"<h1>{escape(run.name)}</h1>\n<p>{' · '.join(parts) or 'Neither config.json nor data_plan.json lies here.'}</p>"
  reached = max((e["step"] for e in run.events), default=0)
  if ledger and not run.is_finished:
    out += f'\n<p class="notice">Not finished: the last event is of step {reached} of {escape(ledger.get("steps"))}.</p>'
  return out


def before_after(run: Run, name: str) -> str:
  """The chart of one set, with its key."""
  first, last = run.first_and_last(name)
  after = f'<span class="key new"></span> step {last}'
  if first is None:
    key = f"{after}, the only evaluation."
  else:
    key = f'<span class="key"></span> before (step {first}) and {after}; <span class="key worse"></span> where that is worse.'
  text = (
    f"{key} The bars are 95 % intervals. Languages in <b>bold</b> were trained on, with their examples"
    " per epoch. The mean weighs languages equally; the worst language is named."
  )
  drawn = "".join(f"<figure>{charts.inline(c)}</figure>" for c in change_charts(run, name))
  return f'<h2>Before → after: {escape(name)}</h2>\n<p class="quiet">{text}</p>\n<div class="pair">{drawn}</div>'


def change_charts(run: Run, name: str) -> list[charts.Chart]:
  """Dumbbells of language fidelity and of bits per byte (or loss), whichever were measured."""
  first, last = run.first_and_last(name)
  new = run.figures[last][name]
  old = run.figures[first][name] if first is not None else {}
  measured = {metric for by_metric in new.values() for metric in by_metric}
  likelihood = "bits_per_byte" if "bits_per_byte" in measured else "loss"
  return [
    _change_chart(run, metric, old, new)
    for metric in ("fidelity", likelihood)
    if metric in measured
  ]


def curves(run: Run) -> str:
  """Over steps: every set's bits per byte (or loss) per language, and the loss of training."""
  drawn = []
  for name in run.sets:
    for metric in ("bits_per_byte", "loss"):
      points = _series(run, f"eval/{name}/", f"/{metric}")
      if any(len(p) > 1 for p in points.values()):
        drawn.append(_curve_chart(run, f"{name}: {metric_name(metric)}", points, MEAN))
        break
  points = _series(run, "train/loss/", "")
  whole = _series(run, "train/", "loss")
  if any(len(p) > 1 for p in whole.values()):
    drawn.append(
      _curve_chart(run, "train loss, per trained token", points | {"all": whole[""]}, "all")
    )
  if not drawn:
    return _missing(
      "Over steps", "Fewer than two events of each kind lie here, so there is no curve."
    )
  figures = "".join(f"<figure>{charts.inline(c)}</figure>" for c in drawn)
  return f'<h2>Over steps</h2>\n<div class="pair">{figures}</div>'


def ledger_table(run: Run) -> str:
  """Planned beside trained, as the device counted it."""
  languages = run.ledger.get("languages", {})
  if LACKING in run.ledger:
    text = "data_plan.json lacks counts of a language, as those of earlier versions do: no table is made of it."
    return _missing("Ledger", text)
  if not languages:
    return _missing("Ledger", "No data_plan.json lies here.")
  counted = ("examples", "tokens", "trained_tokens")
  wrong = [
    x
    for x, e in languages.items()
    for k in counted
    if "trained" in e and _shown(e, k) != e.get("due", e)[k]
  ]
  if not run.is_finished:
    text = "What the plan says; the run has not ended, so nothing stands beside it."
  elif wrong:
    text = f'<span class="wrong">Trained and planned differ: {escape(", ".join(sorted(set(wrong))))}.</span>'
  else:
    text = (
      "Planned, and beside it what the device counted in the batches: they agree in every language."
    )
    if run.ledger.get("skipped_steps"):
      text = "Planned, and beside it what the device counted of what was learned from: with what was skipped they agree in every language."
    done, steps = run.ledger.get("steps_done"), run.ledger.get("steps")
    if done is not None and done < steps:
      text += f" The run ended by itself at step {done:,} of {steps:,}; planned is what the plan has up to there."
  for line in skipped_line(run.ledger) + judged_line(run.ledger):
    text += f" {escape(line[0].upper() + line[1:])}."
  rows = "".join(
    f"<tr>{_ledger_cells(lang, languages[lang])}</tr>{_source_rows(languages[lang])}"
    for lang in run.order(languages)
  )
  total = {
    k: sum(e[k] for e in languages.values())
    for k in ("rows_read", *counted, "repeats", "truncated")
  }
  total |= {
    name: {"": sum(sum(e.get(name, {}).values()) for e in languages.values())}
    for name in ("dropped", "flagged")
  }
  total |= {
    "per_epoch": sum(e["per_epoch"] or 0 for e in languages.values()),
    "bytes_per_token": None,
  }
  total["share_of_trained_tokens"] = sum(e["share_of_trained_tokens"] for e in languages.values())
  for column in ("trained", "due", "skipped"):
    if all(column in e for e in languages.values()):
      total[column] = {k: sum(e[column][k] for e in languages.values()) for k in counted}
  return (
    f'<h2>Ledger</h2>\n<p class="quiet">{text} Padding {run.ledger.get("padding", 0):.1%}.</p>\n<div class="wide"><table><thead>'
    '<tr><th rowspan="2" class="lang">language</th><th rowspan="2">rows read</th><th rowspan="2">dropped</th>'
    '<th rowspan="2">kept, but</th><th rowspan="2">per epoch</th>'
    '<th colspan="2" class="group">examples</th><th colspan="2" class="group">tokens</th>'
    '<th colspan="2" class="group">trained tokens</th><th rowspan="2">share</th><th rowspan="2">repeats</th>'
    '<th rowspan="2">truncated</th><th rowspan="2">bytes/<br>token</th></tr>'
    f"<tr>{'<th>planned</th><th>trained</th>' * 3}</tr></thead>\n<tbody>{rows}"
    f'<tr class="sum">{_ledger_cells("total", total)}</tr></tbody></table></div>'
  )


def metrics_table(run: Run, name: str) -> str:
  """All metrics of the last evaluation of a set, with intervals and numbers of examples."""
  _, last = run.first_and_last(name)
  by_lang = run.figures[last][name]
  found = {metric for by_metric in by_lang.values() for metric in by_metric}
  metrics = [m for m in METRIC_FORMAT if m in found] + sorted(found - METRIC_FORMAT.keys())
  rows = []
  for lang in [*run.order(by_lang), *(x for x in SUMMARY_ROWS if x in by_lang)]:
    cells = "".join(f"<td>{_figure_cell(m, by_lang[lang].get(m))}</td>" for m in metrics)
    rows.append(
      f'<tr{" class=sum" if lang == MEAN else ""}><td class="lang">{page.language(lang)}</td>{cells}</tr>'
    )
  titles = "".join(f"<th>{escape(metric_name(m))}</th>" for m in metrics)
  return (
    f"<h2>All metrics: {escape(name)}, step {last}</h2>\n"
    '<p class="quiet">Value, 95 % interval, number of examples.</p>\n'
    f'<div class="wide"><table><thead><tr><th class="lang">language</th>{titles}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>'
  )


def samples(run: Run) -> str:
  """A few answers per language, before and after, below the prompt they answer."""
  if not run.answers:
    return _missing("Answers", "No generations.jsonl lies here.")
  first, last = min(run.answers), max(run.answers)
  steps = [first, last] if first != last else [last]
  parts = ["<h2>Answers</h2>"]
  for lang in run.order({lang for lang, _ in run.answers[last]}):
    parts.append(f"<h3>{page.language(lang)}</h3>")
    for key in [key for key in run.answers[last] if key[0] == lang][:SAMPLES]:
      answers = "".join(_answer(lang, step, run.answers[step].get(key)) for step in steps)
      prompt = _said("p", lang, run.answers[last][key].get("prompt", ""))
      parts.append(f'<div class="sample">{prompt}<div class="answers">{answers}</div></div>')
  return "\n".join(parts)


def foot(run: Run) -> str:
  """What shaped the run, and when it ended."""
  facts = dict(run.versions)
  last = run.events[-1].get("time") if run.events else None
  if charts.is_number(last) and 0 <= last < LATEST:
    facts["last event"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last))
  if "seed" in run.ledger:
    facts["seed"] = run.ledger["seed"]
  if not facts:
    return ""
  return f"<h2>Made with</h2>\n<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in facts.items())}</dl>"


def _change_chart(run: Run, metric: str, old: dict, new: dict) -> charts.Chart:
  rows = []
  for lang in [*run.order(old.keys() | new.keys()), *SUMMARY_ROWS]:
    before, after = old.get(lang, {}).get(metric), new.get(lang, {}).get(metric)
    if not before and not after:
      continue
    entry = run.ledger.get("languages", {}).get(lang, {})
    rows.append(
      charts.Row(
        name=lang if lang in SUMMARY_ROWS else f"{lang} {page.language_name(lang)}".strip(),
        note=f"{entry.get('per_epoch') or 0:,}"
        if run.ledger and lang not in SUMMARY_ROWS
        else _worst_names(before, after),
        values=" → ".join(_value(metric, f) for f in (before, after) if f),
        old=before,
        new=after,
        worse=_is_worse(metric, before, after),
        strong=lang in SUMMARY_ROWS or run.examples(lang) > 0,
        rule_above=lang == MEAN,
      )
    )
  better = "lower" if metric in LOWER_IS_BETTER else "higher"
  return charts.dumbbells(
    f"{metric_name(metric)} ({better} is better)",
    "per epoch" if run.ledger else "",
    rows,
    lambda v: f"{v:.0%}" if metric == "fidelity" else f"{v:g}",
    ends=(0, 1) if metric == "fidelity" else None,
  )


def _curve_chart(run: Run, title: str, points: dict[str, list], summary: str) -> charts.Chart:
  languages = [lang for lang in run.order(points) if lang != summary and points[lang]]
  kept = languages[:MAX_LINES]
  if len(kept) < len(languages):
    title += f" ({MAX_LINES} of {len(languages)} languages)"
  lines = [charts.Line(lang, points[lang], i) for i, lang in enumerate(kept)]
  if points.get(summary):
    lines.append(charts.Line(summary, points[summary], "heavy"))
  return charts.lines(title, lines)


def _series(run: Run, prefix: str, suffix: str) -> dict[str, list[tuple[int, float]]]:
  """{language: [(step, value)]} of the events named prefix + language + suffix; no figure, no point."""
  pattern = re.compile(re.escape(prefix) + "([^/]*)" + re.escape(suffix))
  out: dict[str, dict[int, float]] = {}
  for event in run.events:
    for key, value in event.items():
      match = pattern.fullmatch(key)
      if match and charts.is_number(value):
        out.setdefault(match[1], {})[event["step"]] = value
  return {lang: sorted(by_step.items()) for lang, by_step in out.items()}


def _ledger_cells(lang: str, e: dict) -> str:
  pairs = _pairs(e)
  density = f"{e['bytes_per_token']:.2f}" if e["bytes_per_token"] else ""
  return (
    f'<td class="lang">{page.language(lang)}</td>'
    f"<td>{e['rows_read']:,}</td><td>{_reasons(e['dropped'])}</td><td>{_reasons(e.get('flagged', {}))}</td>"
    f"<td>{e['per_epoch'] or 0:,}</td>{pairs}"
    f"<td>{e['share_of_trained_tokens']:.2%}</td><td>{e['repeats']:,}</td><td>{e['truncated']:,}</td><td>{density}</td>"
  )


def _source_rows(e: dict) -> str:
  """A row for each source of a language that has several."""
  used = {
    name: of for name, of in e.get("sources", {}).items() if of["rows_read"] or of["examples"]
  }
  if len(used) < 2:
    return ""
  return "".join(
    f'<tr class="quiet"><td class="lang">{escape(name)}</td><td>{of["rows_read"]:,}</td><td></td><td></td><td></td>'
    f"{_pairs(of)}<td></td><td></td><td></td><td></td></tr>"
    for name, of in used.items()
  )


def _pairs(e: dict) -> str:
  """Planned and trained, of each thing that is counted."""
  cells = ""
  for k in ("examples", "tokens", "trained_tokens"):
    counted = e.get("trained", {}).get(k)
    planned = e.get("due", e)[k]
    wrong = counted is not None and _shown(e, k) != planned
    kind = ' class="wrong"' if wrong else ""
    cells += f"<td>{planned:,}</td><td{kind}>{'–' if counted is None else f'{counted:,}'}</td>"
  return cells


def _shown(e: dict, name: str) -> int:
  """What was trained on and what was skipped, together."""
  return e["trained"][name] + e.get("skipped", {}).get(name, 0)


def _reasons(counts: dict) -> str:
  return escape(", ".join(f"{reason} {count:,}".strip() for reason, count in counts.items()))


def _figure_cell(metric: str, figure: dict | None) -> str:
  if not figure:
    return "–"
  value = escape(_value(metric, figure))
  if charts.is_number(figure["value"]):
    value = (
      f'<data value="{figure["value"]!r}">{value}</data>'  # unrounded, for whoever reads by program
    )
  interval = ""
  if charts.is_number(figure.get("low")) and charts.is_number(figure.get("high")):
    interval = f"{as_text(metric, figure['low'])} – {as_text(metric, figure['high'])}, "
  return f"{escape(_worst_names(figure))} {value}<small>{interval}n {figure['n']:,}</small>"


def _answer(lang: str, step: int, record: dict | None) -> str:
  if record is None:
    return f"<div><h4>step {step}</h4>–</div>"
  cut = "" if record.get("stopped", True) else ", cut at the length limit"
  count = record.get("tokens")
  tokens = "" if count is None else f", {escape(count)} token{'s' * (count != 1)}"
  return f"<div><h4>step {step}{tokens}{cut}</h4>{_said('div', lang, record['response'])}</div>"


def _said(tag: str, lang: str, text: object) -> str:
  """A prompt or an answer in its own direction; `lang` picks the right letter forms."""
  shown = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
  return f'<{tag} class="said" dir="auto" lang="{escape(lang)}">{escape(charts.shorten(shown, MAX_CHARACTERS))}</{tag}>'


def _missing(title: str, text: str) -> str:
  return f'<h2>{escape(title)}</h2>\n<p class="quiet">{escape(text)}</p>'


def metric_name(metric: str) -> str:
  return NAMES.get(metric, metric.replace("_", " "))


def _value(metric: str, figure: dict) -> str:
  if charts.is_number(figure["value"]):
    return as_text(metric, figure["value"])
  return "not finite" if figure["n"] else "–"


def as_text(metric: str, value: float) -> str:
  return f"{value:{METRIC_FORMAT.get(metric, '.3f')}}"


def _worst_names(*figures: dict | None) -> str:
  """Of the row of worst languages: "cs → zh", or one name where it stayed the same."""
  return " → ".join(dict.fromkeys(f["lang"] for f in figures if f and "lang" in f))


def _is_worse(metric: str, before: dict | None, after: dict | None) -> bool:
  if (
    not before
    or not after
    or not charts.is_number(before["value"])
    or not charts.is_number(after["value"])
  ):
    return False
  change = after["value"] - before["value"]
  return change > 0 if metric in LOWER_IS_BETTER else change < 0
