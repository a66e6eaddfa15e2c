"""Where events go besides metrics.jsonl: TensorBoard always, Weights & Biases and trackio on request.

  trackers = open_trackers(root, ["wandb"], first_step=100, config={...})
  trackers.log(110, {"train/loss": 2.1, "eval/heldout/sw/fidelity": None})

They are copies: what a run resumes and reports from is metrics.jsonl. A tracker that fails is left alone after one
line, and the run goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from mlit_jax.errors import UserError

NAMES = ("wandb", "trackio")
FOLDER = "tensorboard"


def check_trackers(names: Sequence[str]) -> None:
  """Refuse what is not known or not installed, before the run begins."""
  for name in names:
    if name not in NAMES:
      raise UserError(f"log.trackers names {name!r}; known are {', '.join(NAMES)}")
    if find_spec(name) is None:
      raise UserError(f"log.trackers names {name}, which is not installed; pip install {name}")


def open_trackers(
  root: Path, names: Sequence[str], *, first_step: int, config: dict, say: Callable[[str], None]
) -> Trackers:
  """TensorBoard and the named ones; events from `first_step` on replace those of an earlier attempt."""
  made: dict[str, _Tracker] = {}
  for name, make in (("tensorboard", _TensorBoard), *((n, _OfPackage) for n in names)):
    try:
      made[name] = make(name, root, first_step, config)
    except Exception as e:  # a server that is down must not cost a run
      say(f"{name} cannot be written to and is left out ({type(e).__name__}: {e})")
  return Trackers(made, say)


class Trackers:
  """All of them, as one."""

  def __init__(self, made: dict[str, _Tracker], say: Callable[[str], None]):
    self.made, self.say = made, say

  def log(self, step: int, event: dict) -> None:
    """The numbers of an event; what is missing or not finite is left out."""
    values = {
      k: float(v)
      for k, v in event.items()
      if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
    }
    self._each(lambda tracker: tracker.log(step, values))

  def close(self) -> None:
    self._each(lambda tracker: tracker.close())

  def _each(self, act: Callable[[_Tracker], None]) -> None:
    for name, tracker in list(self.made.items()):
      try:
        act(tracker)
      except Exception as e:
        self.say(f"{name} cannot be written to and is left alone ({type(e).__name__}: {e})")
        del self.made[name]


class _Tracker(Protocol):
  def log(self, step: int, values: dict[str, float]) -> None: ...

  def close(self) -> None: ...


class _TensorBoard:
  def __init__(self, name: str, root: Path, first_step: int, config: dict):
    with _not_installed(
      "torch"
    ):  # tensorboardX would load it, in two seconds and much memory, for nothing
      from tensorboardX import SummaryWriter

    # The names of files hold seconds; the suffix keeps two attempts within one apart. Events at and after the
    # first step that an earlier attempt wrote are taken back.
    self.open = lambda: SummaryWriter(
      str(root / FOLDER), purge_step=first_step + 1, filename_suffix=f".{first_step}"
    )
    # Made when there is something to write: a run that is done already leaves no file.
    self.writer = None

  def log(self, step, values):
    self.writer = self.writer or self.open()
    for key, value in values.items():
      self.writer.add_scalar(key, value, step)
    self.writer.flush()

  def close(self):
    if self.writer is not None:
      self.writer.close()


@contextlib.contextmanager
def _not_installed(package: str):
  """Who imports the package in here is told that there is none, if nobody has imported it before."""
  hidden = package not in sys.modules
  if hidden:
    sys.modules[package] = None
  try:
    yield
  finally:
    if hidden:
      del sys.modules[package]


class _OfPackage:
  """wandb, and trackio, which has its interface."""

  def __init__(self, name: str, root: Path, first_step: int, config: dict):
    self.module = importlib.import_module(name)
    path = root / f"{name}.id"
    known = path.read_text().strip() if path.exists() else ""
    options = {"project": "mlit_jax", "config": config, "name": root.resolve().name}
    if name == "wandb":
      options |= {"dir": str(root), "resume": "allow"} | ({"id": known} if known else {})
    else:
      options |= {"resume": "allow"}
    run = self.module.init(**options)
    run_id = getattr(run, "id", "") or ""
    if run_id and run_id != known:
      path.write_text(f"{run_id}\n")

  def log(self, step, values):
    self.module.log(values, step=step)

  def close(self):
    self.module.finish()
