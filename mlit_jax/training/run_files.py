"""The files of a run, read back to be shown: whatever is missing or unreadable is left out."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

from mlit_jax import checksums
from mlit_jax.errors import UserError
from mlit_jax.metrics import MEAN, WORST

SUMMARY_ROWS = (MEAN, WORST)
STEP = re.compile("[0-9]{1,15}")
COUNTED = ("examples", "tokens", "trained_tokens")
LACKING = "lacking"  # set in a ledger whose languages have not all counts, and are left out


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
  def is_finished(self) -> bool:
    """Whether the run came to its end, by its ledger."""
    if LACKING in self.ledger:
      return "steps_done" in self.ledger
    languages = self.ledger.get("languages", {}).values()
    return bool(languages) and all("trained" in entry for entry in languages)

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
  stored = _read_sealed(root / "config.json")
  folders = {int(p.name): p for p in (root / "evals").glob("*") if STEP.fullmatch(p.name)}
  figures = {
    step: {p.stem: found for p in sorted(folder.glob("*.json")) if (found := _figures(p))}
    for step, folder in sorted(folders.items())
  }
  answers = {
    step: {
      (r["lang"], r["id"]): r for r in _read_lines(folder / "generations.jsonl") if _is_answer(r)
    }
    for step, folder in sorted(folders.items())
  }
  return Run(
    name=root.resolve().name,
    config=_config(stored.get("config")),
    versions=_dict(stored.get("versions")),
    ledger=_ledger(_read_sealed(root / "data_plan.json")),
    events=[e for e in _read_lines(root / "metrics.jsonl") if _is_event(e)],
    figures={step: by_set for step, by_set in figures.items() if by_set},
    answers={step: rows for step, rows in answers.items() if rows},
  )


def _read_sealed(path: Path) -> dict:
  """Nothing where there is none; UserError where it is not as it was written."""
  try:
    return checksums.read_sealed(path)
  except OSError:
    return {}
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path}: damaged ({e}). Restore it from a copy.") from e


def _read_json(path: Path) -> dict:
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _figures(path: Path) -> dict:
  """The figures of a set; nothing if the file holds something else."""
  found = _read_json(path)
  rows = [_dict(by_metric) for by_metric in found.values()]
  fits = all(rows) and all(_is_figure(f) for by_metric in rows for f in by_metric.values())
  return found if fits else {}


def _is_figure(f) -> bool:
  return (
    isinstance(f, dict)
    and {"value", "n"} <= f.keys()
    and _is_count(f["n"])
    and all(f.get(key) is None or _is_finite(f[key]) for key in ("value", "low", "high"))
    and isinstance(f.get("lang", ""), str)
  )


def _config(found) -> dict:
  found = _dict(found)
  model = _dict(found.get("model"))
  fits = isinstance(model.get("path", ""), str) and isinstance(model.get("sizes") or {}, dict)
  return found if fits and isinstance(found.get("model", {}), dict) else {}


def _ledger(found: dict) -> dict:
  """A data_plan.json; without its languages, and with LACKING, where these have not the counts that we write.

  Nothing if its other numbers are not where a run of ours puts them.
  """
  fits = (
    all(_is_count(found[key]) for key in ("steps", "steps_done", "epochs") if key in found)
    and ("steps_done" not in found or "steps" in found)
    and _is_finite(found.get("padding", 0))
    and isinstance(found.get("language_judged_every", 0), int)
  )
  if not fits:
    return {}
  languages = found.get("languages", {})
  whole = isinstance(languages, dict) and all(_is_entry(e) for e in languages.values())
  if whole and found.get("language_judged_every", 0) > 1:
    needed = ("language_judged", "available")
    whole = all(_is_count(e.get(key)) for e in languages.values() for key in needed)
  return found if whole else found | {"languages": {}, LACKING: True}


def _is_entry(e) -> bool:
  """Whether this is what a ledger says of a language."""
  needed = ("rows_read", *COUNTED, "repeats", "truncated")
  return (
    isinstance(e, dict)
    and all(_is_count(e.get(key)) for key in needed)
    and _is_finite(e.get("share_of_trained_tokens"))
    and all(
      key in e and (e[key] is None or _is_finite(e[key]))
      for key in ("per_epoch", "bytes_per_token")
    )
    and all(_are_counts(e.get(key, {})) for key in ("dropped", "flagged"))
    and "dropped" in e
    and all(_are_counts(e[key], *COUNTED) for key in ("trained", "due") if key in e)
    and isinstance(e.get("sources", {}), dict)
    and all(_is_source(of) for of in e.get("sources", {}).values())
  )


def _is_source(of) -> bool:
  return (
    isinstance(of, dict)
    and all(_is_count(of.get(key)) for key in ("rows_read", *COUNTED))
    and _are_counts(of.get("trained", {}))
  )


def _are_counts(found, *needed: str) -> bool:
  return (
    isinstance(found, dict) and found.keys() >= set(needed) and all(map(_is_count, found.values()))
  )


def _is_count(value) -> bool:
  return isinstance(value, int) and 0 <= value < 1 << 63


def _is_finite(value) -> bool:
  return isinstance(value, int | float) and abs(value) < 1e30 and math.isfinite(value)


def _is_event(e: dict) -> bool:
  numbers = all(abs(v) < 1e30 or v != v for v in e.values() if isinstance(v, int | float))
  return _is_count(e.get("step")) and numbers


def _is_answer(r: dict) -> bool:
  return (
    {"lang", "id", "response"} <= r.keys()
    and isinstance(r["lang"], str)
    and isinstance(r["id"], str | int)
    and isinstance(r.get("fidelity") or {}, dict)
  )


def _dict(value) -> dict:
  return value if isinstance(value, dict) else {}


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
    except (ValueError, RecursionError):
      continue
    if isinstance(found, dict):
      out.append(found)
  return out
