"""What a run tells at its ends: tables of the plan and the ledger, and the model card."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from mlit_jax import runtime
from mlit_jax.metrics import MEAN, WORST
from mlit_jax.redaction import redact

METRIC_FORMAT = {
  "loss": ".3f",
  "bits_per_byte": ".3f",
  "fidelity": ".0%",
  "coverage": ".0%",
  "line_pass": ".0%",
  "word_pass": ".0%",
  "stopped": ".0%",
  "chrf": ".1f",
  "exact": ".0%",
}

LEFT_OUT = ("exact", "line_pass", "word_pass")  # of the line of an evaluation


def plan_table(ledger: dict) -> Table:
  """Per language: what was read and dropped, and what the run will train on."""
  table = Table(
    title=f"plan {ledger['hash'][:12]}: {ledger['steps']} steps, {_epochs(ledger)}, padding {ledger['padding']:.1%}",
    title_justify="left",
  )
  for name in (
    "language",
    "rows",
    "dropped",
    "per epoch",
    "examples",
    "tokens",
    "trained tokens",
    "share",
    "bytes/token",
  ):
    table.add_column(name, justify="left" if name == "language" else "right")
  for lang, e in ledger["languages"].items():
    dropped = ", ".join(f"{n:,} {why}" for why, n in e["dropped"].items())
    table.add_row(
      lang,
      f"{e['rows_read']:,}",
      dropped or "0",
      "" if e["per_epoch"] is None else f"{e['per_epoch']:,}",
      f"{e['examples']:,}",
      f"{e['tokens']:,}",
      f"{e['trained_tokens']:,}",
      f"{e['share_of_trained_tokens']:.2%}",
      f"{e['bytes_per_token']:.2f}" if e["bytes_per_token"] else "",
    )
  return table


def _epochs(ledger: dict) -> str:
  """ "4 epochs", or "3.27 of 4 epochs" where the steps end within the last: by examples."""
  whole = f"{ledger['epochs']} epochs"
  if len(ledger["stages"]) != 1:
    return whole
  languages = ledger["languages"].values()
  planned, of_one = (sum(e[name] for e in languages) for name in ("examples", "per_epoch"))
  return whole if planned == of_one * ledger["epochs"] else f"{planned / of_one:.2f} of {whole}"


def plan_lines(ledger: dict) -> list[str]:
  """What the table of the plan does not show: stages, sources, and what rows were flagged for."""
  lines = []
  if len(ledger["stages"]) > 1:
    for i, stage in enumerate(ledger["stages"], 1):
      last = stage["first_step"] + stage["steps"]
      lines.append(
        f"stage {i}: steps {stage['first_step'] + 1} to {last}, {stage['epochs']} epochs of {stage['mixture']}"
      )
  for lang, e in ledger["languages"].items():
    used = {source: of for source, of in e["sources"].items() if of["examples"]}
    if len(used) > 1:
      parts = ", ".join(f"{source} {of['examples']:,}" for source, of in used.items())
      lines.append(f"{lang} by source: {parts} examples")
  sample = ledger["language_judged_every"] > 1
  flagged: dict[str, list[str]] = {}
  for lang, e in ledger["languages"].items():
    for reason, count in e["flagged"].items():
      of = f" of {e['language_judged']:,} judged" if sample and reason == "wrong language" else ""
      flagged.setdefault(reason, []).append(f"{lang} {count:,}{of}")
  lines += [f"kept, but {reason}: {', '.join(rows)}" for reason, rows in sorted(flagged.items())]
  return lines + judged_line(ledger)


def judged_line(ledger: dict) -> list[str]:
  """Says of how many rows the language of the answer was judged, where that is a sample."""
  every = ledger.get("language_judged_every", 0)
  if every < 2:
    return []
  parts = (
    f"{lang} {e['language_judged']:,} of {e['available']:,}"
    for lang, e in ledger["languages"].items()
    if e["available"]
  )
  return [f"language of answers judged on a sample, one row in {every}: {', '.join(parts)}"]


def left_out(sets) -> list[str]:
  """A line for each language of which an evaluation set could not use every row."""
  return [
    f"{s.name}: {lang} is evaluated without {', '.join(f'{n} {why}' for why, n in reasons.items())}"
    for s in sets
    for lang, reasons in s.encoded.dropped.items()
  ]


def ledger_table(ledger: dict) -> Table:
  """Planned beside trained, as the device counted it."""
  ended = f", up to step {ledger['steps_done']}" if ledger["steps_done"] < ledger["steps"] else ""
  table = Table(title=f"ledger: planned{ended} / trained", title_justify="left")
  skipped = ("skipped",) if ledger.get("skipped_steps") else ()  # examples
  for name in (
    "language", "examples", "tokens", "trained tokens", *skipped, "repeats", "truncated"
  ):  # fmt: skip
    table.add_column(name, justify="left" if name == "language" else "right")
  for lang, e in ledger["languages"].items():
    if e["examples"]:
      counts = ("examples", "tokens", "trained_tokens")
      pairs = [f"{e.get('due', e)[k]:,} / {e['trained'][k]:,}" for k in counts]
      left_out = [f"{e[name]['examples']:,}" for name in skipped]
      table.add_row(lang, *pairs, *left_out, f"{e['repeats']:,}", f"{e['truncated']:,}")
  return table


def skipped_line(ledger: dict) -> list[str]:
  """Says what was shown but not learned from, if there is any."""
  steps = ledger.get("skipped_steps", ())
  if not steps:
    return []
  counts = ", ".join(
    f"{lang} {e['skipped']['examples']:,}"
    for lang, e in ledger["languages"].items()
    if e["skipped"]["examples"]
  )
  which = ", ".join(map(str, steps[:10])) + (", ..." if len(steps) > 10 else "")
  return [
    f"skipped, as the loss or the gradient was not finite: {len(steps)} steps ({which}); examples shown and not "
    f"learned from: {counts}"
  ]


def eval_line(step: int, total: int, name: str, by_lang: dict) -> str:
  """One line per evaluation: the mean and the worst language of each metric."""
  parts = [f"eval {step:>{len(str(total))}}/{total}  {name}"]
  for metric in shown_metrics(by_lang[MEAN]):
    form = METRIC_FORMAT.get(metric, ".3f")
    mean, worst = by_lang[MEAN].get(metric), by_lang[WORST].get(metric)
    if mean and mean["value"] is not None and metric not in LEFT_OUT:
      parts.append(
        f"{metric} {mean['value']:{form}} (worst {worst['lang']} {worst['value']:{form}})"
      )
  return "  ".join(parts)


def shown_metrics(found: Iterable[str]) -> list[str]:
  """The metrics of a set in the order of tables, those of a suite's own at the end."""
  return [m for m in METRIC_FORMAT if m in found] + sorted(set(found) - METRIC_FORMAT.keys())


