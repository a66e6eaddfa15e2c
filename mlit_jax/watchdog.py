"""Ends a run that no longer gets on, and says who is stuck where: a hang costs minutes then, not a night."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import itertools
import json
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mlit_jax import peers
from mlit_jax.runtime import EXIT_FAULT, Stopped, say_now

TICK_SECONDS = 0.5
MOST_COUNTED = 5.0  # of one tick: a process that was stopped, or a host that slept, has not hung
REARM_SECONDS = 10.0
DUMP_SECONDS = 10.0  # for writing down where it hangs: the disk may be what hangs
# Kinds of training/clock.py that a step consists of; everything else may take longer.
OF_A_STEP = ("step", "data_wait", "recheck", "other")
DONE = "done"


@dataclasses.dataclass(frozen=True)
class Limits:
  """Seconds without a sign of life; 0: no limit.

  step: for a step, its data included. other: for whatever else, between two signs of it. peer: for another process.
  """

  step: float
  other: float
  peer: float


class Watchdog:
  """A thread that ends the process with exit code 1 once nothing has got on for too long.

      with Watchdog(limits, folder) as watchdog:
        watchdog.beat("data_wait")     the main thread gets on, and begins to wait for data
        watchdog.at(31)                31 steps are done

  It ends only where no other process has got on either: one may wait for the first to tokenise. Where it cannot run
  since compiled code holds Python's lock, faulthandler ends the process, after twice the longest time.
  """

  def __init__(
    self,
    limits: Limits,
    folder: Path,
    *,
    end: Callable[[int, str], NoReturn] = peers.leave,
    channel: peers.Channel | None = None,
  ):
    self.limits, self.folder, self.end = limits, Path(folder), end
    self.process = channel.process if channel else 0
    self.passed = 0.0  # seconds that were watched
    self.doing, self.done, self.beats, self.last = "starting", None, 0, 0.0
    self._stepped = False  # the first step compiles
    self._numbers = itertools.count()
    self._known: dict[int, tuple[int, float]] = {}  # process -> (its signs of life, since when)
    self._ended = threading.Event()
    every = min(10.0, max(TICK_SECONDS, limits.peer / 10 if limits.peer else 10.0))
    self.peers = peers.Peers(channel, self._tell, every=every, seconds=lambda: self.passed)

  def __enter__(self):
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
    self._thread.start()
    return self

  def __exit__(self, kind, *_):
    self._ended.set()
    self._thread.join()
    faulthandler.cancel_dump_traceback_later()
    # One that fails is not done: the others hear why it left, or miss it.
    is_done = kind is None or issubclass(kind, Stopped)
    self.peers.close(
      json.dumps([next(self._numbers), self.beats, self.done, DONE]) if is_done else self._tell()
    )

  def beat(self, doing: str = "") -> None:
    """The run gets on. doing: what it begins, as in training/clock.py; "": it is still at what it was."""
    self.doing = doing or self.doing
    self.beats += 1
    self.last = self.passed

  def at(self, done: int) -> None:
    """So many steps are done, and their losses known."""
    self._stepped |= self.done is not None and done > self.done
    self.done = done
    self.beat()

  def _tell(self) -> str:
    return json.dumps([next(self._numbers), self.beats, self.done, self.doing])

  def _watch(self) -> None:
    try:
      self._look()
    except Exception:  # a fault of ours must not end a run that gets on
      faulthandler.cancel_dump_traceback_later()
      traceback.print_exc()

  def _look(self) -> None:
    before, armed = time.monotonic(), -REARM_SECONDS
    while not self._ended.wait(TICK_SECONDS):
      now = time.monotonic()
      self.passed += min(now - before, MOST_COUNTED)
      before = now
      if self.passed - armed >= REARM_SECONDS:
        self._arm()
        armed = self.passed
      self._end_with_another()
      reason = self._silent() or self._stalled()
      if reason:
        self._dump(reason)
        self.end(EXIT_FAULT, reason)

  def _arm(self) -> None:
    if self.limits.step or self.limits.other:
      seconds = 2 * max(self.limits.step, self.limits.other) + 60
      faulthandler.dump_traceback_later(seconds, exit=True, file=2)

  def _end_with_another(self) -> None:
    for process, (code, reason, at) in list(self.peers.left.items()):
      if self.passed - at > peers.GRACE_SECONDS:
        say_now(_told_by(process, reason))
        if code == EXIT_FAULT:  # this process may be the one that was waited for
          self._write(f"{self._where()}\nIt followed another: {_told_by(process, reason)}")
        self.end(code, f"has followed process {process}")

  def _silent(self) -> str:
    """Which process was not heard of for too long; "" if all were."""
    limit, heard = self.limits.peer, self.peers.heard
    if not limit or not heard:
      return ""
    unanswered = self.passed - self.peers.answered
    if unanswered > limit:
      return f"process 0, which keeps the run together, has not answered for {unanswered:.0f} s"
    late = {i: self.passed - h.at for i, h in heard.items() if _state(h.text)[2] != DONE}
    late = {i: seconds for i, seconds in late.items() if seconds > limit}
    return "; ".join(self._words(i) for i in itertools.islice(late, 5))

  def _stalled(self) -> str:
    """What has not got on, here and elsewhere; "" if something has."""
    quiet = min(self._quiet(), self.passed - self._others_got_on())
    of_a_step = self.doing in OF_A_STEP and self._stepped
    limit = self.limits.step if of_a_step else self.limits.other
    if not limit or quiet <= limit:
      return ""
    return "; ".join([self._where(), *map(self._words, self._behind())])

  def _quiet(self) -> float:
    return self.passed - self.last

  def _where(self) -> str:
    what = "has not got on" if self.done is None else f"has not finished step {self.done + 1}"
    return f"process {self.process} {what} for {self._quiet():.0f} s; it waits in {self.doing}"

  def _others_got_on(self) -> float:
    """When one of the others last did."""
    latest = 0.0
    for i, heard in self.peers.heard.items():
      beats = _state(heard.text)[0]
      if i not in self._known or beats != self._known[i][0]:
        self._known[i] = (beats, heard.at)
      latest = max(latest, self._known[i][1])
    return latest

  def _behind(self) -> list[int]:
    """The processes that this one may be waiting for: silent, fewer steps done, or elsewhere while it is in a step."""
    behind = []
    for i, heard in self.peers.heard.items():
      _, done, doing = _state(heard.text)
      silent = self.passed - heard.at > 3 * self.peers.every
      fewer = (-1 if done is None else done) < (-1 if self.done is None else self.done)
      if doing != DONE and (silent or fewer or (self.doing == "step" != doing)):
        behind.append(i)
    return behind[:5]

  def _words(self, process: int) -> str:
    heard = self.peers.heard[process]
    _, done, doing = _state(heard.text)
    ago = f"{self.passed - heard.at:.0f} s ago"
    if not heard.text:
      return f"process {process} was never heard of, for {ago.removesuffix(' ago')}"
    place = "before the first step" if done is None else f"with {done} steps done"
    return f"process {process} was last heard of {ago}, {place}, in {doing}"

  def _dump(self, reason: str) -> None:
    """All threads' stacks, to standard error and to a file in the workdir."""
    with contextlib.suppress(Exception):
      faulthandler.dump_traceback_later(DUMP_SECONDS, exit=True, file=2)
    say_now(
      f"error: {reason}. The run ends; run again to go on. All stacks, also in {self._path()}:"
    )
    with contextlib.suppress(Exception):
      faulthandler.dump_traceback(file=2, all_threads=True)
    self._write(reason)

  def _path(self) -> Path:
    return self.folder / f"stacks-{self.process}.txt"

  def _write(self, reason: str) -> None:
    with contextlib.suppress(Exception), open(self._path(), "w", encoding="utf-8") as file:
      file.write(f"{reason}\n\n")
      file.flush()
      faulthandler.dump_traceback(file=file, all_threads=True)


def _told_by(process: int, reason: str) -> str:
  """Why a process left: "process 1 has not finished step 30 ...", "process 1 says that process 2 was last heard ..."."""
  name = f"process {process} "
  if reason.startswith(name):  # a watchdog's reason begins with whom it names
    return reason
  return f"{name}{'says that ' if reason.startswith('process ') else ''}{reason}"


def _state(text: str) -> tuple[int, int | None, str]:
  """(signs of life, steps done, what it is at) of a process's word."""
  if not text:
    return 0, None, "starting"
  _, beats, done, doing = json.loads(text)
  return beats, done, doing
