"""Processes, JAX settings, signals, the workdir's lock, and exit codes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

from mlit_jax.errors import UserError

EXIT_USER, EXIT_FAULT, EXIT_STOPPED = 2, 1, 75
RENDEZVOUS_SECONDS = 1800  # until all processes are there: hosts of a pod may boot minutes apart
LONGEST_WAIT_MS = 24 * 3600 * 1000  # for processes that are alive but not ready to begin
SAME_SIGNAL_SECONDS = (
  1.0  # SLURM signals every process of a job, and a sweep passes its own signal on
)
MESSAGE_BYTES = 2048  # of an error that processes tell one another


class Stopped(Exception):
  """The run was asked to stop, has saved, and can go on."""


def run_main(main: Callable[[], None], *, debug: bool = False) -> int:
  """Run an entry point and turn its end into the exit codes of INTERFACE: 0, 2, 1, 75."""
  try:
    main()
    return 0
  except UserError as e:
    if debug:
      traceback.print_exc()
    print(f"error: {e}", file=sys.stderr)
    return EXIT_USER
  except Stopped as e:
    print(e, file=sys.stderr)
    return EXIT_STOPPED
  except BrokenPipeError:  # `mlit ... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
  except Exception:
    traceback.print_exc()
    return EXIT_FAULT


def start(*, rendezvous_seconds: int = RENDEZVOUS_SECONDS) -> None:
  """JAX settings of every command, and jax.distributed where the environment describes a cluster.

  A cluster is described by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by
  MLIT_DISTRIBUTED=auto under SLURM, GKE and TPU VMs, where JAX finds out by itself.
  """
  jax.config.update("jax_threefry_partitionable", True)  # same random numbers on any mesh
  cache = os.environ.get("MLIT_COMPILATION_CACHE", os.path.expanduser("~/.cache/mlit_jax/xla"))
  if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  if os.environ.get("JAX_COORDINATOR_ADDRESS"):
    jax.distributed.initialize(
      os.environ["JAX_COORDINATOR_ADDRESS"],
      int(_needed("JAX_NUM_PROCESSES")),
      int(_needed("JAX_PROCESS_ID")),
      initialization_timeout=rendezvous_seconds,
    )
  elif os.environ.get("MLIT_DISTRIBUTED", "") not in ("", "auto"):
    raise UserError(
      f"MLIT_DISTRIBUTED is {os.environ['MLIT_DISTRIBUTED']!r}; set it to auto or not at all"
    )
  elif os.environ.get("MLIT_DISTRIBUTED"):
    jax.distributed.initialize(initialization_timeout=rendezvous_seconds)


def is_main() -> bool:
  """Whether this process writes the files and prints."""
  return jax.process_index() == 0


def main_says(answer: bool) -> bool:
  """The first process's answer, on all of them: what depends on files may look different elsewhere."""
  if jax.process_count() == 1:
    return answer
  return bool(multihost_utils.broadcast_one_to_all(np.array(answer)))


def check_same(what: str, text: str) -> None:
  """Refuse to go on where processes differ in `text`; all of them must call this."""
  if jax.process_count() == 1:
    return
  mine = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint8)
  differ = (multihost_utils.process_allgather(mine) != mine).any(axis=1)
  if differ.any():
    raise UserError(
      f"process {jax.process_index()} and processes {np.flatnonzero(differ).tolist()} differ in {what}. "
      "Give every process the same command, checkout and files."
    )


@contextlib.contextmanager
def together():
  """Where one process cannot go on, none does, and each says why; all of them must come here.

  Else the others would wait for it until the network gives up, half a minute on CPU, and end as if the
  fault were ours.
  """
  if jax.process_count() == 1:
    yield
    return
  failed = None
  try:
    yield
  except Exception as e:
    failed = e
  said = _messages(failed)
  if failed is not None:
    raise failed
  if said:
    raise UserError("; ".join(f"process {i} cannot go on: {text}" for i, text in said.items()))


def _messages(failed: Exception | None) -> dict[int, str]:
  """{process: what went wrong there} of all processes where something did."""
  text = ""
  if failed is not None:
    text = str(failed) if isinstance(failed, UserError) else f"{type(failed).__name__}: {failed}"
  mine = np.zeros(MESSAGE_BYTES, np.uint8)
  data = np.frombuffer(text.encode()[:MESSAGE_BYTES], np.uint8)
  mine[: len(data)] = data
  # Gloo gives up after 30 s, and one may have tokenised longer than that; the coordinator waits.
  get_barrier_sync_fn()(key="mlit_jax together", timeout_ms=LONGEST_WAIT_MS)
  rows = multihost_utils.process_allgather(mine)
  texts = [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]
  return {i: text for i, text in enumerate(texts) if text}


@contextlib.contextmanager
def locked(workdir: Path, *, exclusive: bool = True):
  """Hold the workdir for this run; the lock goes with the process, however it dies.

  Of a run with several processes one holds it (`exclusive`).
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"cannot make workdir {workdir}: {e}. Choose another --workdir.") from e
  if not exclusive:
    yield
    return
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(open(workdir / ".lock", "a+"))
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise UserError(
        f"workdir {workdir} is in use by another run (process {file.read().strip() or 'unknown'}). "
        "Wait for it, stop it, or choose another --workdir."
      ) from None
    except OSError as e:
      raise UserError(f"cannot lock workdir {workdir}: {e}. Choose another --workdir.") from e
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    yield


class StopSignal:
  """Set by SIGTERM, SIGINT or SIGUSR1; a second signal, a second later or more, ends the process at once.

  Among several processes SIGTERM belongs to JAX, which lets all agree on one step; the other two are
  passed on as SIGTERM.
  """

  def __init__(self):
    self.name, self.since = "", 0.0

  def __enter__(self):
    alone = jax.process_count() == 1
    ours = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    self.before = {s: signal.signal(s, self._handle) for s in (ours if alone else ours[1:])}
    self.alone = alone
    return self

  def __exit__(self, *_):
    for s, handler in self.before.items():
      signal.signal(s, handler)

  def _handle(self, number, _frame):
    if self.name:
      if time.monotonic() - self.since < SAME_SIGNAL_SECONDS:
        return
      os._exit(128 + number)
    self.name, self.since = signal.Signals(number).name, time.monotonic()
    if not self.alone:
      os.kill(os.getpid(), signal.SIGTERM)

  def agreed(self, step: int) -> bool:
    """Whether to stop at this step; all processes get the same answer."""
    if self.alone:
      return bool(self.name)
    return bool(multihost_utils.reached_preemption_sync_point(step))


def write_atomic(path: Path, content: str | bytes) -> None:
  """Write a file so that a reader sees the old content or the new one, never a part."""
  data = content.encode("utf-8") if isinstance(content, str) else content
  path.parent.mkdir(parents=True, exist_ok=True)
  fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
  try:
    with os.fdopen(fd, "wb") as file:
      file.write(data)
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise


def write_json(path: Path, value) -> None:
  """Indented JSON with text as it is, written atomically."""
  write_atomic(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _needed(name: str) -> str:
  if not os.environ.get(name, "").isdigit():
    raise UserError(
      f"JAX_COORDINATOR_ADDRESS is set, but {name} is {os.environ.get(name)!r}; set it to a number"
    )
  return os.environ[name]
