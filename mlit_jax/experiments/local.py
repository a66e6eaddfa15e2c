"""The tasks of a sweep on this machine, some at a time; whatever fails is named and the others go on."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlit_jax.experiments.tasks import Task, chains, command
from mlit_jax.runtime import EXIT_STOPPED


@dataclasses.dataclass
class Outcome:
  """What became of the tasks."""

  done: int = 0
  skipped: int = 0  # done before
  failed: dict[str, int] = dataclasses.field(default_factory=dict)  # task -> exit code
  errors: dict[str, str] = dataclasses.field(default_factory=dict)  # task -> ": its error", or ""
  left: list[str] = dataclasses.field(default_factory=list)  # not begun, for want of an earlier one
  stopped: bool = False

  def add(self, other: Outcome) -> None:
    self.done += other.done
    self.skipped += other.skipped
    self.failed |= other.failed
    self.errors |= other.errors
    self.left += other.left
    self.stopped |= other.stopped


class Stopping:
  """SIGTERM, SIGINT or SIGUSR1 to the sweep is passed on to its tasks, which save; a second one kills them."""

  def __init__(self):
    self.name = ""
    self.running: set[subprocess.Popen] = set()

  def __enter__(self):
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    self.before = {s: signal.signal(s, self._handle) for s in signals}
    return self

  def __exit__(self, *_):
    for s, handler in self.before.items():
      signal.signal(s, handler)

  def _handle(self, number, _frame):
    again = bool(self.name)
    self.name = signal.Signals(number).name
    for process in list(self.running):
      process.send_signal(signal.SIGKILL if again else signal.SIGTERM)


def run_tasks(
  tasks: Sequence[Task],
  logs: Path,
  *,
  jobs: int,
  devices: Sequence[str] = (),
  say: Callable[[str], None],
) -> Outcome:
  """Do what is not done: `jobs` chains at a time, then the judging. Each task writes its log.

  devices: what each of the jobs at one time sees as CUDA_VISIBLE_DEVICES, where there is one for each.
  """
  logs.mkdir(parents=True, exist_ok=True)
  outcome = Outcome()
  slots: queue.SimpleQueue[int] = queue.SimpleQueue()
  for slot in range(jobs):
    slots.put(slot)
  with Stopping() as stopping:
    worker = _Worker(logs, stopping, slots, devices, say, outcome)
    for together in (chains(tasks), [[task] for task in tasks if not task.chain]):
      with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(worker.do_chain, together))  # once it is stopping, each ends at once
    outcome.stopped = bool(stopping.name)
  if outcome.stopped:
    say(f"{stopping.name}: runs have saved; the same command goes on")
  return outcome


def last_error(log: Path, start: int = 0) -> str:
  """What the last error in a log says, from byte `start` on, as ": its text"; "" if there is none."""
  with open(log, "rb") as file:
    file.seek(start)
    lines = file.read().decode("utf-8", "replace").splitlines()
  errors = [line for line in lines if line.startswith("error: ")]
  return f": {errors[-1].removeprefix('error: ')}" if errors else ""


class _Worker:
  """What the threads share."""

  def __init__(self, logs, stopping, slots, devices, say, outcome):
    self.logs, self.stopping, self.slots = logs, stopping, slots
    self.devices, self.say, self.outcome = devices, say, outcome
    self.lock = threading.Lock()

  def do_chain(self, chain: Sequence[Task]) -> None:
    """One task after the other, until one fails."""
    slot = self.slots.get()
    try:
      for i, task in enumerate(chain):
        if self.stopping.name:
          return
        if not self.do(task, slot):
          with self.lock:
            self.outcome.left += [t.name for t in chain[i + 1 :]]
          return
    finally:
      self.slots.put(slot)

  def do(self, task: Task, slot: int) -> bool:
    if task.is_done():
      with self.lock:
        self.outcome.skipped += 1
      return True
    started = time.monotonic()
    before = self.log_of(task).stat().st_size if self.log_of(task).exists() else 0
    self.say(f"{task.label}: begun, {self.log_of(task)}")
    code = self._run(task, slot)
    seconds = time.monotonic() - started
    with self.lock:
      if code == 0:
        self.outcome.done += 1
        self.say(f"{task.label}: done after {seconds:,.0f} s")
      elif not (self.stopping.name and code in (EXIT_STOPPED, -signal.SIGKILL)):
        self.outcome.failed[task.name] = code
        error = self.outcome.errors[task.name] = last_error(self.log_of(task), before)
        self.say(f"{task.label}: failed with exit code {code}, see {self.log_of(task)}{error}")
    return code == 0

  def log_of(self, task: Task) -> Path:
    return self.logs / f"{task.name}.log"

  def _run(self, task: Task, slot: int) -> int:
    env = dict(os.environ)
    if self.devices:
      env["CUDA_VISIBLE_DEVICES"] = self.devices[slot]
    with open(self.log_of(task), "ab") as log:
      process = subprocess.Popen(
        command(task),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,  # ctrl-c reaches the sweep alone, which tells its tasks
      )
      self.stopping.running.add(process)
      if self.stopping.name:  # came between the last look and the start
        process.send_signal(signal.SIGTERM)
      try:
        return process.wait()
      finally:
        self.stopping.running.discard(process)
