"""Lines on a disk that may be full: what cannot be written is held and written later."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlit_jax import runtime


class Lines:
  """Appends lines to a file; those that cannot be written are held, in their order, until they can be."""

  def __init__(self, path: Path, warn: Callable[[str], None]):
    self.path, self.warn = path, warn
    self.held: list[str] = []
    self.failing = False

  def append(self, lines: Sequence[str]) -> None:
    """Append lines, without their ends, and those that are still held before them."""
    self.held += [f"{line}\n" for line in lines]
    try:
      self._append("".join(self.held).encode())
    except OSError as e:
      if not self.failing:  # once, not at every step
        self.warn(f"{self.path} cannot be written: {e}. Its lines are held in memory.")
      self.failing = True
      return
    if self.failing:
      self.warn(f"{self.path} can be written again: {len(self.held)} lines held are in it.")
    self.failing, self.held = False, []

  def _append(self, data: bytes) -> None:
    """All of it or nothing: half a line would spoil the one after it."""
    fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
      before = os.fstat(fd).st_size
      try:
        written = 0
        while written < len(data):
          written += os.write(fd, data[written:])
      except OSError:
        os.ftruncate(fd, before)
        raise
    finally:
      os.close(fd)


class Events(Lines):
  """The events of a run, one line each; training does not end because a line cannot be written."""

  def __init__(self, root: Path, warn: Callable[[str], None], name: str = "metrics.jsonl"):
    super().__init__(root / name, warn)

  def log(self, step: int, event: dict) -> None:
    """Append one event; the first process alone writes."""
    if runtime.is_main():
      line = {"step": step, "time": round(time.time(), 3), **event}
      self.append([json.dumps(line, ensure_ascii=False)])
