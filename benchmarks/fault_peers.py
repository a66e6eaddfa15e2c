"""Several processes: killed and gone on with by another number of them; and one that hangs or dies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import fault_material as material

CLOSE = 1e-5  # relative, of losses on another number of devices
LIMIT = 15.0  # watchdog.step_seconds and peer_seconds of a run of which one hangs
PAUSE = 0.1  # seconds before each step
SPARE = 20.0  # after it, all must be gone: the stacks are written, JAX gives up


def run_elastic(
  folder: Path,
  rounds: Sequence[Sequence[int]],
  seed: int,
  say: Callable[[str], None] = print,
) -> dict:
  """A run by these numbers of processes, all killed in between; rows and losses beside those of one process."""
  rng = random.Random(seed)
  config = material.write_config(folder)
  reference, _ = material.undisturbed(folder, config)
  found = {
    "runs": 0,
    "kills": 0,
    "rows that differ": 0,
    "largest difference of a loss": 0.0,
    "wrong": [],
  }
  for number, counts in enumerate(rounds):
    workdir = folder / f"elastic{number}"
    for i, count in enumerate(counts):
      started = material.start_processes(count, config, workdir, before=slowly)
      if i < len(counts) - 1:
        # Anywhere before the end, and after a step was saved that the ones before had not.
        material.wait_for_step(started, workdir, 5 * (i + 1) + rng.randrange(4))
        time.sleep(rng.uniform(0, 0.3))
        kill_all(started)
        found["kills"] += count
      elif any(p.wait() for p in started):
        found["wrong"].append(started[0].said()[-1500:])
    if found["wrong"]:
      break
    found["runs"] += 1
    rows, wanted = material.rows_given(workdir), material.rows_given(reference)
    found["rows that differ"] += len(set(rows) ^ set(wanted)) + len(rows) - len(set(rows))
    found["largest difference of a loss"] = max(
      found["largest difference of a loss"], loss_difference(workdir, reference)
    )
    if found["rows that differ"] or found["largest difference of a loss"] > CLOSE:
      found["wrong"].append(f"{workdir.name} is another run")
    say(f"  elastic: {found}")
    shutil.rmtree(workdir)
  return found


def run_peers(folder: Path, rounds: int, seed: int, say: Callable[[str], None] = print) -> dict:
  """One of 2 or 4 processes is stopped or killed in training: seconds until the others are gone, and what then."""
  rng = random.Random(seed)
  limits = f"c.watchdog.step_seconds = c.watchdog.peer_seconds = {LIMIT}"
  config = material.write_config(folder, limits)
  table = {}
  for count in (2, 4):
    # Of the same number of processes, so that all bits must be equal.
    reference = folder / f"reference{count}"
    assert not any(p.wait() for p in material.start_processes(count, config, reference))
    for name, number in (("killed", signal.SIGKILL), ("hung", signal.SIGSTOP)):
      found = table[f"one of {count} {name}"] = {"runs": 0, "seconds": [], "codes": [], "wrong": []}
      for r in range(rounds):
        workdir = folder / f"{name}{count}-{r}"
        one(config, workdir, reference, count, number, rng, found)
        shutil.rmtree(workdir)
      say(f"  one of {count} {name}: {found}")
  return table


def one(config, workdir: Path, reference: Path, count: int, number: int, rng, found: dict) -> None:
  victim = rng.randrange(1, count)  # the first holds the service of JAX: it has a case of its own
  started = material.start_processes(count, config, workdir, before=slowly)
  material.wait_for_step(started, workdir, rng.randrange(4, 12))
  os.kill(started[victim].pid, number)
  began, others = time.monotonic(), [p for i, p in enumerate(started) if i != victim]
  limit = SPARE + (LIMIT if number == signal.SIGSTOP else 0)
  while any(p.poll() is None for p in others) and time.monotonic() - began < limit:
    time.sleep(0.02)
  found["seconds"].append(round(time.monotonic() - began, 1))
  if left := [i for i, p in enumerate(started) if i != victim and p.poll() is None]:
    found["wrong"].append(f"processes {left} are still there after {limit:.0f} s")
  kill_all(started)
  found["codes"].append([p.code for p in others])
  if 0 in found["codes"][-1]:
    found["wrong"].append("one ended as if all were well")
  again = material.start_processes(count, config, workdir)
  if any(p.wait() for p in again):
    found["wrong"].append(f"cannot go on: {again[0].said()[-1500:]}")
    return
  found["runs"] += 1
  found["wrong"] += material.differences(workdir, reference)


def slowly() -> None:
  """Before a process begins."""
  material.slow_steps(PAUSE)


def loss_difference(workdir: Path, reference: Path) -> float:
  """The largest relative difference of a loss of one step."""
  losses = [
    {e["step"]: e["train/loss"] for e in material.events(w) if "train/loss" in e}
    for w in (workdir, reference)
  ]
  if losses[0].keys() != losses[1].keys():
    return float("inf")
  return max(abs(losses[0][s] - loss) / loss for s, loss in losses[1].items())


def kill_all(started: list[material.Started]) -> None:
  for process in started:
    process.kill(signal.SIGKILL)
  for process in started:
    process.wait(30)
