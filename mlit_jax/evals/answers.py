"""Answers that exist already: read, and what is told of their language."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from mlit_jax.data.files import read_objects
from mlit_jax.data.languages import normalise_tag
from mlit_jax.detect import Detector
from mlit_jax.detectors.accuracy import accuracy_note
from mlit_jax.errors import UserError
from mlit_jax.evals import language_confusion
from mlit_jax.evals.summary import Record, to_json
from mlit_jax.runtime import write_atomic


def read_sets(files: Iterable[str], wanted: set[str] = frozenset()) -> dict[str, list[Record]]:
  """{name of the file: its answers}; only the wanted languages, if any are named."""
  sets: dict[str, list[Record]] = {}
  for file in map(Path, files):
    name = file.name.split(".")[0]
    if name in sets:
      raise UserError(
        f"--answers: two files are called {name!r}; rename one, or score them one at a time."
      )
    records = read_answers(file, name)
    missing = wanted - {r.lang for r in records}
    if missing:
      raise UserError(f"--languages {','.join(sorted(missing))}: no such answers in {file}")
    sets[name] = [r for r in records if not wanted or r.lang in wanted]
  return sets


def read_answers(file: Path, name: str) -> list[Record]:
  """One Record a line of generations.jsonl: `lang` and `response`, and `id`, `prompt`, ... if there."""
  records, seen = [], {}
  for number, row in read_objects(file):
    record = _record(row, f"{file}:{number}", name, len(records))
    key = (record.lang, record.example_id)
    if key in seen:
      raise UserError(
        f"{file}:{number}: id {record.example_id!r} is that of line {seen[key]} in {record.lang} too; "
        "ids must differ within a language."
      )
    seen[key] = number
    records.append(record)
  if not records:
    raise UserError(f"--answers {file}: holds no answer. Give one JSON object a line.")
  return records


def fidelity_lines(records: Iterable[Record], detector_name: str) -> list[str]:
  """A line per language: the score, why answers failed, and how often the detector itself is right.

  "sw 91%: 2 of 22 failed (wrong language en 2); lingua 2.1.1's own accuracy on sentences of the language: ..."
  """
  failed, asked = defaultdict(Counter), Counter()
  for r in records:
    if r.verdict:
      asked[r.lang] += 1
      if not r.verdict.right:
        failed[r.lang][r.verdict.reason] += 1
  lines = []
  for lang, n in sorted(asked.items()):
    wrong = failed[lang].total()
    why = ", ".join(f"{reason} {count}" for reason, count in failed[lang].most_common())
    lines.append(
      f"{lang} {1 - wrong / n:.0%}: {wrong} of {n:,} failed{f' ({why})' if why else ''}; "
      f"{accuracy_note(detector_name, lang)}"
    )
  return lines


def write_verdicts(path: Path, records: Iterable[Record]) -> None:
  """A line for each answer: what is known of its language."""
  rows = [
    {"set": r.set, "id": r.example_id, "lang": r.lang, **r.verdict.row()}
    for r in records
    if r.verdict
  ]
  write_atomic(path, "".join(to_json(row) + "\n" for row in rows))


def reference_rates(sets: dict[str, list[Record]], detector: Detector, words: str) -> dict:
  """{set: {lang or "all": {"acc", "lpr", ...}}} by the published formulas; see language_confusion."""
  lid = language_confusion.detector_lid(detector)
  english = language_confusion.english_words(words)
  answers = [(r.set, r.lang, r.response) for records in sets.values() for r in records]
  out: dict[str, dict] = {name: {} for name in sets}
  for (name, lang), rates in language_confusion.all_pass_rates(answers, lid, english).items():
    if name in out:
      out[name][lang] = rates
  return out


def rates_table(name: str, by_lang: dict) -> Table:
  """What the published code would print, and the share that it skips."""
  table = Table(
    title=f"{name}: published line and word pass rates (skipped answers are not counted)",
    title_justify="left",
  )
  table.add_column("language", no_wrap=True)
  for column in ("lpr", "wpr", "lcpr", "acc", "skipped", "n"):
    table.add_column(column, justify="right")
  for lang, rates in by_lang.items():
    cells = [f"{rates[k]:.1%}" if k in rates else "" for k in ("lpr", "wpr", "lcpr", "acc")]
    table.add_row(lang, *cells, f"{rates['skipped']:.1%}", f"{rates['n']:,}")
  return table


def _record(row: dict, place: str, name: str, index: int) -> Record:
  for key in ("lang", "response"):
    if not isinstance(row.get(key), str):
      raise UserError(f"{place}: {key} is {row.get(key)!r}, not text. Each answer needs it.")
  try:
    lang = normalise_tag(row["lang"])
  except UserError as e:
    raise UserError(f"{place}: {e}") from e
  group = row.get("group_id")
  return Record(
    name,
    lang,
    str(row.get("id", index)),
    group_id=None if group is None else str(group),
    prompt=row.get("prompt"),
    response=row["response"],
    response_tokens=row.get("tokens"),
    stopped=row.get("stopped"),
  )
