"""A sweep as an array of SLURM jobs, one for each run, and a job after them that judges and reports."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mlit_jax import runtime
from mlit_jax.errors import UserError
from mlit_jax.experiments import tasks
from mlit_jax.experiments.tasks import Task

# A run is one process on one node, a task of the array is one run.
OURS = re.compile(r"--(array|nodes|ntasks|ntasks-per-node|dependency|signal)(=|$)|-[aNnd]")
ARRAY, FINISH, JOBS = "array.sbatch", "finish.sbatch", "slurm.json"

_SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
{array}#SBATCH --output={log}
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --signal=SIGTERM@120
#SBATCH --requeue
{given}# {about} Written by python -m mlit_jax.sweep --executor slurm.
set -uo pipefail
cd {cwd} || exit 2
{path}export XLA_PYTHON_CLIENT_MEM_FRACTION=${{XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}}
# srun does not take this over from sbatch since 22.05.
if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
srun {command}
status=$?
# 75: stopped by a signal after saving; put the job back in the queue.
if [ $status -eq 75 ]; then scontrol requeue "{job}"; fi
exit $status
"""


@dataclasses.dataclass(frozen=True)
class Options:
  """sbatch: options for each run, as on its command line; finish: those of judging and report, "" for the same."""

  sbatch: str = ""
  finish: str = ""
  limit: int = 0  # runs at a time; 0: as many as SLURM lets
  write_only: bool = False


def submit(root: Path, options: Options, say: Callable[[str], None]) -> None:
  """Write the two scripts and hand them to sbatch; runs that are done are left out."""
  left = write(root, tasks.read_tasks(root), options)
  array, finish = root / ARRAY, root / FINISH
  runs = f"runs {ranges(left)}" if left else "no runs: all of them are done"
  if options.write_only:
    say(f"written  {finish}; {runs}" if not left else f"written  {array}, {finish}; {runs}")
    for line in commands(array if left else None, finish):
      say(f"submit   {line}")
    return
  jobs = []
  if left:
    jobs.append(_sbatch(array))
    runtime.write_json(root / JOBS, jobs)
    say(f"array    job {jobs[0]}: {runs}")
  try:
    jobs.append(_sbatch(finish, *([f"--dependency=afterany:{jobs[0]}"] if jobs else [])))
  except UserError as e:
    raise UserError(f"{e}" + (f" (job {jobs[0]} with the runs is in the queue)" if jobs else "")) from e  # fmt: skip
  runtime.write_json(root / JOBS, jobs)
  say(f"finish   job {jobs[-1]}: judging and report" + (", once the runs have ended" if left else ""))  # fmt: skip
  say(f"follow   squeue --jobs={','.join(jobs)}; tail -F {shlex.quote(str(root / 'logs'))}/slurm-*.log")  # fmt: skip
  say(f"stop     scancel {' '.join(jobs)}")
  say("again    the same command, once they have ended: it leaves out what is done")


def write(root: Path, todo: Sequence[Task], options: Options) -> list[int]:
  """The scripts; numbers of the runs that are left, without which there is no array."""
  check(options)
  (root / "logs").mkdir(parents=True, exist_ok=True)  # SLURM makes no folders for its logs
  left = tasks.left(todo)
  (root / ARRAY).unlink(missing_ok=True)
  if left:
    limit = f"%{options.limit}" if options.limit else ""
    text = script(
      root,
      "runs",
      '--only "$SLURM_ARRAY_TASK_ID"',
      options.sbatch,
      array=f"#SBATCH --array={ranges(left)}{limit}\n",
      about="Task K does run K of the sweep.",
      log="slurm-%A_%a.log",
      # The bare number of an array's last task is that of the whole array.
      job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
    )
    runtime.write_atomic(root / ARRAY, text)
  text = script(
    root,
    "finish",
    "--judge_and_report",
    options.finish or options.sbatch,
    about="Judging and report, after the runs.",
    log="slurm-%j.log",
    job="$SLURM_JOB_ID",
  )
  runtime.write_atomic(root / FINISH, text)
  return left


