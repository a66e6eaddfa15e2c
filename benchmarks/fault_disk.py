"""A disk that is full, read-only, gone or slow for a while, and a clock that jumps: is "durable" ever said falsely?

Each time that a run says so, the step is read back from the disk in that moment. In the end everything must be as in
the run that nobody disturbed. The full disk is a real one (tmpfs, which needs the right to mount); a folder is read-only by
chattr +i, which is true for root as well.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fault_material as material

CASES = ("disk full", "read-only", "folder gone", "slow disk", "clock jump")
SIZE = 64 * 2**20  # of the disk
JUMPS = (-30 * 86400.0, -3600.0, -5.0, 3600.0, 30 * 86400.0)  # seconds
PAUSE = 0.05  # seconds before each step, so that there is time to break something


def run(folder: Path, rounds: int, seed: int, say: Callable[[str], None] = print) -> dict:
  """Each case `rounds` times; {case: {"runs", "durable", "refused", "false", "wrong"}}."""
  rng = random.Random(seed)
  config = material.write_config(folder)
  reference, _ = material.undisturbed(folder, config)
  table = {}
  for case in CASES:
    found = {"runs": 0, "durable": 0, "refused": 0, "false": 0, "wrong": []}
    for number in range(rounds):
      with disk(folder / f"{case.replace(' ', '_')}{number}") as place:
        if place is None:
          found["wrong"] = ["not measured: mounting is not allowed here"]
          break
        one(case, config, place / "run", reference, rng, found)
    table[case] = found
    say(f"  {case}: {found}")
  return table


@contextlib.contextmanager
def disk(folder: Path):
  """A small disk of its own; None where mounting is not allowed."""
  folder.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True
  )
  try:
    yield folder if mounted.returncode == 0 else None
  finally:
    subprocess.run(["umount", "-l", folder], capture_output=True)


def one(case: str, config: Path, workdir: Path, reference: Path, rng, found: dict) -> None:
  """One run, disturbed from one step to another."""
  log = workdir.parent.with_suffix(".log")
  first = rng.randrange(1, material.STEPS - 12)
  args = ["--config", config, "--workdir", workdir]
  started = material.Started("train", args, log, lambda: prepare(case, rng))
  with breaking(case, workdir) as (broken, mended):
    if broken is not None:
      material.wait_for_step([started], workdir, first)
      broken()
      # Until a save was refused, or until one must have been.
      end = time.monotonic() + 20
      while (
        started.poll() is None and "is not saved" not in started.said() and time.monotonic() < end
      ):
        time.sleep(0.02)
      mended()
    code = started.wait()
  if code != 0:  # the last save failed, say: mended by now, so the same command goes on
    started_again = material.Started("train", args, log.with_suffix(".again.log"))
    if started_again.wait() != 0:
      found["wrong"].append(f"cannot go on: {started_again.said()[-500:]}")
      return
  said = started.said()
  found["runs"] += 1
  found["durable"] += len(re.findall(r"step \d+ is durable", said))
  found["refused"] += len(re.findall(r"step \d+ is not saved", said))
  found["false"] += said.count("FALSELY DURABLE")
  found["wrong"] += [
    text
    for text in material.differences(workdir, reference)
    if text != "other events" or not is_alarmed(workdir, reference)
  ]


def is_alarmed(workdir: Path, reference: Path) -> bool:
  """Whether the events differ by alarms alone."""
  return [e for e in material.events(workdir) if "alarm" not in e] == material.events(reference)


def prepare(case: str, rng: random.Random) -> None:
  """In the process, before it begins: slow steps, each "durable" checked, and the fault that lies within."""
  from mlit_jax.training import checkpoint, safety, verify

  real_prune = checkpoint.Checkpoints._prune

  def prune(self):  # called where "durable" was just said
    thread = threading.Thread(target=read_back, args=(self.folder, self.steps()[-1]))
    thread.start()  # one that knows nothing of the run's mesh
    thread.join()
    real_prune(self)

  def read_back(folder, step):
    try:
      verify.verify_step(folder, step)
    except safety.Damaged as e:
      print(f"FALSELY DURABLE step {step}: {e}", flush=True)

  checkpoint.Checkpoints._prune = prune
  material.slow_steps(PAUSE)
  if case == "slow disk":
    real = os.fsync
    os.fsync = lambda fd: (time.sleep(rng.uniform(0, 0.2)), real(fd))[1]
  if case == "clock jump":
    real_time, at, jump = time.time, time.monotonic() + rng.uniform(0, 4), rng.choice(JUMPS)
    time.time = lambda: real_time() + jump * (time.monotonic() > at)


@contextlib.contextmanager
def breaking(case: str, workdir: Path):
  """(break it, mend it) from outside the process; (None, None) where the fault lies within."""
  folder, filler = workdir / "checkpoints", workdir.parent / "filler"

  def fill():
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
      for size in (2**20, 4096, 1):
        with contextlib.suppress(OSError):
          while True:
            file.write(b"x" * size)

  def immutable(sign):  # root, too, is refused then
    subprocess.run(["chattr", f"{sign}i", folder], check=True)

  def restore():
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name("gone").rename(folder)

  yield {
    "disk full": (fill, lambda: filler.unlink(missing_ok=True)),
    "read-only": (lambda: immutable("+"), lambda: immutable("-")),
    "folder gone": (lambda: folder.rename(folder.with_name("gone")), restore),
  }.get(case, (None, None))
