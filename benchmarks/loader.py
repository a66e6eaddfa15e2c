"""How fast the packed loader delivers, and what it costs beside a train step.

  python benchmarks/loader.py

One core, token cache on disk and mapped into memory, natural lengths (log-normal, median 220), rows of
2,048 tokens. Then the quick start's own rows beside the quick start's own step. Prints rates and ratios.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import tempfile
import time
from pathlib import Path

import numpy as np

from mlit_jax.data import cache
from mlit_jax.data.encoded import Encoded
from mlit_jax.data.loader import gather_rows, load_batches
from mlit_jax.data.plan import make_plan

LANGUAGES = ("ar", "en", "fi", "hi", "ru", "sw", "zh")


def main():
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
  with tempfile.TemporaryDirectory() as folder:
    encoded = cached_examples(Path(folder), examples=20_000, max_length=2048)
    spec = {"uniform": {"total": len(encoded) // 2}}
    began = time.perf_counter()
    plan = make_plan(encoded, spec, seed=0, rows_per_step=16, max_length=2048, epochs=2)
    planned = len(plan.examples) / (time.perf_counter() - began)
    fill = encoded.lengths[plan.examples].sum() / (plan.steps * 16 * 2048)
    print(f"plan: {planned:,.0f} examples/s, rows {fill:.2%} full")
    tokens = plan.steps * 16 * 2048
    rates = {"gather alone": [], "through grain": []}
    for _ in range(5):
      began = time.perf_counter()
      for step in range(plan.steps):
        gather_rows(encoded, plan.rows(step), 2048)
      rates["gather alone"].append(tokens / (time.perf_counter() - began))
      began = time.perf_counter()
      delivered = sum(batch.tokens.size for batch in load_batches(encoded, plan, 0))
      assert delivered == tokens
      rates["through grain"].append(tokens / (time.perf_counter() - began))
    for name, values in rates.items():
      print(
        f"{name}: {np.median(values) / 1e6:.1f} million tokens/s"
        f" (min {min(values) / 1e6:.1f}, max {max(values) / 1e6:.1f}; target 20)"
      )
  beside_the_step()


def cached_examples(folder: Path, *, examples: int, max_length: int) -> Encoded:
  """Random examples, written to the token cache and read back as a run does."""
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(np.log(220), 1.0, examples).astype(int), 8, max_length)
  total = int(lengths.sum())
  arrays = {
    "tokens": rng.integers(0, 32_000, total).astype(np.uint32),
    "trained": (rng.random(total) < 0.7).astype(np.uint8),
    "ids": rng.integers(0, 2**63, (examples, 2), dtype=np.uint64),
    "starts": np.cumsum(lengths) - lengths,
    "lengths": lengths,
    "trained_counts": lengths * 7 // 10,
    "language": rng.integers(0, len(LANGUAGES), examples),
    "row": np.arange(examples) + 1,
  }
  zeros = np.zeros(examples, np.int64)
  for name, dtype in cache.FILES.items():
    np.ascontiguousarray(arrays.get(name, zeros), dtype).tofile(folder / f"{name}.bin")
  tables = {"rows_read": {}, "dropped": {}, "flagged": {}, "fingerprint": "benchmark"}
  tables |= {"language_judged": {}, "language_judged_every": 0}
  tables |= {"languages": LANGUAGES, "sources": ["rows"], "files": ["rows"]}
  cache.write_meta(folder, tables)
  return cache.load(folder)


def beside_the_step():
  """The quick start's loader against the quick start's step, in one run."""
  import jax
  from step import quickstart_parts  # the file beside this one

  parts = quickstart_parts()
  encoded, plan = parts.encoded, parts.plan
  state, batch = parts.state, parts.batch
  with jax.set_mesh(parts.mesh):
    state, metrics = parts.train_step(state, batch)
    jax.block_until_ready(metrics)
    step_seconds, load_seconds = [], []
    for step in range(5):
      began = time.perf_counter()
      state, metrics = parts.train_step(state, batch)
      jax.block_until_ready(metrics)
      step_seconds.append(time.perf_counter() - began)
      began = time.perf_counter()
      for _ in range(20):
        gather_rows(encoded, plan.rows(step), plan.max_length)
      load_seconds.append((time.perf_counter() - began) / 20)
  ratio = np.median(load_seconds) / np.median(step_seconds)
  print(
    f"quick start: a batch {np.median(load_seconds) * 1e3:.2f} ms, a step {np.median(step_seconds) * 1e3:.0f} ms,"
    f" ratio {ratio:.2%} (target below 1 %)"
  )


if __name__ == "__main__":
  main()
