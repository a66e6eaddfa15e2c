"""The commands as tests call them, and the smallest run that has everything in it.

config = commands.write_config(tmp_path, "c.steps = 4")
code, out, err = commands.here(train, "--config", config, "--workdir", tmp_path / "run")
"""

import contextlib
import importlib.metadata
import io
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from unittest import mock

from mlit_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
# Machine code that is quick to make rather than quick to run: three quarters of the time of these tests was LLVM's.
QUICK = {"xla_backend_optimization_level": 0}
USUAL = {"xla_backend_optimization_level": 3}
# Eight devices on two busy cores: one that comes to a collective late has not hung, and XLA would end the process.
PATIENT = {"xla_cpu_collective_call_terminate_timeout_seconds": 600}
_JAX = tuple(int(n) for n in importlib.metadata.version("jax").split(".")[:2])
if _JAX < (0, 11):  # later ones may not know it, and XLA ends the process then
  QUICK["xla_cpu_use_fusion_emitters"] = False
  USUAL["xla_cpu_use_fusion_emitters"] = True
COUNTS = {"en": 16, "sw": 4, "zh": 4}

_CONFIG = """from pathlib import Path

import mlit_jax
from configs import base

ASSETS = Path(mlit_jax.__file__).parent / "assets"


def rows(part):
  return {{lang: [str(ASSETS / "instructions12" / part / f"{{lang}}.jsonl")] for lang in {languages}}}


def get_config():
  c = base.get_config()
  c.epochs = 1
  c.model.sizes = dict(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64)
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.tokenizer.path = str(ASSETS / "tokenizer12")
  c.data.train = rows("train")
  c.data.mixture = {{"counts": {{"en": 16, "*": 8}}}}
  c.optimizer.learning_rate = 2e-3
  c.batch.rows = 4
  c.batch.max_length = 128
  c.optimizer.warmup_steps = 2
  c.eval.sets = {{"heldout": rows("eval")}}
  c.eval.every_steps = 2
  c.eval.generate_rows = 1
  c.eval.max_new_tokens = 4
  c.checkpoint.every_steps = 2
  c.log.every_steps = 1
{lines}
  return c
"""


def write_config(folder, *lines: str) -> pathlib.Path:
  """A config of three languages and a few steps, with further lines such as "c.steps = 4"."""
  path = pathlib.Path(folder) / "tiny.py"
  path.write_text(
    _CONFIG.format(languages=list(COUNTS), lines="\n".join(f"  {line}" for line in lines))
  )
  return path


