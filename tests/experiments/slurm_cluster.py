"""A SLURM cluster of this machine alone, in a temporary folder; from Debian: slurmctld slurmd slurm-client munge."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
# sbin is on no user's PATH.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_CONF = """\
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=trial Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
  """Programs that are not here; a cluster of one's own needs root besides."""
  lacking = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
  return ", ".join(lacking) or ("" if os.geteuid() == 0 else "root")


@contextlib.contextmanager
def cluster():
  """The environment in which SLURM's commands reach it."""
  with tempfile.TemporaryDirectory(prefix="slurm_") as name, contextlib.ExitStack() as stack:
    folder = pathlib.Path(name)
    folder.chmod(0o755)  # munged asks for it
    for part in ("munge", "state", "spool"):
      (folder / part).mkdir()
    (folder / "munge/key").write_bytes(os.urandom(128))
    (folder / "munge/key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    conf = _CONF.format(
      host=host, folder=folder, port=_free_port(), node_port=_free_port(), user="root"
    )
    (folder / "slurm.conf").write_text(conf)
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    of_munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}  # fmt: skip
    flags = [f"--{flag}={folder}/munge/{file}" for flag, file in of_munge.items()]
    for command in (["munged", "--foreground", *flags], ["slurmctld", "-D"], ["slurmd", "-D"]):
      log = stack.enter_context(open(folder / f"{command[0]}.log", "w"))
      process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
      stack.callback(_end, process)
      time.sleep(1)
    _wait_until_idle(env, folder)
    yield env


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _end(process):
  process.terminate()
  try:
    process.wait(timeout=30)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()


def _wait_until_idle(env, folder):
  for _ in range(60):
    found = subprocess.run(["sinfo", "-h", "-o", "%T"], env=env, capture_output=True, text=True)
    if found.stdout.strip() == "idle":
      return
    time.sleep(1)
  logs = {p.name: p.read_text()[-500:] for p in folder.glob("*.log")}
  raise RuntimeError(f"the cluster does not come up: {found.stderr} {logs}")
