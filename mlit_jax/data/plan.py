"""The plan: which examples stand in which row of which step. A pure function of data, mixture and seed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from mlit_jax.data import mixture as mixtures
from mlit_jax.data.choice import Chosen, choose, take_stock
from mlit_jax.data.encoded import Encoded
from mlit_jax.data.hashing import mix, rank
from mlit_jax.data.mixture import Amounts, Key
from mlit_jax.data.order import interleave, merge
from mlit_jax.data.packing import pack

VERSION = 3  # raise it when the same data, mixture and seed would give another plan


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stretch of the run on one mixture; most runs have one."""

  spec: Mapping
  amounts: Amounts  # what was asked for
  counts: dict[str, int]  # examples of each language in one epoch
  source_counts: dict[Key, int]  # the same by source
  first_step: int
  steps: int
  epochs: int  # passes begun


@dataclasses.dataclass(frozen=True)
class Plan:
  """Row r of the run holds examples[row_starts[r]:row_starts[r + 1]]; step b has rows [b*B, (b+1)*B).

  The last step of a stage is filled up with empty rows.
  """

  examples: np.ndarray  # int64 [N], numbers into Encoded
  row_starts: np.ndarray  # int64 [steps * B + 1]
  rows_per_step: int
  max_length: int
  stages: tuple[Stage, ...]
  hash: str

  @property
  def steps(self) -> int:
    return (len(self.row_starts) - 1) // self.rows_per_step

  @property
  def epochs(self) -> int:
    return sum(stage.epochs for stage in self.stages)

  @property
  def most_in_a_row(self) -> int:
    """Examples of the row that has the most."""
    return int(np.diff(self.row_starts).max(initial=0))

  @property
  def languages(self) -> list[str]:
    """The languages that the run trains on."""
    return sorted({lang for stage in self.stages for lang in stage.counts})

  def rows(self, step: int) -> list[np.ndarray]:
    """The example numbers of each row of a step."""
    first = step * self.rows_per_step
    starts = self.row_starts[first : first + self.rows_per_step + 1]
    return [self.examples[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]


def make_plan(
  encoded: Encoded,
  mixture: Mapping | Sequence[Mapping],
  *,
  seed: int,
  rows_per_step: int,
  max_length: int,
  epochs: int = 0,
  steps: int = 0,
  packing: bool = True,
  groups: str = "together",
  max_repeats: int = 1,
  choice_seed: int | None = None,
) -> Plan:
  """Plan `epochs` passes over the mixture, or as many as `steps` need (the last one is then cut).

  A list of mixtures, each with `epochs` or `steps` of its own, is gone through in order. Every epoch holds
  each chosen example exactly once per repeat, in an order of its own; rows never span two epochs, and a
  stage begins with a step. `choice_seed` says which rows are chosen (None: as `seed`), `seed` their order.
  """
  choice_seed = seed if choice_seed is None else choice_seed
  stock = take_stock(encoded)
  examples: list[np.ndarray] = []
  sizes: list[np.ndarray] = []
  stages: list[Stage] = []
  epoch = step = 0
  for spec, of_epochs, of_steps in mixtures.stages(mixture, epochs=epochs, steps=steps):
    assert (of_epochs > 0) != (of_steps > 0), (of_epochs, of_steps)
    amounts = mixtures.resolve(spec, stock, max_repeats=max_repeats)
    chosen = choose(encoded, amounts, seed=choice_seed, groups=groups)
    wanted = of_steps * rows_per_step
    rows, begun = 0, 0
    while begun < of_epochs or rows < wanted:
      order = _epoch_order(encoded, chosen, amounts.unit, seed, epoch)
      items, starts = _rows(encoded.lengths[order], max_length, packing)
      if of_steps:
        starts = starts[: wanted - rows + 1]
      examples.append(order[items[: starts[-1]]])
      sizes.append(np.diff(starts))
      rows += len(starts) - 1
      begun += 1
      epoch += 1
    sizes.append(np.zeros(-rows % rows_per_step, np.int64))
    length = -(-rows // rows_per_step)
    by_source = _by_source(encoded, chosen)
    counts: dict[str, int] = {}
    for (lang, _), count in by_source.items():
      counts[lang] = counts.get(lang, 0) + count
    stages.append(Stage(spec, amounts, counts, by_source, step, length, begun))
    step += length
  flat = np.concatenate(examples)
  row_starts = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
  digest = _plan_hash(encoded, flat, row_starts, rows_per_step, max_length)
  return Plan(flat, row_starts, rows_per_step, max_length, tuple(stages), digest)


def _epoch_order(
  encoded: Encoded, chosen: Mapping[Key, Chosen], unit: str, seed: int, epoch: int
) -> np.ndarray:
  """Example numbers of one epoch: rows of a source by hash, sources within their language, languages."""
  queues: dict[str, list[np.ndarray]] = {}
  for (lang, _), c in sorted(chosen.items()):
    keys = mix(
      mix(encoded.ids[c.rows, 0], "order", seed, epoch) + c.repeat.astype(np.uint64), "row"
    )
    queues.setdefault(lang, []).append(rank(keys, encoded.ids, c.rows))
  languages = [_merged(parts, encoded, unit) for _, parts in sorted(queues.items())]
  return _merged(languages, encoded, unit)


def _merged(queues: list[np.ndarray], encoded: Encoded, unit: str) -> np.ndarray:
  if len(queues) == 1:
    return queues[0]
  return merge(interleave([encoded.sizes(unit, q) for q in queues]), queues)


def _rows(lengths: np.ndarray, max_length: int, packing: bool) -> tuple[np.ndarray, np.ndarray]:
  if packing:
    return pack(lengths, max_length)
  return np.arange(len(lengths)), np.arange(len(lengths) + 1)


def _by_source(encoded: Encoded, chosen: Mapping[Key, Chosen]) -> dict[Key, int]:
  """Examples of each (language, source) in one epoch."""
  out: dict[Key, int] = {}
  for (lang, _), c in sorted(chosen.items()):
    counts = np.bincount(encoded.source[c.rows], minlength=len(encoded.sources))
    for source, count in zip(encoded.sources, counts.tolist(), strict=True):
      if count:
        out[lang, source] = out.get((lang, source), 0) + count
  return out


def _plan_hash(encoded, examples, row_starts, rows_per_step, max_length) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for start in range(0, len(examples), 1 << 20):
    digest.update(encoded.ids[examples[start : start + (1 << 20)]].astype("<u8").tobytes())
  digest.update(row_starts.astype("<i8").tobytes())
  digest.update(f"{VERSION} {encoded.fingerprint} {rows_per_step} {max_length}".encode())
  return digest.hexdigest()
