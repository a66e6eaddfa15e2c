"""What the devices were given: `log.batches` writes a line for each row of each step.

batches/0.jsonl   {"step": 7, "row": 2, "examples": ["en.jsonl:17", "sw.jsonl:3"], "digest": "9f0c41..."}

Which rows stood where the loss jumped, and whether another mesh, number of processes or version feeds the
same ones: lines of one step and row must be equal. Steps count as in metrics.jsonl.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from mlit_jax.batch import Batch
from mlit_jax.training import workdir
from mlit_jax.training.events import Lines

FOLDER = "batches"


class BatchLog:
  """Lines of this process in a file of its own, on top of those before `first` that lie there."""

  def __init__(
    self,
    root: Path,
    first: int,
    examples: Callable[[int], list[list[str]]],
    warn: Callable[[str], None],
  ):
    """`first`: steps done before. `examples`: step from 0 -> the places of the examples of each row."""
    self.folder, self.examples = root / FOLDER, examples
    self.folder.mkdir(parents=True, exist_ok=True)
    mine, processes = jax.process_index(), jax.process_count()
    # Each process looks after the files of its own number modulo theirs: there may have been more.
    for path in sorted(self.folder.glob("*.jsonl")):
      if int(path.stem) % processes == mine:
        workdir.forget_lines(path, first)
    self.lines = Lines(self.folder / f"{mine}.jsonl", warn)

  def note(self, step: int, batch: Batch) -> None:
    """The rows of step `step` (from 0) that lie on devices of this process, each on one of all."""
    names = self.examples(step)
    lines = [
      json.dumps(
        {"step": step + 1, "row": row, "examples": names[row], "digest": digest},
        ensure_ascii=False,
      )
      for row, digest in sorted(row_digests(batch).items())
    ]
    self.lines.append(lines)


def row_digests(batch: Batch) -> dict[int, str]:
  """{row of the global batch: digest of all its fields}, read back from the devices of this process."""
  hashes: dict[int, hashlib.blake2b] = {}
  for field in dataclasses.fields(Batch):
    for shard in getattr(batch, field.name).addressable_shards:
      if shard.replica_id:  # another device has the same rows
        continue
      first = shard.index[0].start or 0
      for row, values in enumerate(np.asarray(shard.data), start=first):
        hashes.setdefault(row, hashlib.blake2b(digest_size=8)).update(values.tobytes())
  return {row: found.hexdigest() for row, found in hashes.items()}
