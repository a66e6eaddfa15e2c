"""What benchmarks/faults.py breaks: a small run with everything in it, started many times a minute.

A process is forked from this one, which has imported the commands but never started JAX: seconds less for each of
hundreds of starts, and as real a process as any to whoever kills it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 24
UNTIMED = ("time", "train/tokens_per_second", "train/trained_tokens_per_second", "train/mfu")
_CONFIG = """from pathlib import Path

import mlit_jax
from configs import base

ASSETS = Path(mlit_jax.__file__).parent / "assets"


def rows(part):
  return {lang: [str(ASSETS / "instructions12" / part / f"{lang}.jsonl")] for lang in ("en", "sw", "zh")}


def get_config():
  c = base.get_config()
  c.epochs, c.steps = 0, %d
  c.model.sizes = dict(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64)
  c.model.dtype, c.model.remat = "float32", "none"
  c.tokenizer.path = str(ASSETS / "tokenizer12")
  c.data.train = rows("train")
  c.data.mixture = {"counts": {"en": 64, "*": 32}}
  c.optimizer.learning_rate, c.optimizer.warmup_steps = 2e-3, 2
  c.batch.rows, c.batch.max_length = 4, 128
  c.eval.sets = {"heldout": rows("eval")}
  c.eval.every_steps, c.eval.generate_rows, c.eval.max_new_tokens = 6, 1, 4
  c.checkpoint.every_steps, c.checkpoint.keep_latest, c.checkpoint.keep_best = 3, 2, 1
  c.log.every_steps, c.log.batches = 1, True
%s
  return c
"""


def write_config(folder: Path, *lines: str, steps: int = STEPS) -> Path:
  """A config of three languages and a few steps, with further lines such as "c.steps = 4"."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "faults.py"
  path.write_text(_CONFIG % (steps, "\n".join(f"  {line}" for line in lines)), encoding="utf-8")
  return path


