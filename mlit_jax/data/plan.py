"""The plan: which examples stand in which row of which step. A pure function of data, mixture and seed."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from mlit_jax.data import mixture
from mlit_jax.data.encode import Encoded
from mlit_jax.data.packing import pack


@dataclasses.dataclass(frozen=True)
class Plan:
  """Row r of the run holds examples[row_starts[r]:row_starts[r + 1]]; step b has rows [b*B, (b+1)*B).

  The last step is filled up with empty rows. `epochs` counts the passes begun.
  """

  examples: np.ndarray  # int64 [N], numbers into Encoded
  row_starts: np.ndarray  # int64 [steps * B + 1]
  rows_per_step: int
  max_length: int
  epochs: int
  counts: dict[str, int]  # per epoch
  hash: str

  @property
  def steps(self) -> int:
    return (len(self.row_starts) - 1) // self.rows_per_step

  def rows(self, step: int) -> list[np.ndarray]:
    """The example numbers of each row of a step."""
    first = step * self.rows_per_step
    starts = self.row_starts[first : first + self.rows_per_step + 1]
    return [self.examples[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]


def make_plan(
  encoded: Encoded,
  spec: Mapping,
  *,
  seed: int,
  rows_per_step: int,
  max_length: int,
  epochs: int = 0,
  steps: int = 0,
  packing: bool = True,
  groups: str = "together",
  max_repeats: int = 1,
) -> Plan:
  """Plan `epochs` passes over the mixture, or as many as `steps` need (the last one is then cut).

  Every epoch holds each chosen example exactly once per repeat, in an order of its own; rows never
  span two epochs.
  """
  assert (epochs > 0) != (steps > 0), (epochs, steps)
  by_lang = {lang: _rows_of(encoded, i) for i, lang in enumerate(encoded.languages)}
  # Those with 0 too: "*" and the like ask for them, and are refused, rather than passing them over.
  available = {lang: len(rows) for lang, rows in by_lang.items()}
  counts = mixture.resolve_counts(spec, available, max_repeats=max_repeats)
  keys = {lang: [_choice_key(encoded, i, lang, groups) for i in by_lang[lang]] for lang in counts}
  chosen = mixture.choose(keys, counts, seed)
  slots = interleave(counts)
  examples: list[np.ndarray] = []
  sizes: list[int] = []
  epoch = 0
  while epoch < epochs or (steps and len(sizes) < steps * rows_per_step):
    order = _epoch_order(encoded, by_lang, chosen, slots, seed, epoch)
    rows = (
      pack(encoded.lengths[order].tolist(), max_length)
      if packing
      else [[i] for i in range(len(order))]
    )
    examples += [order[row] for row in rows]
    sizes += [len(row) for row in rows]
    epoch += 1
  if steps:
    del examples[steps * rows_per_step :], sizes[steps * rows_per_step :]
  sizes += [0] * (-len(sizes) % rows_per_step)
  flat = np.concatenate(examples).astype(np.int64)
  row_starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
  digest = _plan_hash(encoded, flat, row_starts, rows_per_step, max_length)
  return Plan(flat, row_starts, rows_per_step, max_length, epoch, counts, digest)


def interleave(counts: Mapping[str, int]) -> list[str]:
  """The languages of an epoch in order: every prefix is within one example of its share.

      interleave({"en": 4, "fi": 2}) -> ["en", "en", "fi", "en", "en", "fi"]

  Item j of a language with count c of N belongs in slots [jN/c, (j+1)N/c); the earliest deadline goes first
  (Tijdeman 1980, the chairman assignment problem). Integers only, so that no rounding decides.
  """
  total = sum(counts.values())
  waiting = [(0, lang, 0) for lang in sorted(counts) if counts[lang]]  # (release, language, j)
  ready: list[tuple[int, str, int]] = []  # (deadline, language, j)
  out = []
  for slot in range(total):
    while waiting and waiting[0][0] <= slot:
      _, lang, j = heapq.heappop(waiting)
      heapq.heappush(ready, (-(-(j + 1) * total // counts[lang]), lang, j))
    _, lang, j = heapq.heappop(ready)
    out.append(lang)
    if j + 1 < counts[lang]:
      heapq.heappush(waiting, ((j + 1) * total // counts[lang], lang, j + 1))
  return out


def _rows_of(encoded: Encoded, language: int) -> np.ndarray:
  """Example numbers of a language by id: not the order of the files decides between rows of one group."""
  rows = np.flatnonzero(encoded.language == language)
  return np.array(sorted(rows, key=lambda i: encoded.example_ids[i]), np.int64)


def _epoch_order(
  encoded, by_lang, chosen, slots: Sequence[str], seed: int, epoch: int
) -> np.ndarray:
  """Example numbers of one epoch: languages by slot, rows of a language by hash."""
  queues = {}
  for lang, rows in chosen.items():
    numbers = by_lang[lang]
    ranked = sorted(
      rows,
      key=lambda r: (mixture.stable_hash(seed, epoch, encoded.example_ids[numbers[r[0]]], r[1]), r),
    )
    queues[lang] = iter([numbers[i] for i, _ in ranked])
  return np.array([next(queues[lang]) for lang in slots], np.int64)


def _choice_key(encoded: Encoded, i: int, lang: str, groups: str) -> str:
  group = encoded.group_ids[i]
  if group and groups == "together":
    return f"group {group}"
  return f"{lang} {encoded.example_ids[i]}"


def _plan_hash(encoded, examples, row_starts, rows_per_step, max_length) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for i in examples:
    digest.update(encoded.example_ids[i].encode())
  digest.update(row_starts.astype("<i8").tobytes())
  digest.update(f"{encoded.fingerprint} {rows_per_step} {max_length}".encode())
  return digest.hexdigest()
