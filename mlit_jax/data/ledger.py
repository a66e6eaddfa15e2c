"""The ledger: per language and source, what was read, dropped, planned, and in the end trained on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlit_jax.data.encoded import Encoded
from mlit_jax.data.plan import Plan, Stage

TRAINED = ("examples", "tokens", "trained_tokens")


def make_ledger(
  encoded: Encoded, plan: Plan, *, mixture, seed: int, made_from: Mapping[str, str]
) -> dict:
  """What data_plan.json holds before the first step.

  `made_from` is {what: digest} of all that shapes the tokens: with it a resume says what has changed.
  """
  planned = planned_sums(encoded, plan)
  total = max(1, sum(planned["trained_tokens"].values()))
  read = {lang: sum(of.values()) for lang, of in encoded.rows_read.items()}
  languages = {}
  for lang in sorted({*read, *encoded.languages}):
    number = encoded.languages.index(lang) if lang in encoded.languages else -1
    examples = plan.examples[encoded.language[plan.examples] == number]
    mine = {
      source: {name: planned[name].get(f"{lang}/{source}", 0) for name in TRAINED}
      for source in encoded.sources
    }
    sums = {name: sum(of[name] for of in mine.values()) for name in TRAINED}
    chosen = len(np.unique(examples))
    languages[lang] = {
      "rows_read": read.get(lang, 0),
      "dropped": encoded.dropped.get(lang, {}),
      "flagged": encoded.flagged.get(lang, {}),
      "available": int(np.count_nonzero(encoded.language == number)),
      # Of a curriculum, see the stages.
      "per_epoch": plan.stages[0].counts.get(lang, 0) if len(plan.stages) == 1 else None,
      "chosen": chosen,
      "examples": sums["examples"],
      "repeats": len(examples) - chosen,
      "tokens": sums["tokens"],
      "trained_tokens": sums["trained_tokens"],
      "share_of_trained_tokens": sums["trained_tokens"] / total,
      "truncated": int(encoded.truncated[examples].sum()),
      "bytes_per_token": round(float(encoded.text_bytes[examples].sum() / sums["tokens"]), 3)
      if sums["tokens"]
      else None,
      "sources": {
        source: {"rows_read": encoded.rows_read.get(lang, {}).get(source, 0)} | of
        for source, of in mine.items()
        if of["examples"] or encoded.rows_read.get(lang, {}).get(source)
      },
    }
  slots = plan.steps * plan.rows_per_step * plan.max_length
  return {
    "hash": plan.hash,
    "made_from": dict(made_from),
    "seed": seed,
    "mixture": mixture,
    "stages": [_stage(stage) for stage in plan.stages],
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
  """{"examples" | "tokens" | "trained_tokens": {"language/source": number}} of the first `steps`."""
  last = plan.row_starts[plan.rows_per_step * (plan.steps if steps is None else steps)]
  examples = plan.examples[:last]
  stratum = encoded.stratum[examples]
  columns = {
    "examples": None,
    "tokens": encoded.lengths[examples],
    "trained_tokens": encoded.trained_counts[examples],
  }
  names = [f"{lang}/{source}" for lang, source in encoded.strata]
  out = {}
  for name, column in columns.items():
    sums = np.bincount(stratum, column, minlength=len(names))
    out[name] = {names[i]: int(sums[i]) for i in np.flatnonzero(sums)}
  return out


def with_trained(ledger: dict, trained: Mapping[str, Mapping[str, int]]) -> dict:
  """The ledger with `trained` beside what was planned: what the device counted in the batches."""
  unplanned: dict[str, dict] = {}  # what should not be there must show too
  for key in {key for name in TRAINED for key in trained[name]}:
    lang, _, source = key.partition("/")
    unplanned.setdefault(lang, {})[source] = {"rows_read": 0} | dict.fromkeys(TRAINED, 0)
  languages = {}
  for lang, entry in ledger["languages"].items():
    sources = {
      source: of | {"trained": {name: trained[name].get(f"{lang}/{source}", 0) for name in TRAINED}}
      for source, of in (unplanned.get(lang, {}) | entry["sources"]).items()
    }
    sums = {name: sum(of["trained"][name] for of in sources.values()) for name in TRAINED}
    languages[lang] = entry | {"trained": sums, "sources": sources}
  return ledger | {"languages": languages}


def differences(ledger: dict) -> list[str]:
  """Where trained and planned differ; empty when the run did what the plan says."""
  return [
    f"{lang} from {source}: {name} planned {entry[name]}, trained {entry['trained'][name]}"
    for lang, of in ledger["languages"].items()
    for source, entry in of["sources"].items()
    for name in TRAINED
    if entry[name] != entry["trained"][name]
  ]


def _stage(stage: Stage) -> dict:
  return {
    "mixture": dict(stage.spec),
    "first_step": stage.first_step,
    "steps": stage.steps,
    "epochs": stage.epochs,
    "unit": stage.amounts.unit,
    "asked": {
      f"{lang}/{source}" if source else lang: n for (lang, source), n in stage.amounts.of.items()
    },
    "per_epoch": stage.counts,
  }
