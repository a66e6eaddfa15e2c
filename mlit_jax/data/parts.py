"""Raw rows of a source -> a part of the token cache: what each worker does, and nothing else."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from mlit_jax.data.encode import Chunk, Counts, add_counts, encode_chunk
from mlit_jax.data.hygiene import Hygiene
from mlit_jax.data.rows import BadRow, parse_row
from mlit_jax.data.sources import Source
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError


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

  chunk: Chunk
  signatures: np.ndarray | None  # [n, k], where near duplicates are looked for
  rows_read: Counts  # language -> source -> rows
  dropped: Counts
  flagged: Counts


def encode_rows(recipe: Recipe, source: Source, rows: Sequence[tuple[int, object]]) -> Part:
  """(number, raw row) -> Part; a row that cannot be used raises UserError, or is counted if `drop_bad`."""
  read: Counts = collections.defaultdict(collections.Counter)
  dropped: Counts = collections.defaultdict(collections.Counter)
  flagged: Counts = collections.defaultdict(collections.Counter)
  kept = []
  for number, raw in rows:
    try:
      c = parse_row(raw, source, number)
    except BadRow as bad:
      if not recipe.drop_bad:
        raise UserError(f"{source.path}:{number}: {bad.detail} {bad.remedy}") from None
      lang = bad.lang or source.lang or "?"
      read[lang][source.name] += 1
      dropped[lang][bad.reason] += 1
      continue
    read[c.lang][source.name] += 1
    flags = recipe.hygiene.flags(c)
    why = next(filter(recipe.hygiene.dropped, flags), None)
    if why is not None:
      dropped[c.lang][why] += 1
      continue
    for flag in flags:
      flagged[c.lang][flag] += 1
    kept.append(c)
  chunk = encode_chunk(
    kept, recipe.tokenizer, max_length=recipe.max_length, over_long=recipe.over_long
  )
  add_counts(dropped, chunk.dropped)
  return Part(
    chunk,
    _signatures(recipe, kept, chunk),
    {lang: dict(n) for lang, n in read.items()},
    {lang: dict(n) for lang, n in dropped.items()},
    {lang: dict(n) for lang, n in flagged.items()},
  )


def _signatures(recipe: Recipe, kept, chunk: Chunk) -> np.ndarray | None:
  """Of the rows that the chunk kept, in its order."""
  made = [s for c in kept if (s := recipe.hygiene.signature(c)) is not None]
  if not made or len(made) != len(kept):
    return None
  fits = chunk.kept
  return np.stack([made[i] for i in fits]) if len(fits) else np.zeros((0, len(made[0])), np.uint32)
