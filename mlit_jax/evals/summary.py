"""From records of single examples to figures per set and language, to files and tables."""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from rich.table import Table

from mlit_jax.detect import Detector
from mlit_jax.evals import fidelity
from mlit_jax.evals.fidelity import Verdict
from mlit_jax.evals.overlap import chrf_scores, exact
from mlit_jax.evals.statistics import (
  Figure,
  macro_figure,
  mean_figure,
  proportion_figure,
  ratio_figure,
)
from mlit_jax.metrics import LOWER_IS_BETTER, MEAN, WORST
from mlit_jax.runtime import write_atomic

# Metric -> (numerator, denominator, scale): fields of Record, or None for 1 per example.
METRICS = {
  "loss": ("nll", "tokens", 1.0),
  "bits_per_byte": ("nll", "bytes", 1 / math.log(2)),
  "fidelity": ("faithful", None, 1.0),
  "coverage": ("judged", None, 1.0),
  "line_pass": ("lines_right", None, 1.0),
  "word_pass": ("words_right", None, 1.0),
  "stopped": ("stopped", None, 1.0),
  "chrf": ("chrf", None, 1.0),
  "exact": ("exact", None, 1.0),
}
SHARES = ("fidelity", "coverage", "line_pass", "word_pass", "stopped", "exact")
NO_SUMS = (None, None, 1.0)  # a metric of a suite: the mean of Record.scores
# Ends that the values of an example cannot leave.
BOUNDS = {**dict.fromkeys(SHARES, (0, 1)), "chrf": (0, 100)}
# Shares of the answers that have enough text, or right lines: without any there is no figure.
CONDITIONAL = ("line_pass", "word_pass")


@dataclasses.dataclass(frozen=True)
class Record:
  """What is known of one example of an evaluation set; None is "not measured".

  group_id: the same in other languages for the same example; examples of a group are resampled
  together. nll, tokens, bytes: of the trained text. prompt, response, stopped, response_tokens,
  reference: of a generation. verdict (on its language), chrf, exact: filled by score_responses. scores: what a
  suite measures of its own, by name: hits and misses (bool) or numbers.
  """

  set: str
  lang: str
  example_id: str
  group_id: str | None = None
  nll: float | None = None
  tokens: float | None = None
  bytes: int | None = None
  prompt: object = None
  response: str | None = None
  response_tokens: int | None = None
  stopped: bool | None = None
  reference: str | None = None
  verdict: Verdict | None = None
  chrf: float | None = None
  exact: bool | None = None
  scores: Mapping[str, bool | float] = dataclasses.field(default_factory=dict)

  @property
  def faithful(self) -> bool | None:
    return self.verdict and self.verdict.right

  @property
  def judged(self) -> bool | None:
    return self.verdict and self.verdict.judged

  @property
  def lines_right(self) -> bool | None:
    return self.verdict and self.verdict.lines_right

  @property
  def words_right(self) -> bool | None:
    return self.verdict and self.verdict.words_right


def summarise(records: Iterable[Record], *, seed: int = 0) -> dict:
  """{set: {lang: {metric: {"value", "n", "low", "high"}}}}, "mean" and "worst" among the langs.

  "mean" weighs languages equally; "worst" is the language with the least favourable value, and
  names it in "lang". A language whose figure is not finite is the worst, and leaves no mean.
  """
  by_set = defaultdict(list)
  for record in records:
    by_set[record.set].append(record)
  return {name: _summarise_set(by_set[name], seed) for name in sorted(by_set)}


def score_responses(records: Iterable[Record], detector: Detector | None) -> list[Record]:
  """Records with verdict, chrf and exact filled where there is a response (and a reference).

  detector None: language fidelity is not measured.
  """
  records = list(records)
  answered = [i for i, r in enumerate(records) if r.response is not None]
  if detector and answered:
    verdicts = fidelity.judge(
      [records[i].response for i in answered],
      [records[i].lang for i in answered],
      detector,
      [records[i].prompt for i in answered],
    )
    for i, verdict in zip(answered, verdicts, strict=True):
      records[i] = dataclasses.replace(records[i], verdict=verdict)
  compared = [i for i in answered if records[i].reference is not None]
  scores = chrf_scores(
    [records[i].response for i in compared], [records[i].reference for i in compared]
  )
  for i, score in zip(compared, scores, strict=True):
    right = exact(records[i].response, records[i].reference)
    records[i] = dataclasses.replace(records[i], chrf=score, exact=right)
  return records


def flatten(summary: dict) -> dict[str, float | None]:
  """{"eval/<set>/<lang>/<metric>": value}, as metrics.jsonl has them."""
  return {
    f"eval/{name}/{lang}/{metric}": figure["value"]
    for name, by_lang in summary.items()
    for lang, by_metric in by_lang.items()
    for metric, figure in by_metric.items()
  }


def table(summary: dict, name: str) -> Table:
  """Languages x metrics of one set, with intervals, the mean and the worst below a line."""
  by_lang = summary[name]
  metrics = _in_order({m for by_metric in by_lang.values() for m in by_metric})
  out = Table(title=name, title_justify="left")
  out.add_column("language", no_wrap=True)
  for metric in metrics:
    out.add_column(metric, justify="right")
  languages = [lang for lang in by_lang if lang not in (MEAN, WORST)]
  for lang in [*languages, *(row for row in (MEAN, WORST) if row in by_lang)]:
    cells = [_cell(metric, by_lang[lang].get(metric)) for metric in metrics]
    out.add_row(lang, *cells, end_section=bool(languages) and lang == languages[-1])
  return out


