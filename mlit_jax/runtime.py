"""Processes, JAX settings, the workdir's lock, and exit codes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

from mlit_jax import partial, peers
from mlit_jax.errors import MachineFault, NotSaved, UserError
from mlit_jax.redaction import redact

EXIT_USER, EXIT_FAULT, EXIT_STOPPED = 2, 1, 75
RENDEZVOUS_SECONDS = 1800  # until all processes are there: hosts of a pod may boot minutes apart
LONGEST_WAIT_MS = 24 * 3600 * 1000  # for processes that are alive but not ready to begin
MESSAGE_BYTES = 2048  # of an error that processes tell one another
PEER_SECONDS = 100  # until a process that shows no sign of life is given up
SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar has hidden
# What the libraries say when another process is gone.
LOST = re.compile(
  r"gloo|nccl|connection (reset|closed|refused)|socket closed|coordination|heartbeat|UNAVAILABLE"
  r"|DEADLINE_EXCEEDED|barrier",
  re.IGNORECASE,
)


class Stopped(Exception):
  """The run was asked to stop, has saved, and can go on."""


def run_main(main: Callable[[], None], *, debug: bool = False) -> int:
  """Run an entry point and turn its end into the exit codes of INTERFACE: 0, 2, 1, 75.

  One of several processes that fails does not return: it tells the others, which end too, and is gone.
  """
  try:
    main()
    return 0
  except Stopped as e:
    print(e, file=sys.stderr)
    return EXIT_STOPPED
  except BrokenPipeError as e:  # `mlit ... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if peers.are_there():  # the others would wait for us, and have nobody to tell
      peers.leave(*_report(e, debug))
    return 0
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
  except Exception as e:
    code, reason = _report(e, debug)
    if peers.are_there():
      peers.leave(code, reason)
    return code


@contextlib.contextmanager
def fail_fast():
  """End at once on a fault that one of several processes has: on the way out, others would be waited for."""
  try:
    yield
  except (UserError, NotSaved, MachineFault, Stopped):
    raise
  except Exception as e:
    if not peers.are_there():
      raise
    peers.leave(*_report(e, debug=False))


def _report(error: Exception, debug: bool) -> tuple[int, str]:
  """Print what went wrong: (exit code, what the other processes are told)."""
  if isinstance(error, (UserError, NotSaved, MachineFault)):
    if debug:
      _print_traceback(error)
    print(f"error: {error}", file=sys.stderr)
    code = EXIT_USER if isinstance(error, UserError) else EXIT_FAULT
    return code, f"cannot go on: {error}"
  text = redact(" ".join(f"{type(error).__name__}: {error}".split()))
  if peers.are_there() and LOST.search(text):
    # In which the watchdog ends us, if another has told why it left.
    time.sleep(2 * peers.GRACE_SECONDS)
    print(
      f"error: process {jax.process_index()} has lost another process, which is gone or cannot be reached; run again "
      f"to go on ({text[:300]})",
      file=sys.stderr,
    )
  else:
    _print_traceback(error)
  return EXIT_FAULT, f"has failed: {text}"


def _print_traceback(error: Exception) -> None:
  """What libraries raise may quote the address, the header or the key they were given."""
  print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def start(
  *, rendezvous_seconds: int = RENDEZVOUS_SECONDS, peer_seconds: float = PEER_SECONDS
) -> None:
  """JAX settings of every command, and jax.distributed where the environment describes a cluster.

  peer_seconds: JAX itself ends the process when another was silent for a little longer, or with 0 for 100 s.

  A cluster is described by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by
  MLIT_DISTRIBUTED=auto under SLURM, GKE and TPU VMs, where JAX finds out by itself.
  """
  jax.config.update("jax_threefry_partitionable", True)  # same random numbers on any mesh
  cache = os.environ.get("MLIT_COMPILATION_CACHE", os.path.expanduser("~/.cache/mlit_jax/xla"))
  if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    # The small programs too: there are dozens, and together they are a third of a warm start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  timeouts = {
    "initialization_timeout": rendezvous_seconds,
    # Later than the watchdog, which says more; JAX's own end is an abort with a page of text.
    "heartbeat_timeout_seconds": round(peer_seconds * 1.5 + 10 if peer_seconds else PEER_SECONDS),
  }
  if os.environ.get("JAX_COORDINATOR_ADDRESS"):
    jax.distributed.initialize(
      os.environ["JAX_COORDINATOR_ADDRESS"],
      int(_needed("JAX_NUM_PROCESSES")),
      int(_needed("JAX_PROCESS_ID")),
      **timeouts,
    )
  elif os.environ.get("MLIT_DISTRIBUTED", "") not in ("", "auto"):
    raise UserError(
      f"MLIT_DISTRIBUTED is {os.environ['MLIT_DISTRIBUTED']!r}; set it to auto or not at all"
    )
  elif os.environ.get("MLIT_DISTRIBUTED"):
    jax.distributed.initialize(**timeouts)


def say_now(text: str) -> None:
  """To standard error, past Python's buffers and locks: this may be within any other call."""
  with contextlib.suppress(OSError):
    os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + text.encode() + b"\n")


def is_main() -> bool:
  """Whether this process writes the files and prints."""
  return jax.process_index() == 0


def main_says(answer: bool | int) -> bool | int:
  """The first process's answer, on all of them: what depends on files may look different elsewhere."""
  if jax.process_count() == 1:
    return answer
  return type(answer)(multihost_utils.broadcast_one_to_all(np.array(answer)))


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

  Of a run with several processes one holds it (`exclusive`). A run that is refused takes away what was made here.
  """
  had_folder, had_lock = workdir.exists(), (workdir / ".lock").exists()
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
      if not os.path.samestat(os.fstat(file.fileno()), os.stat(workdir / ".lock")):
        # A lock on a file that is gone holds off nobody.
        raise FileNotFoundError("it was removed meanwhile; try again")
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
    partial.remove_dead_below(workdir)
    try:
      yield
    except UserError:
      if not had_lock:
        (workdir / ".lock").unlink(missing_ok=True)  # while it is ours
      if not had_folder:
        with contextlib.suppress(OSError):  # not empty
          workdir.rmdir()
      raise


def check_output(path: Path, what: str, *, folder: bool = False) -> None:
  """Try the place of a file, or of a folder's files, before the work: UserError where it cannot be written.

  `what` names it in the message: "--out". Nothing is left there.
  """
  place = path if folder else path.parent
  try:
    if path.exists() and path.is_dir() != folder:
      kind, wanted = ("file", "folder") if folder else ("folder", "file")
      raise UserError(f"{what} {path} is a {kind}; name a {wanted}")
    while not place.exists():  # it will be made
      place = place.parent
    trial = partial.beside(place / "trial")
    trial.touch(exist_ok=False)
    trial.unlink()
  except OSError as e:
    raise UserError(
      f"{what} {path} cannot be written: {place}: {e.strerror or e}. Name another place, or mend that one."
    ) from e


def write_atomic(path: Path, content: str | bytes) -> None:
  """Write a file so that a reader sees the old content or the new one, never a part."""
  data = content.encode("utf-8") if isinstance(content, str) else content
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = partial.beside(path)
  try:
    with open(temporary, "xb") as file:
      file.write(data)
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
