"""A trace of some steps, for TensorBoard's and XProf's profile page."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import jax

from mlit_jax.errors import UserError


class Profile:
  """`profile.steps` = "10:13" traces steps 10, 11 and 12 (from 0) into a folder; "" traces none."""

  def __init__(self, folder: Path, steps: str, say: Callable[[str], None]):
    self.folder, self.say = folder, say
    self.first, self.end = parse_steps(steps)
    self.running = False

  @contextlib.contextmanager
  def step(self, number: int):
    """Around the work of one step; hand what it gives to what this gives, so that a trace has it whole."""
    if not self.first <= number < self.end:
      yield lambda results: None
      return
    if not self.running:
      self.running = True
      with jax.transfer_guard("allow"):
        jax.profiler.start_trace(self.folder)
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      yield jax.block_until_ready
    if number == self.end - 1:
      self.close()

  def close(self) -> None:
    """Write the trace, if one is running."""
    if self.running:
      self.running = False
      with jax.transfer_guard("allow"):
        jax.profiler.stop_trace()
      self.say(
        f"trace of the steps {self.first} to {self.end - 1}: tensorboard --logdir {self.folder}"
      )


def parse_steps(text: str) -> tuple[int, int]:
  """ "10:13" -> (10, 13): the first step and the one after the last. "" -> (0, 0)."""
  if not text:
    return 0, 0
  found = re.fullmatch(r"(\d+):(\d+)", text)
  if not found or int(found[1]) >= int(found[2]):
    raise UserError(
      f"profile.steps is {text!r}; expected FIRST:END with FIRST < END, such as 10:13 for the steps 10, 11 and 12"
    )
  return int(found[1]), int(found[2])
