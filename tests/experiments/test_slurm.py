"""What is handed to SLURM, with its commands as stubs; and a sweep through a real one, where it is installed."""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from mlit_jax import sweep
from mlit_jax.experiments import slurm, tasks
from tests import commands
from tests.experiments.planned import planned
from tests.experiments.slurm_cluster import cluster, missing

OPTIONS = "--gpus=1 --time=4:00:00"


@pytest.fixture
def stubs(tmp_path, monkeypatch):
  """A folder first on the PATH, whose sbatch gives out numbers from 41 on and writes down what it is told."""
  folder = tmp_path / "stubs"
  folder.mkdir()
  asked = folder / "asked"
  stub(folder, "sbatch", f'echo "$@" >> {asked}; echo "$((40 + $(wc -l < {asked})));west"')
  stub(folder, "squeue", "exit 1")
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  return folder


def stub(folder, name, text):
  path = folder / name
  path.write_text(f"#!/usr/bin/env bash\n{text}\n")
  path.chmod(0o755)


def call(root, *flags):
  return commands.here(sweep, "--workdir", root, "--executor", "slurm", *flags)


def test_runs_that_are_left_are_an_array_and_the_report_comes_after(stubs, tmp_path):
  root = planned(tmp_path / "s", runs=8, done=(1, 2, 4))
  code, out, err = call(root, f"--sbatch={OPTIONS}", "--array_limit", "2")
  assert code == 0, err
  asked = (stubs / "asked").read_text().splitlines()
  assert asked == [
    f"--parsable {root}/array.sbatch",
    f"--parsable --dependency=afterany:41 {root}/finish.sbatch",
  ]
  directives = re.findall(r"^#SBATCH (.*)$", (root / "array.sbatch").read_text(), re.M)
  assert "--array=0,3,5-7%2" in directives and "--signal=SIGTERM@120" in directives
  assert "--requeue" in directives
  assert directives[-1] == OPTIONS  # of two that contradict one another the later counts
  finish = re.findall(r"^#SBATCH (.*)$", (root / "finish.sbatch").read_text(), re.M)
  assert not any("array" in d for d in finish) and finish[-1] == OPTIONS
  assert "job 41: runs 0,3,5-7" in out and "job 42" in out and "scancel 41 42" in out


def test_where_all_runs_are_done_only_the_report_is_submitted(stubs, tmp_path):
  root = planned(tmp_path / "s", done=(0, 1, 2))
  assert call(root)[0] == 0
  root = planned(root, done=(3,))
  assert call(root, "--sbatch_finish=--time=5", "--sbatch=--time=9")[0] == 0
  assert (stubs / "asked").read_text().splitlines()[2:] == [f"--parsable {root}/finish.sbatch"]
  assert not (root / "array.sbatch").exists()  # of the call before
  assert "#SBATCH --time=5\n" in (root / "finish.sbatch").read_text()


def test_written_scripts_are_not_submitted(stubs, tmp_path, monkeypatch):
  root = planned(tmp_path / "s with 50%")
  code, out, _ = call(root, "--write_only")
  assert code == 0 and not (stubs / "asked").exists()
  assert 's with 50%%/logs/slurm-%A_%a.log"' in (root / "array.sbatch").read_text()
  printed = "\n".join(re.findall(r"^submit +(.*)$", out, re.M))
  subprocess.run(["bash", "-euc", printed], check=True)
  asked = (stubs / "asked").read_text().splitlines()
  assert asked == [f"--parsable {root}/array.sbatch", f"--dependency=afterany:41 {root}/finish.sbatch"]  # fmt: skip