def preload() -> None:
  """Import the commands; JAX must not have started in a process that forks."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  sys.path.insert(0, str(ROOT))
  import jax

  from mlit_jax import export, train  # noqa: F401

  assert not jax._src.xla_bridge.backends_are_initialized(), "JAX runs: nothing can be forked"
  warnings.filterwarnings("ignore", message=".*fork.*")


class Started:
  """A command in a forked process, in a session of its own; what it says goes to `log`."""

  def __init__(
    self,
    verb: str,
    args: Sequence[object],
    log: Path,
    before: Callable[[], None] = lambda: None,
    **env: str,
  ):
    sys.stdout.flush()
    sys.stderr.flush()
    self.log, self.code = log, None
    self.pid = os.fork()
    if self.pid:
      return
    code = 1
    try:
      os.setsid()
      out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
      os.dup2(out, 1)
      os.dup2(out, 2)
      os.environ.update(env)
      sys.argv = [f"mlit_jax.{verb}", *map(str, args)]
      before()
      module = sys.modules[f"mlit_jax.{verb}"]
      code = module.main()
      _leave_the_others()
    except SystemExit as e:
      code = e.code if isinstance(e.code, int) else 1
    finally:
      with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
      os._exit(code or 0)

  def poll(self) -> int | None:
    """The exit code, -9 for a kill; None while it runs."""
    if self.code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        self.code = os.waitstatus_to_exitcode(status)
    return self.code

  def wait(self, seconds: float = 600) -> int:
    """The exit code; TimeoutError, and all of its session killed, after so many seconds."""
    end = time.monotonic() + seconds
    while self.poll() is None:
      if time.monotonic() > end:
        self.kill()
        raise TimeoutError(f"still running after {seconds:.0f} s: {self.said()[-2000:]}")
      time.sleep(0.005)
    return self.code

  def kill(self, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.pid, number)

  def said(self) -> str:
    return self.log.read_text(encoding="utf-8", errors="replace")


def _leave_the_others() -> None:
  """What JAX does where Python ends, which a forked process does not come to: it waits for the others."""
  import jax

  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def undisturbed(folder: Path, config: Path) -> tuple[Path, Path]:
  """The run and its export that all others must equal."""
  reference, exported = folder / "reference", folder / "exported"
  for verb, args in (
    ("train", ["--config", config, "--workdir", reference]),
    ("export", ["--workdir", reference, "--out", exported, "--no-verify"]),
  ):
    started = Started(verb, args, folder / f"{verb}.log")
    assert started.wait() == 0, started.said()
  return reference, exported


def start_processes(
  count: int, config: Path, workdir: Path, before: Callable[[], None] = lambda: None, **env: str
) -> list[Started]:
  """A run of several processes on this machine, one CPU device each."""
  import socket

  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
  return [
    Started(
      "train",
      ["--config", config, "--workdir", workdir],
      workdir.with_name(f"{workdir.name}-{i}.log"),
      before,
      **(cluster | {"JAX_PROCESS_ID": str(i)} if count > 1 else {}),
      **env,
    )
    for i in range(count)
  ]


def events(workdir: Path) -> list[dict]:
  """Those of metrics.jsonl, without what depends on the clock, in an order of their own."""
  path = workdir / "metrics.jsonl"
  found = []
  for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
    event = json.loads(line)
    found.append(
      {
        k: v
        for k, v in event.items()
        if k not in UNTIMED and not k.startswith(("time/", "goodput"))
      }
    )
  return sorted((e for e in found if len(e) > 1), key=lambda e: (e["step"], sorted(e)))


def rows_given(workdir: Path) -> list[tuple]:
  """(step, row, places of the examples, digest) of every row that the devices were given, as logged."""
  found = []
  for path in sorted((workdir / "batches").glob("*.jsonl")):
    for line in path.read_text(encoding="utf-8").splitlines():
      row = json.loads(line)
      found.append((row["step"], row["row"], tuple(row["examples"]), row["digest"]))
  return sorted(found)


def last_step_done(workdir: Path) -> int:
  """The last step that metrics.jsonl tells of."""
  with contextlib.suppress(OSError, ValueError, IndexError):
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(json.loads(line)["step"] for line in lines)
  return -1


def wait_for_step(started: Sequence[Started], workdir: Path, step: int) -> None:
  """Until metrics.jsonl tells of this step, or one of the processes has ended."""
  while all(p.poll() is None for p in started) and last_step_done(workdir) < step:
    time.sleep(0.01)


def slow_steps(seconds: float) -> None:
  """In a process: so long before each step, that something can happen between two of them."""
  from mlit_jax.training.clock import Clock

  real = Clock.spent

  @contextlib.contextmanager
  def spent(self, kind):
    if kind == "data_wait":
      time.sleep(seconds)
    with real(self, kind):
      yield

  Clock.spent = spent


def final_digest(workdir: Path, steps: int = STEPS) -> dict[str, str]:
  """The digest of every array of the last checkpoint, as it was saved with it."""
  from mlit_jax.training.checkpoint import read_step_meta
  from mlit_jax.training.safety import DIGEST

  return read_step_meta(workdir / "checkpoints", steps)[DIGEST]


def differences(workdir: Path, reference: Path, steps: int = STEPS) -> list[str]:
  """What is not as in the run that nobody disturbed, in words; both have ended."""
  out = []
  if final_digest(workdir, steps) != final_digest(reference, steps):
    out.append("the last checkpoint holds other bits")
  rows, wanted = rows_given(workdir), rows_given(reference)
  if rows != wanted:
    out.append(
      f"{len(set(wanted) - set(rows))} rows lost, {len(rows) - len(wanted)} more than once"
    )
  if events(workdir) != events(reference):
    out.append("other events")
  if (workdir / "data_plan.json").read_bytes() != (reference / "data_plan.json").read_bytes():
    out.append("another ledger")
  left = [
    p.name
    for p in (*workdir.glob("*"), *workdir.glob("cache/*"), *workdir.glob("checkpoints/*"))
    if (p.name.startswith(".") and p.name not in (".lock",)) or "orbax-checkpoint-tmp" in p.name
  ]
  if left:
    out.append(f"left behind: {', '.join(sorted(left))}")
  return out