def write_card(root: Path, c, ledger: dict, before: dict, after: dict) -> None:
  """README.md of the workdir: a model card with the table of languages."""
  lines = [
    "---",
    f"language: [{', '.join(lang for lang, e in ledger['languages'].items() if e['examples'])}]",
    "library_name: transformers",
    "pipeline_tag: text-generation",
    *([f"base_model: {c.model.path}"] if _on_the_hub(c.model.path) else []),
    "---",
    "",
    f"# {root.resolve().name}",
    "",
    f"{_base_name(c.model.path)}, all parameters tuned with mlit_jax on the mixture"
    f" `{ledger['mixture']}` (seed {ledger['seed']}, {ledger['steps']} steps of {ledger['rows_per_step']} x"
    f" {ledger['max_length']} tokens, learning rate {c.optimizer.learning_rate:g}, plan `{ledger['hash']}`).",
    "",
    "## Trained on",
    "",
    "| language | examples | tokens | trained tokens | share | repeats | truncated |",
    "|---|--:|--:|--:|--:|--:|--:|",
    *(
      f"| {lang} | {e['trained']['examples']:,} | {e['trained']['tokens']:,} | {e['trained']['trained_tokens']:,} |"
      f" {e['share_of_trained_tokens']:.2%} | {e['repeats']:,} | {e['truncated']:,} |"
      for lang, e in ledger["languages"].items()
      if e["examples"]
    ),
    *(line for text in skipped_line(ledger) for line in ("", f"{text[0].upper()}{text[1:]}.")),
    "",
  ]
  for name in after:
    lines += [
      f"## Evaluated on {name}, before → after",
      "",
      *_set_rows(before.get(name, {}), after[name]),
      "",
    ]
  runtime.write_atomic(root / "README.md", redact("\n".join(lines)))


def _on_the_hub(path: str) -> bool:
  """Whether `model.path` is a name that others can look up, not a folder here."""
  return path.count("/") == 1 and not Path(path).is_dir()


def _base_name(path: str) -> str:
  """What the card calls the base model; the path of a folder means nothing elsewhere."""
  if not path:
    return "A decoder from scratch"
  return path if _on_the_hub(path) else Path(path).name


def _set_rows(before: dict, after: dict) -> list[str]:
  metrics = shown_metrics(after[MEAN])
  rows = [f"| language | {' | '.join(metrics)} |", f"|---|{'--:|' * len(metrics)}"]
  for lang, figures in after.items():
    cells = []
    for m in metrics:
      old, new = before.get(lang, {}).get(m), figures.get(m)
      cells.append(f"{_show(m, old)} → {_show(m, new)}" if old else _show(m, new))
    rows.append(f"| {lang} | {' | '.join(cells)} |")
  return rows


def _show(metric: str, figure: dict | None) -> str:
  if not figure or figure["value"] is None:
    return "–"
  worst = f"{figure['lang']} " if "lang" in figure else ""
  return f"{worst}{figure['value']:{METRIC_FORMAT.get(metric, '.3f')}}"
