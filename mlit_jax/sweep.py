"""Run a list of trainings with their evaluation and judging, and report on all of them.

  python -m mlit_jax.sweep --config configs/paper/fig3_pinch.py --workdir runs/fig3 --dry-run \
    --config.model=MODEL --config.rows='rows/{lang}.jsonl' --config.eval_rows='held_out/{lang}.jsonl'

The same command again does what is left: runs go on where they stopped, failed ones are tried again. Runs that several
sweeps need are trained once. Exit codes: 0 all done, 2 something to mend, 1 some runs failed (their logs are named),
75 stopped by a signal after saving.
--executor slurm submits the runs to SLURM, kubernetes writes manifests (docs/sweeps.md).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mlit_jax import early, runtime, user_file
from mlit_jax import mesh as meshes
from mlit_jax.config import base_config, load_config
from mlit_jax.errors import UserError
from mlit_jax.experiments import costs, kubernetes, local, planning, slurm, tasks
from mlit_jax.experiments.designs import Arm
from mlit_jax.experiments.runs import Run
from mlit_jax.opening import open_tokenizer
from mlit_jax.training.console import Terminal


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--config", default="", help="Python file with get_config() and get_arms(c), see configs/sweep.py")  # fmt: skip
  add("--workdir", default="", help="the sweep's folder (config key workdir)")
  add("--dry-run", action="store_true", help="print runs, tokens, judge calls, time and cost; write nothing")  # fmt: skip
  add("--jobs", type=int, default=1, help="runs at a time on this machine")
  add("--devices", default="", help="with --jobs: CUDA devices of each, as 0,1/2,3 for two jobs of two")  # fmt: skip
  add("--only", type=int, default=-1, help="do the K-th run alone (as the tasks of a cluster do)")
  add("--judge_and_report", action="store_true", help="only what comes after the runs")
  add("--tokens_per_second", type=float, default=0.0, help="of a run, for the estimate of --dry-run")  # fmt: skip
  add("--debug", action="store_true", help="tracebacks for user errors too")
  add_executors(parser)
  args, overrides = parser.parse_known_args()
  failed: dict[str, int] = {}
  code = runtime.run_main(lambda: run(args, overrides, failed), debug=args.debug)
  return code or code_of(failed, alone=args.only >= 0)


def add_executors(parser: argparse.ArgumentParser) -> None:
  """Flags of clusters; without them the runs are done here."""
  add = parser.add_argument_group("executors").add_argument
  add("--executor", choices=("local", "slurm", "kubernetes"), default="local", help="who does the runs: this process; a SLURM array; manifests for you to apply")  # fmt: skip
  add("--array_limit", type=int, default=0, help="slurm, kubernetes: runs at a time; 0: no limit")
  add("--sbatch", default="", help="slurm: options of sbatch, --sbatch='--gpus=1 --time=4:00:00'")
  add("--sbatch_finish", default="", help="slurm: those of judging and report, if others")
  add("--write_only", action="store_true", help="slurm: write the scripts, submit nothing")
  add("--image", default="", help="kubernetes: image of the pods")
  add("--claim", default="", help="kubernetes: PersistentVolumeClaim with the sweep and its runs")
  add("--mount", default="", help="kubernetes: where the claim is mounted, here and in the pods")
  add("--gpus", type=int, default=-1, help="kubernetes: GPUs of a pod; 0: none")
  add("--hosts", type=int, default=1, help="kubernetes: hosts of a run; from 2 on each is a JobSet")
  add("--secret", default="", help="kubernetes: Secret whose keys the pods have as variables")


def code_of(failed: Mapping[str, int], *, alone: bool) -> int:
  """Exit code after these tasks failed. A run alone has that of its task: 2 is not worth trying again, 75 is."""
  if not failed:
    return 0
  (code, *others) = set(failed.values())
  known = (runtime.EXIT_USER, runtime.EXIT_STOPPED)
  return code if alone and not others and code in known else runtime.EXIT_FAULT


def run(args, overrides: Sequence[str], failed: dict[str, int]) -> None:
  """Plan, write the folder, do the tasks, report; names of failed tasks go into `failed`."""
  if args.jobs < 1:
    raise UserError(f"--jobs is {args.jobs}; it must be at least 1")
  devices = args.devices.split("/") if args.devices else []
  if devices and len(devices) != args.jobs:
    raise UserError(f"--devices names those of {len(devices)} jobs, --jobs is {args.jobs}")
  elsewhere = args.executor != "local"
  if elsewhere and (args.only >= 0 or args.judge_and_report or args.jobs > 1):
    raise UserError(
      f"--executor {args.executor} does all of the sweep elsewhere; leave out --only, --judge_and_report and --jobs"
    )
  terminal = Terminal()
  plan = plan_of(args, overrides)
  if args.dry_run:
    costs.show(plan, terminal, tokens_per_second=args.tokens_per_second)
    return
  if plan:
    costs.check_agreed(plan)
  root = plan.root if plan else Path(args.workdir)
  if plan or (args.executor == "slurm" and not args.write_only):
    slurm.check_not_queued(root)
  # The tasks of a cluster work side by side on a sweep that was planned before.
  with contextlib.nullcontext() if args.only >= 0 else runtime.locked(root):
    if plan:
      planning.write(plan)
      terminal.line(
        f"{len(plan.runs)} runs, {len(plan.distinct)} of them different, in {plan.config.trained}; "
        f"{len(plan.comparisons)} comparisons to judge"
      )
    if not elsewhere:
      do(root, args, devices, terminal, failed)
  # Not under the lock: a job that begins at once needs it.
  if args.executor == "slurm":
    of = slurm.Options(args.sbatch, args.sbatch_finish, args.array_limit, args.write_only)
    slurm.submit(root, of, terminal.line)
  elif args.executor == "kubernetes":
    names = ("image", "claim", "mount", "gpus", "hosts", "secret")
    given = {name: getattr(args, name) for name in names}
    kubernetes.write(root, kubernetes.Options(**given, limit=args.array_limit), terminal.line)


def plan_of(args, overrides: Sequence[str]) -> planning.Plan | None:
  """The plan of the sweep's file; None where --workdir names a sweep that was planned before."""
  if not args.config:
    if args.dry_run or overrides or not (Path(args.workdir) / "tasks.json").exists():
      raise UserError(
        "--config is missing; name a sweep's file, such as configs/paper/fig3_pinch.py"
      )
    return None
  c = load_config(args.config, overrides, base="sweep")
  if args.workdir:
    c.workdir = args.workdir
  if not c.workdir:
    raise UserError("workdir is empty; give --workdir DIR")
  plan = planning.make_plan(
    c, read_arms(args.config, c), read_covariates(args.config, c), base_config()
  )
  check_runs(plan.distinct.values())
  return plan