@pytest.mark.parametrize("code, queued", [(0, ""), (1, ""), (2, ""), (75, "requeue 40_3\n")])
def test_a_run_goes_back_into_the_queue_only_after_saving(stubs, tmp_path, monkeypatch, code, queued):  # fmt: skip
  """And alone: the number of an array's last task is that of the whole array."""
  root = planned(tmp_path / "it's one")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PYTHONPATH", "a b")
  assert call("it's one", "--write_only")[0] == 0
  monkeypatch.delenv("PYTHONPATH")
  monkeypatch.chdir("/")
  stub(stubs, "srun", f'printf "%s\\n" "$PWD" "$PYTHONPATH" "$SRUN_CPUS_PER_TASK" "$@" > {stubs}/ran; exit {code}')  # fmt: skip
  stub(stubs, "scontrol", f'echo "$@" > {stubs}/queued')
  (stubs / "queued").write_text("")
  of_slurm = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "40", "SLURM_CPUS_PER_TASK": "6"}  # fmt: skip
  done = subprocess.run(["bash", root / "array.sbatch"], env=os.environ | of_slurm)
  assert done.returncode == code
  assert (stubs / "queued").read_text() == queued
  command = [sys.executable, "-m", "mlit_jax.sweep", "--workdir", "it's one", "--only", "3"]
  assert (stubs / "ran").read_text().splitlines() == [str(tmp_path), "a b", "6", *command]
  subprocess.run(["bash", root / "finish.sbatch"], env=os.environ | {"SLURM_JOB_ID": "50"})
  assert (stubs / "queued").read_text() == queued.replace("40_3", "50")
  assert (stubs / "ran").read_text().splitlines()[3:] == [*command[:-2], "--judge_and_report"]


def test_what_slurm_says_is_passed_on(stubs, tmp_path, monkeypatch):
  root = planned(tmp_path / "s")
  stub(stubs, "sbatch", 'echo "sbatch: error: invalid partition\nsbatch: no" >&2; exit 1')
  code, _, err = call(root)
  assert code == 2
  assert err.strip() == f"error: sbatch refused {root}/array.sbatch: sbatch: error: invalid partition sbatch: no; see --sbatch"  # fmt: skip
  stub(stubs, "sbatch", 'case "$2" in *array*) echo 7;; *) echo "no such job" >&2; exit 1; esac')
  code, _, err = call(root)
  assert code == 2 and "no such job" in err and "job 7 with the runs is in the queue" in err
  monkeypatch.setenv("PATH", str(tmp_path))
  code, _, err = call(root)
  assert code == 2 and "sbatch cannot be run here" in err and err.count("\n") == 1


def test_a_sweep_in_the_queue_is_not_submitted_again(stubs, tmp_path):
  root = planned(tmp_path / "s")
  assert call(root)[0] == 0
  stub(stubs, "squeue", 'case "$2" in *42) echo waits;; *) exit 1; esac')  # the array has ended
  code, _, err = call(root)
  assert code == 2 and "job 42" in err and "scancel 41 42" in err
  assert call(root, "--write_only")[0] == 0
  stub(stubs, "squeue", "")
  assert call(root)[0] == 0
  assert len((stubs / "asked").read_text().splitlines()) == 4


@pytest.mark.parametrize(
  "flags, what",
  [
    (["--sbatch=--array=1-9"], "--sbatch has --array=1-9"),
    (["--sbatch=--time=1 -N 2"], "--sbatch has -N"),
    (["--sbatch_finish=--ntasks 2"], "--sbatch_finish has --ntasks"),
    (["--sbatch=gpus"], "--sbatch is 'gpus'"),
    (["--sbatch=--time=1\n--gpus=1"], "in one line"),
    (["--sbatch=--comment='a"], "No closing quotation"),
    (["--array_limit=-1"], "--array_limit is -1"),
    (["--only", "1"], "--executor slurm does all of the sweep"),
  ],
)
def test_options_that_cannot_be(stubs, tmp_path, flags, what):
  code, _, err = call(planned(tmp_path / "s"), *flags)
  assert code == 2 and what in err and err.count("\n") == 1
  assert not (stubs / "asked").exists()


def test_similar_options_are_let_through():
  slurm.check(slurm.Options("--nodelist=n1 --array-x -p p --ntasks-per-gpu=1"))


def test_ranges():
  assert slurm.ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
  assert slurm.ranges([3]) == "3"


@pytest.mark.parametrize("codes, alone, code", [([2], True, 2), ([75], True, 75), ([-9], True, 1), ([2], False, 1), ([2, 75], True, 1), ([], True, 0)])  # fmt: skip
def test_a_run_alone_says_whether_to_try_again(codes, alone, code):
  failed = {f"task {n}": c for n, c in enumerate(codes)}
  assert sweep.code_of(failed, alone=alone) == code


