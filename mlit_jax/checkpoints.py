"""The checkpoints of a run: what there is, whether it is whole, and what may go.

  python -m mlit_jax.checkpoints list   runs/quickstart
  python -m mlit_jax.checkpoints verify runs/quickstart --step best
  python -m mlit_jax.checkpoints prune  runs/quickstart --keep_latest 1 --keep_best 1 --yes
  python -m mlit_jax.checkpoints copy   runs/quickstart --step 1200 --out /backup/quickstart

`verify` reads every array and compares its digest with the one that was saved with it; nothing is changed.
`copy` writes the folder OUT/STEP, and verifies it before it gets that name. Exit codes: 0 done, 2 something to
mend, such as a damaged step.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from mlit_jax import runtime
from mlit_jax.errors import UserError
from mlit_jax.opening import lower_is_better, read_run_config
from mlit_jax.training import safety
from mlit_jax.training.checkpoint import read_metrics, read_step_meta, resolve_step, retained
from mlit_jax.training.verify import verify_step

# Of a workdir, besides a step: what it takes to use that.
NEEDED = ("config.json", "data_plan.json", "base", "tokenizer")


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.checkpoints",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("action", choices=("list", "verify", "prune", "copy"))
  parser.add_argument("workdir", help="of the run")
  parser.add_argument(
    "--step", default="", help="a number, latest or best; verify: all; copy: latest (default)"
  )
  parser.add_argument("--out", default="", help="copy: the folder that gets the step")
  parser.add_argument("--keep_latest", type=int, help="prune: how many; default: that of the run")
  parser.add_argument("--keep_best", type=int, help="prune: how many; default: that of the run")
  parser.add_argument("--yes", action="store_true", help="prune: do not ask")
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args = parser.parse_args()
  act = {"list": show, "verify": verify, "prune": prune, "copy": copy}[args.action]
  return runtime.run_main(lambda: act(args), debug=args.debug)


def show(args: argparse.Namespace) -> None:
  """One line for each step, the best marked; then what lies in quarantine."""
  folder, lower = opened(args)
  steps = safety.steps_in(folder)
  if not steps:
    print(f"{folder} holds no checkpoint")
  best = resolve_step(folder, "best", lower_is_better=lower) if read_metrics(folder) else None
  print(f"{'step':>10}  {'size':>10}  {'metric':>12}  {'saved':<19}  state")
  for step in steps:
    path = folder / str(step)
    try:
      meta = read_step_meta(folder, step)
      metric = meta.get("metric")
      state = "with a digest" if safety.DIGEST in meta else "no digest: cannot be verified"
    except safety.Damaged as e:
      metric, state = None, f"damaged: {e}"
    figure = "-" if metric is None else f"{metric:.6g}"
    marks = [word for word, of in (("latest", steps[-1]), ("best", best)) if of == step]
    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
    size = safety.in_words(safety.size_of(path))
    print(f"{step:>10}  {size:>10}  {figure:>12}  {saved}  {', '.join([state, *marks])}")
  for path in sorted((Path(args.workdir) / safety.QUARANTINE).glob("*")):
    print(f"set aside  {path}")


def verify(args: argparse.Namespace) -> None:
  """Read one step or all; UserError at the end if one is damaged."""
  folder, lower = opened(args)
  steps = [resolve_step(folder, args.step, lower_is_better=lower)] if args.step else None
  steps = steps or safety.steps_in(folder)
  if not steps:
    raise UserError(
      f"{folder} holds no checkpoint. Is this the workdir of a run that has saved one?"
    )
  runtime.start()
  damaged = []
  for step in steps:
    try:
      print(f"step {step}: {verify_step(folder, step)}", flush=True)
    except safety.Damaged as e:
      print(f"step {step}: DAMAGED: {e}", flush=True)
      damaged.append(step)
  if damaged:
    raise UserError(
      f"{len(damaged)} of {len(steps)} steps in {folder} are damaged: {', '.join(map(str, damaged))}. A run that goes "
      "on sets them aside and uses the newest whole one."
    )


def prune(args: argparse.Namespace) -> None:
  """Delete all but the latest and the best."""
  folder, lower = opened(args)
  of_run = read_run_config(Path(args.workdir))["checkpoint"]
  keep_latest = of_run["keep_latest"] if args.keep_latest is None else args.keep_latest
  keep_best = of_run["keep_best"] if args.keep_best is None else args.keep_best
  if keep_latest < 0 or keep_best < 0 or keep_latest + keep_best == 0:
    raise UserError(
      f"--keep_latest {keep_latest} --keep_best {keep_best} would keep nothing; one of them must be above 0"
    )
  with runtime.locked(Path(args.workdir)):  # a run at work deletes by itself
    steps = safety.steps_in(folder)
    kept = retained(steps, read_metrics(folder), keep_latest, keep_best, lower_is_better=lower)
    doomed = [step for step in steps if step not in kept]
    if not kept and steps:
      raise UserError(
        f"{folder}: no step has a metric, so that none would be kept; set --keep_latest"
      )
    if not doomed:
      print(f"nothing to delete: {len(steps)} steps, all kept")
      return
    freed = sum(safety.size_of(folder / str(step)) for step in doomed)
    what = f"steps {', '.join(map(str, doomed))} ({safety.in_words(freed)})"
    if not args.yes and not confirmed(f"delete {what}, keep {', '.join(map(str, sorted(kept)))}?"):
      print("nothing was deleted")
      return
    for step in doomed:
      safety.remove(folder / str(step))
    print(f"deleted {what}")


def copy(args: argparse.Namespace) -> None:
  """One step into another folder, verified there."""
  folder, lower = opened(args)
  if not args.out:
    raise UserError("copy needs --out FOLDER: the step is written to FOLDER/STEP")
  step = resolve_step(folder, args.step or "latest", lower_is_better=lower)
  there = Path(args.out) / str(step)
  if there.exists():
    raise UserError(f"{there} is there already; name another --out, or delete it")
  runtime.start()
  partial = Path(args.out) / f".partial-{step}"
  try:
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder / str(step), partial / str(step))
    said = verify_step(partial, step)
    safety.make_durable(partial / str(step))
    (partial / str(step)).rename(there)
  except OSError as e:
    raise UserError(f"step {step} cannot be copied to {args.out}: {safety.in_one_line(e)}") from e
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  print(f"{there}: {said}")
  names = [name for name in NEEDED if (Path(args.workdir) / name).exists()]
  print(
    f"It is the step alone. To generate with it, export it or go on from it elsewhere, make a folder DIR with "
    f"{', '.join(names)} of {args.workdir} and this folder as DIR/checkpoints/{step}; then --model DIR@{step}"
  )


def opened(args: argparse.Namespace) -> tuple[Path, bool]:
  """The folder of checkpoints of the workdir, and whether its metric is better when lower."""
  root = Path(args.workdir)
  return root / "checkpoints", lower_is_better(read_run_config(root))


def confirmed(question: str) -> bool:
  try:
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
  except EOFError:
    raise UserError("nobody is here to answer; say --yes to delete without a question") from None


if __name__ == "__main__":
  sys.exit(main())
