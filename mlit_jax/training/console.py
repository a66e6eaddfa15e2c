"""What a run shows: one bar and readable lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
  BarColumn,
  DownloadColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
  TransferSpeedColumn,
)
from rich.text import Text

from mlit_jax.redaction import redact

# Between two lines about the same transfer where there is no terminal.
LINE_SECONDS = 10.0


class Terminal:
  """Lines and one progress bar; silent on every process but the first. `beat` is called on all of them when
  rows or bytes are done."""

  def __init__(
    self, *, shown: bool = True, stderr: bool = False, beat: Callable[[], None] = lambda: None
  ):
    self.beat = beat
    stream = sys.stderr if stderr else sys.stdout
    self.console = Console(
      quiet=not shown,
      highlight=False,
      soft_wrap=True,
      stderr=stderr,
      width=None if stream.isatty() else 160,
    )

  def line(self, text: str) -> None:
    self.console.print(redact(text), markup=False)

  def warning(self, text: str) -> None:
    self.console.print(Text.assemble(("warning: ", "bold yellow"), redact(text)))

  def table(self, table) -> None:
    self.console.print(table)

  def bar(self, total: int, done: int = 0, what: str = "steps"):
    """A context that shows a bar; `update` it with the number done."""
    return _Bar(self.console, total, done, what)

  def rows(self, what: str):
    """A context that shows rows by language; call the result with {language: rows just done}."""
    return _Rows(self.console, what, self.beat)

  def transfer(self, what: str):
    """A context that shows bytes and bytes per second; call the result with (bytes done, of how many)."""
    return _Transfer(self.console, what, self.beat)


class _Rows:
  """Rows done and rows per second, in all and by language; how many there are is not known before."""

  def __init__(self, console: Console, what: str, beat: Callable[[], None]):
    self.console, self.what, self.beat = console, what, beat
    self.by_language: dict[str, int] = {}
    self.progress = _progress(
      console,
      TextColumn("{task.description}"),
      TimeElapsedColumn(),
    )

  def __enter__(self):
    self.began = self.told = time.perf_counter()
    self.progress.start()
    self.task = self.progress.add_task(self.what, total=None)
    return self

  def __exit__(self, kind, *_):
    self.progress.stop()
    if self.by_language and kind is None:
      self.console.print(self._text(), markup=False)

  def __call__(self, by_language: Mapping[str, int]) -> None:
    self.beat()
    for lang, rows in by_language.items():
      self.by_language[lang] = self.by_language.get(lang, 0) + rows
    self.progress.update(self.task, description=self._text())
    now = time.perf_counter()
    if not self.console.is_terminal and now - self.told >= LINE_SECONDS:
      self.told = now
      self.console.print(self._text(), markup=False)

  def _text(self) -> str:
    rows = sum(self.by_language.values())
    rate = rows / max(1e-9, time.perf_counter() - self.began)
    largest = sorted(self.by_language.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{lang} {n:,}" for lang, n in largest[:4])
    more = f" and {len(largest) - 4} more" if len(largest) > 4 else ""
    return (
      f"{self.what}  {rows:,} rows of {len(largest)} languages ({shown}{more}), {rate:,.0f} rows/s"
    )


class _Bar:
  def __init__(self, console: Console, total: int, done: int, what: str):
    self.console, self.total, self.done, self.what = console, total, done, what
    self.progress = _progress(
      console,
      TextColumn(what),
      BarColumn(),
      MofNCompleteColumn(),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
    )

  def __enter__(self):
    self.progress.start()
    self.task = self.progress.add_task(self.what, total=self.total, completed=self.done)
    return self

  def __exit__(self, *_):
    self.progress.stop()

  def update(self, done: int) -> None:
    self.progress.update(self.task, completed=done)


class _Transfer:
  """Shows nothing before the first call: what turns out to be read from elsewhere leaves no trace."""

  def __init__(self, console: Console, what: str, beat: Callable[[], None]):
    self.console, self.what, self.beat = console, what, beat
    self.task, self.done = None, 0
    self.progress = _progress(
      console,
      TextColumn(what),
      BarColumn(),
      DownloadColumn(),
      TransferSpeedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
    )

  def __enter__(self):
    self.began = self.told = time.perf_counter()
    return self

  def __exit__(self, kind, *_):
    self.progress.stop()
    if self.task is not None and kind is None:
      seconds = max(1e-9, time.perf_counter() - self.began)
      self._line(f"{_size(self.done)} in {seconds:,.1f} s, {_size(self.done / seconds)}/s")

  def __call__(self, done: int, total: int) -> None:
    self.beat()
    self.done = done
    if self.task is None:
      self.progress.start()
      self.task = self.progress.add_task(self.what, total=total)
    self.progress.update(self.task, completed=done, total=total)
    now = time.perf_counter()
    if not self.console.is_terminal and now - self.told >= LINE_SECONDS and done < total:
      self.told = now
      self._line(f"{_size(done)} of {_size(total)}, {_size(done / max(1e-9, now - self.began))}/s")

  def _line(self, text: str) -> None:
    self.console.print(f"{self.what}  {text}", markup=False)


def _progress(console: Console, *columns) -> Progress:
  """A bar that leaves nothing behind, on a terminal only: elsewhere there are plain lines."""
  return Progress(
    *columns,
    console=console,
    transient=True,
    disable=not console.is_terminal,
    refresh_per_second=4,
  )


def _size(num_bytes: float) -> str:
  """12.3 MB: units of a thousand, as disks and networks count."""
  if num_bytes < 1000:
    return f"{num_bytes:,.0f} bytes"
  unit = next((u for u in (1e3, 1e6, 1e9) if num_bytes < 1000 * u), 1e12)
  return f"{num_bytes / unit:,.1f} {({1e3: 'kB', 1e6: 'MB', 1e9: 'GB', 1e12: 'TB'})[unit]}"


class Meter:
  """Sums of the steps since the last logging step."""

  def __init__(self):
    self.reset()

  def reset(self) -> None:
    self.steps, self.flops, self.slots = 0, 0.0, 0
    self.sums, self.norm = None, 0.0

  def add(self, sums, norm: float, flops: float, slots: int) -> None:
    """Host sums of one step (Sums of numpy arrays), its gradient norm, useful FLOPs and token slots."""
    wide = jax.tree.map(
      lambda x: np.asarray(x, np.float64 if x.dtype.kind == "f" else np.int64), sums
    )
    self.sums = wide if self.sums is None else jax.tree.map(np.add, self.sums, wide)
    self.steps += 1
    self.norm = norm
    self.flops += flops
    self.slots += slots