def write_evaluation(
  folder, summary: dict, records: Iterable[Record] = (), *, model: str = ""
) -> None:
  """<set>.json for every set, and generations.jsonl where records hold responses, into `folder`.

  Each file is written whole or not at all. On several processes, one writes.
  """
  for name, by_lang in summary.items():
    write_atomic(Path(folder) / f"{name}.json", to_json(by_lang, indent=2) + "\n")
  rows = generation_rows(records, model)
  if rows:
    text = "".join(to_json(row) + "\n" for row in rows)
    write_atomic(Path(folder) / "generations.jsonl", text)


def generation_rows(records: Iterable[Record], model: str) -> list[dict]:
  """One object for each response, the fields of generations.jsonl.

  `tokens` is their number; `fidelity` what was found of the language, `chrf` and `exact` the
  comparison with the reference, where that was measured; `group_id` tells which are translations.
  """
  return [
    {
      "id": r.example_id,
      "lang": r.lang,
      "prompt": r.prompt,
      "response": r.response,
      "stopped": r.stopped,
      "tokens": r.response_tokens,
      "model": model,
      "set": r.set,
      **({"fidelity": r.verdict.row()} if r.verdict else {}),
      **{
        name: value
        for name in ("chrf", "exact", "group_id")
        if (value := getattr(r, name)) is not None
      },
    }
    for r in records
    if r.response is not None
  ]


def to_json(value, indent=None) -> str:
  """Text stays readable. Half an emoji has no UTF-8; its backslash form means the same here."""
  text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
  return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _summarise_set(records, seed) -> dict:
  languages = sorted({r.lang for r in records})
  out = {lang: {} for lang in [*languages, MEAN, WORST]}
  for metric in _in_order({*METRICS, *(name for r in records for name in r.scores)}):
    measured = [r for r in records if _is_measured(r, metric)]
    figures = {}
    for lang in sorted({r.lang for r in measured}):
      figures[lang] = _figure(metric, [r for r in measured if r.lang == lang], seed)
      out[lang][metric] = dataclasses.asdict(figures[lang])
    if figures:
      out[MEAN][metric] = dataclasses.asdict(_mean(metric, measured, list(figures), seed))
      worst = _worst(metric, figures)
      out[WORST][metric] = {**dataclasses.asdict(figures[worst]), "lang": worst}
  return out


def _in_order(metrics: set[str]) -> list[str]:
  """METRICS in their order, then those of suites by name."""
  return [m for m in METRICS if m in metrics] + sorted(metrics - METRICS.keys())


def _is_measured(record, metric) -> bool:
  if metric not in METRICS:
    return metric in record.scores
  numerator, denominator, _ = METRICS[metric]
  return getattr(record, numerator) is not None and (
    denominator is None or getattr(record, denominator) is not None
  )


def _is_share(metric, records) -> bool:
  """Whether the metric counts hits; a suite's own does if all of its values are true or false."""
  if metric in METRICS:
    return metric in SHARES
  return all(isinstance(r.scores[metric], (bool, np.bool_)) for r in records)


def _figure(metric, records, seed) -> Figure:
  numerators, denominators = _sums(metric, records)
  if _is_share(metric, records):
    return proportion_figure(numerators)
  if metric not in METRICS or METRICS[metric][1] is None:
    return mean_figure(numerators, bounds=BOUNDS.get(metric), seed=seed)
  return ratio_figure(numerators, denominators, seed=seed, scale=METRICS[metric][2])


def _mean(metric, records, languages, seed) -> Figure:
  """Macro average over the languages, groups resampled jointly."""
  groups: dict = {}
  for r in records:
    groups.setdefault(_group(r), len(groups))
  num_GL = np.zeros((len(groups), len(languages)))
  den_GL = np.full((len(groups), len(languages)), np.nan)
  for r, num, den in zip(records, *_sums(metric, records), strict=True):
    cell = groups[_group(r)], languages.index(r.lang)
    num_GL[cell] += num
    den_GL[cell] = np.nan_to_num(den_GL[cell]) + den
  mean = macro_figure(
    num_GL,
    den_GL,
    seed=seed,
    scale=METRICS.get(metric, NO_SUMS)[2],
    bounds=(0, 1) if _is_share(metric, records) else BOUNDS.get(metric),
  )
  return dataclasses.replace(mean, n=len(records))


def _sums(metric, records):
  numerator, denominator, _ = METRICS.get(metric, NO_SUMS)
  values = [r.scores[metric] if numerator is None else getattr(r, numerator) for r in records]
  numerators = np.array([float(v) for v in values])
  return numerators, np.array(
    [1.0 if denominator is None else float(getattr(r, denominator)) for r in records]
  )


def _group(record):
  """Examples without a group stand alone; their ids need not differ between languages."""
  return (
    ("group", record.group_id) if record.group_id is not None else (record.lang, record.example_id)
  )


def _worst(metric, figures) -> str:
  sign = -1 if metric in LOWER_IS_BETTER else 1

  def goodness(lang):
    value = figures[lang].value
    return -math.inf if value is None else sign * value

  return min(sorted(figures), key=goodness)


def _cell(metric, figure) -> str:
  if figure is None:
    return ""
  if figure["value"] is None:
    return "not finite" if figure["n"] else ""
  show = (lambda x: f"{x:.1f}") if metric == "chrf" else (lambda x: f"{x:.3f}")
  interval = (
    "" if figure["low"] is None else f" [dim]{show(figure['low'])}–{show(figure['high'])}[/dim]"
  )
  name = f"[bold]{figure['lang']}[/bold] " if "lang" in figure else ""
  return f"{name}{show(figure['value'])}{interval}"
