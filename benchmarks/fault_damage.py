"""One damaged file at a time: found, without effect, or silently wrong?

What is found in a checkpoint must be answered with the newest step that is whole, bit for bit; a token cache is built
again as it was. "Without effect" is claimed only where every array or byte that is read is as it was saved.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fault_material as material

KINDS = ("bit", "cut", "missing", "empty")
TARGETS = {"checkpoint": 0.5, "token cache": 0.2, "export": 0.2, "plan, config and copies": 0.1}
FOUND, HARMLESS, SILENT = "found", "without effect", "SILENTLY WRONG"


def damage(path: Path, kind: str, rng: random.Random) -> bool:
  """Whether the file is another now. It is written anew: it may be a link to the one that stays whole."""
  data = path.read_bytes()
  path.unlink()
  if kind == "missing":
    return True
  changed = bytearray(data)
  if kind == "bit" and data:
    at = rng.randrange(8 * len(data))
    changed[at // 8] ^= 1 << at % 8
  elif kind == "cut":
    changed = changed[: rng.randrange(len(data))] if data else changed
  elif kind == "empty":
    changed = bytearray()
  path.write_bytes(changed)
  return bytes(changed) != data


def run(folder: Path, total: int, seed: int, say: Callable[[str], None] = print) -> dict:
  """`total` damaged files, spread over targets and kinds; {target: {kind: Counter of outcomes}}."""
  rng = random.Random(seed)
  config = material.write_config(folder, "c.checkpoint.keep_latest = 3")
  whole = material.undisturbed(folder, config)
  judges = {
    "checkpoint": Checkpoint(config, whole[0]),
    "token cache": Cache(config, whole[0]),
    "export": Export(whole[1]),
    "plan, config and copies": Copies(whole[0]),
  }
  table: dict[str, dict[str, Counter]] = {}
  for target, share in TARGETS.items():
    judge, table[target] = judges[target], {kind: Counter() for kind in KINDS}
    for number in range(round(total * share)):
      kind = KINDS[number % len(KINDS)]
      outcome = one(judge, folder / "damaged", kind, rng)
      if outcome:
        table[target][kind][outcome] += 1
        if outcome == SILENT:
          say(f"  FAULT {target}, {kind}: {judge.last} silently wrong")
    say(f"  {target}: " + ", ".join(f"{k} {dict(v)}" for k, v in table[target].items()))
  outcomes = sum((c for of in table.values() for c in of.values()), Counter())
  return {"table": table, "outcomes": outcomes, "total": outcomes.total()}


def one(judge, scratch: Path, kind: str, rng: random.Random) -> str:
  """What became of one damaged file; nothing where the damage changed no byte."""
  shutil.rmtree(scratch, ignore_errors=True)
  shutil.copytree(judge.whole, scratch, copy_function=os.link)
  try:
    files = sorted(p for p in judge.files(scratch) if p.is_file())
    path = rng.choice(files)
    judge.last = path.relative_to(scratch)
    return judge.judge(scratch) if damage(path, kind, rng) else ""
  finally:
    shutil.rmtree(scratch)


class Checkpoint:
  """A file of the newest step; judged by what a run would go on from."""

  def __init__(self, config: Path, whole: Path):
    from mlit_jax import mesh as meshes
    from mlit_jax.config import load_config
    from mlit_jax.opening import open_workdir
    from mlit_jax.stepping import make_stepping

    self.whole, mesh = whole, meshes.make_mesh()
    cfg = open_workdir(whole, "latest", mesh).cfg
    stepping = make_stepping(
      load_config(str(config)), cfg, mesh, total_steps=material.STEPS, num_languages=3
    )
    self.shapes = stepping.state_shapes()
    self.bits = {}
    with self.open(whole) as checkpoints:
      self.steps = checkpoints.steps()
      for step in self.steps:
        self.bits[step] = self.bits_of(checkpoints.restore(step, self.shapes)[0])

  def open(self, workdir: Path, warn=lambda text: None):
    from mlit_jax.training.checkpoint import Checkpoints

    return Checkpoints(workdir / "checkpoints", keep_latest=9, warn=warn)

  def bits_of(self, state) -> list[bytes]:
    import jax
    import numpy as np

    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]

  def files(self, scratch: Path):
    return (scratch / "checkpoints" / str(self.steps[-1])).rglob("*")

  def judge(self, scratch: Path) -> str:
    warnings = []
    with self.open(scratch, warnings.append) as checkpoints:
      step, state, _ = checkpoints.restore_newest(self.shapes)
    if self.bits_of(state) != self.bits[step]:
      return SILENT
    if step == self.steps[-1]:
      return HARMLESS
    aside = list((scratch / "quarantine").glob("*/reason.json"))
    return FOUND if step == self.steps[-2] and warnings and aside else SILENT


class Cache:
  """A file of the token cache; judged by the rows that the run would be given."""

  def __init__(self, config: Path, whole: Path):
    from mlit_jax.config import load_config
    from mlit_jax.opening import open_tokenizer

    self.whole, self.config = whole, load_config(str(config))
    self.tokenizer = open_tokenizer(self.config, None)
    self.before = self.content(whole)

  def content(self, workdir: Path) -> dict:
    return {p.relative_to(workdir): p.read_bytes() for p in self.files(workdir) if p.is_file()}

  def files(self, scratch: Path):
    return (scratch / "cache").glob("*/*")

  def judge(self, scratch: Path) -> str:
    from mlit_jax.opening import open_rows
    from mlit_jax.training.console import Terminal

    terminal, said = Terminal(shown=False), []
    terminal.warning = said.append
    open_rows(self.config, self.tokenizer, scratch, terminal)
    if self.content(scratch) != self.before:
      return SILENT
    return FOUND if any("damaged" in text for text in said) else HARMLESS


class Export:
  """A file of an exported folder; judged as by who checks it before use."""

  def __init__(self, whole: Path):
    self.whole = whole

  def files(self, scratch: Path):
    return scratch.rglob("*")

  def judge(self, scratch: Path) -> str:
    from mlit_jax import checksums
    from mlit_jax.errors import UserError

    try:
      listed = checksums.check(scratch, may_change=())
    except UserError:
      return FOUND
    return SILENT if listed else HARMLESS  # the list itself is gone, of the model nothing


class Copies:
  """data_plan.json, config.json, or a copy of the base's or the tokenizer's files, as generate and export read them."""

  def __init__(self, whole: Path):
    self.whole = whole

  def files(self, scratch: Path):
    yield from (scratch / "data_plan.json", scratch / "config.json")
    yield from (scratch / "base").rglob("*")
    yield from (scratch / "tokenizer").rglob("*")

  def judge(self, scratch: Path) -> str:
    from mlit_jax import checksums
    from mlit_jax.errors import UserError

    try:
      for name in ("data_plan.json", "config.json"):
        checksums.read_sealed(scratch / name)
      listed = [checksums.check(scratch / name, may_change=()) for name in ("base", "tokenizer")]
    except (UserError, ValueError, OSError):
      return FOUND
    return SILENT if all(listed) else HARMLESS
