"""Our planner, packer and loader beside what others use to mix and pack, on the same real rows.

  pip install trl datasets accelerate torch      # for the peers; without them they are passed over
  python benchmarks/peers.py --data ../shared/data

The rows of benchmarks/real.py, tokenised once. Every side gets the same rows of a mixture (90 % English, the rest
in eleven languages of very different size) and makes one epoch of packed rows of it, on one core:

  datasets + trl   interleave_datasets by probabilities, trl.pack_dataset, the sampler and the collator of trl's trainer
  grain            MapDataset.mix by weights, one of its packers (64 open rows, as ours), batch; one thread, which
                   is faster here than its default of 16
  mlit_jax         make_plan and load_batches; the order by examples (as asked), or by tokens

Time is from tokenised rows to the last batch. Everything else is measured on rows whose tokens are
their own number, so that the batches show which example stands where.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import measures
import numpy as np
import real

from mlit_jax.data.encoded import COLUMNS, Encoded
from mlit_jax.data.loader import load_batches
from mlit_jax.data.plan import make_plan
from mlit_jax.data.tokenizer import Tokenizer

COUNTS = {"en": 5389, "fi": 211, "es": 127, "cs": 73, "*": 187}
MAX_LENGTH, ROWS, SEED, OPEN_ROWS, WINDOW = 2048, 4, 0, 64, 200


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", type=Path, default=real.DATA)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
  print(versions())
  with tempfile.TemporaryDirectory() as folder:
    tokenizer = Tokenizer.load(str(real.ROOT / "mlit_jax/assets/tokenizer12"))
    material = Material.of(real.real_examples(Path(folder), tokenizer, MAX_LENGTH, args.data))
    print(material.describe())
    sides = all_sides()
    figures = {name: measured(make, material) for name, make in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):  # in turn, so that a busy minute hits all
      for name, make in sides.items():
        began = time.perf_counter()
        for _ in make(material).batches():
          pass
        seconds[name].append(time.perf_counter() - began)
    print_table(figures, seconds)


@dataclasses.dataclass(frozen=True)
class Material:
  """The rows of the mixture, each once and in random order: what every side is given."""

  encoded: Encoded

  @classmethod
  def of(cls, encoded: Encoded) -> Material:
    rows = _plan(encoded, {"counts": COUNTS}).examples
    columns = {name: getattr(encoded, name)[rows] for name in (*COLUMNS, "ids")}
    return cls(dataclasses.replace(encoded, **columns))

  def numbered(self) -> Material:
    """The same with tokens that say which example they are of: its number, plus 1 since 0 is padding."""
    e = self.encoded
    flat = np.zeros_like(e.tokens)
    for i in range(len(e)):
      flat[e.starts[i] : e.starts[i] + e.lengths[i]] = i + 1
    return Material(dataclasses.replace(e, tokens=flat))

  @functools.cached_property
  def parts(self) -> list[np.ndarray]:
    """The example numbers of each language."""
    return [np.flatnonzero(self.encoded.language == k) for k in range(self.num_languages)]

  @property
  def num_languages(self) -> int:
    return len(self.encoded.languages)

  @property
  def shares(self) -> list[float]:
    return [len(rows) / len(self.encoded) for rows in self.parts]

  def describe(self) -> str:
    e = self.encoded
    counts = ", ".join(
      f"{k} {len(rows):,}" for k, rows in zip(e.languages, self.parts, strict=True)
    )
    return f"{len(e):,} rows ({counts}), {e.lengths.sum():,} tokens; packed to {MAX_LENGTH:,}, {ROWS} rows a step"


# --- the sides: batches() -> delivered things, grid(thing) -> numbers, save(...) -> state for batches(state)


class Ours:
  def __init__(self, material: Material, unit: str):
    self.encoded, self.unit = material.encoded, unit

  def batches(self, state: int = 0) -> Iterator:
    total = int(self.encoded.sizes(self.unit).sum())  # all of them, in the mixture that they are
    plan = _plan(self.encoded, {"temperature": 1, "total": total, "unit": self.unit})
    return load_batches(self.encoded, plan, state)

  def grid(self, batch) -> np.ndarray:
    return batch.tokens.astype(np.int64) - 1

  def save(self, batches, taken: int) -> int:
    return taken


def _plan(encoded: Encoded, mixture: dict):
  return make_plan(encoded, mixture, seed=SEED, rows_per_step=ROWS, max_length=MAX_LENGTH, epochs=1)


class Grain:
  """`packer` has the last word on how rows are made: IterDataset -> IterDataset."""

  def __init__(self, material: Material, packer: Callable):
    self.material, self.packer = material, packer

  def batches(self, state: dict | None = None) -> Iterator:
    import grain

    parts = [
      grain.MapDataset.source(_Rows(self.material.encoded, rows)) for rows in self.material.parts
    ]
    mixed = grain.MapDataset.mix(parts, weights=self.material.shares)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterator = iter(self.packer(mixed.to_iter_dataset(options)).batch(ROWS))
    if state is not None:
      iterator.set_state(state)
    return iterator

  def grid(self, batch) -> np.ndarray:
    return batch["tokens"].astype(np.int64) - 1

  def save(self, batches, taken: int) -> dict:
    return batches.get_state()


class _Rows:
  """Examples of one language as grain reads them."""

  def __init__(self, encoded: Encoded, rows: np.ndarray):
    self.encoded, self.rows = encoded, rows

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, k) -> dict[str, np.ndarray]:
    i = self.rows[int(k)]
    return {"tokens": self.encoded.tokens_of(i), "trained": self.encoded.trained_of(i)}


class Trl:
  """interleave_datasets, pack_dataset, and what trl's trainer does with the result: shuffle and collate."""

  def __init__(self, material: Material, stopping: str, strategy: str):
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()  # else a second round would read the first one's files
    e = material.encoded
    self.material, self.stopping, self.strategy = material, stopping, strategy
    self.parts = []
    for rows in material.parts:
      tokens = [e.tokens_of(i).astype(np.int32) for i in rows]
      marks = zip(tokens, rows, strict=True)
      labels = [np.where(e.trained_of(i) > 0, ids, -100).astype(np.int32) for ids, i in marks]
      self.parts.append(datasets.Dataset.from_dict({"input_ids": tokens, "labels": labels}))

  def packed(self, parts):
    import datasets
    import trl

    mixed = datasets.interleave_datasets(
      parts, probabilities=self.material.shares, seed=SEED, stopping_strategy=self.stopping
    )
    return trl.pack_dataset(mixed, MAX_LENGTH, self.strategy)

  def collator(self):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(
      pad_token_id=0, padding_free=self.strategy.startswith("bfd")
    )

  def batches(self, state: int = 0) -> Iterator:
    import torch.utils.data
    from accelerate.data_loader import SeedableRandomSampler, skip_first_batches

    packed, collator = self.packed(self.parts), self.collator()
    loader = torch.utils.data.DataLoader(
      packed,
      batch_size=ROWS,
      sampler=SeedableRandomSampler(packed, data_seed=SEED),
      collate_fn=lambda rows: (collator(rows), [len(row["input_ids"]) for row in rows]),
    )
    return iter(skip_first_batches(loader, state) if state else loader)

  def grid(self, delivered) -> np.ndarray:
    """Rows of MAX_LENGTH, also where the collator lays them end to end."""
    batch, lengths = delivered
    ids = batch["input_ids"].numpy().astype(np.int64)
    out = np.zeros((len(lengths), MAX_LENGTH), np.int64)
    rows = np.split(ids[0], np.cumsum(lengths)[:-1]) if len(ids) != len(lengths) else ids
    for row, (values, length) in enumerate(zip(rows, lengths, strict=True)):
      out[row, :length] = values[:length]
    return out - 1

  def save(self, batches, taken: int) -> int:
    return taken


