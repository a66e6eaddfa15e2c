"""The ledger: per language, what was read, dropped, planned, and in the end trained on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlit_jax.data.encode import Encoded
from mlit_jax.data.plan import Plan
from mlit_jax.data.rows import RowSet

TRAINED = ("examples", "tokens", "trained_tokens")


def make_ledger(rows: RowSet, encoded: Encoded, plan: Plan, *, mixture: Mapping, seed: int) -> dict:
  """What data_plan.json holds before the first step."""
  read, dropped = {}, {}
  for c in rows.conversations:
    read[c.lang] = read.get(c.lang, 0) + 1
  for (lang, reason), count in rows.dropped.items():
    read[lang] = read.get(lang, 0) + count
    dropped.setdefault(lang, {})[reason] = count
  for lang, reasons in encoded.dropped.items():
    for reason, count in reasons.items():
      mine = dropped.setdefault(lang, {})
      mine[reason] = mine.get(reason, 0) + count
  planned = planned_sums(encoded, plan)
  total = max(1, sum(planned["trained_tokens"].values()))
  languages = {}
  for lang in sorted({*read, *encoded.languages}):
    here = encoded.language[plan.examples] == _number(encoded, lang)
    examples = plan.examples[here]
    chosen = np.unique(examples)
    tokens = planned["tokens"].get(lang, 0)
    languages[lang] = {
      "rows_read": read.get(lang, 0),
      "dropped": dropped.get(lang, {}),
      "per_epoch": plan.counts.get(lang, 0),
      "chosen": len(chosen),
      "examples": planned["examples"].get(lang, 0),
      "repeats": len(examples) - len(chosen),
      "tokens": tokens,
      "trained_tokens": planned["trained_tokens"].get(lang, 0),
      "share_of_trained_tokens": planned["trained_tokens"].get(lang, 0) / total,
      "truncated": int(encoded.truncated[examples].sum()),
      "bytes_per_token": round(float(encoded.text_bytes[examples].sum() / tokens), 3)
      if tokens
      else None,
    }
  slots = plan.steps * plan.rows_per_step * plan.max_length
  return {
    "hash": plan.hash,
    "seed": seed,
    "mixture": dict(mixture),
    "steps": plan.steps,
    "epochs": plan.epochs,
    "rows_per_step": plan.rows_per_step,
    "max_length": plan.max_length,
    "padding": 1 - sum(planned["tokens"].values()) / max(1, slots),
    "languages": languages,
  }


def planned_sums(
  encoded: Encoded, plan: Plan, steps: int | None = None
) -> dict[str, dict[str, int]]:
  """{"examples" | "tokens" | "trained_tokens": {language: number}} of the first `steps` of the plan."""
  last = plan.row_starts[plan.rows_per_step * (plan.steps if steps is None else steps)]
  examples = plan.examples[:last]
  number = encoded.language[examples]
  columns = {
    "examples": np.ones(len(examples), np.int64),
    "tokens": encoded.lengths[examples],
    "trained_tokens": encoded.trained_counts[examples],
  }
  sums = {
    name: np.bincount(number, weights=values, minlength=len(encoded.languages)).astype(int)
    for name, values in columns.items()
  }
  return {
    name: {lang: int(v) for lang, v in zip(encoded.languages, values, strict=True) if v}
    for name, values in sums.items()
  }


def with_trained(ledger: dict, trained: Mapping[str, Mapping[str, int]]) -> dict:
  """The ledger with `trained` beside what was planned: what the device counted in the batches."""
  languages = {
    lang: entry | {"trained": {name: trained[name].get(lang, 0) for name in TRAINED}}
    for lang, entry in ledger["languages"].items()
  }
  return ledger | {"languages": languages}


def differences(ledger: dict) -> list[str]:
  """Where trained and planned differ; empty when the run did what the plan says."""
  return [
    f"{lang}: {name} planned {entry[name]}, trained {entry['trained'][name]}"
    for lang, entry in ledger["languages"].items()
    for name in TRAINED
    if entry[name] != entry["trained"][name]
  ]


def _number(encoded: Encoded, lang: str) -> int:
  return encoded.languages.index(lang) if lang in encoded.languages else -1
