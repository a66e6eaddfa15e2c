"""An example as the model sees it: what its tokens spell, and which of them are trained."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np

from mlit_jax.data.encoded import Encoded
from mlit_jax.data.plan import Plan
from mlit_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Piece:
  """The fewest tokens that spell whole characters: one, but where a character takes several."""

  text: str
  ids: tuple[int, ...]
  trained: bool
  special: bool  # a token that is matched whole, such as the marker of a turn


@dataclasses.dataclass(frozen=True)
class Row:
  """An example of a plan, to be shown."""

  pieces: list[Piece]
  caption: str  # where it comes from, where in the run it stands first, how long it is


def shown_rows(encoded: Encoded, plan: Plan, examples: Iterable[int], tokenizer) -> list[Row]:
  """The examples with these numbers."""
  out = []
  for i in map(int, examples):
    at = int(np.flatnonzero(plan.examples == i)[0])
    step, row = divmod(
      int(np.searchsorted(plan.row_starts, at, side="right")) - 1, plan.rows_per_step
    )
    caption = (
      f"{encoded.place(i)}, step {step + 1}, row {row + 1}: {encoded.lengths[i]:,} tokens, "
      f"{encoded.trained_counts[i]:,} trained{', cut' if encoded.truncated[i] else ''}"
    )
    out.append(Row(pieces(encoded.tokens_of(i), encoded.trained_of(i), tokenizer), caption))
  return out


def pieces(ids: np.ndarray, trained: np.ndarray, tokenizer: Tokenizer) -> list[Piece]:
  """The pieces of a row; their texts, joined, are what its tokens spell.

  [U  Ho  la  E  A  Bon  jour  E]         tokens
  [0   0   0  0  0    1     1  1]         trained
  """
  text = tokenizer.decode(ids, skip_special=False)
  again, starts, ends = tokenizer.encode_with_offsets([text])[0]
  if np.array_equal(again, ids):
    cuts = _cuts(starts, ends)
    ends_of_text = [*(int(starts[a]) for a, _ in cuts[1:]), len(text)]
    texts = [text[a:b] for a, b in itertools.pairwise([0, *ends_of_text])]
  else:  # a row that was cut within a character, or text that spells other tokens than these
    cuts = _runs(ids, trained, tokenizer)
    whole = [tokenizer.decode(ids[:b], skip_special=False) for _, b in cuts]
    texts = [
      b[len(a) :] if b.startswith(a) else tokenizer.decode(ids[i:j], skip_special=False)
      for (a, b), (i, j) in zip(itertools.pairwise(["", *whole]), cuts, strict=True)
    ]
  return [
    Piece(
      part,
      tuple(ids[a:b].tolist()),
      bool(trained[a:b].any()),
      int(ids[a]) in tokenizer.special_ids,
    )
    for part, (a, b) in zip(texts, cuts, strict=True)
  ]


def runs(of: Iterable[Piece]) -> list[Piece]:
  """Neighbours that are alike, joined."""
  return [
    Piece("".join(p.text for p in group), tuple(i for p in group for i in p.ids), *kind)
    for kind, group in (
      (kind, list(group))
      for kind, group in itertools.groupby(of, key=lambda p: (p.trained, p.special))
    )
  ]


def _cuts(starts: np.ndarray, ends: np.ndarray) -> list[tuple[int, int]]:
  """(first token, last + 1) of each piece: a new one where no earlier token reaches into the next."""
  reach = np.maximum.accumulate(ends)
  new = np.flatnonzero(starts[1:] >= reach[:-1]) + 1
  return list(itertools.pairwise([0, *new.tolist(), len(starts)]))


def _runs(ids, trained, tokenizer) -> list[tuple[int, int]]:
  """(first token, last + 1) of neighbours that are trained, and special, alike."""
  special = np.array([i in tokenizer.special_ids for i in ids.tolist()])
  kind = np.asarray(trained, bool) * 2 + special
  new = np.flatnonzero(kind[1:] != kind[:-1]) + 1
  return list(itertools.pairwise([0, *new.tolist(), len(ids)]))
