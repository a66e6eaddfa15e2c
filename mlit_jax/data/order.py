"""The order of an epoch: which language comes next, so that every prefix keeps the shares."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from mlit_jax.errors import UserError

CHUNK = 1 << 20  # numbers turned into Python integers at a time


def interleave(sizes: Sequence[np.ndarray]) -> np.ndarray:
  """int32 [N]: the language of each place, where language l has items of sizes[l], in this order.

      four items of language 0 and two of language 1, all of size 1 -> 0 0 1 0 0 1

  Item j of a language with c of N items belongs in places [jN/c, (j+1)N/c); of those whose time has
  begun, the earliest deadline goes first (Tijdeman 1980, the chairman assignment problem): every prefix
  is within one item of the shares. With sizes in tokens, time counts tokens, and prefixes are within the
  longest item. Whole numbers only, so that no rounding decides.
  """
  if not sum(map(len, sizes)):
    return np.zeros(0, np.int32)
  release, key = _windows(sizes)
  by_release = np.argsort(release, kind="stable")
  one = all((s == 1).all() for s in sizes)
  out = np.empty(len(release), np.int32)
  ready: list[int] = []
  waiting = _chunks(release[by_release], key[by_release])
  due, entry = next(waiting)
  width, now = len(sizes), 0
  taken = None if one else [_values(s) for s in sizes]
  pop, push = heapq.heappop, heapq.heappush
  for place in range(len(out)):
    while due <= now:
      push(ready, entry)
      due, entry = next(waiting, _NEVER)
    language = pop(ready) % width
    out[place] = language
    now += 1 if one else next(taken[language])
  return out


def merge(order: np.ndarray, queues: Sequence[np.ndarray]) -> np.ndarray:
  """The items of the queues in the order of languages: the j-th place of l takes the j-th of queues[l]."""
  by_language = np.argsort(order, kind="stable")
  out = np.empty(len(order), np.int64)
  out[by_language] = np.concatenate([np.asarray(q, np.int64) for q in queues])
  return out


_NEVER = (1 << 200, 0)


def _windows(sizes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """(release, deadline * languages + language) of every item; of one language they come in order."""
  total = sum(int(s.sum(dtype=np.int64)) for s in sizes)
  releases, keys = [], []
  for language, mine in enumerate(sizes):
    if not len(mine):
      continue
    ends = np.cumsum(mine, dtype=np.int64)
    whole = int(ends[-1])
    # total * x // whole without leaving 63 bits, which total * x alone may do.
    if whole >= 3_000_000_000:
      raise UserError(
        f"an epoch has {whole} tokens of one language; shares of tokens work up to 3e9. Ask for a smaller total "
        "over more epochs, or for unit examples."
      )
    times, rest = divmod(total, whole)
    begin = ends - mine
    releases.append(times * begin + rest * begin // whole)
    keys.append((times * ends - (-(rest * ends) // whole)) * len(sizes) + language)
  return np.concatenate(releases), np.concatenate(keys)


def _chunks(*columns: np.ndarray):
  for start in range(0, len(columns[0]), CHUNK):
    yield from zip(*(c[start : start + CHUNK].tolist() for c in columns), strict=True)


def _values(column: np.ndarray):
  for start in range(0, len(column), CHUNK):
    yield from column[start : start + CHUNK].tolist()
