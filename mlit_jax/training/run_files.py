"""The files of a run, read back to be shown: whatever is missing or unreadable is left out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from mlit_jax.metrics import MEAN, WORST

SUMMARY_ROWS = (MEAN, WORST)


@dataclasses.dataclass(frozen=True)
class Run:
  """What lies in a workdir. Empty containers stand for missing or unreadable files."""

  name: str
  config: dict
  versions: dict
  ledger: dict
  events: list[dict]
  figures: dict[int, dict]  # step -> set -> language -> metric -> {"value", "n", "low", "high"}
  answers: dict[int, dict]  # step -> (language, id) -> record

  @property
  def sets(self) -> list[str]:
    return sorted({name for by_set in self.figures.values() for name in by_set})

  def first_and_last(self, name: str) -> tuple[int | None, int]:
    """The first and the last step at which a set was evaluated; no first one if they are the same."""
    steps = [step for step, by_set in sorted(self.figures.items()) if name in by_set]
    return (steps[0] if len(steps) > 1 else None), steps[-1]

  def examples(self, lang: str) -> int:
    return self.ledger.get("languages", {}).get(lang, {}).get("examples", 0)

  def order(self, languages) -> list[str]:
    """Languages with most examples first, so that those not trained on come last."""
    return sorted(
      (lang for lang in languages if lang not in SUMMARY_ROWS),
      key=lambda lang: (-self.examples(lang), lang),
    )


def read_run(root: Path) -> Run:
  """What the workdir holds, whatever is missing or cut short."""
  stored = _read_json(root / "config.json")
  folders = {int(p.name): p for p in (root / "evals").glob("*") if p.name.isdigit()}
  figures = {
    step: {p.stem: found for p in sorted(folder.glob("*.json")) if (found := _figures(p))}
    for step, folder in sorted(folders.items())
  }
  answers = {
    step: {
      (r["lang"], r["id"]): r
      for r in _read_lines(folder / "generations.jsonl")
      if {"lang", "id", "response"} <= r.keys()
    }
    for step, folder in sorted(folders.items())
  }
  return Run(
    name=root.resolve().name,
    config=stored.get("config", {}),
    versions=stored.get("versions", {}),
    ledger=_read_json(root / "data_plan.json"),
    events=[e for e in _read_lines(root / "metrics.jsonl") if isinstance(e.get("step"), int)],
    figures={step: by_set for step, by_set in figures.items() if by_set},
    answers={step: rows for step, rows in answers.items() if rows},
  )


def _read_json(path: Path) -> dict:
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _figures(path: Path) -> dict:
  """The figures of a set; nothing if the file holds something else."""
  found = _read_json(path)
  try:
    return (
      found
      if all({"value", "n"} <= f.keys() for by_metric in found.values() for f in by_metric.values())
      else {}
    )
  except AttributeError:
    return {}


def _read_lines(path: Path) -> list[dict]:
  """Objects of a JSON lines file; a line that a kill cut short is left out."""
  try:
    lines = path.read_text(encoding="utf-8").split("\n")
  except (OSError, ValueError):
    return []
  out = []
  for line in lines:
    try:
      found = json.loads(line)
    except ValueError:
      continue
    if isinstance(found, dict):
      out.append(found)
  return out
