"""Signals that ask a run to stop: heard at once, also while the main thread is busy in compiled code."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading
import time
from collections.abc import Callable

from jax.experimental import multihost_utils

from mlit_jax import peers
from mlit_jax.runtime import EXIT_STOPPED, say_now

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_SIGNAL_SECONDS = (
  1.0  # SLURM signals every process of a job, and a sweep passes its own signal on
)


class Interrupted(Exception):
  """What was being done is left out, since the run is to stop; all processes raise it at the same place."""


class StopSignal:
  """Set by SIGTERM, SIGINT or SIGUSR1; a second signal, a second later or more, ends the process at once.

      with StopSignal() as stop:
        stop.early = True      from now on the first signal ends the process at once, with 75
        stop.early = False     from now on it is heeded where the run asks: stop.agreed()

  A thread hears them, since Python's own handlers wait until the main thread is back in Python: compiling and
  waiting for a step can take minutes.
  """

  def __init__(self):
    self.name, self.since = "", 0.0
    self.early = self.stopping = False
    self._calls = 0
    self._tell_jax: Callable[[int], None] | None = None
    self._shared = False

  def __enter__(self):
    self._read, self._write = os.pipe()
    os.set_blocking(self._read, False)
    os.set_blocking(self._write, False)
    self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    self._before = {s: signal.signal(s, self._hear) for s in SIGNALS}
    self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_):
    for s, handler in self._before.items():
      signal.signal(s, signal.SIG_DFL if handler is None else handler)
    signal.set_wakeup_fd(self._fd_before)
    os.close(self._write)  # which ends the thread
    self._thread.join()
    os.close(self._read)

  def join(self) -> None:
    """Call it after jax.distributed has begun: SIGTERM is heard here first, and passed on to JAX.

    JAX takes SIGTERM for itself, to let all processes agree on one step; it would swallow a second one.
    """
    self._shared = peers.are_there()
    if self._shared:
      theirs = _take_handler(signal.SIGTERM)
      signal.signal(signal.SIGTERM, self._hear)
      ours = _take_handler(signal.SIGTERM)
      signal.signal(signal.SIGTERM, self._hear)
      if theirs not in (None, 0, 1, ours):  # 0 and 1: the default, and nothing
        self._tell_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs)

  def agreed(self) -> bool:
    """Whether to stop now; all processes must ask as often as the others, and get the same answer."""
    if not self.stopping:
      self._calls += 1
      self.stopping = (
        bool(multihost_utils.reached_preemption_sync_point(self._calls))
        if self._shared
        else bool(self.name)
      )
    return self.stopping

  def check(self) -> None:
    """Interrupted if it is to stop now."""
    if self.agreed():
      raise Interrupted

  def _listen(self) -> None:
    while True:
      select.select([self._read], [], [])
      if not self._hear():
        return

  def _hear(self, *_) -> bool:
    """Heed what has come, in whichever thread is first; False once there will be no more."""
    try:
      come = os.read(self._read, 64)
    except BlockingIOError:
      return True
    for number in come:
      if number in SIGNALS:
        self._heed(number)
    return bool(come)

  def _heed(self, number: int) -> None:
    again = bool(self.name)
    if again and time.monotonic() - self.since < SAME_SIGNAL_SECONDS:
      return
    name = signal.Signals(number).name
    if again:
      say_now(f"{name}: ends at once; run again to go on from the last good step")
      peers.leave(128 + number, f"was told twice to stop ({name})", linger=0.5)
    self.name, self.since = name, time.monotonic()
    if self.early and (not self._shared or peers.open_channel()):
      say_now(f"{name}: nothing to save yet; run again to begin where this began")
      peers.leave(EXIT_STOPPED, f"was told to stop ({name}) with nothing to save yet")
    if self._tell_jax:
      self._tell_jax(signal.SIGTERM)


def _take_handler(number: int) -> int | None:
  """The address of the handler in C, which is the default from now on."""
  function = ctypes.CDLL(None).signal
  function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
  return function(number, None)
