"""What came of each run of a sweep: the figures of the evaluation that counts, and the scores of single prompts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from mlit_jax.experiments.sweep_files import Comparison, PlannedRun, Sweep
from mlit_jax.metrics import LOWER_IS_BETTER, MEAN, WORST
from mlit_jax.training.run_files import Run, read_run

JUDGING_SET = "judging"  # of summary.json of a judging
WIN, WIN_GATED, TIES = "win_score", "win_score_gated", "tie_rate"
JUDGED = (WIN, WIN_GATED, TIES)  # of what a judging measures; ties, since they draw a score to 50
FINISHED, UNFINISHED, MISSING, NOT_EVALUATED = "finished", "unfinished", "missing", "not evaluated"
BY_DEFINITION = {"value": 50.0, "n": 0, "low": None, "high": None}  # a model against itself


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One training. figures and prompts are empty unless it is finished and evaluated.

  figures: {lang: {metric: {"value", "n", "low", "high"}}}. prompts: {metric: {lang: {prompt: score}}},
  a prompt's name being the same in every language where prompts are translations. faults: what is
  there to say of it beyond its state.
  """

  id: str
  state: str
  why: str = ""
  step: int | None = None
  figures: Mapping[str, Mapping[str, dict]] = dataclasses.field(default_factory=dict)
  prompts: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(default_factory=dict)


def read_outcomes(sweep: Sweep) -> tuple[dict[str, Outcome], list[str]]:
  """({id: what came of the run}, what is wrong with the judging, in words)."""
  runs = {run.id: run for run in sweep.runs}
  outcomes = {id_: _read(run, sweep) for id_, run in runs.items()}
  faults = []
  for comparison in sweep.comparisons:
    outcome = outcomes.get(comparison.run)
    if outcome is None or outcome.state != FINISHED:
      continue  # said of the run already
    found, fault = _judged(comparison)
    faults += [fault] if fault else []
    outcomes[comparison.run] = _with_judged(outcome, *found)
  judged = {m for o in outcomes.values() for by_metric in o.figures.values() for m in by_metric}
  parity = [metric for metric in (WIN, WIN_GATED) if metric in judged]
  return {id_: _with_parity(o, sweep, parity) for id_, o in outcomes.items()}, faults


def _read(planned: PlannedRun, sweep: Sweep) -> Outcome:
  name = planned.id
  if not planned.workdir.is_dir():
    return Outcome(name, MISSING, "has no workdir yet")
  run = read_run(planned.workdir)
  reached = max([*(e["step"] for e in run.events), *run.figures], default=0)
  total = run.ledger.get("steps_done", run.ledger.get("steps"))
  if not run.is_finished:
    if not (run.ledger or run.figures or run.events):
      return Outcome(name, MISSING, "its workdir holds nothing of a run")
    return Outcome(name, UNFINISHED, f"ended at step {reached} of {total or 'an unknown number'}")
  if sweep.set not in run.sets:
    return Outcome(name, NOT_EVALUATED, f"has no evaluation of the set {sweep.set}")
  step = run.first_and_last(sweep.set)[1]
  if sweep.at == "best":
    step = best_step(run, planned.workdir, sweep.set)
  elif total and step < total:
    return Outcome(name, NOT_EVALUATED, f"was last evaluated at step {step} of {total}")
  figures = {k: v for k, v in run.figures[step][sweep.set].items() if k not in (MEAN, WORST)}
  return Outcome(name, FINISHED, "", step, figures, _prompts(run, step, sweep.set))