def check_runs(runs: Iterable[Run]) -> None:
  """Refuse what each of the runs would refuse; but not what depends on devices, which may be others there."""
  models = set()
  for run in runs:
    c = costs.config_of(run)
    c.workdir = str(run.workdir)
    try:
      early.check_config(c)
      meshes.check_sizes(**c.mesh)
      folder = Path(c.model.path).expanduser() if c.model.path else None
      is_here = folder is None or folder.is_dir()  # of a hub id nothing is fetched
      model = f"{c.model.path} {c.model.sizes} {c.tokenizer}"
      if is_here and model not in models:
        models.add(model)
        early.check_model(c, folder, open_tokenizer(c, folder))
    except UserError as e:
      raise UserError(
        f"the training config of {run.arm.name!r} (config keys below `run.`): {e}"
      ) from e


def read_arms(file: str, c) -> list[Arm]:
  """What get_arms(c) of the sweep's file gives."""
  arms = list(user_file.call(Path(file), "get_arms", c, what=f"--config {file}"))
  if not arms or not all(isinstance(arm, Arm) for arm in arms):
    raise UserError(
      f"--config {file}: get_arms(c) must return a list of Arm, see mlit_jax/experiments/designs.py"
    )
  return arms


def read_covariates(file: str, c) -> list[Mapping]:
  """What get_covariates(c) gives, if the file has it."""
  return list(user_file.call(Path(file), "get_covariates", c, what=f"--config {file}", optional=()))


def do(
  root: Path, args, devices: Sequence[str], terminal: Terminal, failed: dict[str, int]
) -> None:
  """The tasks of a planned sweep, and its report."""
  todo = tasks.read_tasks(root)
  chains = tasks.chains(todo)
  if args.only >= 0:
    if args.only >= len(chains):
      raise UserError(f"--only {args.only}: the sweep has the runs 0 to {len(chains) - 1}")
    todo = chains[args.only]
  elif args.judge_and_report:
    todo = [task for task in todo if not task.chain]
  outcome = local.run_tasks(todo, root / "logs", jobs=args.jobs, devices=devices, say=terminal.line)
  if args.only < 0 and not outcome.stopped:
    last = [tasks.report_task(root)]
    outcome.add(local.run_tasks(last, root / "logs", jobs=1, say=terminal.line))
  if outcome.stopped:
    raise runtime.Stopped("stopped; the same command goes on from here")
  terminal.line(
    f"{outcome.done} tasks done, {outcome.skipped} were done before, {len(outcome.failed)} failed"
  )
  for name, code in outcome.failed.items():
    terminal.warning(
      f"{name} failed with exit code {code}; see {root / 'logs' / name}.log{outcome.errors[name]}"
    )
  if args.only < 0 and "report" not in outcome.failed:
    terminal.line(f"\nreport  {root / 'report' / 'report.html'}")
  if outcome.left:
    terminal.warning(f"not begun, since an earlier task failed: {', '.join(outcome.left)}")
  failed |= outcome.failed


if __name__ == "__main__":
  sys.exit(main())
