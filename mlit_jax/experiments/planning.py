"""From a sweep's file to its folder: runs, comparisons, tasks, and sweep.json, which the report reads."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mlit_jax import runtime
from mlit_jax.data.files import read_objects
from mlit_jax.data.rows import read_sources
from mlit_jax.errors import UserError
from mlit_jax.evals.judging.judges import parse_spec
from mlit_jax.experiments import designs, tasks
from mlit_jax.experiments.runs import Run, config_file, fill, make_runs
from mlit_jax.experiments.sweep_files import COVARIATE_KINDS, SEEN, SWEEP_FILE, UNSEEN
from mlit_jax.experiments.tasks import Comparison, Task


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that a sweep will do."""

  config: ConfigDict  # of the sweep
  runs: list[Run]
  comparisons: list[Comparison]
  tasks: list[Task]
  sweep: dict  # what sweep.json holds
  prompts: list[dict]  # for the judge

  @property
  def root(self) -> Path:
    return Path(self.config.workdir)

  @property
  def distinct(self) -> dict[str, Run]:
    """{id: run}; arms that ask for the same run share it."""
    return {run.id: run for run in self.runs}


def make_plan(c, arms: Sequence[designs.Arm], covariates: Sequence[Mapping], base) -> Plan:
  """The sweep of a config `c` (configs/sweep.py) and its arms; `base` is configs/base.py's config."""
  root = Path(c.workdir)
  evaluated = list(c.evaluated) or list(dict.fromkeys([*c.languages, *c.held_out]))
  if c.at not in ("best", "last"):
    raise UserError(f"at is {c.at!r}; it must be 'best' or 'last'")
  if c.judge:
    parse_spec(c.judge)  # before it is written into files: it must hold no password
    arms = designs.with_baselines(arms, evaluated, c.budget.total)
  runs = make_runs(c, arms, base)
  comparisons, prompts = [], []
  if c.judge:
    comparisons = tasks.compare_with_own(runs, evaluated, c.budget.total)
    prompts = read_prompts(c, evaluated)
  text = prompts_jsonl(prompts)
  todo = tasks.make_tasks(c, root, runs, comparisons, text)
  seen = [lang for lang in evaluated if lang in c.languages and lang != c.base]
  unseen = [lang for lang in evaluated if lang not in c.languages and lang != c.base]
  judged = {task.name: str(Path(task.done).parent.relative_to(root)) for task in todo if task.kind == tasks.JUDGE}  # fmt: skip
  sweep = {
    "title": c.title or root.name,
    "about": c.about,
    "base": c.base,
    "languages": evaluated,
    "groups": {name: group for name, group in ((SEEN, seen), (UNSEEN, unseen)) if group},
    "curves": [dict(curve) for curve in c.curves],
    "matrix": c.matrix,
    "set": next(iter(runs[0].changes["eval.sets"])),
    "headline": c.headline,
    "at": c.at,
    "budget": dict(c.budget),
    "arms": [
      {
        "name": arm.name,
        "tuned": arm.tuned,
        "factors": dict(arm.factors),
        "counts": dict(sorted(arm.amounts.items())),
        "baseline": arm.is_baseline,
      }
      for arm in arms
    ],
    "runs": [
      {
        "id": run.id,
        "arm": run.arm.name,
        "draw": run.draw,
        "seed": run.seed,
        "workdir": str(run.workdir.resolve()),
      }
      for run in runs
    ],
    "comparisons": [
      {
        "run": pair.run,
        "baseline": pair.baseline,
        "languages": pair.languages,
        "out": judged[f"{pair.name}.{tasks.JUDGE}"],
      }
      for pair in comparisons
    ],
    "covariates": [read_covariate(given) for given in (*covariates, *c.covariates)],
  }
  return Plan(c, runs, comparisons, todo, sweep, prompts)


def write(plan: Plan) -> None:
  """The sweep's folder; the tasks last, since they say that all else is there."""
  root = plan.root
  for run in plan.distinct.values():
    runtime.write_atomic(
      root / "configs" / f"{run.id}.py", config_file(run, "python -m mlit_jax.sweep")
    )
  runtime.write_atomic(root / "prompts.jsonl", prompts_jsonl(plan.prompts))
  runtime.write_json(root / SWEEP_FILE, plan.sweep)
  runtime.write_atomic(root / "tasks.json", tasks.tasks_json(plan.tasks) + "\n")


def read_prompts(c, languages: Sequence[str]) -> list[dict]:
  """{id, lang, messages} of each prompt that the judge's answers are to; parallel ones share their id."""
  if not (c.judge_prompts or c.eval_rows):
    raise UserError(
      "a judge needs prompts; give judge_prompts='prompts/{lang}.jsonl', or eval_rows"
    )
  out = []
  for lang in languages:
    if c.judge_prompts:
      path = fill(c.judge_prompts, lang, "judge_prompts")
      rows = (
        (r.get("id", r.get("group_id")), prompt_of(path, n, r)) for n, r in read_objects(path)
      )
    else:
      path = fill(c.eval_rows, lang, "eval_rows")
      found = read_sources({lang: [path]}, where="eval_rows").conversations
      rows = ((r.group_id, [dataclasses.asdict(m) for m in r.messages[:-1]]) for r in found)
    out += [
      {"id": str(name or number), "lang": lang, "messages": messages}
      for number, (name, messages) in enumerate(rows, 1)
    ]
  return out


def prompt_of(path: str, number: int, row: Mapping) -> list[dict]:
  """The turns of a prompt, which `mlit_jax.generate` reads."""
  if isinstance(row.get("messages"), list):
    return row["messages"]
  if isinstance(row.get("prompt"), str):
    return [{"role": "user", "content": row["prompt"]}]
  raise UserError(f"{path}:{number}: a prompt for the judge needs `prompt`, a text, or `messages`")


def prompts_jsonl(prompts: Sequence[dict]) -> str:
  return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in prompts)


def read_covariate(given: Mapping) -> dict:
  """A covariate with its values, read from its file where it names one.

  The file is CSV with the columns tuned, evaluated, value (kind pair) or tuned, value (kind language).
  """
  name, kind = given.get("name"), given.get("kind")
  if not name or kind not in COVARIATE_KINDS:
    raise UserError(
      f"covariates has {dict(given)!r}; each needs a name and a kind of {', '.join(COVARIATE_KINDS)}"
    )
  if ("file" in given) == ("values" in given):
    raise UserError(f"the covariate {name!r} needs either a file or values")
  if "values" in given:
    return {"name": name, "kind": kind, "values": given["values"]}
  path = Path(given["file"])
  columns = ["tuned", "evaluated", "value"] if kind == "pair" else ["tuned", "value"]
  values: dict = {}
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      for row in csv.DictReader(file):
        *keys, number = (row[column] for column in columns)
        place = values
        for lang in keys[:-1]:
          place = place.setdefault(lang, {})
        place[keys[-1]] = float(number)
  except OSError as e:
    raise UserError(f"the covariate {name!r}: {path} cannot be read ({e})") from e
  except (KeyError, ValueError, TypeError) as e:
    raise UserError(
      f"the covariate {name!r}: {path} needs the columns {', '.join(columns)}, with a number as value ({e})"
    ) from e
  return {"name": name, "kind": kind, "values": values}