def here(module, *args) -> tuple[int, str, str]:
  """(exit code, stdout, stderr) of a command in this process."""
  out, err = io.StringIO(), io.StringIO()
  argv = [module.__name__, *map(str, args)]
  with (
    mock.patch.object(sys, "argv", argv),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    try:
      code = module.main()
    except SystemExit as e:  # argparse
      code = e.code
  return code, out.getvalue(), err.getvalue()


def begun(config, workdir) -> pathlib.Path:
  """The workdir of a run that has trained and was stopped, as its files say; nothing is computed for it."""
  from mlit_jax import train

  with mock.patch.object(train.Job, "run", side_effect=UserError("far enough")):
    code, _, err = here(train, "--config", config, "--workdir", workdir)
  assert (code, err) == (2, "error: far enough\n")
  (workdir / "checkpoints" / "2").mkdir(parents=True)
  (workdir / "metrics.jsonl").write_text('{"step": 1}\n')
  return workdir


def xla_flags(devices: int | None = None) -> str:
  """XLA_FLAGS, with so many CPU devices: those of this process, or else quick to compile and patient."""
  usual = " ".join(f"--{flag}={str(value).lower()}" for flag, value in (QUICK | PATIENT).items())
  flags = os.environ.get("XLA_FLAGS", usual)
  flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
  return f"{flags} --xla_force_host_platform_device_count={devices}" if devices else flags


def start(verb: str, *args, devices: int = 1, before: str = "", **env: str) -> subprocess.Popen:
  """A command in a process of its own, with as many CPU devices; `before` is Python that makes something fail in it."""
  how = ["-m", f"mlit_jax.{verb}"]
  if before:
    how = ["-c", f"{before}\nimport sys\nfrom mlit_jax.{verb} import main\nsys.exit(main())"]
  return subprocess.Popen(
    [sys.executable, *how, *map(str, args)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices), **env},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ended(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str, str]:
  """(exit code, stdout, stderr) of a started command."""
  try:
    out, err = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  return process.returncode, out, err


def events(workdir) -> list[dict]:
  """metrics.jsonl; a last line that is still being written is left out."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  text = path.read_text(encoding="utf-8") if path.exists() else ""
  return [json.loads(line) for line in text.split("\n")[:-1]]


def untimed(events: list[dict]) -> list[dict]:
  """Events without what a clock said: equal in two runs that did the same work."""
  clocks = ("time", "goodput")
  kept = [
    {k: v for k, v in e.items() if not k.startswith(clocks) and "per_second" not in k}
    for e in events
  ]
  return [e for e in kept if e.keys() - {"step"}]


def train_events(workdir) -> dict[int, dict]:
  """Step -> what the run trained on there and its loss, without the clock."""
  clock = ("time", "train/tokens_per_second", "train/trained_tokens_per_second", "train/mfu")
  return {
    e["step"]: {k: v for k, v in e.items() if k not in clock and not k.startswith("time/")}
    for e in events(workdir)
    if "train/loss" in e
  }


def batches(workdir) -> dict[tuple[int, int], dict]:
  """(step, row of the global batch) -> its line of `log.batches`; each must be there once."""
  out = {}
  for path in sorted((pathlib.Path(workdir) / "batches").glob("*.jsonl")):
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
      entry = json.loads(line)
      place = (entry["step"], entry["row"])
      assert place not in out, (path, entry, out[place])
      out[place] = entry
  return out


def start_several(processes: int, verb: str, *args, of_each=lambda i: {}, **env: str) -> list:
  """The command on so many processes that work together; of_each(i) -> environment of process i."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  return [
    start(
      verb,
      *args,
      JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
      JAX_NUM_PROCESSES=str(processes),
      JAX_PROCESS_ID=str(i),
      **env | of_each(i),
    )
    for i in range(processes)
  ]


def begin(processes: int, config, workdir, **more) -> list[subprocess.Popen]:
  """A training run on one or more processes that work together; `more` as in `start`."""
  args = ("train", "--config", config, "--workdir", workdir)
  if processes == 1:
    return [start(*args, **more)]
  return start_several(processes, *args, **more)


def finish(processes, timeout: float = 240) -> None:
  """Until all processes of a run have ended, each as it should."""
  ends = [ended(p, timeout=timeout) for p in processes]
  assert [code for code, *_ in ends] == [0] * len(processes), ends


def final_digest(workdir, step: int) -> dict[str, str]:
  """The digest of every array of a checkpoint, as it was saved with it."""
  from mlit_jax.training.checkpoint import read_step_meta

  return read_step_meta(pathlib.Path(workdir) / "checkpoints", step)["digest"]


def ended_digest(processes: int, config, workdir, step: int) -> dict[str, str]:
  """The final digest of a run that is begun, or goes on, and comes to its end."""
  finish(begin(processes, config, workdir))
  return final_digest(workdir, step)


def undisturbed_runs(config, tmp_path_factory, step: int):
  """Number of processes -> final digest of a run that nobody disturbed, made when first asked for."""
  found = {}

  def of(processes: int) -> dict[str, str]:
    if processes not in found:
      workdir = tmp_path_factory.mktemp("undisturbed") / "run"
      found[processes] = ended_digest(processes, config, workdir, step)
    return found[processes]

  return of


def wait_for_step(process, workdir, step: int, timeout: float = 240) -> bool:
  """Until the run has logged this step; False if it ended before."""
  end = time.monotonic() + timeout
  while process.poll() is None:
    if max(train_events(workdir), default=0) >= step:
      return True
    assert time.monotonic() < end, f"step {step} was not reached"
    time.sleep(0.005)
  return False


def contents(folder) -> dict[str, bytes]:
  """Every file below a folder, to see that nothing was written over."""
  folder = pathlib.Path(folder)
  return {
    p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
  }
