"""What a loader delivered, measured on grids of example numbers: [rows, positions], -1 where nothing stands.

Fed rows whose tokens all are the row's own number, any loader shows in its batches which example
stands where. `lengths` and `language` are those of the examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Grid = np.ndarray  # int [B, T]


def fill(grids: Sequence[Grid]) -> float:
  """Share of positions that hold a token."""
  return sum(int((g >= 0).sum()) for g in grids) / sum(g.size for g in grids)


def examples_got(grids: Sequence[Grid], lengths, language, num_languages: int) -> np.ndarray:
  """float [languages]: examples delivered; a half of one counts a half, one that comes twice counts 2."""
  tokens = _tokens_of_examples(grids, len(lengths))
  return np.bincount(language, tokens / lengths, num_languages)


def num_cut(grids: Sequence[Grid], lengths) -> int:
  """Examples of which some row holds a piece: a stretch that is not a whole number of the example."""
  cut: set[int] = set()
  for grid in grids:
    for row in grid:
      edges = np.flatnonzero(np.diff(row, prepend=-2, append=-2))
      numbers, stretches = row[edges[:-1]], np.diff(edges)
      here = numbers >= 0
      numbers, stretches = numbers[here], stretches[here]
      cut.update(numbers[stretches % lengths[numbers] != 0].tolist())
  return len(cut)


def tokens_by_step(grids: Sequence[Grid], language, num_languages: int) -> np.ndarray:
  """int [steps, languages]"""
  return np.stack([np.bincount(language[g[g >= 0]], minlength=num_languages) for g in grids])


def examples_by_step(grids: Sequence[Grid], lengths, language, num_languages: int) -> np.ndarray:
  """float [steps, languages]: as `examples_got`, of each step."""
  return np.stack([examples_got([g], lengths, language, num_languages) for g in grids])


def worst_prefix(by_step: np.ndarray, due: np.ndarray) -> tuple[float, int]:
  """(largest distance of a language from its due share of all that came so far; the language)."""
  so_far = np.cumsum(by_step, axis=0)
  off = np.abs(so_far - so_far.sum(axis=1, keepdims=True) * due).max(axis=0)
  return float(off.max()), int(off.argmax())


def worst_window(by_step: np.ndarray, due: np.ndarray, steps: int) -> tuple[float, int]:
  """(share of what came in `steps` steps in a row / due share, where furthest from 1; the language).

  Half as much is as far from 1 as twice as much.
  """
  steps = min(steps, len(by_step))
  sums = np.cumsum(np.concatenate([np.zeros_like(by_step[:1]), by_step]), axis=0)
  window = sums[steps:] - sums[:-steps]
  ratio = window / window.sum(axis=1, keepdims=True) / due
  distance = np.abs(np.log(np.maximum(ratio, 1e-9)))
  at = np.unravel_index(distance.argmax(), distance.shape)
  return float(ratio[at]), int(at[1])


def compare_resumed(
  whole: Sequence[Grid], taken: int, resumed: Sequence[Grid], lengths
) -> tuple[bool, float, float]:
  """(is what came after the stop the rest of an unbroken run; examples repeated; examples skipped)."""
  rest = whole[taken:]
  same = len(rest) == len(resumed) and all(
    np.array_equal(a, b) for a, b in zip(rest, resumed, strict=True)
  )
  n = len(lengths)
  surplus = _tokens_of_examples([*whole[:taken], *resumed], n) - _tokens_of_examples(whole, n)
  examples = surplus / lengths
  return same, float(examples[examples > 0].sum()), float(np.abs(examples[examples < 0]).sum())


def _tokens_of_examples(grids: Sequence[Grid], num_examples: int) -> np.ndarray:
  total = np.zeros(num_examples, np.int64)
  for g in grids:
    total += np.bincount(g[g >= 0], minlength=num_examples)
  return total
