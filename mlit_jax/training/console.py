"""What a run shows: one bar and readable lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

import numpy as np
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)


class Terminal:
  """Lines and one progress bar; silent on every process but the first."""

  def __init__(self, *, shown: bool = True):
    self.console = Console(
      quiet=not shown, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160
    )

  def line(self, text: str) -> None:
    self.console.print(text, markup=False)

  def table(self, table) -> None:
    self.console.print(table)

  def bar(self, total: int, done: int = 0, what: str = "steps"):
    """A context that shows a bar; `update` it with the number done."""
    return _Bar(self.console, total, done, what)


class _Bar:
  def __init__(self, console: Console, total: int, done: int, what: str):
    self.console, self.total, self.done, self.what = console, total, done, what
    self.progress = Progress(
      TextColumn(what),
      BarColumn(),
      MofNCompleteColumn(),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=console,
      transient=True,
      disable=not console.is_terminal,  # plain lines need no bar
      refresh_per_second=4,
    )

  def __enter__(self):
    self.progress.start()
    self.task = self.progress.add_task(self.what, total=self.total, completed=self.done)
    return self

  def __exit__(self, *_):
    self.progress.stop()

  def update(self, done: int) -> None:
    self.progress.update(self.task, completed=done)


class Meter:
  """Sums of the steps since the last logging step."""

  def __init__(self):
    self.reset()

  def reset(self) -> None:
    self.start, self.steps, self.flops, self.slots = time.perf_counter(), 0, 0.0, 0
    self.sums, self.norm = None, 0.0

  def add(self, sums, norm: float, flops: float, slots: int) -> None:
    """Host sums of one step (Sums of numpy arrays), its gradient norm, useful FLOPs and token slots."""
    wide = type(sums)(
      *(np.asarray(x, np.float64 if i == 0 else np.int64) for i, x in enumerate(sums))
    )
    self.sums = wide if self.sums is None else type(sums)(*map(np.add, self.sums, wide))
    self.steps += 1
    self.norm = norm
    self.flops += flops
    self.slots += slots

  def seconds(self) -> float:
    return max(1e-9, time.perf_counter() - self.start)