def best_step(run: Run, workdir: Path, name: str) -> int:
  """The evaluated step of the best checkpoint; without its checkpoints, the one that checkpoint.best ranks first.

  Without such a figure it is the last: what a run that does not choose hands back.
  """
  wanted = run.config.get("checkpoint", {}).get("best") or ""
  wanted_set, lang, metric = (
    wanted.rsplit("/", 2) if wanted.count("/") >= 2 else (name, MEAN, "loss")
  )
  saved = {
    int(p.name)
    for p in (workdir / "checkpoints").glob("*")
    if p.name.isdigit() and int(p.name) in run.figures
  }
  known = {
    step: figure["value"]
    for step, by_set in run.figures.items()
    if (not saved or step in saved)
    and name in by_set
    and (figure := by_set.get(wanted_set, {}).get(lang, {}).get(metric))
    and figure["value"] is not None
  }
  if not known:
    return run.first_and_last(name)[1]
  sign = 1 if metric in LOWER_IS_BETTER else -1
  return min(known, key=lambda step: (sign * known[step], step))


def _prompts(run: Run, step: int, name: str) -> dict:
  out: dict = {}
  for (lang, key), record in run.answers.get(step, {}).items():
    if record.get("set", name) != name:
      continue
    prompt = str(record.get("group_id", key))
    verdict = record.get("fidelity")
    right = verdict.get("right") if isinstance(verdict, dict) else None
    scores = {"fidelity": right} | {m: record.get(m) for m in ("stopped", "chrf", "exact")}
    for metric in ("chrf", "exact"):
      if right is not None and scores[metric] is not None:
        scores[f"{metric}_gated"] = scores[metric] if right else 0.0
    for metric, score in scores.items():
      if score is not None:
        out.setdefault(metric, {}).setdefault(lang, {})[prompt] = float(score)
  return out


def _judged(comparison: Comparison) -> tuple[tuple[dict, dict], str]:
  """((figures, prompts) of one judging, what is wrong with it)."""
  where = f"run {comparison.run} against {comparison.baseline} in {', '.join(comparison.languages)}"
  try:
    summary = json.loads((comparison.out / "summary.json").read_text(encoding="utf-8"))[JUDGING_SET]
    lines = (comparison.out / "scores.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    figures = {
      lang: {m: f for m, f in summary[lang].items() if m in JUDGED}
      for lang in comparison.languages
      if lang in summary
    }
    prompts: dict = {}
    for row in rows:
      for metric, key in ((WIN, "score"), (WIN_GATED, "score_gated")):
        if row.get(key) is not None and row["lang"] in figures:
          by_id = prompts.setdefault(metric, {}).setdefault(row["lang"], {})
          by_id[str(row.get("group_id") or row["id"])] = 100.0 * row[key]
  except OSError:
    return ({}, {}), f"{where}: not judged yet"
  except (ValueError, KeyError, TypeError, AttributeError):
    return ({}, {}), f"{where}: the files of the judging cannot be read"
  lacking = [lang for lang in comparison.languages if lang not in figures]
  return (figures, prompts), f"{where}: no scores in {', '.join(lacking)}" if lacking else ""


def _with_judged(outcome: Outcome, figures: dict, prompts: dict) -> Outcome:
  merged = {lang: dict(by_metric) for lang, by_metric in outcome.figures.items()}
  for lang, by_metric in figures.items():
    merged.setdefault(lang, {}).update(by_metric)
  scores = {metric: dict(by_lang) for metric, by_lang in outcome.prompts.items()}
  for metric, by_lang in prompts.items():
    scores.setdefault(metric, {}).update(by_lang)
  return dataclasses.replace(outcome, figures=merged, prompts=scores)


def _with_parity(outcome: Outcome, sweep: Sweep, metrics: list[str]) -> Outcome:
  """With 50 in the languages whose baseline is this very run."""
  own = {lang for c in sweep.comparisons if c.baseline == outcome.id for lang in c.languages}
  if outcome.state != FINISHED or not own:
    return outcome
  figures = {lang: dict(by_metric) for lang, by_metric in outcome.figures.items()}
  for lang in sorted(own):
    for metric in metrics:
      figures.setdefault(lang, {}).setdefault(metric, dict(BY_DEFINITION))
  return dataclasses.replace(outcome, figures=figures)