class TrlStreaming(Trl):
  """The same with streams, which keep a state of their own and which the trainer does not shuffle."""

  def batches(self, state: dict | None = None) -> Iterator:
    self.stream = self.packed([part.to_iterable_dataset() for part in self.parts])
    if state is not None:
      self.stream.load_state_dict(state)
    return self._grouped(self.stream, self.collator())

  def _grouped(self, stream, collator):
    rows = []
    for row in stream:
      rows.append(row)
      if len(rows) == ROWS:
        yield collator(rows), [len(r["input_ids"]) for r in rows]
        rows = []
    if rows:
      yield collator(rows), [len(r["input_ids"]) for r in rows]

  def save(self, batches, taken: int) -> dict:
    return self.stream.state_dict()


def all_sides() -> dict[str, Callable[[Material], object]]:
  """{name: how to make it}; what is not installed is named and left out."""
  sides = ours()
  try:
    for stopping, strategy in (
      ("first_exhausted", "bfd"),
      ("all_exhausted", "bfd"),
      ("all_exhausted_without_replacement", "bfd"),
      ("first_exhausted", "wrapped"),
      ("all_exhausted", "wrapped"),
    ):
      sides[f"datasets {stopping}, trl {strategy}"] = _trl(Trl, stopping, strategy)
    sides["the same as streams, first_exhausted, trl bfd"] = _trl(
      TrlStreaming, "first_exhausted", "bfd"
    )
    for name in ("datasets", "trl", "accelerate", "torch"):
      importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError as e:
    print(f"{e.name} is not installed: datasets and trl are passed over")
    sides = ours()
  try:
    from grain.experimental import (
      BestFitPackIterDataset,
      ConcatThenSplitIterDataset,
      FirstFitPackIterDataset,
    )
  except ImportError as e:
    print(f"this grain lacks packers ({e}): it is passed over")
    return sides
  size = {"tokens": MAX_LENGTH, "trained": MAX_LENGTH}
  for name, packer in (("FirstFit", FirstFitPackIterDataset), ("BestFit", BestFitPackIterDataset)):
    sides[f"grain mix, {name}"] = _grain(
      lambda ds, p=packer: p(ds, length_struct=size, num_packing_bins=OPEN_ROWS)
    )
  sides["grain mix, ConcatThenSplit"] = _grain(
    lambda ds: ConcatThenSplitIterDataset(ds, length_struct=size)
  )
  return sides


