"""The ledger: per language and source, what was read, dropped, planned, and in the end trained on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlit_jax.data.encoded import UNITS, Encoded
from mlit_jax.data.plan import Plan, Stage

TRAINED = UNITS  # what the device counts in the batches
STEPS = "steps"  # in the counts of what was skipped: the numbers of the steps, from 1


def make_ledger(
  encoded: Encoded, plan: Plan, *, mixture, seed: int, made_from: Mapping[str, str]
) -> dict:
  """What data_plan.json holds before the first step.

  `made_from` is {what: digest} of all that shapes the tokens: with it a resume says what has changed.
  """
  planned = planned_sums(encoded, plan)
  total = max(1, sum(planned["trained_tokens"].values()))
  read = {lang: sum(of.values()) for lang, of in encoded.rows_read.items()}
  available = _by_language(encoded, np.arange(len(encoded)))
  chosen = _by_language(encoded, np.unique(plan.examples))
  truncated = _by_language(encoded, plan.examples, encoded.truncated)
  text_bytes = _by_language(encoded, plan.examples, encoded.text_bytes)
  languages = {}
  for lang in sorted({*read, *encoded.languages}):
    mine = {
      source: {name: planned[name].get(f"{lang}/{source}", 0) for name in TRAINED}
      for source in encoded.sources
    }
    sums = {name: sum(of[name] for of in mine.values()) for name in TRAINED}
    languages[lang] = {
      "rows_read": read.get(lang, 0),
      "dropped": encoded.dropped.get(lang, {}),
      "flagged": encoded.flagged.get(lang, {}),
      "language_judged": encoded.language_judged.get(lang, 0),
      "available": available.get(lang, 0),
      # Of a curriculum, see the stages.
      "per_epoch": plan.stages[0].counts.get(lang, 0) if len(plan.stages) == 1 else None,
      "chosen": chosen.get(lang, 0),
      "examples": sums["examples"],
      "repeats": sums["examples"] - chosen.get(lang, 0),
      "tokens": sums["tokens"],
      "trained_tokens": sums["trained_tokens"],
      "share_of_trained_tokens": sums["trained_tokens"] / total,
      "truncated": truncated.get(lang, 0),
      "bytes_per_token": round(text_bytes[lang] / sums["tokens"], 3) if sums["tokens"] else None,
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
    "language_judged_every": encoded.language_judged_every,
    "padding": 1 - sum(planned["tokens"].values()) / max(1, slots),
    "languages": languages,
  }


def _by_language(encoded: Encoded, rows: np.ndarray, column=None) -> dict[str, int]:
  """{language: the rows, or the sum of a column over them}, once over the rows for all languages."""
  weights = None if column is None else column[rows]
  sums = np.bincount(encoded.language[rows], weights, minlength=len(encoded.languages))
  return {lang: int(n) for lang, n in zip(encoded.languages, sums, strict=True)}


def planned_sums(
  encoded: Encoded, plan: Plan, steps: int | None = None
) -> dict[str, dict[str, int]]:
  """{"examples" | "tokens" | "trained_tokens": {"language/source": number}} of the first `steps`."""
  last = plan.row_starts[plan.rows_per_step * (plan.steps if steps is None else steps)]
  examples = plan.examples[:last]
  stratum = encoded.stratum[examples]
  names = [f"{lang}/{source}" for lang, source in encoded.strata]
  out = {}
  for name in TRAINED:
    sums = np.bincount(stratum, encoded.sizes(name, examples), minlength=len(names))
    out[name] = {names[i]: int(sums[i]) for i in np.flatnonzero(sums)}
  return out


def with_trained(
  ledger: dict,
  trained: Mapping[str, Mapping[str, int]],
  due: Mapping[str, Mapping[str, int]] | None = None,
  skipped: Mapping[str, Mapping[str, int]] | None = None,
) -> dict:
  """The ledger with `trained` beside what was planned: what the device counted in the batches.

  Of a run that ended before its plan, `due` is what the plan has up to there (planned_sums): it then stands
  beside them too, and is what was to be trained. `skipped` is what was shown but not learned from, counted in the same
  way, with the numbers of those steps; it stands there if there are any.
  """
  columns = {"trained": trained}
  if due is not None:
    columns["due"] = due
  if skipped is not None and skipped[STEPS]:
    columns["skipped"] = skipped
  unplanned: dict[str, dict] = {}  # what should not be there must show too
  for key in {key for of in columns.values() for name in TRAINED for key in of[name]}:
    lang, _, source = key.partition("/")
    unplanned.setdefault(lang, {})[source] = {"rows_read": 0} | dict.fromkeys(TRAINED, 0)
  languages = {}
  for lang, entry in ledger["languages"].items():
    sources = {
      source: of
      | {
        column: {name: counts[name].get(f"{lang}/{source}", 0) for name in TRAINED}
        for column, counts in columns.items()
      }
      for source, of in (unplanned.get(lang, {}) | entry["sources"]).items()
    }
    sums = {
      column: {name: sum(of[column][name] for of in sources.values()) for name in TRAINED}
      for column in columns
    }
    languages[lang] = entry | sums | {"sources": sources}
  steps = {"skipped_steps": list(skipped[STEPS])} if "skipped" in columns else {}
  return ledger | steps | {"languages": languages}


def differences(ledger: dict) -> list[str]:
  """Where planned is not trained and skipped; empty when the run did what the plan says, as far as it went."""
  return [
    f"{lang} from {source}: {name} planned {due(entry)[name]}, trained {entry['trained'][name]}"
    + (f", skipped {entry['skipped'][name]}" if "skipped" in entry else "")
    for lang, of in ledger["languages"].items()
    for source, entry in of["sources"].items()
    for name in TRAINED
    if due(entry)[name] != shown(entry, name)
  ]


def due(entry: dict) -> dict:
  """The counts of a language or source that were to be trained: of the plan, or of it up to where the run ended."""
  return entry.get("due", entry)


def shown(entry: dict, name: str) -> int:
  """What the devices were given of a language or source, whether it was learned from or skipped."""
  return entry["trained"][name] + entry.get("skipped", {}).get(name, 0)


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
