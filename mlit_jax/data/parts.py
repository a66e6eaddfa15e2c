"""Raw rows of a source -> a part of the token cache: what each worker does, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mlit_jax.data.encode import Chunk, Counts, add_counts, encode_chunk
from mlit_jax.data.hygiene import NOTES, REASONS, Hygiene
from mlit_jax.data.rows import OR_DROP, Dropped, read_row
from mlit_jax.data.sources import Source
from mlit_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How rows become tokens; workers get it once."""

  tokenizer: Tokenizer
  max_length: int
  over_long: str
  drop_bad: bool
  hygiene: Hygiene

  def settings(self) -> list:
    """What, besides sources and tokenizer, decides which tokens there are."""
    drops = self.hygiene.only_dropping().fingerprint()
    return [self.max_length, self.over_long, self.drop_bad, drops]


@dataclasses.dataclass
class Part:
  """Some rows of one source, tokenised, and what became of the others."""

  source: Source
  chunk: Chunk
  signatures: np.ndarray | None  # [n, k], where near duplicates are looked for
  rows_read: Counts  # language -> source -> rows
  dropped: Counts
  notes: np.ndarray  # uint16 [n], bits of hygiene.NOTES


def encode_rows(recipe: Recipe, source: Source, rows: Sequence[tuple[int, object]]) -> Part:
  """(number, raw row) -> Part; a row that cannot be used raises UserError, or is counted if `drop_bad`."""
  hygiene = recipe.hygiene
  read: Counts = {}
  dropped: Counts = {}
  kept, notes = [], []
  for number, raw in rows:
    row = read_row(raw, source, number, drop_bad=recipe.drop_bad, way_out=OR_DROP)
    add_counts(read, {row.lang: {source.name: 1}})
    if isinstance(row, Dropped):
      add_counts(dropped, {row.lang: {row.reason: 1}})
      continue
    found = hygiene.notes(row)
    why = next((name for name in found if name in REASONS and hygiene.dropped(name)), None)
    if why is not None:
      add_counts(dropped, {row.lang: {why: 1}})
      continue
    kept.append(row)
    notes.append(sum(NOTES[name] for name in found))
  chunk = encode_chunk(
    kept, recipe.tokenizer, max_length=recipe.max_length, over_long=recipe.over_long
  )
  add_counts(dropped, chunk.dropped)
  signatures = [hygiene.signature(kept[i]) for i in chunk.kept]
  asked = signatures and signatures[0] is not None
  return Part(
    source,
    chunk,
    np.stack(signatures) if asked else None,
    read,
    dropped,
    np.array([notes[i] for i in chunk.kept], np.uint16),
  )