def script(
  root: Path,
  what: str,
  flags: str,
  given: str,
  *,
  about: str,
  log: str,
  job: str,
  array: str = "",
) -> str:
  """A job that calls this Python in this folder."""
  name = re.sub(r"[^\w.-]+", "_", f"{root.resolve().name}-{what}")
  logs = str(root.resolve() / "logs").replace("%", "%%")
  path = os.environ.get("PYTHONPATH", "")
  command = shlex.join([sys.executable, "-m", "mlit_jax.sweep", "--workdir", str(root)])
  return _SCRIPT.format(
    name=name,
    array=array,
    log=f'"{logs}/{log}"',
    given=f"#SBATCH {given}\n" if given else "",
    about=about,
    cwd=shlex.quote(str(Path.cwd())),
    path=f"export PYTHONPATH={shlex.quote(path)}\n" if path else "",
    command=f"{command} {flags}",
    job=job,
  )


def check(options: Options) -> None:
  """Refuse options that would make something else of a run than one process."""
  if options.limit < 0:
    raise UserError(f"--array_limit is {options.limit}; it must be at least 1, or 0 for no limit")
  for flag, given in (("--sbatch", options.sbatch), ("--sbatch_finish", options.finish)):
    try:
      words = shlex.split(given)
    except ValueError as e:
      raise UserError(f"{flag} is {given!r}: {e}") from e
    if "\n" in given or (words and not words[0].startswith("-")):
      raise UserError(
        f"{flag} is {given!r}; give options of sbatch in one line, as {flag}='--gpus=1 --time=4:00:00'"
      )
    for word in words:
      if OURS.match(word):
        raise UserError(
          f"{flag} has {word}, which the sweep sets itself: a job is one run, one process on one node. "
          "Leave it out (runs at a time: --array_limit; a run over several nodes: launch/slurm.sbatch)"
        )


def check_not_queued(root: Path) -> None:
  """Tasks of the array go by the numbers of the plan, so it must stay until they have ended."""
  try:
    jobs = json.loads((root / JOBS).read_text("utf-8"))
  except (OSError, ValueError):
    return
  for job in jobs:
    try:
      found = subprocess.run(
        ["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True
      )
    except OSError:
      return
    if found.returncode == 0 and found.stdout.strip():  # not 0: SLURM has forgotten it
      raise UserError(
        f"job {job} of {root} is still in the queue; wait for it, or stop it: scancel {' '.join(jobs)}"
      )


def ranges(numbers: Sequence[int]) -> str:
  """[0, 1, 2, 5] -> "0-2,5" """
  out: list[list[int]] = []
  for n in numbers:
    if out and n == out[-1][1] + 1:
      out[-1][1] = n
    else:
      out.append([n, n])
  return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in out)


def commands(array: Path | None, finish: Path) -> list[str]:
  """To submit the scripts by hand."""
  last = shlex.quote(str(finish))
  if array is None:
    return [f"sbatch {last}"]
  return [
    f"runs=$(sbatch --parsable {shlex.quote(str(array))})",
    f"sbatch --dependency=afterany:${{runs%;*}} {last}",
  ]


def _sbatch(file: Path, *flags: str) -> str:
  """The number of the job."""
  try:
    done = subprocess.run(
      ["sbatch", "--parsable", *flags, str(file)], capture_output=True, text=True
    )
  except OSError as e:
    raise UserError(
      f"sbatch cannot be run here ({e.strerror or e}); {file} is written: submit it where SLURM is, or take --write_only"
    ) from e
  if done.returncode:
    raise UserError(f"sbatch refused {file}: {' '.join(done.stderr.split())}; see --sbatch")
  return done.stdout.strip().split(";")[
    0
  ]  # behind it the name of the cluster, where there are some
