"""Where the time of a run goes: every second is of one kind, and the kinds add up to all of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import jax

KINDS = (
  "step", "data_wait", "recheck", "compiling", "evaluation", "saving", "starting", "data", "weights",
  "other",
)  # fmt: skip
WORDS = {
  "step": "training steps", "data_wait": "waiting for data", "data": "reading data",
  "recheck": "computing steps again",
}  # fmt: skip
# Of a program that is built or fetched from the cache of compiled programs. Tracing is not told apart.
COMPILE_EVENTS = (
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
  "/jax/core/compile/backend_compile_duration",
)
_compiled = 0.0
_listening = False


class Clock:
  """Seconds by kind since the command began.

      with clock.spent("evaluation"):
        evaluate()              counts as evaluation, but for what compiles in it: that is "compiling"

  A kind within another takes its time from it. What no other claims is "starting" until `started`, then "other".
  """

  def __init__(self, began: float | None = None, *, tell: Callable[[str], None] | None = None):
    """`began`, by time.perf_counter(): when the command did; the time since then is "starting".

    tell: is told the kind whenever another one begins.
    """
    self._tell = tell or (lambda kind: None)
    _listen()
    now = time.perf_counter()
    self.seconds = dict.fromkeys(KINDS, 0.0)
    self.seconds["starting"] = now - (now if began is None else began)
    self._mark, self._compiled, self._open = now, _compiled, ["starting"]
    self._told = dict.fromkeys(KINDS, 0.0)

  def started(self) -> None:
    """The run has begun."""
    self._credit()
    self._open[0] = "other"

  @contextlib.contextmanager
  def spent(self, kind: str):
    self._credit()
    self._open.append(kind)
    self._tell(kind)
    try:
      yield
    finally:
      self._credit()
      self._open.pop()
      self._tell(self._open[-1])

  def total(self) -> float:
    """All seconds so far."""
    self._credit()
    return sum(self.seconds.values())

  def split(self) -> dict[str, float]:
    """Seconds by kind since the last call; kinds without any are left out."""
    self._credit()
    out = {kind: self.seconds[kind] - self._told[kind] for kind in KINDS}
    self._told = dict(self.seconds)
    return {kind: seconds for kind, seconds in out.items() if seconds > 0}

  def goodput(self) -> float:
    """Share of all seconds that went into training steps."""
    return self.seconds["step"] / max(1e-9, self.total())

  def line(self) -> str:
    """ "training steps 81 %, compiling 9 %, ...": what took at least half a percent, the largest first."""
    total = self.total()
    shares = sorted(((s / total, k) for k, s in self.seconds.items()), reverse=True)
    return ", ".join(f"{WORDS.get(k, k)} {share:.0%}" for share, k in shares if share >= 0.005)

  def _credit(self) -> None:
    """The seconds since the last call, to the kind that is open."""
    now, compiled = time.perf_counter(), _compiled
    passed, compiling = now - self._mark, min(compiled - self._compiled, now - self._mark)
    self.seconds["compiling"] += compiling
    self.seconds[self._open[-1]] += passed - compiling
    self._mark, self._compiled = now, compiled


def _listen() -> None:
  """Add up what JAX says of its compiling; once in a process, since a listener stays."""
  global _listening
  if not _listening:
    _listening = True
    jax.monitoring.register_event_duration_secs_listener(_hear)


def _hear(event: str, seconds: float, **_) -> None:
  global _compiled
  if event in COMPILE_EVENTS:
    _compiled += seconds