_SWEEP = """
from pathlib import Path

import mlit_jax
from configs import sweep
from mlit_jax.experiments import designs

ASSETS = Path(mlit_jax.__file__).parent / "assets"


def get_config():
  c = sweep.get_config()
  c.trained = {trained!r}
  c.rows = str(ASSETS / "instructions12/train/{{lang}}.jsonl")
  c.eval_rows = str(ASSETS / "instructions12/eval/{{lang}}.jsonl")
  c.languages = ["en", "fi"]
  c.budget.total = 60
  c.at = "last"
  r = c.run
  r.steps = {steps}
  r.model.sizes = dict(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64)
  r.model.dtype = "float32"
  r.tokenizer.path = str(ASSETS / "tokenizer12")
  r.batch.rows = 4
  r.batch.max_length = 128
  r.data.over_long = "truncate_answer"
  r.optimizer.learning_rate = 2e-3
  r.eval.generate_rows = 1
  r.eval.max_new_tokens = 4
  r.log.every_steps = 1
  return c


def get_arms(c):
  return designs.pinch(c.languages, c.base, [0, 50], c.budget.total)
"""


def test_the_plan_of_a_sweep_in_the_queue_stays(stubs, tmp_path):
  """By its numbers the tasks know their runs, whoever would write another plan."""
  config, root = tmp_path / "two.py", tmp_path / "s"
  config.write_text(_SWEEP.format(trained=str(tmp_path / "trained"), steps=4))
  assert call(root, "--config", config)[0] == 0
  before = (root / "tasks.json").read_text()
  stub(stubs, "squeue", "echo runs")
  for executor in ("slurm", "local", "kubernetes"):
    code, _, err = call(root, "--config", config, "--config.seeds=[1]", "--executor", executor)
    assert code == 2 and "job 41" in err and "still in the queue" in err
  assert (root / "tasks.json").read_text() == before
  stub(stubs, "squeue", "exit 1")
  assert call(root, "--config", config, "--config.seeds=[1]", "--write_only")[0] == 0
  assert (root / "tasks.json").read_text() != before


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed: {missing()}")
def test_a_sweep_through_slurm(tmp_path):
  """Two runs; the last is stopped by a signal, goes back into the queue alone, and goes on; then the report."""
  config, root = tmp_path / "two.py", tmp_path / "sweep"
  config.write_text(_SWEEP.format(trained=str(tmp_path / "trained"), steps=600))
  with cluster() as env:
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(commands.ROOT)}

    def run(*command):
      return subprocess.run(list(map(str, command)), env=env, cwd=commands.ROOT, capture_output=True, text=True)  # fmt: skip

    submit = [sys.executable, "-m", "mlit_jax.sweep", "--config", config, "--workdir", root, "--executor", "slurm", "--sbatch=--time=30"]  # fmt: skip
    assert run(*submit, "--write_only").returncode == 0
    for name in ("array.sbatch", "finish.sbatch"):
      tried = run("sbatch", "--test-only", root / name)
      assert tried.returncode == 0, tried.stderr
    done = run(*submit)
    assert done.returncode == 0, done.stderr
    array, finish = re.search(r"scancel (\d+) (\d+)", done.stdout).groups()
    folder = workdir_of(root, 1)
    until(lambda: steps(folder) > 5)
    assert run("scancel", "--signal=TERM", f"{array}_1").returncode == 0
    until(lambda: "Restarts=1" in run("scontrol", "show", "job", f"{array}_1").stdout)
    saved = re.search(r"SIGTERM: saved step (\d+) of 600", log_of(root, folder))
    assert saved and "Restarts=0" in run("scontrol", "show", "job", f"{array}_0").stdout
    # Not at once: SLURM lets what it put back wait for two minutes.
    until(lambda: not run("squeue", "--noheader", f"--jobs={array},{finish}").stdout.strip(), 600)
    assert f"resumed at step {saved[1]} of 600" in log_of(root, folder)
    assert steps(folder) == 600 and (folder / "report.html").exists()
    assert (root / "logs" / "report.log").exists()
    assert "no runs: all of them are done" in run(*submit, "--write_only").stdout


def workdir_of(root, number):
  return pathlib.Path(tasks.chains(tasks.read_tasks(root))[number][0].done)


def steps(workdir):
  return max(commands.train_events(workdir), default=0)


def log_of(root, workdir):
  return (root / "logs" / f"{workdir.name}.train.log").read_text()


def until(true, seconds=300):
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    if found := true():
      return found
    time.sleep(1)
  raise AssertionError("waited in vain")
