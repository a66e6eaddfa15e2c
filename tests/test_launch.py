"""The launch scripts: real processes on this machine, and what a cluster's tools would be told."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests import commands

LAUNCH = commands.ROOT / "launch"


def start(script, *args, path="", **env):
  """A script of launch/, with its folder of stubs first on the PATH."""
  usual = {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": commands.xla_flags()}
  env = os.environ | usual | env
  env["PATH"] = f"{path}:{env['PATH']}" if path else env["PATH"]
  return subprocess.Popen(
    ["bash", LAUNCH / script, *map(str, args)], cwd=commands.ROOT, env=env, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip


def stopped(tmp_path):
  """The arguments of a run of two processes that SIGTERM ended, the last step of it, and the ended script."""
  config = commands.write_config(tmp_path, "c.epochs = 0", "c.steps = 400", "c.eval.sets = {}")
  args = ("local.sh", 2, "--config", config, "--workdir", tmp_path / "run")
  process = start(*args)
  wait_for_step(process, tmp_path / "run", 1)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=120)
  return args, max(commands.train_events(tmp_path / "run")), (process.returncode, out, err)


def test_two_processes_stop_on_a_signal(tmp_path):
  """SIGTERM to the script reaches both; they agree on a step, save, and the script ends with 75."""
  _, done, (code, out, err) = stopped(tmp_path)
  assert code == 75, err
  assert "2 processes x 1 device (cpu), clocks within 0.0 s, all-reduce of 16 MiB" in out
  assert f"SIGTERM: saved step {done} of 400" in err


@pytest.mark.slow
def test_two_processes_that_were_stopped_go_on(tmp_path):
  args, done, _ = stopped(tmp_path)
  process = start(*args)
  wait_for_step(process, tmp_path / "run", done + 2)
  process.send_signal(signal.SIGUSR1)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 75, err
  assert f"resumed at step {done} of 400" in out


def wait_for_step(process, workdir, step):
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    if max(commands.train_events(workdir), default=0) >= step:
      return
    time.sleep(0.2)


def test_bad_input_of_one_ends_all_with_2(tmp_path):
  process = start("local.sh", 2, "--config", tmp_path / "none.py", "--workdir", tmp_path / "run")
  _, err = process.communicate(timeout=60)
  assert process.returncode == 2 and "none.py: no such file" in err


def stub(folder, name, text):
  path = folder / name
  path.write_text(f"#!/usr/bin/env bash\n{text}\n")
  path.chmod(0o755)


@pytest.mark.parametrize(
  "code, restarts, queued",
  [
    (0, "", False),
    (2, "", False),
    (1, "", True),
    (134, "9", True),
    (1, "10", False),
    (75, "10", True),
  ],
)
def test_slurm_puts_the_job_back_only_where_it_can_go_on(tmp_path, code, restarts, queued):
  stub(tmp_path, "srun", f'echo "$@" > {tmp_path}/asked; exit {code}')
  stub(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/queued')
  process = start(
    "slurm.sbatch",
    "--config",
    "a b.py",
    path=str(tmp_path),
    SLURM_JOB_ID="7",
    SLURM_RESTART_COUNT=restarts,
  )
  process.communicate(timeout=30)
  assert process.returncode == code
  asked = (tmp_path / "asked").read_text()
  assert asked.endswith("-m mlit_jax.train --config a b.py\n")
  assert (tmp_path / "queued").exists() == queued
  if queued:
    assert (tmp_path / "queued").read_text() == "requeue 7\n"


@pytest.mark.parametrize("gpus, processes, shares", [(8, 4, ["0,1", "2,3", "4,5", "6,7"]), (4, 1, ["0,1,2,3"])])  # fmt: skip
def test_processes_share_the_gpus(tmp_path, gpus, processes, shares):
  stub(tmp_path, "nvidia-smi", "\n".join(f"echo 'GPU {i}: H100'" for i in range(gpus)))
  stub(tmp_path, "python", f'echo "$CUDA_VISIBLE_DEVICES" > {tmp_path}/of$JAX_PROCESS_ID')
  process = start("local.sh", processes, path=str(tmp_path), PYTHON="python")
  process.communicate(timeout=30)
  assert process.returncode == 0
  assert [(tmp_path / f"of{i}").read_text().strip() for i in range(processes)] == shares
  process = start("local.sh", 3, path=str(tmp_path), PYTHON="python")
  _, err = process.communicate(timeout=30)
  assert process.returncode == 2 and f"{gpus} GPUs cannot be shared by 3" in err


@pytest.mark.parametrize("name, what", [("gke_jobset.yaml", "nvidia.com/gpu"), ("gke_jobset_tpu.yaml", "google.com/tpu")])  # fmt: skip
def test_a_job_set_restarts_but_for_bad_input(name, what):
  spec = yaml.safe_load((LAUNCH / name).read_text())
  assert (spec["apiVersion"], spec["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  (job,) = spec["spec"]["replicatedJobs"]
  job = job["template"]["spec"]
  assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["values"] == [2] and rule["action"] == "FailJob"
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never"
  (container,) = pod["containers"]
  assert container["command"][:3] == ["python", "-m", "mlit_jax.train"]
  assert what in container["resources"]["limits"]
  env = {e["name"]: e.get("value") for e in container["env"]}
  known = {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "MLIT_DISTRIBUTED"}
  assert env.keys() <= known
  if "JAX_NUM_PROCESSES" in env:
    assert env["JAX_NUM_PROCESSES"] == str(job["completions"])
    assert env["JAX_COORDINATOR_ADDRESS"].startswith("mlit-jax-train-0-0.mlit-jax:")