def ours() -> dict[str, Callable]:
  return {
    "mlit_jax": lambda material: Ours(material, "examples"),
    "mlit_jax, order by tokens": lambda material: Ours(material, "tokens"),
  }


def _trl(kind, stopping, strategy):
  return lambda material: kind(material, stopping, strategy)


def _grain(packer):
  return lambda material: Grain(material, packer)


# --- measuring and printing


def measured(make: Callable, material: Material) -> dict:
  """Everything but time, from the batches of a whole run and of one stopped in the middle."""
  numbered = material.numbered()
  side = make(numbered)
  grids = [side.grid(b) for b in side.batches()]
  e, names = material.encoded, material.encoded.languages
  tokens = measures.tokens_by_step(grids, e.language, len(names))
  examples = measures.examples_by_step(grids, e.lengths, e.language, len(names))
  asked = np.bincount(e.language, minlength=len(names))
  got = examples.sum(axis=0)
  worst = int(np.abs(got - asked).argmax())
  due = {"examples": asked / asked.sum()}
  due["tokens"] = np.bincount(e.language, e.lengths, len(names)) / e.lengths.sum()
  figures = {
    "rows": sum(len(g) for g in grids),
    "fill": measures.fill(grids),
    "got": float(got.sum()),
    "worst": f"{names[worst]} {got[worst] - asked[worst]:+,.0f} of {asked[worst]:,}",
    "exact": bool(np.abs(got - asked).max() < 0.01),
    "cut": measures.num_cut(grids, e.lengths),
    "resume": resumed(make, numbered, grids, len(grids) // 2),
  }
  for unit, by_step in (("examples", examples), ("tokens", tokens)):
    prefix, lang = measures.worst_prefix(by_step, due[unit])
    figures[f"prefix {unit}"] = f"{prefix:,.0f} ({names[lang]})"
    window, lang = measures.worst_window(by_step, due[unit], WINDOW)
    figures[f"window {unit}"] = f"{window:.2f} ({names[lang]})"
  return figures


def resumed(make: Callable, material: Material, whole: list, taken: int) -> str:
  """Stop after `taken` batches, save, start again from nothing but the state, and compare."""
  first = make(material)
  batches = first.batches()
  for _ in range(taken):
    next(batches)
  state = first.save(batches, taken)
  second = make(material)
  rest = [second.grid(b) for b in second.batches(state)]
  same, repeated, skipped = measures.compare_resumed(whole, taken, rest, material.encoded.lengths)
  return "same" if same else f"repeats {repeated:,.0f}, skips {skipped:,.0f}"


def print_table(figures: dict[str, dict], seconds: dict[str, list[float]]) -> None:
  print("\n| | rows | full | examples/s | got | worst language | cut | resumed |")
  print("|---|--:|--:|--:|--:|---|--:|---|")
  for name, f in figures.items():
    rates = [f["got"] / s for s in seconds[name]]
    rate = f"{np.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
    worst = "exact" if f["exact"] else f["worst"]
    print(
      f"| {name} | {f['rows']:,} | {f['fill']:.2%} | {rate} | {f['got']:,.0f} | {worst} | {f['cut']:,} | {f['resume']} |"
    )
  print("\n| | prefix, examples | prefix, tokens | window, examples | window, tokens |")
  print("|---|--:|--:|--:|--:|")
  for name, f in figures.items():
    cells = (
      f[f"{what} {unit}"] for what in ("prefix", "window") for unit in ("examples", "tokens")
    )
    print(f"| {name} | {' | '.join(cells)} |")


def versions() -> str:
  found = [f"Python {platform.python_version()}"]
  for name in ("grain", "datasets", "trl", "accelerate", "torch", "numpy"):
    try:
      found.append(f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
      found.append(f"{name} not installed")
  return f"{os.cpu_count()} cores ({platform.machine()}), one used; " + ", ".join(found)


if __name__ == "__main__":
  main()
