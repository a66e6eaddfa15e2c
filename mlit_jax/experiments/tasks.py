"""What a sweep has to do: for each run train (and answer), for each comparison judge, then report.

A task is a command of ours and the file that is there once it is done, so that any executor can do it,
and a sweep that was killed knows what is left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlit_jax import checksums
from mlit_jax.errors import UserError
from mlit_jax.experiments.runs import Run

TRAIN, ANSWER, JUDGE, REPORT = "train", "answer", "judge", "report"


@dataclasses.dataclass(frozen=True)
class Task:
  """One command. `chain`: the run it belongs to ("" for judging); `done`: how to tell that it is done."""

  name: str  # of its log
  label: str  # for people
  kind: str
  chain: str
  argv: list[str]
  done: str  # a file; of training, the workdir

  def is_done(self) -> bool:
    if self.kind == TRAIN:
      return is_trained(Path(self.done))
    if self.kind == REPORT:
      return False  # of what is there now
    return Path(self.done).exists()


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One run side by side with another, in some languages."""

  run: str
  baseline: str
  languages: list[str]

  @property
  def name(self) -> str:
    return f"{self.run}--{self.baseline}"


def is_trained(workdir: Path) -> bool:
  """Whether the run came to its end: then its ledger says how many steps were done."""
  try:
    ledger = checksums.read_sealed(workdir / "data_plan.json")
  except (OSError, ValueError):
    return False
  return "steps_done" in ledger and (workdir / "report.html").exists()


def compare_with_own(runs: Sequence[Run], languages: Sequence[str], total: int) -> list[Comparison]:
  """Each run against the model tuned on all rows of L, for each language L, of the same seeds.

  A run is not compared with itself: that score is 50 by definition.
  """
  own = {
    (run.draw, run.seed, run.arm.tuned[0]): run.id
    for run in runs
    if list(run.arm.amounts.values()) == [total]
  }
  found: dict[tuple[str, str], list[str]] = {}
  for run in runs:
    if run.arm.is_baseline:
      continue
    for lang in languages:
      baseline = own.get((run.draw, run.seed, lang))
      if baseline is None:
        raise UserError(f"there is no model tuned on {lang} alone to compare {run.arm.name} with")
      if baseline != run.id and lang not in found.setdefault((run.id, baseline), []):
        found[run.id, baseline].append(lang)
  return [Comparison(*ids, langs) for ids, langs in found.items()]


def make_tasks(
  c, root: Path, runs: Sequence[Run], comparisons: Sequence[Comparison], prompts: str
) -> list[Task]:
  """All commands, runs in their order, each once; `prompts` is what prompts.jsonl holds.

  Answers and verdicts lie under a hash of how they were asked for: asked otherwise, they are made anew.
  """
  tasks: dict[str, Task] = {}
  answers = root / "answers" / _hash(prompts, c.at, dict(c.generate_options))
  judged = root / "judged" / _hash(answers.name, c.judge, dict(c.judge_options))
  for run in runs:
    config = root / "configs" / f"{run.id}.py"
    train = ["train", "--config", str(config), "--workdir", str(run.workdir)]
    label = f"{run.arm.name}, draw {run.draw}, seed {run.seed}"
    name = f"{run.id}.{TRAIN}"
    tasks.setdefault(name, Task(name, f"train {label}", TRAIN, run.id, train, str(run.workdir)))
    if not comparisons:
      continue
    out = answers / f"{run.id}.jsonl"
    model = f"{run.workdir}@{'best' if c.at == 'best' else 'latest'}"
    answer = ["generate", "--model", model, "--prompts", str(root / "prompts.jsonl")]
    answer += ["--out", str(out), *options(c.generate_options)]
    name = f"{run.id}.{ANSWER}"
    tasks.setdefault(name, Task(name, f"answer {label}", ANSWER, run.id, answer, str(out)))
  names = {run.id: run.arm.name for run in reversed(runs)}
  for pair in comparisons:
    out = judged / pair.name
    judge = ["judge", "--a", str(answers / f"{pair.run}.jsonl")]
    judge += ["--b", str(answers / f"{pair.baseline}.jsonl"), "--judge", c.judge]
    judge += ["--languages", ",".join(pair.languages), "--out", str(out), *options(c.judge_options)]
    name = f"{pair.name}.{JUDGE}"
    label = (
      f"judge {names[pair.run]} against {names[pair.baseline]}, in {', '.join(pair.languages)}"
    )
    tasks[name] = Task(name, label, JUDGE, "", judge, str(out / "summary.json"))
  return list(tasks.values())


def report_task(root: Path) -> Task:
  """What comes last, and always: the report on what is there."""
  out = root / "report"
  return Task(REPORT, "report", REPORT, "", ["report", str(root), "--out", str(out)], str(out))


def options(given: Mapping[str, object]) -> list[str]:
  """{"max_cost": 20, "yes": True} -> ["--max_cost", "20", "--yes"]"""
  out = []
  for name, value in given.items():
    if value is not False:
      out += [f"--{name}"] if value is True else [f"--{name}", str(value)]
  return out


def _hash(*what) -> str:
  text = json.dumps(what, sort_keys=True, default=str)
  return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def command(task: Task) -> list[str]:
  """Of this Python, as a process that does not outlive this one."""
  return [sys.executable, "-m", "mlit_jax.experiments.child", str(os.getpid()), *task.argv]


def tasks_json(tasks: Sequence[Task]) -> str:
  """What read_tasks reads."""
  return json.dumps([dataclasses.asdict(task) for task in tasks], indent=1, ensure_ascii=False)


def read_tasks(root: Path) -> list[Task]:
  """The tasks of a sweep that was planned before."""
  try:
    return [Task(**entry) for entry in json.loads((root / "tasks.json").read_text("utf-8"))]
  except FileNotFoundError:
    raise UserError(f"{root}/tasks.json is missing; plan the sweep first, with --config") from None
  except (ValueError, TypeError) as e:
    raise UserError(
      f"{root}/tasks.json is damaged ({e}); plan the sweep again, with --config"
    ) from e


def chains(tasks: Sequence[Task]) -> list[list[Task]]:
  """Tasks that follow one another: those of a run; judging comes after all of them."""
  out: dict[str, list[Task]] = {}
  for task in tasks:
    if task.chain:
      out.setdefault(task.chain, []).append(task)
  return list(out.values())


def left(tasks: Sequence[Task]) -> list[int]:
  """Numbers of the chains that are not done, as --only takes them."""
  return [n for n, chain in enumerate(chains(tasks)) if not all(task.is_done() for task in chain)]
